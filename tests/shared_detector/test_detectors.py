import os
import pickle
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import ExifTags, Image

from yolo_distill.components.shared.detector import detect, open_detector, read_batches, read_image, require_classes
from yolo_distill.components.shared.detector.instructions import VARIABLE
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import ModelCard, digest_files, read_card, write_card

CLASSES = ["cat", "dog", "owl"]


def run_python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment}).stdout


def write_model_card(folder: Path, format: str, file: str, imgsz: int = 64, classes: list[str] = CLASSES) -> Path:
    card = ModelCard(
        name="tiny",
        format=format,
        file=file,
        digests=digest_files(folder),
        imgsz=imgsz,
        classes=classes,
        architecture="tiny",
        parameters=1,
        gflops=0.0,
    )
    write_card(folder, card)
    return folder


def onnx_model(folder: Path, output: list[int | str], batch: int | str = 1) -> Path:
    """An ONNX artifact that answers every image with its mean brightness at every place of its output."""
    folder.mkdir()
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0),
        helper.make_node("Shape", ["images"], ["batch"], end=1),
        helper.make_node("Reshape", ["mean", "ones"], ["column"]),
        helper.make_node("Concat", ["batch", "rest"], ["shape"], axis=0),
        helper.make_node("Expand", ["column", "shape"], ["answer"]),
    ]
    rest = np.array(output, np.int64)
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, 64, 64])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, [batch, *output])],
        [
            onnx.numpy_helper.from_array(np.array([1, 2, 3]), "axes"),
            onnx.numpy_helper.from_array(np.array([-1] + [1] * len(output)), "ones"),
            onnx.numpy_helper.from_array(rest, "rest"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "m.onnx")
    return write_model_card(folder, "onnx", "m.onnx")


@pytest.mark.parametrize("batch", [1, "batch"])
def test_onnx_takes_any_batch(tmp_path, batch):
    detector = open_detector(onnx_model(tmp_path / "model", [7, 20], batch))
    images = np.random.default_rng(0).random((3, 3, 64, 64), dtype=np.float32)
    answers = detector.infer(images)
    assert answers.shape == (3, 7, 20)
    assert answers[:, 0, 0] == pytest.approx(images.mean(axis=(1, 2, 3)), abs=1e-5)
    assert (detector.classes, detector.imgsz) == (CLASSES, 64)


def openvino_model(folder: Path, batch: int | str = 1) -> Path:
    """The same as an OpenVINO artifact."""
    import openvino

    source = onnx_model(folder / f"onnx-{batch}", [7, 20], batch)
    target = folder / f"openvino-{batch}"
    target.mkdir()
    openvino.save_model(openvino.convert_model(source / "m.onnx"), target / "m.xml", compress_to_fp16=False)
    return write_model_card(target, "openvino", "m.xml")


def test_openvino_takes_any_batch_and_keeps_earlier_answers(tmp_path):
    for batch in (1, "batch"):
        detector = open_detector(openvino_model(tmp_path, batch), threads=1)
        images = np.random.default_rng(0).random((3, 3, 64, 64), dtype=np.float32)
        first = detector.infer(images[:1])
        answers = detector.infer(images)
        assert answers[:, 0, 0] == pytest.approx(images.mean(axis=(1, 2, 3)), abs=1e-5)
        detector.infer(images[1:2])
        assert np.array_equal(first, answers[:1])


def test_a_pytorch_model_detects_in_images_of_any_size(student_dir):
    detector = open_detector(student_dir)
    images = [np.full(shape, 200, np.uint8) for shape in ((90, 160, 3), (300, 40, 3))]
    found = detect(detector, images)
    assert len(found) == 2
    for image, detections in zip(images, found, strict=True):
        assert detections.boxes.max(initial=0) <= max(image.shape)
    assert detect(detector, []) == []


def test_no_runtime_is_imported_before_it_is_needed():
    code = """
        import sys
        import yolo_distill.components.shared.detector
        print({"torch", "onnxruntime", "openvino"} & set(sys.modules))
    """
    assert run_python(code) == "set()\n"


@pytest.mark.parametrize(
    "module",
    [
        "yolo_distill.components.shared.detector.openvino_runtime",
        "yolo_distill.components.export_openvino.export",
        "yolo_distill.components.quantize.quantize",
    ],
)
def test_openvino_is_kept_from_reporting_home_before_it_is_imported(module):
    code = f"""
        import os, sys
        class Watcher:
            def find_spec(self, name, path=None, target=None):
                if name in ("openvino", "nncf"):
                    print(name, sys.modules.get("openvino_telemetry", "may report"), flush=True)
                    os._exit(0)
        sys.meta_path.insert(0, Watcher())
        import {module}
    """
    assert run_python(code).splitlines()[-1] in ("openvino None", "nncf None")


def test_openvino_leaves_no_trace_of_a_report(tmp_path):
    code = """
        import sys
        def watch(event, arguments):
            if event in ("socket.connect", "socket.getaddrinfo"):
                print(event, arguments)
        sys.addaudithook(watch)
        import yolo_distill.components.shared.detector.openvino_runtime
    """
    assert run_python(code, HOME=str(tmp_path)) == ""
    # Its client id would lie here.
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("gflops", "users", "seen"), [(2.2, None, "AVX512_CORE_FP16"), (8.7, None, None), (2.2, "AVX2", "AVX2")]
)
def test_openvino_does_without_amx_where_a_network_is_small(tmp_path, monkeypatch, gflops, users, seen):
    from yolo_distill.components.shared.detector import openvino_runtime

    folder = openvino_model(tmp_path)
    card = read_card(folder)
    write_card(folder, card.model_copy(update={"gflops": gflops}))
    monkeypatch.setenv(VARIABLE, users) if users else monkeypatch.delenv(VARIABLE, raising=False)
    limits = []

    class Watched(openvino_runtime.OpenVinoNetwork):
        def __init__(self, *arguments):
            limits.append(os.environ.get(VARIABLE))
            super().__init__(*arguments)

    monkeypatch.setattr(openvino_runtime, "OpenVinoNetwork", Watched)
    open_detector(folder)
    assert limits == [seen]
    # Other programs that are started later decide for themselves.
    assert os.environ.get(VARIABLE) == users


def test_a_folder_without_a_card(tmp_path):
    with pytest.raises(InputError, match=r"is not a model artifact, it has no model\.json"):
        open_detector(tmp_path)


def test_a_truncated_onnx_file(tmp_path):
    folder = onnx_model(tmp_path / "model", [7, 20])
    (folder / "m.onnx").write_bytes((folder / "m.onnx").read_bytes()[:-100])
    with pytest.raises(InputError, match="differs from the digest"):
        open_detector(folder)
    write_model_card(folder, "onnx", "m.onnx")
    with pytest.raises(InputError, match="cannot be run in onnx format: "):
        open_detector(folder)


def test_an_openvino_model_without_its_weights(tmp_path):
    (tmp_path / "m.xml").write_text("<net/>")
    with pytest.raises(InputError, match=r"m\.bin is missing"):
        open_detector(write_model_card(tmp_path, "openvino", "m.xml"))


def test_a_classifier(tmp_path):
    with pytest.raises(InputError, match=r"an output of shape 1x7xN is expected .*, it has 1x1000"):
        open_detector(onnx_model(tmp_path / "model", [1000]))


def test_a_detector_of_other_classes_than_its_card_says(tmp_path):
    with pytest.raises(InputError, match=r"is not a detector of 3 classes: .*1x7xN.*, it has 1x84x20"):
        open_detector(onnx_model(tmp_path / "model", [84, 20]))


def test_a_model_of_another_input_size_than_its_card_says(tmp_path):
    folder = onnx_model(tmp_path / "model", [7, 20])
    with pytest.raises(InputError, match="takes images of 64x64 pixels, not 96x96"):
        open_detector(write_model_card(folder, "onnx", "m.onnx", imgsz=96))


class Intruder:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("place", ["model", "train_args"])
@pytest.mark.parametrize("pickler", ["zip", "legacy", "plain"])
def test_a_checkpoint_that_would_run_code(tmp_path, place, pickler):
    loot = tmp_path / "loot"
    checkpoint = {"model": None, "train_args": {}, place: Intruder(loot)}
    folder = tmp_path / "model"
    folder.mkdir()
    if pickler == "plain":
        (folder / "m.pt").write_bytes(pickle.dumps(checkpoint))
    else:
        torch.save(checkpoint, folder / "m.pt", _use_new_zipfile_serialization=pickler == "zip")
    with pytest.raises(InputError, match=r"not an ordinary ultralytics checkpoint"):
        open_detector(write_model_card(folder, "pytorch", "m.pt"))
    assert not loot.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(InputError, match="not an ordinary ultralytics checkpoint"):
        open_detector(write_model_card(tmp_path, "pytorch", "m.pt"))


def test_a_checkpoint_without_a_detection_network(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "m.pt")
    with pytest.raises(InputError, match="holds a Linear, not a DetectionModel"):
        open_detector(write_model_card(tmp_path, "pytorch", "m.pt"))


def test_classes_must_be_the_datasets_in_its_order(student_dir, digits):
    card = read_card(student_dir)
    require_classes(student_dir, card, digits.classes)
    with pytest.raises(InputError, match=r"its classes \(10: .*\) are not the dataset's \(10: "):
        require_classes(student_dir, card, digits.classes[::-1])


def test_images_are_read_in_order(digits):
    paths = [digits.image_path(record) for record in digits.split("train")[:7]]
    batches = list(read_batches(paths, 3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    for path, image in zip(paths, [image for batch in batches for image in batch], strict=True):
        assert np.array_equal(image, read_image(path))
    assert list(read_batches([], 3)) == []


def grey(image, path):
    image.convert("L").convert("RGB").save(path.with_name("plain.png"))
    image.convert("L").save(path)


def deep(image, path):
    Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257).save(path)
    grey(image, path.with_suffix(".grey.png"))


def cmyk(image, path):
    image.save(path.with_name("plain.png"))
    image.convert("CMYK").save(path, quality=100, subsampling=0)


def lying(image, path):
    image.save(path.with_name("plain.png"))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=100, subsampling=0)


@pytest.mark.parametrize("size", [(48, 32), (1, 1)])
@pytest.mark.parametrize(("make", "name"), [(grey, "i.png"), (deep, "i.png"), (cmyk, "i.jpg"), (lying, "i.jpg")])
def test_unusual_images_are_detected_in_as_usual_ones(student_dir, digits, tmp_path, make, name, size):
    scene = Image.open(digits.image_path(digits.split("val")[0])).convert("RGB")
    make(scene.crop((40, 40, 40 + size[0], 40 + size[1])), tmp_path / name)
    image, plain = read_image(tmp_path / name), read_image(tmp_path / "plain.png")
    assert image.dtype == np.uint8
    assert image.shape == plain.shape == (size[1], size[0], 3)
    assert np.abs(image.astype(int) - plain).mean() <= 3
    [found] = detect(open_detector(student_dir), [image])
    assert np.isfinite(found.boxes).all()
    assert ((found.boxes >= 0) & (found.boxes <= [*size, *size])).all()


def test_an_image_that_cannot_be_read(tmp_path, digits):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InputError, match=r"broken\.jpg: cannot be read as an image"):
        list(read_batches([digits.image_path(digits.split("train")[0]), broken], 1))


def test_an_image_too_large_for_memory_is_refused_by_its_header(tmp_path):
    # 150 million pixels are more than Pillow only warns of, 400 million more than it refuses.
    for side in (12_300, 20_000):
        path = tmp_path / f"{side}.png"
        Image.new("1", (side, side)).save(path)
        tracemalloc.start()
        with pytest.raises(InputError, match=rf"{side}\.png: has more than 89 million pixels. Make it smaller"):
            read_image(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1_000_000

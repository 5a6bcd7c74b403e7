"""Models that other programs exported, ultralytics first: they answer as the checkpoint does, or are refused."""

import shutil
from pathlib import Path

import yolo_distill.components.shared.ultralytics_env

import yolo_distill.components.shared.detector.openvino_env  # noqa: F401  openvino reports home when imported

# isort: split
import numpy as np
import onnx
import openvino
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from ultralytics import YOLO
from ultralytics.engine.results import Boxes

from yolo_distill.components.export_openvino.parity import compare_detectors
from yolo_distill.components.shared.detector import Detections, detect, open_detector, preprocess, read_image
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import read_card

EXPECTED = r"one output of shape 1x\(4\+classes\)xN"


def export(checkpoint: Path, folder: Path, **settings: object) -> Path:
    """Let ultralytics export a copy of a checkpoint."""
    folder.mkdir(parents=True)
    shutil.copy(checkpoint, folder / "m.pt")
    made = Path(YOLO(folder / "m.pt").export(device="cpu", **settings))
    (folder / "m.pt").unlink()
    return made


@pytest.fixture(scope="module")
def checkpoint(lively_dir: Path) -> Path:
    """A checkpoint of ten classes at 160 px."""
    return lively_dir / read_card(lively_dir).file


@pytest.fixture(scope="module")
def plain(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its most ordinary export."""
    return export(checkpoint, tmp_path_factory.mktemp("plain") / "onnx", format="onnx", imgsz=160)


@pytest.fixture
def images(digits) -> list[Path]:
    return [digits.image_path(record) for record in digits.split("val")[:6]]


def test_the_checkpoint_itself(checkpoint, lively_dir, images, digits, tmp_path):
    shutil.copy(checkpoint, tmp_path / "theirs.pt")
    detector = open_detector(tmp_path / "theirs.pt")
    assert (detector.classes, detector.imgsz) == (digits.classes, 160)
    batch, _ = preprocess([read_image(path) for path in images], 160)
    assert np.array_equal(detector.infer(batch), open_detector(lively_dir).infer(batch))


@pytest.mark.parametrize(
    ("settings", "box_tolerance", "score_tolerance"),
    [
        ({"format": "onnx"}, 0.02, 1e-4),
        ({"format": "onnx", "dynamic": True}, 0.02, 1e-4),
        ({"format": "onnx", "opset": 12, "batch": 4, "simplify": False}, 0.02, 1e-4),
        ({"format": "onnx", "quantize": 16}, 25, 0.15),
        ({"format": "openvino"}, 0.02, 1e-4),
        ({"format": "openvino", "dynamic": True}, 0.02, 1e-4),
        ({"format": "openvino", "quantize": 16}, 25, 0.15),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_an_export_answers_as_its_checkpoint(
    checkpoint, lively_dir, images, digits, tmp_path, settings, box_tolerance, score_tolerance
):
    detector = open_detector(export(checkpoint, tmp_path / "export", imgsz=160, **settings))
    assert (detector.classes, detector.imgsz) == (digits.classes, 160)
    # Six images are no multiple of a batch of four.
    parity = compare_detectors(open_detector(lively_dir), detector, images)
    assert parity.anchors >= 6
    assert parity.box_difference < box_tolerance
    assert parity.score_difference < score_tolerance


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_an_int8_export_answers_about_as_its_checkpoint(checkpoint, lively_dir, images, digits, tmp_path, format):
    made = export(checkpoint, tmp_path / "export", imgsz=160, format=format, quantize=8, data=str(digits.data_yaml))
    parity = compare_detectors(open_detector(lively_dir), open_detector(made), images)
    assert parity.score_difference > 0
    assert parity.candidate_score == pytest.approx(parity.reference_score, rel=0.4)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_an_input_that_is_no_square(checkpoint, images, tmp_path, format):
    detector = open_detector(export(checkpoint, tmp_path / "export", imgsz=[96, 160], format=format))
    assert detector.imgsz == (96, 160)
    pictures = [read_image(path)[:100] for path in images]
    batch, _ = preprocess(pictures, detector.imgsz)
    assert batch.shape == (6, 3, 96, 160)
    reference = open_detector(checkpoint).infer(batch)
    assert detector.infer(batch) == pytest.approx(reference, abs=0.01)
    expected = YOLO(checkpoint).predict(pictures, imgsz=[96, 160], rect=False, conf=0.001, iou=0.7, verbose=False)
    for ours, theirs in zip(detect(detector, pictures), expected, strict=True):
        assert_holds(ours, theirs.boxes[:1])


def assert_holds(ours: Detections, theirs: Boxes) -> None:
    """Ultralytics' prediction takes a box for its best class alone; each of those must be among ours."""
    assert len(theirs) > 0
    for label, score, box in zip(theirs.cls.numpy(), theirs.conf.numpy(), theirs.xyxy.numpy(), strict=True):
        same = (ours.classes == label) & (np.abs(ours.scores - score) < 1e-3)
        assert np.abs(ours.boxes[same] - box).max(axis=1).min(initial=np.inf) < 0.5


def test_a_size_of_the_users_choice(checkpoint, plain, tmp_path):
    dynamic = export(checkpoint, tmp_path / "dynamic", format="onnx", imgsz=160, dynamic=True)
    assert open_detector(dynamic, imgsz=96).infer(np.zeros((2, 3, 96, 96), np.float32)).shape == (2, 14, 189)
    assert open_detector(plain, imgsz=160).imgsz == 160
    with pytest.raises(InputError, match="takes images of 160x160 pixels, not 96x96"):
        open_detector(plain, imgsz=96)
    model = onnx.load(dynamic)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(InputError, match=r"takes images of any size and says no usual one\. Choose one with --imgsz"):
        open_detector(tmp_path / "bare.onnx")
    assert open_detector(tmp_path / "bare.onnx", imgsz=128).imgsz == 128


def test_a_model_that_names_no_classes(plain, lively_dir, images, tmp_path):
    model = onnx.load(plain)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    openvino.save_model(openvino.convert_model(tmp_path / "bare.onnx"), tmp_path / "bare.xml", compress_to_fp16=False)
    for name in ("bare.onnx", "bare.xml"):
        detector = open_detector(tmp_path / name)
        assert (detector.classes, detector.imgsz) == ([str(index) for index in range(10)], 160)
        assert compare_detectors(open_detector(lively_dir), detector, images).score_difference < 1e-4


def test_class_names_come_from_where_ultralytics_or_openvino_write_them(checkpoint, plain, tmp_path):
    named = {0: "zero", 1: "one", **{digit: f"digit {digit}" for digit in range(2, 10)}}
    model = onnx.load(plain)
    next(entry for entry in model.metadata_props if entry.key == "names").value = str(named)
    onnx.save(model, tmp_path / "m.onnx")
    openvino.save_model(openvino.convert_model(tmp_path / "m.onnx"), tmp_path / "converted.xml")
    made = export(checkpoint, tmp_path / "openvino", format="openvino", imgsz=160)
    content = yaml.safe_load((made / "metadata.yaml").read_text())
    (made / "metadata.yaml").write_text(yaml.safe_dump({**content, "names": named}))
    for place in (tmp_path / "m.onnx", tmp_path / "converted.xml", made, next(made.glob("*.xml"))):
        assert open_detector(place).classes == list(named.values())


@pytest.mark.parametrize("names", ["__import__('os').system('touch loot')", "(" * 100_000, "{1: 'one'}", "7", ""])
def test_metadata_are_only_read(plain, tmp_path, monkeypatch, names):
    monkeypatch.chdir(tmp_path)
    model = onnx.load(plain)
    next(entry for entry in model.metadata_props if entry.key == "names").value = names
    onnx.save(model, "m.onnx")
    assert open_detector(Path("m.onnx")).classes == [str(index) for index in range(10)]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def transposed(source: Path, target: Path, *, named: bool = True) -> Path:
    """Let a model answer [B, N, 4 + classes]."""
    model = onnx.load(source)
    if not named:
        del model.metadata_props[:]
    [output] = model.graph.output
    dims = [dim.dim_value for dim in output.type.tensor_type.shape.dim]
    model.graph.node.append(helper.make_node("Transpose", [output.name], ["turned"], perm=[0, 2, 1]))
    turned = helper.make_tensor_value_info("turned", TensorProto.FLOAT, [dims[0], dims[2], dims[1]])
    model.graph.output.remove(output)
    model.graph.output.append(turned)
    onnx.save(model, target)
    return target


@pytest.mark.parametrize("named", [True, False])
def test_a_transposed_output(plain, lively_dir, images, tmp_path, named):
    source = transposed(plain, tmp_path / "m.onnx", named=named)
    openvino.save_model(openvino.convert_model(source), tmp_path / "m.xml", compress_to_fp16=False)
    for path in (source, tmp_path / "m.xml"):
        parity = compare_detectors(open_detector(lively_dir), open_detector(path), images)
        assert parity.score_difference < 1e-4
        assert parity.box_difference < 0.02


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 classes at 64 px: as many channels as anchor points, 84."""
    return untrained("yolov8n.yaml", tmp_path_factory.mktemp("square"))


def untrained(architecture: str, folder: Path, **settings: object) -> Path:
    YOLO(architecture).save(folder / "untrained.pt")
    return export(folder / "untrained.pt", folder / "export", format="onnx", imgsz=64, **settings)


def test_an_output_as_long_as_wide(square, tmp_path):
    turned = transposed(square, tmp_path / "turned.onnx", named=False)
    batch = np.random.default_rng(0).random((2, 3, 64, 64), dtype=np.float32)
    straight = open_detector(square).infer(batch)
    assert straight.shape == (2, 84, 84)
    assert open_detector(turned).infer(batch) == pytest.approx(straight, abs=1e-4)


def test_an_fp16_input(plain, lively_dir, images, tmp_path):
    half = convert_float_to_float16(onnx.load(plain), keep_io_types=False)
    onnx.save(half, tmp_path / "m.onnx")
    openvino.save_model(openvino.convert_model(tmp_path / "m.onnx"), tmp_path / "m.xml")
    for name in ("m.onnx", "m.xml"):
        detector = open_detector(tmp_path / name)
        answers = detector.infer(np.zeros((2, 3, 160, 160), np.float32))
        assert answers.dtype == np.float32
        parity = compare_detectors(open_detector(lively_dir), detector, images)
        # Random weights make more of the rounding than trained ones.
        assert parity.score_difference < 0.15
        assert parity.box_difference < 25


def test_photographs_are_detected_as_by_the_checkpoint(coco_weights, test_data, tmp_path):
    pictures = [read_image(path) for path in sorted((test_data / "coco128/images/val2017").iterdir())[:4]]
    settings = {"imgsz": 320, "rect": False, "conf": 0.25, "iou": 0.7, "verbose": False}
    expected = YOLO(coco_weights).predict(pictures, **settings)
    for format in ("onnx", "openvino"):
        detector = open_detector(export(coco_weights, tmp_path / format, format=format, imgsz=320))
        assert detector.classes[:2] == ["person", "bicycle"]
        for ours, theirs in zip(detect(detector, pictures, 0.25), expected, strict=True):
            assert_holds(ours, theirs.boxes)


@pytest.mark.parametrize("task", ["cls", "seg", "pose", "obb"])
def test_a_model_for_another_task(tmp_path, task):
    made = untrained(f"yolov8n-{task}.yaml", tmp_path)
    with pytest.raises(InputError, match=r"is made for the task '\w+', not for detection\. Give a YOLOv8"):
        open_detector(made)
    with pytest.raises(InputError, match=r"holds a \w+Model, not a DetectionModel"):
        open_detector(tmp_path / "untrained.pt")
    model = onnx.load(made)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(InputError, match=EXPECTED):
        open_detector(tmp_path / "bare.onnx")


def test_an_export_with_suppression_inside(checkpoint, tmp_path):
    made = export(checkpoint, tmp_path / "export", format="onnx", imgsz=160, nms=True)
    with pytest.raises(InputError, match=rf"{EXPECTED}.*; it gives 1x300x6 .*exported without NMS"):
        open_detector(made)
    model = onnx.load(made)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(InputError, match=EXPECTED):
        open_detector(tmp_path / "bare.onnx")


def constant(folder: Path, answer: np.ndarray, image: list[int | str], kind: int = TensorProto.FLOAT) -> Path:
    """A model that gives the same answer to every image."""
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
        helper.make_node("Add", ["zero", "answer"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("images", kind, image)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, answer.shape)],
        [
            numpy_helper.from_array(answer.astype(np.float32), "answer"),
            numpy_helper.from_array(np.float32(0), "nothing"),
        ],
    )
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "m.onnx")
    return folder / "m.onnx"


def answer(scores: float = 0.01, boxes: float = 30.0, points: int = 84, classes: int = 3) -> np.ndarray:
    return np.concatenate([np.full((1, 4, points), boxes), np.full((1, classes, points), scores)], axis=1)


def test_a_made_up_detector_is_taken(tmp_path):
    assert open_detector(constant(tmp_path, answer(), [1, 3, 64, 64])).classes == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("output", "image", "kind", "problem"),
    [
        (answer(scores=-3), [1, 3, 64, 64], TensorProto.FLOAT, r"class scores lie in -3\.\.-3"),
        (answer(scores=0.9), [1, 3, 64, 64], TensorProto.FLOAT, r"with a median up to 0\.9"),
        (answer(scores=np.nan), [1, 3, 64, 64], TensorProto.FLOAT, r"class scores lie in nan\.\.nan"),
        (answer(boxes=0.4), [1, 3, 64, 64], TensorProto.FLOAT, "its boxes are not in pixels"),
        (answer(points=300), [1, 3, 64, 64], TensorProto.FLOAT, "it gives 1x7x300 for 64x64 pixels"),
        (answer(classes=0), [1, 3, 64, 64], TensorProto.FLOAT, "it gives 1x4x84"),
        (answer(), [1, 64, 64, 3], TensorProto.FLOAT, r"it takes 1x64x64x3 \(float32\)"),
        (answer(), [1, 1, 64, 64], TensorProto.FLOAT, "it takes 1x1x64x64"),
        (answer(), [1, 3, 64, 64], TensorProto.UINT8, r"it takes 1x3x64x64 \(uint8\)"),
    ],
)
def test_other_networks_are_refused(tmp_path, output, image, kind, problem):
    with pytest.raises(InputError, match=rf"{EXPECTED}.*{problem}"):
        open_detector(constant(tmp_path, output, image, kind))


def test_a_truncated_file(plain, tmp_path):
    data = plain.read_bytes()
    (tmp_path / "m.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"m\.onnx: cannot be run in onnx format: "):
        open_detector(tmp_path / "m.onnx")
    (tmp_path / "m.pt").write_bytes(data[:1000])
    with pytest.raises(InputError, match="not an ordinary ultralytics checkpoint"):
        open_detector(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("suffix", "share", "problem"),
    [
        (".bin", None, r"has no weights beside it, m\.bin is missing"),
        (".bin", 0.5, "cannot be run in openvino format: "),
        (".bin", 0.0, "cannot be run in openvino format: "),
        (".xml", 0.5, "cannot be run in openvino format: "),
    ],
)
def test_an_openvino_model_of_which_a_part_is_missing(plain, tmp_path, suffix, share, problem):
    openvino.save_model(openvino.convert_model(plain), tmp_path / "m.xml", compress_to_fp16=False)
    part = (tmp_path / "m.xml").with_suffix(suffix)
    data = part.read_bytes()
    part.unlink()
    if share is not None:
        part.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=problem):
        open_detector(tmp_path / "m.xml")


def test_what_is_no_model(plain, tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(InputError, match=r"notes\.txt: is not a model file. Give a model artifact's folder"):
        open_detector(tmp_path / "notes.txt")
    with pytest.raises(InputError, match=r"nowhere: there is no such file or folder"):
        open_detector(tmp_path / "nowhere")
    for name in ("a.onnx", "b.onnx"):
        shutil.copy(plain, tmp_path / name)
    with pytest.raises(InputError, match=r"holds more than one model: a\.onnx, b\.onnx\. Name one"):
        open_detector(tmp_path)


def test_a_file_of_an_artifact_is_the_artifact(lively_dir, tmp_path):
    shutil.copytree(lively_dir, tmp_path / "model")
    file = tmp_path / "model" / read_card(lively_dir).file
    assert open_detector(file).classes == read_card(lively_dir).classes
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(InputError, match="differs from the digest in its model card"):
        open_detector(file)

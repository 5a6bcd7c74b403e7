import shutil

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import numpy as np
import onnx
import openvino
import pytest
import torch
from ultralytics import YOLO

from yolo_distill.components.export_openvino import parity
from yolo_distill.components.export_openvino.export import compress, export
from yolo_distill.components.export_openvino.parity import ParityError, compare_detectors, sample_images
from yolo_distill.components.shared.detector import letterbox, open_detector, preprocess, read_image
from yolo_distill.components.shared.detector.pytorch_runtime import load_network
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import digest_files, read_card, write_card


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def exported(digits, student_dir, folder):
    return export(digits, student_dir, folder / "onnx", folder / "openvino")


def test_the_cards_lead_back_to_the_checkpoint(exported, folder, student_dir):
    student, onnx_card, openvino_card = (
        read_card(path) for path in (student_dir, folder / "onnx", folder / "openvino")
    )
    assert (onnx_card, openvino_card) == (exported.onnx, exported.openvino)
    assert (onnx_card.name, onnx_card.format, onnx_card.precision) == (f"{student.name}-onnx", "onnx", "fp32")
    assert (openvino_card.name, openvino_card.format) == (f"{student.name}-openvino", "openvino")
    assert onnx_card.lineage["parent"] == student.digests["model.pt"]
    assert openvino_card.lineage["parent"] == onnx_card.digests["model.onnx"]
    assert openvino_card.lineage["dataset"] == student.lineage["dataset"]
    assert set(openvino_card.digests) == {"model.xml", "model.bin"}
    assert (openvino_card.classes, openvino_card.imgsz) == (student.classes, student.imgsz)


def test_the_answers_stay_the_same_on_real_images(exported):
    for comparison in (exported.onnx_parity, exported.openvino_parity):
        assert comparison.images == 16
        assert comparison.box_difference < 0.05
        assert comparison.score_difference < 1e-4


@pytest.fixture(scope="module")
def fp16(exported, folder, digits):
    return *compress(digits, folder / "openvino", folder / "fp16"), folder / "fp16"


def test_fp16_halves_the_weights_and_keeps_the_answers(fp16, exported, folder):
    card, comparison, half = fp16
    assert read_card(half) == card
    assert (card.name, card.format, card.precision) == (f"{exported.openvino.name}-fp16", "openvino", "fp16")
    assert card.lineage["parent"] == exported.openvino.digest
    sizes = [(path / "model.bin").stat().st_size for path in (half, folder / "openvino")]
    assert sizes[0] == pytest.approx(sizes[1] / 2, rel=0.02)
    assert comparison.images == 16
    # Rounding to 16 bits shows, but does little.
    assert 0 < comparison.box_difference < 2
    assert 0 < comparison.score_difference < 0.02


def test_what_is_fp16_already(fp16, digits, tmp_path):
    with pytest.raises(InputError, match="is an fp16 model in openvino format"):
        compress(digits, fp16[2], tmp_path / "fp16")
    assert list(tmp_path.iterdir()) == []


def test_a_compression_that_changes_the_answers_leaves_nothing_behind(exported, folder, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "FP16_SCORE_TOLERANCE", 0.0)
    with pytest.raises(ParityError, match="The compression to FP16 changes the model's answers"):
        compress(digits, folder / "openvino", tmp_path / "fp16")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_takes_pixels(exported, folder, digits, student_dir, tmp_path):
    result = export(digits, student_dir, tmp_path / "onnx", tmp_path / "openvino", pixel_input=True)
    assert result.openvino.preprocessing == "letterbox to imgsz x imgsz, pad 114, BGR, NHWC uint8 in 0..255"
    assert result.onnx.preprocessing == "letterbox to imgsz x imgsz, pad 114, RGB, NCHW float32 in 0..1"
    model = openvino.Core().read_model(tmp_path / "openvino" / "model.xml")
    port = model.inputs[0]
    assert (port.get_element_type(), list(port.shape)) == (openvino.Type.u8, [1, 160, 160, 3])
    assert result.openvino_parity.box_difference < 0.05
    assert result.openvino_parity.score_difference < 1e-4
    # By hand: nothing but the letterbox is left to the caller.
    image = read_image(digits.image_path(digits.split("val")[0]))
    settings = {openvino.properties.hint.inference_precision: openvino.Type.f32}
    answer = openvino.Core().compile_model(model, "CPU", settings)(letterbox(image, 160)[0][None])[0]
    expected = open_detector(student_dir).infer(preprocess([image], 160)[0])
    np.testing.assert_allclose(answer, expected, atol=2e-2)


def test_batch_normalisation_is_fused_into_the_convolutions(exported, folder, student_dir):
    network = load_network(student_dir / "model.pt")
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules()) == 57
    graph = onnx.load(folder / "onnx" / "model.onnx").graph
    assert not [node.name for node in graph.node if node.op_type == "BatchNormalization"]
    stem = next(node for node in graph.node if node.op_type == "Conv")
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    norm = network.model[0].bn
    gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    expected = network.model[0].conv.weight.detach() * gain[:, None, None, None]
    np.testing.assert_allclose(weights[stem.input[1]], expected.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(weights[stem.input[2]], (norm.bias - norm.running_mean * gain).detach(), atol=1e-5)
    kinds = [op.get_type_name() for op in openvino.Core().read_model(folder / "openvino" / "model.xml").get_ops()]
    assert "BatchNormInference" not in kinds


def test_equal_weights_make_equal_files(exported, digits, student_dir, tmp_path):
    again = export(digits, student_dir, tmp_path / "onnx", tmp_path / "openvino")
    assert again.onnx.digests == exported.onnx.digests
    # The .xml names unnamed nodes by a counter of the process, and every step runs in a process of its own.
    assert again.openvino.digests["model.bin"] == exported.openvino.digests["model.bin"]


def test_the_files_do_not_tell_where_they_were_made(exported, folder, student_dir):
    for path in (folder / "onnx" / "model.onnx", folder / "openvino" / "model.xml"):
        content = path.read_bytes()
        assert b"/tmp/" not in content
        assert str(student_dir).encode() not in content


def test_openvino_keeps_float32_weights(exported, folder):
    model = openvino.Core().read_model(folder / "openvino" / "model.xml")
    weights = {op.get_element_type() for op in model.get_ops() if op.get_type_name() == "Constant"}
    assert openvino.Type.f32 in weights
    assert openvino.Type.f16 not in weights


def test_ultralytics_opens_the_onnx_model_without_this_package(exported, folder, digits, student_dir):
    image = read_image(digits.image_path(digits.split("val")[0]))
    model = YOLO(folder / "onnx" / "model.onnx", task="detect")
    result = model.predict(image, imgsz=160, conf=0.001, verbose=False)[0]
    assert list(result.names.values()) == digits.classes


def test_a_conversion_that_changes_the_answers(exported, folder, digits, student_dir, tmp_path):
    shutil.copytree(folder / "onnx", tmp_path / "onnx")
    path = tmp_path / "onnx" / "model.onnx"
    model = onnx.load(path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("cv3.0.2.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(6), bias.name))
    onnx.save(model, path)
    write_card(path.parent, exported.onnx.model_copy(update={"digests": digest_files(path.parent)}))
    images = sample_images(digits, "val", 2)
    changed = compare_detectors(open_detector(student_dir), open_detector(path.parent), images)
    with pytest.raises(ParityError):
        changed.require("The test")


def test_a_failed_check_leaves_nothing_behind(digits, student_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "SCORE_TOLERANCE", 0.0)
    with pytest.raises(ParityError, match="The export to ONNX changes the model's answers on 16 images"):
        export(digits, student_dir, tmp_path / "onnx", tmp_path / "openvino")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_pytorch(exported, folder, digits, tmp_path):
    with pytest.raises(InputError, match=r"is in onnx format\. Give a PyTorch model artifact"):
        export(digits, folder / "onnx", tmp_path / "onnx", tmp_path / "openvino")
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_other_classes(digits, student_dir, tmp_path):
    shutil.copytree(student_dir, tmp_path / "model")
    card = read_card(student_dir)
    write_card(tmp_path / "model", card.model_copy(update={"classes": card.classes[::-1]}))
    with pytest.raises(InputError, match="are not the dataset's"):
        export(digits, tmp_path / "model", tmp_path / "onnx", tmp_path / "openvino")


def test_a_checkpoint_that_was_changed(digits, student_dir, tmp_path):
    shutil.copytree(student_dir, tmp_path / "model")
    with (tmp_path / "model" / "model.pt").open("ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match="differs from the digest"):
        export(digits, tmp_path / "model", tmp_path / "onnx", tmp_path / "openvino")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

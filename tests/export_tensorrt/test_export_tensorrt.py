import importlib.util

import numpy as np
import onnx
import pytest
import torch

from yolo_distill.components.export_openvino.export import export
from yolo_distill.components.export_openvino.parity import compare_detectors, sample_images
from yolo_distill.components.export_tensorrt.export import export_engine, require_gpu, write_typed
from yolo_distill.components.quantize.calibration import draw_calibration
from yolo_distill.components.shared.detector import open_detector
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import digest_files, read_card, write_card

NO_TENSORRT = importlib.util.find_spec("tensorrt") is None


@pytest.fixture(scope="module")
def exported(digits, student_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export(digits, student_dir, folder / "onnx", folder / "openvino")
    return folder


def typed(digits, exported, folder, images):
    """The ONNX model that an engine is built from, as an artifact that ONNX Runtime runs."""
    folder.mkdir()
    calibration = draw_calibration(digits, images, 0) if images else []
    write_typed(exported / "onnx" / "model.onnx", folder / "model.onnx", digits, calibration, 160)
    card = read_card(exported / "onnx")
    write_card(folder, card.model_copy(update={"digests": digest_files(folder)}))
    return compare_detectors(open_detector(exported / "onnx"), open_detector(folder), sample_images(digits, "val", 8))


def test_fp16_stays_close_and_keeps_input_and_output(digits, exported, tmp_path):
    parity = typed(digits, exported, tmp_path / "fp16", 0)
    parity.require("The test", "fp16")
    assert parity.score_difference > 0
    model = onnx.load(tmp_path / "fp16" / "model.onnx")
    types = {tensor.type.tensor_type.elem_type for tensor in [*model.graph.input, *model.graph.output]}
    assert types == {onnx.TensorProto.FLOAT}
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    kinds = {node.name: weights[node.input[1]] for node in model.graph.node if node.op_type == "Conv"}
    # Three levels' last convolutions of boxes and of classes, and DFL's.
    assert list(kinds.values()).count(onnx.TensorProto.FLOAT) == 7
    assert list(kinds.values()).count(onnx.TensorProto.FLOAT16) == 57


def test_int8_has_what_tensorrt_takes(digits, exported, tmp_path):
    parity = typed(digits, exported, tmp_path / "int8", 8)
    assert 0 < parity.score_difference < 0.5 * parity.reference_score
    graph = onnx.load(tmp_path / "int8" / "model.onnx").graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert len(pairs) > 100
    for node in pairs:
        zero = stored[node.input[2]]
        assert zero.dtype == np.int8, node.name
        assert not zero.any(), node.name
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}


@pytest.mark.skipif(not NO_TENSORRT, reason="TensorRT is installed")
def test_without_tensorrt_nothing_is_begun(digits, exported, tmp_path, capsys):
    with pytest.raises(InputError, match=r"TensorRT: is not installed\. Install the extra 'tensorrt'"):
        export_engine(digits, exported / "onnx", tmp_path / "engine", "int8", 4)
    assert list(tmp_path.iterdir()) == []
    assert "image" not in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_begun(monkeypatch):
    monkeypatch.setattr("yolo_distill.components.export_tensorrt.export.find_spec", lambda name: object())
    with pytest.raises(InputError, match="builds an engine on the GPU that will run it, and there is none"):
        require_gpu()


@pytest.mark.skipif(not NO_TENSORRT, reason="TensorRT is installed")
def test_an_engine_is_not_opened_without_tensorrt(exported, tmp_path):
    (tmp_path / "model.engine").write_bytes(b"engine")
    card = read_card(exported / "onnx")
    update = {"format": "tensorrt", "file": "model.engine", "digests": digest_files(tmp_path)}
    write_card(tmp_path, card.model_copy(update=update))
    for model in (tmp_path, tmp_path / "model.engine"):
        with pytest.raises(InputError, match="is in tensorrt format, which needs the package tensorrt"):
            open_detector(model)


def test_an_unknown_precision(digits, exported, tmp_path):
    with pytest.raises(InputError, match=r"precision 'fp8': is not known\. Choose one of fp16, int8"):
        export_engine(digits, exported / "onnx", tmp_path / "engine", "fp8")


def test_a_model_that_is_not_onnx(digits, exported, tmp_path):
    with pytest.raises(InputError, match=r"in openvino format\. Give an fp32 ONNX model artifact"):
        export_engine(digits, exported / "openvino", tmp_path / "engine")


def test_no_calibration_images(digits, exported, tmp_path):
    with pytest.raises(InputError, match="calibration_images 0: is less than 1"):
        export_engine(digits, exported / "onnx", tmp_path / "engine", "int8", 0)

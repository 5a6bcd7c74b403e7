import json
import shutil

import pytest

import yolo_distill.components.shared.detector.openvino_env  # noqa: F401

# isort: split
import numpy as np
import onnx
import onnxruntime
import openvino

from yolo_distill.components.export_openvino.export import export
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.quantize import openvino_int8
from yolo_distill.components.quantize import quantize as module
from yolo_distill.components.quantize.calibration import draw_calibration
from yolo_distill.components.quantize.onnx_int8 import head_tail, read_onnx
from yolo_distill.components.quantize.quantize import QuantizationError, quantize
from yolo_distill.components.quantize.tail import decoding_tail
from yolo_distill.components.shared.detector import detect, open_detector, preprocess, read_image
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import digest_files, read_card, write_card


@pytest.fixture(scope="module")
def exported(digits, student_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export(digits, student_dir, folder / "onnx", folder / "openvino")
    return folder


@pytest.fixture(scope="module")
def fp32(exported):
    return exported / "openvino"


@pytest.fixture(scope="module")
def int8(digits, fp32, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized") / "int8"
    return *quantize(digits, fp32, folder, calibration_images=12, seed=3), folder


def operations(path):
    return {op.get_friendly_name(): op for op in openvino.Core().read_model(path).get_ops()}


def inputs(node):
    return [port.get_node() for port in node.input_values()]


def only_train(dataset, count=0):
    images = [record for record in dataset.manifest.images if record.split != "train"] + dataset.split("train")[:count]
    return DetectionDataset(dataset.root, dataset.manifest.model_copy(update={"images": images}))


def test_the_card_tells_what_was_measured_on(int8, fp32, digits):
    card, _, folder = int8
    parent = read_card(fp32)
    assert read_card(folder) == card
    assert (card.name, card.format, card.precision) == (parent.name.replace("openvino", "int8"), "openvino", "int8")
    assert card.lineage["parent"] == parent.digest
    assert (card.lineage["calibration_images"], card.lineage["calibration_seed"]) == ("12", "3")
    assert card.lineage["calibration_dataset"] == digits.digest
    drawn = json.loads((folder / "calibration.json").read_text())
    assert drawn == [{"file": r.file, "sha256": r.sha256} for r in draw_calibration(digits, 12, 3)]
    assert set(card.digests) == {"model.xml", "model.bin", "calibration.json"}


def test_the_int8_model_is_small_and_close(int8, fp32):
    _, parity, folder = int8
    assert (folder / "model.bin").stat().st_size < 0.3 * (fp32 / "model.bin").stat().st_size
    assert parity.images == 16
    assert 0 < parity.score_difference < 0.5 * parity.reference_score
    assert parity.candidate_score == pytest.approx(parity.reference_score, rel=0.3)


def weights_type(convolution):
    """The type in which a convolution's weights are stored, whatever rescales them on their way."""
    node = inputs(convolution)[1]
    while node.get_type_name() != "Constant":
        node = inputs(node)[0]
    return node.get_element_type()


def test_learned_convolutions_are_integer_and_the_tail_is_not(int8, fp32):
    nodes = operations(int8[2] / "model.xml")
    tail = decoding_tail(openvino.Core().read_model(fp32 / "model.xml"))
    types = {name: weights_type(node) for name, node in nodes.items() if node.get_type_name() == "Convolution"}
    assert len(types) == 64
    assert {name for name, type in types.items() if type != openvino.Type.i8} == {
        name for name in tail if name in types
    }
    for name in tail:
        assert "FakeQuantize" not in {source.get_type_name() for source in inputs(nodes[name])}, name


def test_the_tail_is_what_follows_the_last_learned_convolutions(fp32):
    nodes = operations(fp32 / "model.xml")
    tail = {name: nodes[name].get_type_name() for name in decoding_tail(openvino.Core().read_model(fp32 / "model.xml"))}
    kinds = list(tail.values())
    # DFL's own convolution is the only one.
    assert (kinds.count("Convolution"), kinds.count("Softmax"), kinds.count("Sigmoid")) == (1, 1, 1)
    assert not {"Swish", "MaxPool", "Interpolate"} & set(kinds)
    # It begins behind the biased convolutions of three levels, of boxes and of classes.
    sources = {source.get_friendly_name() for name in tail for source in inputs(nodes[name])} - set(tail)
    begins = sorted(name for name in sources if nodes[name].get_type_name() == "Add")
    expected = [f"/model.22/{head}.{level}/{head}.{level}.2/Conv" for head in ("cv2", "cv3") for level in range(3)]
    assert begins == expected


def test_calibration_images_are_drawn_by_seed(digits):
    drawn = draw_calibration(digits, 12, 3)
    assert drawn == draw_calibration(digits, 12, 3)
    assert drawn != draw_calibration(digits, 12, 4)
    assert len({record.file for record in drawn}) == 12
    assert {record.split for record in drawn} == {"train"}


def test_a_small_training_split_is_taken_whole(digits):
    assert len(draw_calibration(only_train(digits, 5), 300, 0)) == 5


def test_a_model_whose_scores_are_lost_leaves_nothing_behind(digits, fp32, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_KEPT_SCORE", 100.0)
    with pytest.raises(QuantizationError, match="the INT8 model's highest score on 16 images is"):
        quantize(digits, fp32, tmp_path / "int8", calibration_images=1)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_training_split(digits, fp32, tmp_path):
    with pytest.raises(InputError, match="its train split is empty"):
        quantize(only_train(digits), fp32, tmp_path / "int8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, -1])
def test_no_calibration_images(digits, fp32, tmp_path, count):
    with pytest.raises(InputError, match=f"calibration_images {count}: is less than 1"):
        quantize(digits, fp32, tmp_path / "int8", calibration_images=count)


def test_a_pytorch_model(digits, student_dir, tmp_path):
    with pytest.raises(InputError, match="is an fp32 model in pytorch format"):
        quantize(digits, student_dir, tmp_path / "int8")


def test_a_model_that_is_int8_already(digits, int8, tmp_path):
    with pytest.raises(InputError, match="is an int8 model in openvino format"):
        quantize(digits, int8[2], tmp_path / "int8")


def test_a_model_of_other_classes(digits, fp32, tmp_path):
    shutil.copytree(fp32, tmp_path / "model")
    card = read_card(fp32)
    write_card(tmp_path / "model", card.model_copy(update={"classes": card.classes[:-1]}))
    with pytest.raises(InputError, match="are not the dataset's"):
        quantize(digits, tmp_path / "model", tmp_path / "int8")


def test_a_calibration_image_that_cannot_be_read(digits, fp32, tmp_path):
    shutil.copytree(digits.root, tmp_path / "data")
    for record in digits.split("train"):
        (tmp_path / "data" / record.file).write_bytes(b"\xff\xd8")
    with pytest.raises(InputError, match="cannot be read as an image"):
        quantize(DetectionDataset.open(tmp_path / "data"), fp32, tmp_path / "int8", calibration_images=2)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.fixture(scope="module")
def qdq(digits, exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized") / "qdq"
    return *quantize(digits, exported / "onnx", folder, calibration_images=8, seed=3, method="onnx-qdq"), folder


def test_an_onnx_model_is_quantised_in_qdq_format(qdq, exported):
    card, parity, folder = qdq
    assert (card.format, card.precision, card.lineage["quantization"]) == ("onnx", "int8", "onnx-qdq")
    assert card.lineage["parent"] == read_card(exported / "onnx").digest
    assert set(card.digests) == {"model.onnx", "calibration.json"}
    assert (folder / "model.onnx").stat().st_size < 0.4 * (exported / "onnx" / "model.onnx").stat().st_size
    assert 0 < parity.score_difference < 0.5 * parity.reference_score


def test_qdq_weights_have_a_scale_a_channel_and_the_heads_end_stays_in_float(qdq):
    graph = onnx.load(qdq[2] / "model.onnx").graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    weights = {node.name: makers.get(node.input[1]) for node in graph.node if node.op_type == "Conv"}
    assert len(weights) == 64
    floating = {name for name, maker in weights.items() if maker is None}
    ends = {f"/model.22/{head}.{level}/{head}.{level}.2/Conv" for head in ("cv2", "cv3") for level in range(3)}
    assert floating == ends | {"/model.22/dfl/conv/Conv"}
    for name in set(weights) - floating:
        values, scale = (stored[tensor] for tensor in weights[name].input[:2])
        assert (weights[name].op_type, values.data_type) == ("DequantizeLinear", onnx.TensorProto.INT8)
        assert list(scale.dims) == [values.dims[0]]


def test_plain_onnxruntime_runs_the_qdq_model(qdq, digits):
    image = preprocess([read_image(digits.image_path(digits.split("val")[0]))], 160)[0]
    session = onnxruntime.InferenceSession(qdq[2] / "model.onnx", providers=["CPUExecutionProvider"])
    answer = session.run(None, {session.get_inputs()[0].name: image})[0]
    np.testing.assert_array_equal(answer, open_detector(qdq[2]).infer(image))


def test_the_tail_of_an_onnx_model_is_that_of_its_openvino_model(exported, fp32):
    graph = onnx.load(exported / "onnx" / "model.onnx")
    kinds = {node.name: node.op_type for node in graph.graph.node}
    tail = [kinds[name] for name in head_tail(graph)]
    # The last convolutions of three levels, of boxes and of classes, and DFL's own.
    assert (tail.count("Conv"), tail.count("Softmax"), tail.count("Sigmoid")) == (7, 1, 1)
    assert not {"MaxPool", "Resize"} & set(tail)


def accurate(digits, fp32, folder, max_drop):
    return quantize(digits, fp32, folder, calibration_images=4, method="accuracy-aware", max_drop=max_drop)[0]


@pytest.fixture
def lively(digits, lively_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lively")
    export(digits, lively_dir, folder / "onnx", folder / "openvino")
    return folder / "openvino"


@pytest.fixture
def labelled_by_the_model(lively, digits, monkeypatch):
    """Six validation images whose labels are what the FP32 model finds, so that it alone is perfect."""
    detector = open_detector(lively)
    records = digits.split("val")[:6]
    found = detect(detector, [read_image(digits.image_path(record)) for record in records], max_detections=40)
    labels = {record.file: (each.boxes, each.classes) for record, each in zip(records, found, strict=True)}
    monkeypatch.setattr(DetectionDataset, "boxes", lambda _, record: labels[record.file])
    images = [*digits.split("train"), *records]
    return DetectionDataset(digits.root, digits.manifest.model_copy(update={"images": images}))


def test_layers_return_to_floating_point_until_enough_accuracy_is_kept(
    labelled_by_the_model, lively, tmp_path, monkeypatch
):
    # The first layers alone are quantised, so that few have to be tried.
    first = ("/model.0/", "/model.1/", "/model.2/")
    kept = [name for name in operations(lively / "model.xml") if name.startswith("/") and not name.startswith(first)]
    monkeypatch.setattr(openvino_int8, "decoding_tail", lambda model: sorted({*decoding_tail(model), *kept}))
    all_integer = accurate(labelled_by_the_model, lively, tmp_path / "all", 100).lineage
    assert (all_integer["max_drop"], all_integer["validation_split"]) == ("100", "val")
    assert not any(name.startswith(first) for name in all_integer["float_layers"].split(","))
    allowed = float(all_integer["drop"]) / 2
    assert allowed > 0
    lineage = accurate(labelled_by_the_model, lively, tmp_path / "int8", allowed).lineage
    assert float(lineage["drop"]) <= allowed
    returned = set(lineage["float_layers"].split(",")) - set(all_integer["float_layers"].split(","))
    assert returned
    assert all(name.startswith(first) for name in returned)


def test_a_drop_that_cannot_be_kept_leaves_nothing_behind(digits, fp32, tmp_path, monkeypatch):
    def hopeless(*arguments):
        return openvino.Core().read_model(fp32 / "model.xml"), 5.0

    monkeypatch.setattr(module, "quantize_with_accuracy", hopeless)
    with pytest.raises(QuantizationError, match=r"with 63 layers in floating point .* loses 5\.00 points mAP50-95, 2"):
        accurate(digits, fp32, tmp_path / "int8", 2.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("max_drop", [-0.1, 101, float("nan")])
def test_a_drop_that_makes_no_sense(digits, fp32, tmp_path, max_drop):
    with pytest.raises(InputError, match=r"max_drop .*: is not in 0\.\.100"):
        accurate(digits, fp32, tmp_path / "int8", max_drop)


def test_accuracy_needs_labels(digits, fp32, tmp_path):
    images = [
        record.model_copy(update={"labelled": False, "boxes": 0}) if record.split == "val" else record
        for record in digits.manifest.images
    ]
    unlabelled = DetectionDataset(digits.root, digits.manifest.model_copy(update={"images": images}))
    with pytest.raises(InputError, match="its val split has no labelled box"):
        accurate(unlabelled, fp32, tmp_path / "int8", 1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["pytorch", "onnx", "openvino"])
def test_dynamic_quantisation_of_linear_layers_is_explained(digits, student_dir, exported, tmp_path, format):
    model = student_dir if format == "pytorch" else exported / format
    with pytest.raises(InputError, match=r"yolov8n\.yaml has 0, beside 64 convolutions: nothing would") as error:
        quantize(digits, model, tmp_path / "int8", method="dynamic-linear")
    assert "onnx-qdq" in error.value.remedy


def test_a_model_with_linear_layers_is_counted(digits, exported, tmp_path):
    tensors = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [onnx.helper.make_tensor_value_info(name, tensors, [2, 2]) for name in ("x", "w")],
        [onnx.helper.make_tensor_value_info("y", tensors, [2, 2])],
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    card = read_card(exported / "onnx")
    write_card(tmp_path, card.model_copy(update={"digests": digest_files(tmp_path)}))
    with pytest.raises(InputError, match="has 1, beside 0 convolutions: too little would change"):
        quantize(digits, tmp_path, tmp_path / "int8", method="dynamic-linear")


def test_an_unknown_method(digits, fp32, tmp_path):
    with pytest.raises(InputError, match=r"method 'gptq': is not known\. Choose one of nncf, accuracy-aware, onnx-qdq"):
        quantize(digits, fp32, tmp_path / "int8", method="gptq")


def test_a_method_of_another_format(digits, fp32, tmp_path):
    with pytest.raises(InputError, match=r"is an fp32 model in openvino format\. Give an fp32 ONNX model artifact"):
        quantize(digits, fp32, tmp_path / "int8", method="onnx-qdq")


def broken(source, folder, name, content):
    """A copy of an artifact of which one file has another content, and a card that says so."""
    shutil.copytree(source, folder)
    (folder / name).write_bytes(content) if content is not None else (folder / name).unlink()
    card = read_card(source)
    write_card(folder, card.model_copy(update={"digests": digest_files(folder)}))
    return folder


def test_a_truncated_onnx_model(digits, exported, tmp_path):
    whole = (exported / "onnx" / "model.onnx").read_bytes()
    model = broken(exported / "onnx", tmp_path / "model", "model.onnx", whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"model\.onnx: cannot be run in onnx format"):
        quantize(digits, model, tmp_path / "int8", calibration_images=1, method="onnx-qdq")
    with pytest.raises(InputError, match=r"model\.onnx: is not a whole ONNX model"):
        read_onnx(model / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("listed", [True, False])
def test_openvino_weights_that_are_missing(digits, fp32, tmp_path, listed):
    model = broken(fp32, tmp_path / "model", "model.bin", None)
    if listed:
        write_card(model, read_card(fp32))
    problem = "is missing or differs" if listed else r"has no weights beside it, model\.bin is missing"
    with pytest.raises(InputError, match=problem):
        quantize(digits, model, tmp_path / "int8", calibration_images=1)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

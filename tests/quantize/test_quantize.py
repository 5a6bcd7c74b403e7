import json
import shutil

import pytest

import yolo_distill.components.shared.detector.openvino_env  # noqa: F401

# isort: split
import openvino

from yolo_distill.components.export_openvino.export import export
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.quantize import quantize as module
from yolo_distill.components.quantize.quantize import QuantizationError, draw_calibration, quantize
from yolo_distill.components.quantize.tail import decoding_tail
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import read_card, write_card


@pytest.fixture(scope="module")
def fp32(digits, student_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export(digits, student_dir, folder / "onnx", folder / "openvino")
    return folder / "openvino"


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

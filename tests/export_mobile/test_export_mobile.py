import shutil

import numpy as np
import pytest

from yolo_distill.components.export_mobile.export import export_ncnn
from yolo_distill.components.export_openvino import parity
from yolo_distill.components.export_openvino.parity import ParityError
from yolo_distill.components.shared.detector import open_detector, preprocess, read_image
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import digest_files, read_card, write_card


@pytest.fixture(scope="module")
def exported(digits, student_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "ncnn"
    return *export_ncnn(digits, student_dir, folder), folder


def test_the_card_leads_back_to_the_checkpoint(exported, student_dir):
    card, _, folder = exported
    student = read_card(student_dir)
    assert read_card(folder) == card
    assert (card.name, card.format, card.precision) == (f"{student.name}-ncnn", "ncnn", "fp16")
    assert set(card.digests) == {"model.ncnn.param", "model.ncnn.bin"}
    assert card.lineage["parent"] == student.digest
    assert (card.classes, card.imgsz, card.licence) == (student.classes, student.imgsz, "AGPL-3.0")


def test_the_answers_stay_close_on_real_images(exported):
    comparison = exported[1]
    assert comparison.images == 16
    assert 0 < comparison.box_difference < 2
    assert 0 < comparison.score_difference < 0.02


def test_weights_take_sixteen_bits(exported, student_dir):
    parameters = read_card(student_dir).parameters
    assert (exported[2] / "model.ncnn.bin").stat().st_size == pytest.approx(2 * parameters, rel=0.02)


def test_several_images_are_answered_like_one_by_one(exported, digits):
    detector = open_detector(exported[2], threads=1)
    images = [read_image(digits.image_path(record)) for record in digits.split("val")[:3]]
    together = detector.infer(preprocess(images, 160)[0])
    alone = np.concatenate([detector.infer(preprocess([image], 160)[0]) for image in images])
    np.testing.assert_array_equal(together, alone)
    assert np.abs(together[0] - together[1]).max() > 0


def test_the_files_do_not_tell_where_they_were_made(exported, student_dir):
    content = (exported[2] / "model.ncnn.param").read_bytes()
    assert b"/tmp/" not in content
    assert str(student_dir).encode() not in content


def test_a_failed_check_leaves_nothing_behind(digits, student_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "FP16_SCORE_TOLERANCE", 0.0)
    with pytest.raises(ParityError, match="The export to NCNN changes the model's answers on 16 images"):
        export_ncnn(digits, student_dir, tmp_path / "ncnn")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_pytorch(exported, digits, tmp_path):
    with pytest.raises(InputError, match=r"is in ncnn format\. Give a PyTorch model artifact"):
        export_ncnn(digits, exported[2], tmp_path / "ncnn")
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_other_classes(digits, student_dir, tmp_path):
    shutil.copytree(student_dir, tmp_path / "model")
    card = read_card(student_dir)
    write_card(tmp_path / "model", card.model_copy(update={"classes": card.classes[::-1]}))
    with pytest.raises(InputError, match="are not the dataset's"):
        export_ncnn(digits, tmp_path / "model", tmp_path / "ncnn")


@pytest.mark.parametrize(
    "name, keep, problem",
    [
        ("model.ncnn.param", 0.5, "is not a whole NCNN model"),
        ("model.ncnn.bin", 0.5, "is not a whole NCNN model"),
        ("model.ncnn.bin", None, r"has no weights beside it, model\.ncnn\.bin is missing"),
    ],
)
def test_files_that_are_cut_off_or_missing(exported, tmp_path, name, keep, problem):
    folder = tmp_path / "model"
    shutil.copytree(exported[2], folder)
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if keep:
        (folder / name).write_bytes(content[: int(len(content) * keep)])
    write_card(folder, exported[0].model_copy(update={"digests": digest_files(folder)}))
    with pytest.raises(InputError, match=problem):
        open_detector(folder)


def test_ultralytics_own_export_is_opened_by_its_metadata(exported, digits, tmp_path):
    folder = tmp_path / "model_ncnn_model"
    shutil.copytree(exported[2], folder, ignore=shutil.ignore_patterns("model.json"))
    names = dict(enumerate(digits.classes))
    (folder / "metadata.yaml").write_text(f"task: detect\nimgsz: [160, 160]\nnames: {names}\n")
    detector = open_detector(folder)
    assert (detector.classes, detector.imgsz) == (digits.classes, 160)

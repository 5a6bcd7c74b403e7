import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from yolo_distill.components.prepare_data.findings import Kind
from yolo_distill.components.prepare_data.prepare import prepare
from yolo_distill.components.prepare_data.report import read_report
from yolo_distill.components.shared.errors import InputError

TRAIN, VAL = "annotations/instances_train2017.json", "annotations/instances_val2017.json"


def test_reads_one_file_a_split(coco: Path, tmp_path: Path) -> None:
    dataset = prepare(str(coco), tmp_path / "out", test_fraction=0)
    # Classes are in the order of the ids, 3 before 7.
    assert dataset.classes == ["three", "seven"]
    assert [len(dataset.split(s)) for s in ("train", "val")] == [5, 3]
    boxes, classes = dataset.boxes(dataset.split("train")[1])
    np.testing.assert_allclose(boxes, [[16, 12, 48, 36]], atol=1e-3)
    assert classes.tolist() == [1]
    assert read_report(dataset).format == "COCO"
    assert read_report(dataset).findings == []


def test_single_file_and_images_elsewhere(coco: Path, tmp_path: Path) -> None:
    (coco / VAL).unlink()
    (coco / TRAIN).rename(coco / "labels.json")
    (coco / "train2017").rename(coco / "photos")
    dataset = prepare(str(coco), tmp_path / "out")
    assert [len(dataset.split(s)) for s in ("train", "val", "test")] == [3, 1, 1]
    assert {f.kind for f in read_report(dataset).findings} == {Kind.UNLISTED_IMAGE}


def test_same_file_names_in_two_splits(coco: Path, tmp_path: Path, change_json: Callable[..., None]) -> None:
    """As Roboflow exports the format: one file in each split's folder."""
    for split, name in (("train", "train"), ("val", "valid")):
        (coco / f"{split}2017").rename(coco / name)
        (coco / f"annotations/instances_{split}2017.json").rename(coco / name / "_annotations.coco.json")
    for number in range(5, 8):
        (coco / f"valid/{number:03d}.jpg").rename(coco / f"valid/{number - 5:03d}.jpg")

    def rename(content: dict) -> None:
        for image in content["images"]:
            image["file_name"] = f"{image['id'] - 5:03d}.jpg"

    change_json(coco / "valid/_annotations.coco.json", rename)
    dataset = prepare(str(coco), tmp_path / "out", test_fraction=0)
    assert [len(dataset.split(s)) for s in ("train", "val")] == [5, 3]
    assert read_report(dataset).origins["images/val/000.jpg"] == "valid/000.jpg"


def test_other_annotations_beside_instances(coco: Path, tmp_path: Path) -> None:
    (coco / "annotations/captions_train2017.json").write_text("[this is not even JSON")
    (coco / "annotations/person_keypoints_val2017.json").write_text((coco / VAL).read_text())
    assert len(prepare(str(coco), tmp_path / "out").manifest.images) == 8


def test_crowds_and_images_without_objects(
    coco: Path, tmp_path: Path, change_json: Callable[..., None], problems: Callable[[Path], Counter[Kind]]
) -> None:
    def edit(content: dict) -> None:
        content["annotations"][0]["iscrowd"] = 1
        del content["annotations"][1]

    change_json(coco / TRAIN, edit)
    dataset = prepare(str(coco), tmp_path / "out", test_fraction=0)
    assert problems(tmp_path / "out") == {Kind.CROWD: 1}
    assert [(r.labelled, r.boxes) for r in dataset.split("train")] == [(True, 0)] * 2 + [(True, 1)] * 3


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"bbox": [16, 12, "wide", 24]}, "bbox is not"),
        ({"bbox": None}, "bbox is not"),
        ({"bbox": [16, 12, 32]}, "bbox is not"),
        ({"bbox": [16, 12, float("nan"), 24]}, "not finite"),
        ({"bbox": [80, 12, 10, 10]}, "altogether outside"),
        ({"bbox": [16, 12, -5, 24]}, "negative"),
        ({"category_id": 99}, "category_id 99 is not among the categories"),
        ({"category_id": [3]}, "is not among the categories"),
        ({"image_id": 99}, "belongs to no image"),
        ({"image_id": None}, "belongs to no image"),
    ],
)
def test_mistake_in_an_annotation(
    coco: Path, tmp_path: Path, change_json: Callable[..., None], edit: dict, words: str
) -> None:
    change_json(coco / TRAIN, lambda content: content["annotations"][2].update(edit))
    with pytest.raises(InputError) as caught:
        prepare(str(coco), tmp_path / "out")
    assert f"{TRAIN} annotations[2]: " in str(caught.value)
    assert words in str(caught.value)
    prepare(str(coco), tmp_path / "out", on_error="drop")


def cut(path: Path) -> None:
    path.write_text(path.read_text()[:100])


def nest(path: Path) -> None:
    path.write_text("[" * 100_000)


@pytest.mark.parametrize("spoil", [cut, nest])
def test_not_json(coco: Path, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(coco / TRAIN)
    with pytest.raises(InputError, match=r"instances_train2017\.json: is not valid JSON"):
        prepare(str(coco), tmp_path / "out", on_error="drop")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: c["images"][1].pop("width"), "images.1.width"),
        (lambda c: c["images"][1].update(id=0), "images with the same id"),
        (lambda c: c["categories"][1].update(id=7), "categories with the same id"),
        (lambda c: c["categories"].clear(), "categories"),
        (lambda c: c.update(annotations={}), "annotations"),
        (lambda c: c["categories"][1].update(name="other"), "has other categories than"),
    ],
)
def test_unusable_file(
    coco: Path, tmp_path: Path, change_json: Callable[..., None], edit: Callable[[dict], None], words: str
) -> None:
    change_json(coco / TRAIN, edit)
    with pytest.raises(InputError, match=words):
        prepare(str(coco), tmp_path / "out")


def test_two_files_for_one_split(coco: Path, tmp_path: Path) -> None:
    (coco / "annotations/instances_train2014.json").write_text((coco / TRAIN).read_text())
    with pytest.raises(InputError, match="several label files for train"):
        prepare(str(coco), tmp_path / "out")


def test_images_that_are_not_there(
    coco: Path, tmp_path: Path, change_json: Callable[..., None], problems: Callable[[Path], Counter[Kind]]
) -> None:
    change_json(coco / TRAIN, lambda c: c["images"][0].update(file_name="../../../etc/passwd"))
    (coco / "train2017/001.jpg").unlink()
    dataset = prepare(str(coco), tmp_path / "out", test_fraction=0)
    assert len(dataset.split("train")) == 3
    assert problems(tmp_path / "out") == {Kind.MISSING_IMAGE: 2, Kind.UNLISTED_IMAGE: 1}


def test_json_that_is_no_coco(coco: Path, tmp_path: Path) -> None:
    for name in (TRAIN, VAL):
        (coco / name).write_text(json.dumps({"hello": "world"}))
    with pytest.raises(InputError, match=r"holds 8 images, but no labels in a known format. Looked for: data\.yaml"):
        prepare(str(coco), tmp_path / "out")

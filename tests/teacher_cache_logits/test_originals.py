from pathlib import Path

import numpy as np
import pytest
import torch

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.prepare_data.prepare import prepare
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import read_card
from yolo_distill.components.shared.views import Augmentation, SoftBoxes, View, ViewDataset
from yolo_distill.components.teacher_cache_logits.originals import OriginalAnswers, build_originals
from yolo_distill.components.teacher_cache_logits.teacher import Teacher
from yolo_distill.components.train_teacher.checkpoint import write_checkpoint_artifact


@pytest.mark.parametrize("closed", [False, True])
def test_boxes_are_carried_through_the_augmentation_as_labels_are(digits: DetectionDataset, closed: bool) -> None:
    # A teacher whose answer is the labels, so that where its boxes must land is known.
    labels = [digits.labels(record) for record in digits.split("train")]
    scores = [torch.nn.functional.one_hot(torch.from_numpy(rows[:, 0]).long(), 10).half() for rows in labels]
    augmentation = Augmentation(imgsz=96, degrees=10, mixup=0.5, flipud=0.5)
    plain = ViewDataset(digits, augmentation)
    carrying = ViewDataset(digits, augmentation, SoftBoxes([rows[:, 1:] for rows in labels], scores))
    for index in range(12):
        key = plain.key(View(1, closed), index)
        expected, item = plain[key], carrying[key]
        assert item["img"].equal(expected["img"])
        assert item["cls"].equal(expected["cls"])
        assert item["bboxes"].equal(expected["bboxes"])
        assert item["answer"]["soft_boxes"].equal(expected["bboxes"])
        assert item["answer"]["scores"].argmax(1).equal(expected["cls"][:, 0].long())


def test_the_fingerprint_of_views_does_not_depend_on_carried_boxes(digits: DetectionDataset) -> None:
    boxes = [np.full((1, 4), 0.5)] * len(digits.split("train"))
    carried = SoftBoxes(boxes, [torch.zeros(1, 10).half()] * len(boxes))
    augmentation = Augmentation(imgsz=96)
    assert ViewDataset(digits, augmentation, carried).fingerprint() == ViewDataset(digits, augmentation).fingerprint()


def test_answers_come_back_as_they_were_given(tmp_path: Path, digits: DetectionDataset, teacher_dir: Path) -> None:
    manifest = build_originals(digits, teacher_dir, 160, tmp_path / "originals")
    answers = OriginalAnswers(tmp_path / "originals")
    assert answers.manifest == manifest
    assert manifest.teacher == read_card(teacher_dir).digests["model.pt"]
    boxes, scores = answers.soft_boxes.boxes, answers.soft_boxes.scores
    assert len(boxes) == len(scores) == len(digits.split("train"))
    assert all(b.shape == (len(s), 4) and s.shape[1] == 10 for b, s in zip(boxes, scores, strict=True))
    assert all(((b >= 0) & (b <= 1)).all() for b in boxes)


def test_damaged_answers_are_refused(tmp_path: Path, digits: DetectionDataset, teacher_dir: Path) -> None:
    build_originals(digits, teacher_dir, 160, tmp_path / "originals")
    with (tmp_path / "originals/originals.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="differs from its digest"):
        OriginalAnswers(tmp_path / "originals")


def test_a_carried_box_lands_where_the_teacher_finds_it(tmp_path: Path, test_data: Path, coco_weights: Path) -> None:
    """Shift and scale alone: the teacher, asked about the view, finds its boxes within a pixel of the carried ones."""
    dataset = prepare(str(test_data / "coco128"), tmp_path / "coco")
    card = write_checkpoint_artifact(
        tmp_path / "teacher", coco_weights, name="t", imgsz=320, architecture="yolov8n", lineage={}
    )
    assert card.classes == dataset.classes
    build_originals(dataset, tmp_path / "teacher", 320, tmp_path / "originals")
    affine = Augmentation(imgsz=320, mosaic=0, hsv_h=0, hsv_s=0, hsv_v=0, fliplr=0, scale=0.1, translate=0.1)
    views = ViewDataset(dataset, affine, OriginalAnswers(tmp_path / "originals").soft_boxes)
    teacher = Teacher(tmp_path / "teacher")
    distances = []
    for index in range(40):
        item = views[views.key(View(0, closed=True), index)]
        answers = teacher.answer(item["img"].unsqueeze(0))
        found, scores = teacher.decode(answers)[0], answers.scores[0].T.float().sigmoid()
        centre, size = item["answer"]["soft_boxes"][:, :2] * 320, item["answer"]["soft_boxes"][:, 2:] * 320
        carried = torch.cat([centre - size / 2, centre + size / 2], 1)
        for box, logits in zip(carried, item["answer"]["scores"].float(), strict=True):
            # Objects cut by the view's border are found at the border, so only whole ones can be compared.
            inside = (box[:2] > 4).all() and (box[2:] < 316).all()
            same = scores[:, logits.argmax()] > 0.5
            if logits.sigmoid().max() > 0.6 and inside and same.any():
                near = (found[same] - box).abs().mean(1)
                if near.min() < 20:
                    distances.append(float(near.min()))
    assert len(distances) >= 20
    assert np.median(distances) < 1

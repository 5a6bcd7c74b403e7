"""Where to distil and how strongly, against slow references written from the formulas."""

import pytest
import torch

from yolo_distill.components.distill_train.losses.adaptive import disagreement, teacher_quality
from yolo_distill.components.distill_train.losses.regions import localization_regions

POINTS, CLASSES, LABELS, IMAGES = 40, 3, 5, 3


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _boxes(count: int, seed: int) -> torch.Tensor:
    corner = 2 * _random(count, 2, seed=seed)
    return torch.cat([corner, corner + _random(count, 2, seed=seed + 50).abs() + 3], 1)


BOXES, LABEL_BOXES = _boxes(POINTS, 1), _boxes(LABELS, 2)
IMAGE = torch.arange(POINTS) % IMAGES
# The last image has no labels.
LABEL_IMAGE = torch.tensor([1, 0, 1, 0, 1])
LABEL_CLASSES = torch.tensor([0, 2, 1, 1, 2])
SCORES = _random(POINTS, CLASSES, seed=3)


def _iou(a: list[float], b: list[float]) -> float:
    overlap = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def _diou(a: list[float], b: list[float]) -> float:
    width, height = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    distance = ((a[0] + a[2] - b[0] - b[2]) ** 2 + (a[1] + a[3] - b[1] - b[3]) ** 2) / 4
    return _iou(a, b) - distance / (width**2 + height**2)


def test_localization_regions() -> None:
    main, valuable = localization_regions(BOXES, IMAGE, LABEL_BOXES, LABEL_IMAGE, alpha=0.5, gamma=0.25)
    for point in range(POINTS):
        here = [label for label in range(LABELS) if LABEL_IMAGE[label] == IMAGE[point]]
        best = max((_diou(BOXES[point].tolist(), LABEL_BOXES[label].tolist()) for label in here), default=-1)
        assert bool(main[point]) == (best >= 0.5)
        assert bool(valuable[point]) == (0.125 <= best < 0.5)
    assert main.any()
    assert valuable.any()
    assert not (main | valuable)[IMAGE == 2].any()


def test_localization_regions_follow_the_distance_and_not_the_overlap_alone() -> None:
    label = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    inside = torch.tensor([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0], [6.0, 6.0, 8.0, 8.0]])
    # The first two both overlap by 1/4; the second is off the centre by sqrt(2) of a diagonal of sqrt(32).
    main, valuable = localization_regions(inside, torch.zeros(3).long(), label, torch.zeros(1).long(), alpha=0.24)
    assert main.tolist() == [True, False, False]
    assert valuable.tolist() == [False, True, False]


def test_localization_regions_without_points_or_labels() -> None:
    none = torch.zeros(0).long()
    for main, valuable in (
        localization_regions(BOXES, IMAGE, LABEL_BOXES[:0], none, alpha=0.0),
        localization_regions(BOXES[:0], none, LABEL_BOXES, LABEL_IMAGE),
    ):
        assert not main.any()
        assert not valuable.any()
    main, _ = localization_regions(LABEL_BOXES.bfloat16(), LABEL_IMAGE, LABEL_BOXES.bfloat16(), LABEL_IMAGE)
    assert main.all()


def test_teacher_quality() -> None:
    quality = teacher_quality(SCORES, BOXES, IMAGE, LABEL_BOXES, LABEL_CLASSES, LABEL_IMAGE, IMAGES)
    for number in range(2):
        best = [
            max(
                (1 / (1 + float(torch.exp(-SCORES[point, LABEL_CLASSES[label]])))) ** 0.5
                * _iou(BOXES[point].tolist(), LABEL_BOXES[label].tolist())
                for point in range(POINTS)
                if IMAGE[point] == number
            )
            for label in range(LABELS)
            if LABEL_IMAGE[label] == number
        ]
        assert quality[number].item() == pytest.approx(sum(best) / len(best), rel=1e-5)
        assert 0 < quality[number] < 1
    assert quality[2] == 1


def test_teacher_quality_at_its_ends() -> None:
    def quality(boxes: torch.Tensor, logits: float, image: int = 0) -> float:
        scores = torch.full((1, CLASSES), logits)
        zero = torch.zeros(1).long()
        return teacher_quality(scores, boxes, zero + image, LABEL_BOXES[:1].float(), zero, zero, 2)[0].item()

    found = LABEL_BOXES[:1].float()
    assert quality(found, 20.0) == pytest.approx(1, abs=1e-5)
    assert quality(found + 100, 20.0) == 0
    assert quality(found, -40.0) == pytest.approx(0, abs=1e-5)
    # A class that the teacher's answer does not hold, and an image of which it holds no point.
    assert quality(found, float("nan")) == 0
    assert quality(found, 20.0, image=1) == 0


def test_disagreement() -> None:
    student, teacher = _random(POINTS, CLASSES, seed=4), _random(POINTS, CLASSES, seed=5)
    weight = _random(POINTS, seed=6).sigmoid()
    raw = []
    for number in range(IMAGES):
        points = [point for point in range(POINTS) if IMAGE[point] == number]
        total = sum(
            float(weight[point])
            * sum(abs(float(teacher[point, c].sigmoid() - student[point, c].sigmoid())) for c in range(CLASSES))
            / CLASSES
            for point in points
        )
        raw.append(total / sum(float(weight[point]) for point in points))
    strength = disagreement(student.requires_grad_(), teacher, weight, IMAGE, IMAGES)
    assert strength.tolist() == pytest.approx([value / (sum(raw) / IMAGES) for value in raw], rel=1e-9)
    assert strength.mean().item() == pytest.approx(1)
    assert not strength.requires_grad


def test_disagreement_without_points_without_weight_and_in_agreement() -> None:
    weight = torch.ones(POINTS).double()
    assert disagreement(SCORES, SCORES, weight, IMAGE, IMAGES).tolist() == [1, 1, 1]
    assert disagreement(SCORES, SCORES + 1, 0 * weight, IMAGE, IMAGES).tolist() == [1, 1, 1]
    assert disagreement(SCORES[:0], SCORES[:0], weight[:0], IMAGE[:0], 2).tolist() == [1, 1]
    assert disagreement(SCORES[:0], SCORES[:0], weight[:0], IMAGE[:0], 0).tolist() == []
    first = IMAGE == 0
    assert disagreement(SCORES[first], SCORES[first] + 1, weight[first], IMAGE[first], 2).tolist() == [2, 0]
    half = disagreement(SCORES.bfloat16(), (SCORES + 1).bfloat16(), weight.bfloat16(), IMAGE, IMAGES)
    assert torch.isfinite(half).all()

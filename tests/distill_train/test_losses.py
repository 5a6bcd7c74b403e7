"""Every loss against a slow reference written from its formula."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.autograd import gradcheck

from yolo_distill.components.distill_train.losses.attention_transfer import attention_transfer
from yolo_distill.components.distill_train.losses.binary_kl import binary_kl
from yolo_distill.components.distill_train.losses.box_iou import box_iou
from yolo_distill.components.distill_train.losses.localization_distillation import localization_distillation
from yolo_distill.components.distill_train.losses.pkd import pkd
from yolo_distill.components.distill_train.losses.score_weighted_l2 import score_weighted_l2

POINTS, CLASSES, BINS, CHANNELS = 5, 3, 4, 6


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


WEIGHT = _random(POINTS, seed=7).sigmoid()


def _boxes(seed: int) -> torch.Tensor:
    corner = _random(POINTS, 2, seed=seed)
    return torch.cat([corner, corner + _random(POINTS, 2, seed=seed + 50).abs() + 0.5], 1)


def _weighted_mean(values: list[float]) -> float:
    return sum(w * v for w, v in zip(WEIGHT.tolist(), values, strict=True)) / float(WEIGHT.sum())


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_binary_kl(temperature: float) -> None:
    student, teacher = _random(POINTS, CLASSES, seed=1), _random(POINTS, CLASSES, seed=2)

    def divergence(s: float, t: float) -> float:
        p, q = (1 / (1 + math.exp(-x / temperature)) for x in (t, s))
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    rows = [
        sum(divergence(s, t) for s, t in zip(ss, ts, strict=True))
        for ss, ts in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    expected = temperature**2 * _weighted_mean(rows)
    assert binary_kl(student, teacher, WEIGHT, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_binary_kl_sees_a_shift_of_all_logits() -> None:
    background = torch.full((1, CLASSES), -9.0)
    # A softmax over classes would find no difference.
    assert binary_kl(background + 8, background, torch.ones(1), 1.0) > 0.9


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_localization_distillation(temperature: float) -> None:
    student, teacher = _random(POINTS, 4 * BINS, seed=3), _random(POINTS, 4 * BINS, seed=4)

    def softmax(values: list[float]) -> list[float]:
        powers = [math.exp(v / temperature) for v in values]
        return [p / sum(powers) for p in powers]

    rows = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        sides = [slice(side * BINS, (side + 1) * BINS) for side in range(4)]
        rows.append(
            sum(p * math.log(p / q) for side in sides for p, q in zip(softmax(t[side]), softmax(s[side]), strict=True))
            / 4
        )
    expected = temperature**2 * _weighted_mean(rows)
    result = localization_distillation(student, teacher, WEIGHT, temperature)
    assert result.item() == pytest.approx(expected, rel=1e-9)


def test_box_iou() -> None:
    student, teacher = _boxes(1), _boxes(1) + 0.2 * _boxes(2)

    def ciou(a: list[float], b: list[float]) -> float:
        overlap = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        (aw, ah), (bw, bh) = ((box[2] - box[0], box[3] - box[1]) for box in (a, b))
        iou = overlap / (aw * ah + bw * bh - overlap)
        width, height = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
        distance = ((a[0] + a[2] - b[0] - b[2]) ** 2 + (a[1] + a[3] - b[1] - b[3]) ** 2) / 4
        v = 4 / math.pi**2 * (math.atan(bw / bh) - math.atan(aw / ah)) ** 2
        return iou - distance / (width**2 + height**2) - v * v / (v - iou + 1)

    expected = _weighted_mean([1 - ciou(s, t) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)])
    assert box_iou(student, teacher, WEIGHT).item() == pytest.approx(expected, rel=1e-5)


def test_score_weighted_l2() -> None:
    student, teacher = _random(POINTS, CHANNELS, seed=5), _random(POINTS, CHANNELS, seed=6)
    rows = [
        sum((s - t) ** 2 for s, t in zip(ss, ts, strict=True)) / CHANNELS
        for ss, ts in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    assert score_weighted_l2(student, teacher, WEIGHT).item() == pytest.approx(_weighted_mean(rows), rel=1e-9)


def test_pkd() -> None:
    student, teacher = _random(POINTS, CHANNELS, seed=8), _random(POINTS, CHANNELS, seed=9)
    distances = []
    for channel in range(CHANNELS):
        s, t = student[:, channel].tolist(), teacher[:, channel].tolist()
        ms, mt = _weighted_mean(s), _weighted_mean(t)
        covariance = _weighted_mean([(a - ms) * (b - mt) for a, b in zip(s, t, strict=True)])
        vs, vt = _weighted_mean([(a - ms) ** 2 for a in s]), _weighted_mean([(b - mt) ** 2 for b in t])
        distances.append(1 - covariance / math.sqrt(vs * vt))
    assert pkd(student, teacher, WEIGHT).item() == pytest.approx(sum(distances) / CHANNELS, rel=1e-5)


def test_pkd_ignores_scale_and_shift() -> None:
    teacher = _random(POINTS, CHANNELS, seed=9)
    assert pkd(3 * teacher + 5, teacher, WEIGHT).item() == pytest.approx(0, abs=1e-5)


def test_attention_transfer() -> None:
    student, teacher = _random(2, 7, seed=1), _random(2, 7, seed=2)
    expected = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        ns, nt = (math.sqrt(sum(x * x for x in v)) for v in (s, t))
        expected += sum((a / ns - b / nt) ** 2 for a, b in zip(s, t, strict=True)) / 2
    assert attention_transfer(student, teacher).item() == pytest.approx(expected, rel=1e-9)
    assert attention_transfer(3 * teacher, teacher).item() == pytest.approx(0, abs=1e-12)
    assert attention_transfer(student[:0], teacher[:0]).item() == 0
    assert torch.isfinite(attention_transfer(student.bfloat16(), torch.zeros_like(teacher).bfloat16()))
    assert gradcheck(lambda x: attention_transfer(x, teacher), (student.requires_grad_(),))


LOSSES: dict[str, tuple[Callable[..., torch.Tensor], Callable[[int], torch.Tensor], tuple[float, ...]]] = {
    "binary_kl": (binary_kl, lambda seed: _random(POINTS, CLASSES, seed=seed), (2.0,)),
    "localization_distillation": (
        localization_distillation,
        lambda seed: _random(POINTS, 4 * BINS, seed=seed),
        (2.0,),
    ),
    "box_iou": (box_iou, _boxes, ()),
    "score_weighted_l2": (score_weighted_l2, lambda seed: _random(POINTS, CHANNELS, seed=seed), ()),
    "pkd": (pkd, lambda seed: _random(POINTS, CHANNELS, seed=seed), ()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_zero_when_student_equals_teacher(name: str) -> None:
    loss, make, extra = LOSSES[name]
    assert loss(make(1), make(1), WEIGHT, *extra).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "box_iou"])
def test_gradients(name: str) -> None:
    loss, make, extra = LOSSES[name]
    student = make(1).requires_grad_()
    assert gradcheck(lambda s: loss(s, make(2), WEIGHT, *extra), (student,))


def test_box_iou_draws_the_box_to_the_teachers() -> None:
    # CIoU holds its trade-off factor constant in the gradient, so a numerical check does not apply.
    student, teacher = _boxes(1).requires_grad_(), _boxes(1) + 0.3
    before = box_iou(student, teacher, WEIGHT)
    before.backward()
    assert box_iou((student - 0.01 * student.grad).detach(), teacher, WEIGHT) < before


@pytest.mark.parametrize("name", LOSSES)
def test_finite_in_bfloat16_and_without_points(name: str) -> None:
    loss, make, extra = LOSSES[name]
    assert torch.isfinite(loss(make(1).bfloat16(), make(2).bfloat16(), WEIGHT.bfloat16(), *extra))
    empty = make(1)[:0].requires_grad_()
    nothing = loss(empty, make(2)[:0], WEIGHT[:0], *extra)
    assert nothing.item() == 0
    nothing.backward()

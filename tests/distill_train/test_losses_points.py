"""Losses on points, each against a slow reference written from its formula."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.autograd import gradcheck
from ultralytics.nn.distill_model import DistillationModel

from yolo_distill.components.distill_train.losses.bckd import bckd
from yolo_distill.components.distill_train.losses.binary_kl import binary_kl
from yolo_distill.components.distill_train.losses.box_regression import box_l2, box_smooth_l1
from yolo_distill.components.distill_train.losses.score_weighted_l2 import score_weighted_l2
from yolo_distill.components.distill_train.losses.softmax_kl import softmax_kl

POINTS, CLASSES = 5, 3


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


WEIGHT = _random(POINTS, seed=7).sigmoid()


def _weighted_mean(values: list[float]) -> float:
    return sum(w * v for w, v in zip(WEIGHT.tolist(), values, strict=True)) / float(WEIGHT.sum())


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_bckd(gamma: float) -> None:
    student, teacher = _random(POINTS, CLASSES, seed=1), _random(POINTS, CLASSES, seed=2)

    def term(s: float, t: float) -> float:
        p, q = (1 / (1 + math.exp(-x)) for x in (t, s))
        return abs(p - q) ** gamma * -(p * math.log(q) + (1 - p) * math.log(1 - q))

    rows = [
        sum(term(s, t) for s, t in zip(ss, ts, strict=True))
        for ss, ts in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    assert bckd(student, teacher, WEIGHT, gamma).item() == pytest.approx(_weighted_mean(rows), rel=1e-9)


def test_bckd_has_its_minimum_at_the_teacher() -> None:
    teacher = _random(POINTS, CLASSES, seed=2)
    student = teacher.clone().requires_grad_()
    bckd(student, teacher, WEIGHT).backward()
    assert student.grad is not None
    assert student.grad.abs().max() == 0
    assert all(bckd(teacher + shift, teacher, WEIGHT) > 0 for shift in (-0.1, 0.1))


def test_bckd_takes_the_gradient_through_the_disagreement() -> None:
    student, teacher = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True), torch.zeros(1, 1).double()
    bckd(student, teacher, torch.ones(1)).backward()
    q = 1 / (1 + math.exp(-1))
    cross_entropy = -(math.log(q) + math.log(1 - q)) / 2
    # The product rule: were the factor a constant, the second summand would be missing.
    expected = (q - 0.5) * (q - 0.5) + q * (1 - q) * cross_entropy
    assert student.grad is not None
    assert student.grad.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_softmax_kl(temperature: float) -> None:
    student, teacher = _random(POINTS, CLASSES, seed=3), _random(POINTS, CLASSES, seed=4)

    def softmax(values: list[float]) -> list[float]:
        powers = [math.exp(v / temperature) for v in values]
        return [p / sum(powers) for p in powers]

    rows = [
        sum(p * math.log(p / q) for p, q in zip(softmax(t), softmax(s), strict=True))
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    expected = temperature**2 * _weighted_mean(rows)
    assert softmax_kl(student, teacher, WEIGHT, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_softmax_kl_is_blind_to_a_shift_of_all_logits() -> None:
    background = torch.full((1, CLASSES), -9.0)
    assert softmax_kl(background + 8, background, torch.ones(1), 1.0) == 0
    # Those that treat each class by itself are not.
    assert binary_kl(background + 8, background, torch.ones(1), 1.0) > 0.9
    assert bckd(background + 8, background, torch.ones(1)) > 0.2


def test_softmax_kl_does_not_make_the_student_more_certain_than_the_teacher() -> None:
    # With the student's probabilities in place of their logarithms, this runs off to one class.
    teacher, student = torch.tensor([[0.2, 0.0, -0.2]]), torch.zeros(1, CLASSES, requires_grad=True)
    optimiser = torch.optim.SGD([student], lr=1.0)
    for _ in range(200):
        optimiser.zero_grad()
        softmax_kl(student, teacher, torch.ones(1), 1.0).backward()
        optimiser.step()
    assert torch.allclose(student.softmax(1), teacher.softmax(1), atol=1e-3)


def test_box_l2() -> None:
    student, teacher = _random(POINTS, 4, seed=5), _random(POINTS, 4, seed=6)
    rows = [
        sum((s - t) ** 2 for s, t in zip(ss, ts, strict=True)) / 4
        for ss, ts in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    assert box_l2(student, teacher, WEIGHT).item() == pytest.approx(_weighted_mean(rows), rel=1e-9)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_box_smooth_l1(beta: float) -> None:
    student, teacher = _random(POINTS, 4, seed=5), _random(POINTS, 4, seed=6)

    def smooth(d: float) -> float:
        return d * d / (2 * beta) if d < beta else d - beta / 2

    rows = [
        sum(smooth(abs(s - t)) for s, t in zip(ss, ts, strict=True)) / 4
        for ss, ts in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    assert box_smooth_l1(student, teacher, WEIGHT, beta).item() == pytest.approx(_weighted_mean(rows), rel=1e-9)


def test_score_weighted_l2_on_all_points_is_that_of_ultralytics() -> None:
    student, teacher = (_random(2, 6, 4, 5, seed=seed).float() for seed in (8, 9))
    best = _random(2, 1, 20, seed=10).sigmoid().float()
    # The method reads nothing of the model, which would have to be a pair of networks.
    expected = DistillationModel.loss_sl2(None, student, teacher, feat_idx=1, teacher_scores=(torch.empty(0), best))
    points = [features.permute(0, 2, 3, 1).flatten(0, 2) for features in (student, teacher)]
    assert score_weighted_l2(*points, best.flatten()).item() == pytest.approx(expected.item(), rel=1e-6)


LOSSES: dict[str, tuple[Callable[..., torch.Tensor], int, tuple[float, ...]]] = {
    "bckd": (bckd, CLASSES, (1.0,)),
    "bckd_squared": (bckd, CLASSES, (2.0,)),
    "softmax_kl": (softmax_kl, CLASSES, (2.0,)),
    "box_l2": (box_l2, 4, ()),
    "box_smooth_l1": (box_smooth_l1, 4, (1.0,)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_zero_when_student_equals_teacher(name: str) -> None:
    loss, width, extra = LOSSES[name]
    same = _random(POINTS, width, seed=1)
    assert loss(same, same.clone(), WEIGHT, *extra).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str) -> None:
    loss, width, extra = LOSSES[name]
    student, teacher = _random(POINTS, width, seed=1).requires_grad_(), _random(POINTS, width, seed=2)
    assert gradcheck(lambda s: loss(s, teacher, WEIGHT, *extra), (student,))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [1, 30])
def test_finite_in_bfloat16(name: str, scale: float) -> None:
    loss, width, extra = LOSSES[name]
    student, teacher = ((scale * _random(POINTS, width, seed=seed)).bfloat16() for seed in (1, 2))
    student.requires_grad_()
    value = loss(student, teacher, WEIGHT.bfloat16(), *extra)
    value.backward()
    assert torch.isfinite(value)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_zero_without_points_and_without_weight(name: str) -> None:
    loss, width, extra = LOSSES[name]
    student, teacher = _random(POINTS, width, seed=1).requires_grad_(), _random(POINTS, width, seed=2)
    for kept, weight in ((0, WEIGHT[:0]), (POINTS, torch.zeros_like(WEIGHT))):
        nothing = loss(student[:kept], teacher[:kept], weight, *extra)
        assert nothing.item() == 0
        nothing.backward()
    assert student.grad is not None
    assert student.grad.abs().max() == 0

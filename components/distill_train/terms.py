"""The terms of a recipe at one training step: each loss called with what it compares."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, assert_never

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from torch import nn
from ultralytics.nn.modules.head import Detect

from yolo_distill.components.distill_train.adapters import Projector, compares
from yolo_distill.components.distill_train.layers import LayerPair
from yolo_distill.components.distill_train.losses.attention_transfer import attention_transfer
from yolo_distill.components.distill_train.losses.bckd import bckd
from yolo_distill.components.distill_train.losses.binary_kl import binary_kl
from yolo_distill.components.distill_train.losses.box_iou import box_iou
from yolo_distill.components.distill_train.losses.box_regression import box_l2, box_smooth_l1
from yolo_distill.components.distill_train.losses.channel_attention import channel_weighted_mse
from yolo_distill.components.distill_train.losses.cross_kd import align_scale, head_outputs
from yolo_distill.components.distill_train.losses.cwd import cwd
from yolo_distill.components.distill_train.losses.feature_mse import feature_mse
from yolo_distill.components.distill_train.losses.fgd import box_masks, fgd
from yolo_distill.components.distill_train.losses.grad_cam import cam_weighted_mse, gradient_cam
from yolo_distill.components.distill_train.losses.localization_distillation import localization_distillation
from yolo_distill.components.distill_train.losses.lsp import lsp
from yolo_distill.components.distill_train.losses.mgd import mgd, random_mask
from yolo_distill.components.distill_train.losses.pkd import pkd
from yolo_distill.components.distill_train.losses.regions import localization_regions
from yolo_distill.components.distill_train.losses.score_weighted_l2 import score_weighted_l2
from yolo_distill.components.distill_train.losses.softmax_kl import softmax_kl
from yolo_distill.components.distill_train.recipe import (
    BCKD,
    CWD,
    FGD,
    LSP,
    MGD,
    PKD,
    AttentionTransfer,
    BinaryKL,
    BoxIoU,
    BoxL2,
    BoxSmoothL1,
    ChannelAttention,
    CrossKD,
    FeatureMSE,
    GradCAM,
    LocalizationDistillation,
    Region,
    ScoreWeightedL2,
    SoftmaxKL,
    Term,
    value_at,
)


@dataclass(frozen=True)
class Labels:
    """The labelled boxes of a batch.

    Attributes:
        image: Index in the batch of each box's image, int64 [G].
        classes: Their classes, int64 [G].
        boxes: Corners x1, y1, x2, y2 in pixels of the input, [G, 4].
        normalised: Centre x, y, width, height as parts of the input's sides, [G, 4].
    """

    image: torch.Tensor
    classes: torch.Tensor
    boxes: torch.Tensor
    normalised: torch.Tensor


@dataclass(frozen=True)
class Matched:
    """What student and teacher say at the P anchor points of a batch that the teacher's answer covers, in float32.

    Attributes:
        image: Index in the batch of each point's image, int64 [P].
        point: Index of each point among the A anchor points, int64 [P].
        stride: Pixels between the anchor points of each point's level, [P].
        student_scores: Class logits, [P, nc].
        teacher_scores: Class logits, [P, nc].
        known: Which of them are the teacher's: of others nothing was kept, and the student is its own teacher, [P, nc].
        student_bins: DFL logits, [P, 4 * reg_max].
        teacher_bins: DFL logits, [P, 4 * reg_max]; ``None`` where the teacher saw another image than the student.
        student_boxes: Corners x1, y1, x2, y2 in strides, [P, 4].
        teacher_boxes: Corners in strides, [P, 4].
        weight: Importance, [P], 0 or more: the teacher's best class score, times the strength of the image.
    """

    image: torch.Tensor
    point: torch.Tensor
    stride: torch.Tensor
    student_scores: torch.Tensor
    teacher_scores: torch.Tensor
    known: torch.Tensor
    student_bins: torch.Tensor
    teacher_bins: torch.Tensor | None
    student_boxes: torch.Tensor
    teacher_boxes: torch.Tensor
    weight: torch.Tensor

    @property
    def teacher_pixels(self) -> torch.Tensor:
        """The teacher's boxes in pixels of the input, [P, 4]."""
        return self.teacher_boxes * self.stride.unsqueeze(1)


@dataclass(frozen=True)
class Step:
    """Everything that the terms look at in one training step.

    Attributes:
        matched: What both say at anchor points.
        labels: The labelled boxes.
        progress: How far the training is, 0..1.
        answers: The teacher's sparse answers, one an image.
        pairs: The layers that are compared.
        student_maps: The student's feature maps by the name of the pair, float32 [B, C, H, W].
        teacher_maps: The teacher's, where it was asked at this step.
        adapters: What trains beside the student.
        head: The teacher's Detect head, frozen, where it is at hand.
        generator: Source of chance for masks.
    """

    matched: Matched
    labels: Labels
    progress: float
    answers: list[dict[str, torch.Tensor]]
    pairs: Sequence[LayerPair]
    student_maps: dict[str, torch.Tensor]
    teacher_maps: dict[str, torch.Tensor]
    adapters: nn.ModuleDict
    head: Detect | None
    generator: torch.Generator

    @property
    def necks(self) -> list[LayerPair]:
        """The pairs that are inputs of the Detect heads, by level."""
        return [pair for pair in self.pairs if pair.is_neck]

    def projector(self, pair: LayerPair) -> Projector:
        """Return what brings a layer of the student to the teacher's width."""
        projector = self.adapters[f"projector_{pair.name}"]
        assert isinstance(projector, Projector)
        return projector

    def projected(self, pair: LayerPair) -> torch.Tensor:
        """Return the student's map of a pair with the teacher's channels, [B, C, H, W]."""
        return self.projector(pair).project_map(self.student_maps[pair.name])

    def weight(self, region: Region) -> torch.Tensor:
        """Return the importance of the points, 0 outside of a region, [P]."""
        if region == "all":
            return self.matched.weight
        main, valuable = self._regions
        chosen = {"main": main, "valuable": valuable, "both": main | valuable}[region]
        return self.matched.weight * chosen

    @cached_property
    def _regions(self) -> tuple[torch.Tensor, torch.Tensor]:
        # Once a step, however many terms ask for a region.
        return localization_regions(
            self.matched.teacher_pixels, self.matched.image, self.labels.boxes, self.labels.image
        )


def at_points(values: torch.Tensor, image: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    """Return the rows of some points, whose gradient flows back much faster than through indexing.

    Args:
        values: Values by position, [B, C, N].
        image: Index in the batch of each point's image, int64 [P].
        point: Index of each point among the N positions, int64 [P].

    Returns:
        [P, C].
    """
    rows = values.transpose(1, 2).flatten(0, 1)
    return rows.index_select(0, image * values.shape[2] + point)


def term_value(term: Term, step: Step) -> torch.Tensor:
    """Return the value of a term's loss, not yet weighted.

    Args:
        term: The term.
        step: What it looks at.
    """
    matched = step.matched
    temperature = value_at(getattr(term, "temperature", 1.0), step.progress)
    match term:
        case BinaryKL() | SoftmaxKL():
            loss = binary_kl if isinstance(term, BinaryKL) else softmax_kl
            return loss(matched.student_scores, matched.teacher_scores, step.weight(term.region), temperature)
        case BCKD():
            return bckd(matched.student_scores, matched.teacher_scores, step.weight(term.region), term.gamma)
        case LocalizationDistillation():
            assert matched.teacher_bins is not None
            return localization_distillation(
                matched.student_bins, matched.teacher_bins, step.weight(term.region), temperature
            )
        case BoxIoU():
            return box_iou(matched.student_boxes, matched.teacher_boxes, step.weight(term.region))
        case BoxL2():
            return box_l2(matched.student_boxes, matched.teacher_boxes, step.weight(term.region))
        case BoxSmoothL1():
            return box_smooth_l1(matched.student_boxes, matched.teacher_boxes, step.weight(term.region), term.beta)
        case PKD() | ScoreWeightedL2():
            return _point_features(term, step)
        case AttentionTransfer():
            return _attention(step)
        case GradCAM():
            return _grad_cam(step)
        case CrossKD():
            return _cross_kd(term, step, temperature)
        case FeatureMSE() | ChannelAttention() | CWD() | MGD() | FGD() | LSP():
            pairs = [pair for pair in step.pairs if compares(term, pair)]
            return torch.stack([_map_value(term, step, pair, temperature) for pair in pairs]).mean()
        case _:
            assert_never(term)


def _map_value(term: Any, step: Step, pair: LayerPair, temperature: float) -> torch.Tensor:
    teacher = step.teacher_maps[pair.name]
    if isinstance(term, LSP):
        return lsp(step.student_maps[pair.name], teacher, term.window, temperature)
    student = step.projected(pair)
    if isinstance(term, ChannelAttention):
        return channel_weighted_mse(student, teacher, temperature)
    if isinstance(term, CWD):
        return cwd(student, teacher, temperature, term.normalise)
    images, size = len(student), (student.shape[2], student.shape[3])
    if isinstance(term, MGD):
        mask = random_mask(images, size, term.ratio, step.generator).to(student.device)
        return mgd(student, teacher, mask, step.adapters[f"generation_{pair.name}"])
    if isinstance(term, FGD):
        foreground, background = box_masks(step.labels.normalised, step.labels.image, images, size)
        ours, theirs = (step.adapters[f"context_{who}_{pair.name}"] for who in ("student", "teacher"))
        return fgd(student, teacher, foreground, background, ours, theirs, temperature=temperature)
    return feature_mse(student, teacher)


def _point_features(term: PKD | ScoreWeightedL2, step: Step) -> torch.Tensor:
    loss = pkd if isinstance(term, PKD) else score_weighted_l2
    matched, weight = step.matched, step.weight(term.region)
    total = weight.new_zeros(())
    first = 0
    for level, pair in enumerate(step.necks):
        feature = step.student_maps[pair.name]
        height, width = feature.shape[2:]
        here = (matched.point >= first) & (matched.point < first + height * width)
        cell = matched.point[here] - first
        first += height * width
        teacher = torch.cat([answer[f"features.{level}"] for answer in step.answers]).to(weight.device).float()
        # A level without points of weight has no say; its projector stays in the graph through the empty product.
        student = step.projector(pair)(at_points(feature.flatten(2), matched.image[here], cell))
        total = total + loss(student, teacher, weight[here])
    return total / len(step.necks)


def _attention(step: Step) -> torch.Tensor:
    terms = []
    for level, pair in enumerate(step.necks):
        flat = step.student_maps[pair.name].flatten(2)
        where, channels = (
            torch.stack([answer[f"{name}.{level}"] for answer in step.answers]).to(flat.device).float()
            for name in ("attention", "channels")
        )
        # The projector is linear, so that projecting the mean is taking the mean of what is projected.
        terms.append(attention_transfer(flat.square().mean(1), where))
        terms.append(attention_transfer(step.projector(pair)(flat.mean(2)), channels))
    return torch.stack(terms).mean()


def _grad_cam(step: Step) -> torch.Tensor:
    assert step.head is not None
    necks = step.necks
    maps = [step.teacher_maps[pair.name].detach().requires_grad_() for pair in necks]
    with torch.enable_grad():
        _, scores = head_outputs(step.head, maps)
        # What the teacher is sure of speaks loudest, and a hundred points of background stay silent.
        objects = scores.amax(1)
        gradients = torch.autograd.grad((objects.sigmoid().detach() * objects).sum(), maps)
    losses = [
        cam_weighted_mse(step.projected(pair), feature.detach(), gradient_cam(feature.detach(), gradient))
        for pair, feature, gradient in zip(necks, maps, gradients, strict=True)
    ]
    return torch.stack(losses).mean()


def _cross_kd(term: CrossKD, step: Step, temperature: float) -> torch.Tensor:
    assert step.head is not None
    matched, weight = step.matched, step.weight(term.region)
    assert matched.teacher_bins is not None
    features = [align_scale(step.projected(pair), step.teacher_maps[pair.name]) for pair in step.necks]
    boxes, scores = head_outputs(step.head, features)
    scores, boxes = (at_points(values, matched.image, matched.point) for values in (scores, boxes))
    return binary_kl(scores, matched.teacher_scores, weight, temperature) + localization_distillation(
        boxes, matched.teacher_bins, weight, temperature
    )

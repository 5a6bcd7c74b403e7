"""The detection loss with distillation terms."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.tal import make_anchors

from yolo_distill.components.distill_train.losses.attention_transfer import attention_transfer
from yolo_distill.components.distill_train.losses.binary_kl import binary_kl
from yolo_distill.components.distill_train.losses.box_iou import box_iou
from yolo_distill.components.distill_train.losses.localization_distillation import localization_distillation
from yolo_distill.components.distill_train.losses.pkd import pkd
from yolo_distill.components.distill_train.losses.score_weighted_l2 import score_weighted_l2
from yolo_distill.components.distill_train.online import OnlineTeacher
from yolo_distill.components.distill_train.recipe import (
    PKD,
    AttentionTransfer,
    BinaryKL,
    BoxIoU,
    LocalizationDistillation,
    Recipe,
    Term,
    value_at,
)

FeatureLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Matched:
    """What student and teacher say at the P anchor points of a batch that the teacher's answer covers, in float32.

    Attributes:
        image: Index in the batch of each point's image, int64 [P].
        point: Index of each point among the A anchor points, int64 [P].
        student_scores: Class logits, [P, nc].
        teacher_scores: Class logits, [P, nc].
        student_bins: DFL logits, [P, 4 * reg_max].
        teacher_bins: DFL logits, [P, 4 * reg_max]; ``None`` where the teacher saw another image than the student.
        student_boxes: Corners x1, y1, x2, y2 in strides, [P, 4].
        teacher_boxes: Corners in strides, [P, 4].
        weight: The teacher's best class score, [P], 0..1.
    """

    image: torch.Tensor
    point: torch.Tensor
    student_scores: torch.Tensor
    teacher_scores: torch.Tensor
    student_bins: torch.Tensor
    teacher_bins: torch.Tensor | None
    student_boxes: torch.Tensor
    teacher_boxes: torch.Tensor
    weight: torch.Tensor


class DistillationLoss(v8DetectionLoss):  # type: ignore[misc]
    """Ultralytics' detection loss plus a recipe's terms.

    The detection loss counts labelled images only; the terms count every image. Like ultralytics' own losses, the terms
    are multiplied by the batch size.

    Attributes:
        recipe: The terms, or ``None`` for the detection loss alone.
        projectors: Networks that bring the student's neck features to the teacher's width, by level.
        progress: How far the training is, 0..1, for schedules.
    """

    def __init__(
        self,
        network: DetectionModel,
        recipe: Recipe | None,
        projectors: nn.ModuleList | None,
        online: OnlineTeacher | None = None,
    ) -> None:
        """Set up the loss.

        Args:
            network: The student, on its device, with its hyperparameters as ``args``.
            recipe: The distillation terms, or ``None``.
            projectors: One a level, where a term of the recipe compares features.
            online: The teacher to ask at every step, for batches that come without its answers.
        """
        super().__init__(network)
        self.online = online
        self.recipe = recipe
        self.projectors = projectors
        self.progress = 0.0

    def loss(self, preds: dict[str, Any], batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the loss.

        Args:
            preds: The student's raw outputs: ``boxes`` [B, 4 * reg_max, A], ``scores`` [B, nc, A] and ``feats``, the
                neck features [B, C, H, W] by level.
            batch: Images and labels, ``labelled`` bool [B] and, for a recipe, ``answer``, the teacher's cached answers;
                without them the online teacher is asked.

        Returns:
            The losses to add up, each times the batch size, and all of them by name, each per image.
        """
        size = len(preds["boxes"])
        detection, items = self._detection_loss(preds, batch)
        if self.recipe is None:
            return detection * size, items
        supervision = value_at(self.recipe.supervision, self.progress)
        answers = batch["answer"] if self.online is None else self.online.read(batch)
        terms = self.distillation_terms(preds, answers)
        items |= {f"kd_{name}": value.detach() for name, value in terms.items()}
        return torch.cat([supervision * detection, torch.stack(list(terms.values()))]) * size, items

    def distillation_terms(
        self, preds: dict[str, Any], answers: list[dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """Return the recipe's terms by the name of their loss, weighted as the recipe says, not yet times the batch.

        Args:
            preds: The student's raw outputs.
            answers: The teacher's answer to each image.
        """
        assert self.recipe is not None
        carried = bool(answers) and "soft_boxes" in answers[0]
        matched = self._match_soft_boxes(preds, answers) if carried else self._match(preds, answers)
        return {
            term.loss: value_at(term.weight, self.progress) * self._term(term, matched, preds, answers)
            for term in self.recipe.terms
        }

    def _term(
        self, term: Term, matched: Matched, preds: dict[str, Any], answers: list[dict[str, torch.Tensor]]
    ) -> torch.Tensor:
        if isinstance(term, BinaryKL):
            temperature = value_at(term.temperature, self.progress)
            return binary_kl(matched.student_scores, matched.teacher_scores, matched.weight, temperature)
        if isinstance(term, LocalizationDistillation):
            temperature = value_at(term.temperature, self.progress)
            assert matched.teacher_bins is not None
            return localization_distillation(matched.student_bins, matched.teacher_bins, matched.weight, temperature)
        if isinstance(term, BoxIoU):
            return box_iou(matched.student_boxes, matched.teacher_boxes, matched.weight)
        if isinstance(term, AttentionTransfer):
            return self._attention_term(preds, answers)
        return self._feature_term(pkd if isinstance(term, PKD) else score_weighted_l2, matched, preds, answers)

    def _feature_term(
        self, loss: FeatureLoss, matched: Matched, preds: dict[str, Any], answers: list[dict[str, torch.Tensor]]
    ) -> torch.Tensor:
        assert self.projectors is not None
        total = matched.weight.new_zeros(())
        first = 0
        for level, (feature, projector) in enumerate(zip(preds["feats"], self.projectors, strict=True)):
            height, width = feature.shape[2:]
            here = (matched.point >= first) & (matched.point < first + height * width)
            cell = matched.point[here] - first
            first += height * width
            teacher = torch.cat([answer[f"features.{level}"] for answer in answers]).to(self.device).float()
            # A level without points of weight has no say; its projector stays in the graph through the empty product.
            student = projector(feature[matched.image[here], :, cell // width, cell % width].float())
            total = total + loss(student, teacher, matched.weight[here])
        return total / len(preds["feats"])

    def _attention_term(self, preds: dict[str, Any], answers: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        assert self.projectors is not None
        terms = []
        for level, (feature, projector) in enumerate(zip(preds["feats"], self.projectors, strict=True)):
            flat = feature.flatten(2).float()
            where, channels = (
                torch.stack([answer[f"{name}.{level}"] for answer in answers]).to(self.device).float()
                for name in ("attention", "channels")
            )
            # The projector is linear, so that projecting the mean is taking the mean of what is projected.
            terms.append(attention_transfer(flat.square().mean(1), where))
            terms.append(attention_transfer(projector(flat.mean(2)), channels))
        return torch.stack(terms).mean()

    def _match(self, preds: dict[str, Any], answers: list[dict[str, torch.Tensor]]) -> Matched:
        lengths = torch.tensor([len(answer["points"]) for answer in answers])
        image = torch.arange(len(answers)).repeat_interleave(lengths).to(self.device)
        point, scores, boxes = (
            torch.cat([answer[name] for answer in answers]).to(self.device) for name in ("points", "scores", "boxes")
        )
        student_scores = preds["scores"][image, :, point].float()
        # Of classes that were not kept nothing is known: there the student is its own teacher.
        teacher_scores = torch.where(scores.isnan(), student_scores.detach(), scores.float())
        anchors = make_anchors(preds["feats"], self.stride, 0.5)[0][point]
        student_bins, teacher_bins = preds["boxes"][image, :, point].float(), boxes.float()
        student_boxes, teacher_boxes = (
            self.bbox_decode(anchors, bins.unsqueeze(0)).squeeze(0) for bins in (student_bins, teacher_bins)
        )
        return Matched(
            image=image,
            point=point,
            student_scores=student_scores,
            teacher_scores=teacher_scores,
            student_bins=student_bins,
            teacher_bins=teacher_bins,
            student_boxes=student_boxes,
            teacher_boxes=teacher_boxes,
            weight=scores.float().nan_to_num(-torch.inf).sigmoid().amax(1),
        )

    def _match_soft_boxes(self, preds: dict[str, Any], answers: list[dict[str, torch.Tensor]]) -> Matched:
        """Match the teacher's boxes, carried into the student's view, to anchor points as labels are matched."""
        lengths = torch.tensor([len(answer["scores"]) for answer in answers])
        image_of_box = torch.arange(len(answers)).repeat_interleave(lengths).to(self.device)
        boxes, logits = (
            torch.cat([answer[name] for answer in answers]).to(self.device).float() for name in ("soft_boxes", "scores")
        )
        anchors, strides = make_anchors(preds["feats"], self.stride, 0.5)
        bins = preds["boxes"].transpose(1, 2).float().contiguous()
        decoded = self.bbox_decode(anchors, bins)
        size = torch.tensor(preds["feats"][0].shape[2:], device=self.device) * self.stride[0]
        # A box's place among the batch's goes in place of its class, so that its logits are found again.
        places = torch.arange(len(boxes), device=self.device)
        rows = torch.cat([image_of_box[:, None], places[:, None], boxes], 1)
        targets = self.preprocess(rows, len(answers), scale_tensor=size[[1, 0, 1, 0]])
        number, corners = targets.split((1, 4), 2)
        number = number.long().squeeze(2)
        _, _, _, foreground, chosen = self.assigner(
            preds["scores"].detach().float().sigmoid().transpose(1, 2),
            decoded.detach() * strides,
            anchors * strides,
            logits.argmax(1)[number].unsqueeze(2).float(),
            corners,
            corners.sum(2, keepdim=True).gt(0),
        )
        image, point = foreground.bool().nonzero(as_tuple=True)
        target = chosen[image, point].long()
        teacher_scores = logits[number[image, target]]
        return Matched(
            image=image,
            point=point,
            student_scores=preds["scores"][image, :, point].float(),
            teacher_scores=teacher_scores,
            student_bins=bins[image, point],
            teacher_bins=None,
            student_boxes=decoded[image, point],
            teacher_boxes=corners[image, target] / strides[point],
            weight=teacher_scores.sigmoid().amax(1),
        )

    def _detection_loss(
        self, preds: dict[str, Any], batch: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return ultralytics' box, class and DFL loss over the labelled images."""
        labelled = batch["labelled"].to(self.device)
        if not bool(labelled.all()):
            preds = {
                "boxes": preds["boxes"][labelled],
                "scores": preds["scores"][labelled],
                "feats": [feature[labelled] for feature in preds["feats"]],
            }
            # Unlabelled images have no rows, but those after them move up.
            moved = labelled.cumsum(0) - 1
            batch = {**batch, "batch_idx": moved[batch["batch_idx"].long()]}
            if not bool(labelled.any()):
                zero = preds["boxes"].sum() + preds["scores"].sum()
                return zero.repeat(3), dict.fromkeys(self.loss_names, zero.detach())
        _, loss, items = self.get_assigned_targets_and_loss(preds, batch)
        return loss, items

"""The detection loss with distillation terms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.ops import xywh2xyxy
from ultralytics.utils.tal import make_anchors

from yolo_distill.components.distill_train.calibration import GradientScales, gradient_norm
from yolo_distill.components.distill_train.layers import LayerOutputs, LayerPair
from yolo_distill.components.distill_train.losses.adaptive import disagreement, teacher_quality
from yolo_distill.components.distill_train.losses.binary_kl import binary_kl
from yolo_distill.components.distill_train.losses.localization_distillation import localization_distillation
from yolo_distill.components.distill_train.online import OnlineAnswer, OnlineTeacher
from yolo_distill.components.distill_train.recipe import Recipe, Region, value_at
from yolo_distill.components.distill_train.terms import Labels, Matched, Step, at_points, term_value
from yolo_distill.components.shared.distributed import SharedDetectionLoss, process_rank, share_of

# What ``DistillationLoss`` is told apart from the network: its batches of labels and answers.
Batch = dict[str, Any]


@dataclass(frozen=True)
class Distillation:
    """What a student is distilled with.

    Attributes:
        recipe: The terms.
        pairs: The layers that they compare.
        adapters: What trains beside the student: projectors and the losses' own layers, ``stable_targets`` and
            ``gradient_scales`` where the recipe asks for them.
        online: The teacher to ask at every step, for batches that come without its answers.
        average: Returns the moving average of the student, where the recipe has it as a co-teacher.
        seed: Seed of random masks.
    """

    recipe: Recipe
    pairs: Sequence[LayerPair] = ()
    adapters: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    online: OnlineTeacher | None = None
    average: Callable[[], nn.Module] | None = None
    seed: int = 0


class DistillationLoss(SharedDetectionLoss):
    """Ultralytics' detection loss plus a recipe's terms.

    The detection loss counts labelled images only; the terms count every image. Like ultralytics' own losses, the terms
    are multiplied by the batch size. They are computed in float32 whatever the network computes in. Where several
    processes train together, losses at anchor points are weighted by what each has of the whole batch's weight.

    Attributes:
        distillation: What the student is distilled with, or ``None`` for the detection loss alone.
        progress: How far the training is, 0..1, for schedules.
    """

    def __init__(self, network: DetectionModel, distillation: Distillation | None = None) -> None:
        """Set up the loss.

        Args:
            network: The student, on its device, with its hyperparameters as ``args``.
            distillation: What it is distilled with.
        """
        super().__init__(network)
        self.distillation = distillation
        self.progress = 0.0
        self._parameters = [parameter for parameter in network.model.parameters() if parameter.requires_grad]
        if distillation:
            self._outputs = LayerOutputs(network, [p.student for p in distillation.pairs if not p.is_neck])
            self._generator = torch.Generator().manual_seed(distillation.seed + process_rank())
            if distillation.online:
                maps = distillation.pairs if distillation.recipe.needs_online else []
                distillation.online.keep_maps([p.teacher for p in maps if p.teacher is not None])

    def loss(self, preds: dict[str, Any], batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
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
        if self.distillation is None:
            return detection * size, items
        supervision = value_at(self.distillation.recipe.supervision, self.progress)
        with torch.autocast(self.device.type, enabled=False):
            terms = self.distillation_terms(preds, batch, detection)
        items |= {f"kd_{name}": value.detach() for name, value in terms.items()}
        return torch.cat([supervision * detection, torch.stack(list(terms.values()))]) * size, items

    def distillation_terms(
        self, preds: dict[str, Any], batch: Batch, detection: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the recipe's terms by the name of their loss, weighted as the recipe says, not yet times the batch.

        Args:
            preds: The student's raw outputs.
            batch: As for :meth:`loss`.
            detection: The detection loss, by which the terms are calibrated where the recipe asks for it.
        """
        assert self.distillation is not None
        recipe = self.distillation.recipe
        step = self._step(preds, batch)
        shares = self._shares(step)
        terms: dict[str, torch.Tensor] = {
            term.loss: term_value(term, step) * shares.get(getattr(term, "region", None), 1.0) for term in recipe.terms
        }
        if recipe.calibrate:
            terms = self._calibrated(terms, detection)
        weighted: dict[str, torch.Tensor] = {
            term.loss: value_at(term.weight, self.progress) * terms[term.loss] for term in recipe.terms
        }
        if recipe.co_teacher != 0:
            weighted["co_teacher"] = value_at(recipe.co_teacher, self.progress) * self._co_teacher(step.matched, batch)
        return weighted

    def _shares(self, step: Step) -> dict[Region | None, torch.Tensor]:
        """Return this process's part of the weight that the whole batch has at anchor points, by region."""
        assert self.distillation is not None
        regions = dict.fromkeys(getattr(term, "region", None) for term in self.distillation.recipe.terms)
        return {region: share_of(step.weight(region).sum(), least=1e-9) for region in regions if region}

    def _step(self, preds: dict[str, Any], batch: Batch) -> Step:
        assert self.distillation is not None
        asked = self.distillation
        online = asked.online.read(batch) if asked.online else OnlineAnswer(batch["answer"], {})
        carried = bool(online.sparse) and "soft_boxes" in online.sparse[0]
        matched = self._match_soft_boxes(preds, online.sparse) if carried else self._match(preds, online.sparse)
        labels = self._labels(preds, batch)
        matched = self._steadied(self._strengthened(matched, labels, len(preds["boxes"])), labels, batch)
        necks = [pair.name for pair in asked.pairs if pair.is_neck]
        student_maps = {name: feature.float() for name, feature in zip(necks, preds["feats"], strict=False)}
        student_maps |= {p.name: self._outputs[p.student] for p in asked.pairs if not p.is_neck}
        return Step(
            matched=matched,
            labels=labels,
            progress=self.progress,
            answers=online.sparse,
            pairs=asked.pairs,
            student_maps=student_maps,
            teacher_maps={p.name: online.maps[p.teacher] for p in asked.pairs if p.teacher in online.maps},
            adapters=asked.adapters,
            head=asked.online.teacher.network.model[-1] if asked.online else None,
            generator=self._generator,
        )

    def _strengthened(self, matched: Matched, labels: Labels, images: int) -> Matched:
        """Weight the points by the strength of their image, where the recipe adapts it."""
        assert self.distillation is not None
        adaptive = self.distillation.recipe.adaptive
        if not adaptive:
            return matched
        strength = matched.weight.new_ones(images)
        if "teacher_quality" in adaptive:
            strength = strength * teacher_quality(
                matched.teacher_scores.where(matched.known, torch.nan),
                matched.teacher_pixels,
                matched.image,
                labels.boxes,
                labels.classes,
                labels.image,
                images,
            )
        if "disagreement" in adaptive:
            strength = strength * disagreement(
                matched.student_scores.detach(), matched.teacher_scores, matched.weight, matched.image, images
            )
        return replace(matched, weight=matched.weight * strength[matched.image])

    def _steadied(self, matched: Matched, labels: Labels, batch: Batch) -> Matched:
        """Steady the teacher's scores over the views of the labelled objects, where the recipe asks for it."""
        assert self.distillation is not None
        if "stable_targets" not in self.distillation.adapters:
            return matched
        scores = self.distillation.adapters["stable_targets"](
            matched.teacher_scores,
            matched.teacher_pixels,
            matched.weight,
            matched.image,
            labels.boxes,
            labels.image,
            batch["object"].to(self.device),
        )
        return replace(matched, teacher_scores=scores)

    def _co_teacher(self, matched: Matched, batch: Batch) -> torch.Tensor:
        """Return the losses of scores and box distributions against the moving average of the student."""
        assert self.distillation is not None and self.distillation.average is not None
        with torch.no_grad():
            raw = self.distillation.average()(batch["img"])[1]
        scores, bins = (at_points(raw[name].float(), matched.image, matched.point) for name in ("scores", "boxes"))
        weight = scores.sigmoid().amax(1)
        return binary_kl(matched.student_scores, scores, weight, 1.0) + localization_distillation(
            matched.student_bins, bins, weight, 1.0
        )

    def _calibrated(self, terms: dict[str, torch.Tensor], detection: torch.Tensor | None) -> dict[str, torch.Tensor]:
        assert self.distillation is not None
        scales = self.distillation.adapters["gradient_scales"]
        assert isinstance(scales, GradientScales)
        if detection is not None and detection.requires_grad and not scales.finished:
            norms = {name: gradient_norm(value, self._parameters) for name, value in terms.items()}
            scales.see(gradient_norm(detection.sum(), self._parameters), norms)
        return {name: scales.factor(name) * value for name, value in terms.items()}

    def _labels(self, preds: dict[str, Any], batch: Batch) -> Labels:
        normalised = batch["bboxes"].to(self.device).float()
        return Labels(
            image=batch["batch_idx"].to(self.device).long(),
            classes=batch["cls"].view(-1).to(self.device).long(),
            boxes=xywh2xyxy(normalised * self._sides(preds)),
            normalised=normalised,
        )

    def _sides(self, preds: dict[str, Any]) -> torch.Tensor:
        """Return width, height, width, height of the input in pixels."""
        height, width = preds["feats"][0].shape[2:]
        sides: torch.Tensor = torch.tensor([width, height, width, height], device=self.device) * self.stride[0]
        return sides

    def _match(self, preds: dict[str, Any], answers: list[dict[str, torch.Tensor]]) -> Matched:
        lengths = torch.tensor([len(answer["points"]) for answer in answers])
        image = torch.arange(len(answers)).repeat_interleave(lengths).to(self.device)
        point, scores, boxes = (
            torch.cat([answer[name] for answer in answers]).to(self.device) for name in ("points", "scores", "boxes")
        )
        student_scores = at_points(preds["scores"].float(), image, point)
        # Of classes that were not kept nothing is known: there the student is its own teacher.
        teacher_scores = torch.where(scores.isnan(), student_scores.detach(), scores.float())
        anchors, strides = (values[point] for values in make_anchors(preds["feats"], self.stride, 0.5))
        student_bins, teacher_bins = at_points(preds["boxes"].float(), image, point), boxes.float()
        student_boxes, teacher_boxes = (
            self.bbox_decode(anchors, bins.unsqueeze(0)).squeeze(0) for bins in (student_bins, teacher_bins)
        )
        return Matched(
            image=image,
            point=point,
            stride=strides.squeeze(1).float(),
            student_scores=student_scores,
            teacher_scores=teacher_scores,
            known=~scores.isnan(),
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
        # A box's place among the batch's goes in place of its class, so that its logits are found again.
        places = torch.arange(len(boxes), device=self.device)
        rows = torch.cat([image_of_box[:, None], places[:, None], boxes], 1)
        targets = self.preprocess(rows, len(answers), scale_tensor=self._sides(preds))
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
            stride=strides[point].squeeze(1).float(),
            student_scores=preds["scores"][image, :, point].float(),
            teacher_scores=teacher_scores,
            known=torch.ones_like(teacher_scores, dtype=torch.bool),
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
                # Other processes wait for this one's part, which is none.
                share_of(zero.detach(), least=1.0)
                return zero.repeat(3), dict.fromkeys(self.loss_names, zero.detach())
        _, loss, items = self.get_assigned_targets_and_loss(preds, batch)
        return loss, items

"""Asking the teacher: its raw answers to a batch of images and the anchor points where they carry something."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from pydantic import BaseModel, ConfigDict, Field
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.tal import make_anchors

from yolo_distill.components.shared.cores import usable_cores
from yolo_distill.components.shared.detector.pytorch_runtime import load_network
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import ModelCard, read_card
from yolo_distill.components.shared.precision import fast_autocast_dtype


class AnswerFormat(BaseModel):
    """What of a teacher's answer is kept, and how.

    Attributes:
        top_k: Points with the highest class score of the teacher, per view.
        assigner_top_k: Points per labelled box that the task-aligned assigner ranks first by the teacher's answer.
            Ultralytics trains on 10 a box; twice as many cover the points that a student's own ranking may bring in.
        classes: Class logits per point, the highest ones; the others are unknown to the student, which is not zero.
        features: How neck features are kept: in fp16, in int8 with a scale per point, or not at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    top_k: int = Field(default=256, ge=1)
    assigner_top_k: int = Field(default=20, ge=1)
    classes: int = Field(default=16, ge=1)
    features: Literal["fp16", "int8", "none"] = "fp16"


@dataclass(frozen=True)
class TeacherAnswers:
    """A teacher's raw outputs for a batch, over all A anchor points.

    Attributes:
        scores: Class logits, [B, nc, A].
        boxes: DFL logits, [B, 4 * reg_max, A].
        features: Neck features by level, each [B, C, H, W].
    """

    scores: torch.Tensor
    boxes: torch.Tensor
    features: list[torch.Tensor]


class Teacher:
    """A frozen teacher in evaluation mode.

    Attributes:
        folder: Its model artifact.
        card: Its model card.
        network: The network, fused.
        device: Where it runs.
    """

    def __init__(self, folder: Path, device: str | None = None) -> None:
        """Open a PyTorch model artifact.

        Args:
            folder: The model artifact.
            device: Where it runs; a GPU when there is one.

        Raises:
            InputError: The artifact is not a PyTorch detection network, or its head cannot be distilled from.
        """
        self.folder = folder
        self.card: ModelCard = read_card(folder)
        if self.card.format != "pytorch":
            raise InputError(folder, f"is a model for {self.card.format}", "Give a PyTorch model as the teacher")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.set_num_threads(usable_cores())
        network: DetectionModel = load_network(folder / self.card.file)
        head = network.model[-1]
        if getattr(head, "end2end", False) or not head.dfl or head.reg_max == 1:
            raise InputError(
                folder,
                f"has a {type(head).__name__} head without DFL bins or with one-to-one matching",
                "Give a YOLOv8-style teacher, whose head predicts box distributions at every anchor point",
            )
        self.network = network.fuse(verbose=False).to(self.device, memory_format=torch.channels_last)
        self.network.requires_grad_(False)
        self._criterion = _criterion(self.network)

    @property
    def strides(self) -> list[int]:
        """Pixels between anchor points, by level."""
        return [int(stride) for stride in self.network.stride]

    @property
    def channels(self) -> list[int]:
        """Channels of the neck features, by level."""
        return [branch[0].conv.in_channels for branch in self.network.model[-1].cv2]

    @property
    def reg_max(self) -> int:
        """Bins of a box side's distribution."""
        return int(self.network.model[-1].reg_max)

    @torch.inference_mode()
    def answer(self, images: torch.Tensor) -> TeacherAnswers:
        """Run the teacher.

        Args:
            images: RGB [B, 3, S, S], uint8 or floating point in 0..1.
        """
        batch = images.to(self.device, memory_format=torch.channels_last)
        batch = batch.float() / 255 if images.dtype == torch.uint8 else batch
        dtype = fast_autocast_dtype(self.device)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not torch.float32):
            raw = self.network(batch)[1]
        return TeacherAnswers(raw["scores"], raw["boxes"], list(raw["feats"]))

    @torch.inference_mode()
    def decode(self, answers: TeacherAnswers) -> torch.Tensor:
        """Return the boxes that answers stand for: corners x1, y1, x2, y2 in pixels of the input, [B, A, 4]."""
        points, strides = make_anchors(answers.features, self.network.stride, 0.5)
        logits = answers.boxes.float().transpose(1, 2).contiguous()
        boxes: torch.Tensor = self._criterion.bbox_decode(points.float(), logits) * strides.float()
        return boxes

    @torch.inference_mode()
    def select(self, answers: TeacherAnswers, labels: dict[str, torch.Tensor], wanted: AnswerFormat) -> torch.Tensor:
        """Choose the anchor points worth keeping.

        Args:
            answers: The teacher's answers.
            labels: ``batch_idx`` [n], ``cls`` [n, 1] and ``bboxes`` [n, 4] (normalised centre x, y, width, height).
            wanted: How many.

        Returns:
            A mask over the anchor points, bool [B, A].
        """
        scores = answers.scores.float().sigmoid().transpose(1, 2)
        best = scores.amax(2)
        mask = torch.zeros_like(best, dtype=torch.bool)
        mask.scatter_(1, best.topk(min(wanted.top_k, best.shape[1]), dim=1).indices, True)
        if len(labels["cls"]):
            mask |= self._assignable(answers, scores, labels, wanted.assigner_top_k)
        return mask

    def _assignable(
        self, answers: TeacherAnswers, scores: torch.Tensor, labels: dict[str, torch.Tensor], top_k: int
    ) -> torch.Tensor:
        criterion = self._criterion
        criterion.assigner.topk = top_k
        points, strides = make_anchors(answers.features, self.network.stride, 0.5)
        rows = torch.cat([labels["batch_idx"].view(-1, 1), labels["cls"].view(-1, 1), labels["bboxes"]], 1)
        height, width = (side * self.strides[0] for side in answers.features[0].shape[2:])
        scale = torch.tensor([width, height, width, height], device=self.device)
        targets = criterion.preprocess(rows.to(self.device).float(), len(scores), scale_tensor=scale)
        classes, boxes = targets.split((1, 4), 2)
        present = boxes.sum(2, keepdim=True).gt(0)
        foreground: torch.Tensor = criterion.assigner(
            scores, self.decode(answers), points.float() * strides.float(), classes, boxes, present
        )[3]
        return foreground.bool()


def sparse_answers(answers: TeacherAnswers, mask: torch.Tensor, wanted: AnswerFormat) -> list[dict[str, torch.Tensor]]:
    """Take what is wanted out of a batch of answers.

    Args:
        answers: The teacher's answers.
        mask: The chosen points, bool [B, A].
        wanted: What is kept of them.

    Returns:
        For each image ``points`` int32 [n], ascending; ``scores`` fp16 [n, c] class logits, of the highest classes
        ``classes`` int16 [n, c] where c is less than all; ``boxes`` fp16 [n, 4 * reg_max] DFL logits; and by level
        ``features.0`` ... [m, C] neck features at the points of the level (fp16, or int8 to be multiplied by
        ``features.0.scale`` fp16 [m]), ``attention.0`` ... fp16 [H * W], their mean square over channels, and
        ``channels.0`` ... fp16 [C], their mean over positions.
    """
    flat = [feature.flatten(2).float() for feature in answers.features]
    maps = {f"attention.{level}": feature.square().mean(1).half() for level, feature in enumerate(flat)}
    maps |= {f"channels.{level}": feature.mean(2).half() for level, feature in enumerate(flat)}
    return [_sparse_answer(answers, flat, maps, chosen, row, wanted) for row, chosen in enumerate(mask)]


def dense_answer(kept: dict[str, torch.Tensor], classes: int) -> dict[str, torch.Tensor]:
    """Undo the packing of a kept answer.

    Args:
        kept: One of :func:`sparse_answers`.
        classes: Number of classes.

    Returns:
        The answer with ``points`` int64, ``scores`` [n, classes], NaN where a class was not kept, and features as fp16.
    """
    answer = {name: tensor for name, tensor in kept.items() if name != "classes" and not name.endswith(".scale")}
    answer["points"] = kept["points"].long()
    if "classes" in kept:
        unknown = torch.full((len(kept["scores"]), classes), torch.nan, dtype=torch.half, device=kept["scores"].device)
        answer["scores"] = unknown.scatter(1, kept["classes"].long(), kept["scores"])
    for name in [name for name in kept if name.endswith(".scale")]:
        values = name.removesuffix(".scale")
        answer[values] = kept[values].half() * kept[name].unsqueeze(1)
    return answer


def _sparse_answer(
    answers: TeacherAnswers,
    features: list[torch.Tensor],
    maps: dict[str, torch.Tensor],
    chosen: torch.Tensor,
    row: int,
    wanted: AnswerFormat,
) -> dict[str, torch.Tensor]:
    points = chosen.nonzero().squeeze(1)
    kept = {name: values[row].clone() for name, values in maps.items()}
    kept |= {"points": points.int(), "boxes": answers.boxes[row, :, points].T.half()}
    scores = answers.scores[row, :, points].T
    if wanted.classes < scores.shape[1]:
        best = scores.topk(wanted.classes, dim=1)
        kept |= {"scores": best.values.half(), "classes": best.indices.short()}
    else:
        kept["scores"] = scores.half()
    first = 0
    for level, feature in enumerate(features):
        flat = feature[row]
        cells = points[(points >= first) & (points < first + flat.shape[1])] - first
        first += flat.shape[1]
        if wanted.features == "fp16":
            kept[f"features.{level}"] = flat[:, cells].T.half()
        elif wanted.features == "int8":
            at_points = flat[:, cells].T
            scale = at_points.abs().amax(1, keepdim=True).clamp(min=1e-6) / 127
            kept[f"features.{level}"] = (at_points / scale).round().to(torch.int8)
            kept[f"features.{level}.scale"] = scale.squeeze(1).half()
    return {name: tensor.contiguous() for name, tensor in kept.items()}


def _criterion(network: DetectionModel) -> v8DetectionLoss:
    # The loss object is used for its box decoding and its assigner alone, which read no hyperparameters.
    network.args = None
    return v8DetectionLoss(network)

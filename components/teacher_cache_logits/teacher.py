"""Asking the teacher: its raw answers to a batch of images and the anchor points where they carry something."""

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.tal import make_anchors

import yolo_distill.components.shared.ultralytics_env  # noqa: F401
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.detector.pytorch_runtime import load_network
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import ModelCard, read_card
from yolo_distill.components.shared.precision import fast_autocast_dtype


class PointSelection(BaseModel):
    """Which anchor points an answer keeps.

    Attributes:
        top_k: Points with the highest class score of the teacher, per view.
        assigner_top_k: Points per labelled box that the task-aligned assigner ranks first by the teacher's answer.
            Ultralytics trains on 10 a box; twice as many cover the points that a student's own ranking may bring in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    top_k: int = Field(default=256, ge=1)
    assigner_top_k: int = Field(default=20, ge=1)


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
        self.card: ModelCard = read_card(folder)
        if self.card.format != "pytorch":
            raise InputError(folder, f"is a model for {self.card.format}", "Give a PyTorch model as the teacher")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
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
    def select(
        self, answers: TeacherAnswers, labels: dict[str, torch.Tensor], selection: PointSelection
    ) -> torch.Tensor:
        """Choose the anchor points worth keeping.

        Args:
            answers: The teacher's answers.
            labels: ``batch_idx`` [n], ``cls`` [n, 1] and ``bboxes`` [n, 4] (normalised centre x, y, width, height).
            selection: How many.

        Returns:
            A mask over the anchor points, bool [B, A].
        """
        scores = answers.scores.float().sigmoid().transpose(1, 2)
        best = scores.amax(2)
        mask = torch.zeros_like(best, dtype=torch.bool)
        mask.scatter_(1, best.topk(min(selection.top_k, best.shape[1]), dim=1).indices, True)
        if len(labels["cls"]):
            mask |= self._assignable(answers, scores, labels, selection.assigner_top_k)
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
        predicted = criterion.bbox_decode(points.float(), answers.boxes.float().transpose(1, 2).contiguous())
        present = boxes.sum(2, keepdim=True).gt(0)
        foreground: torch.Tensor = criterion.assigner(
            scores, predicted * strides.float(), points.float() * strides.float(), classes, boxes, present
        )[3]
        return foreground.bool()


def sparse_answers(answers: TeacherAnswers, mask: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Take the chosen anchor points out of a batch of answers.

    Args:
        answers: The teacher's answers.
        mask: The chosen points, bool [B, A].

    Returns:
        For each image ``points`` int32 [n], ascending; ``scores`` fp16 [n, nc] and ``boxes`` fp16 [n, 4 * reg_max]
        logits; ``features.0`` ... fp16 [m, C] neck features at the points of a level.
    """
    return [_sparse_answer(answers, chosen, row) for row, chosen in enumerate(mask)]


def _sparse_answer(answers: TeacherAnswers, chosen: torch.Tensor, row: int) -> dict[str, torch.Tensor]:
    points = chosen.nonzero().squeeze(1)
    kept = {"scores": answers.scores[row, :, points].T, "boxes": answers.boxes[row, :, points].T}
    first = 0
    for level, feature in enumerate(answers.features):
        count = feature.shape[2] * feature.shape[3]
        cells = points[(points >= first) & (points < first + count)] - first
        kept[f"features.{level}"] = feature[row].flatten(1)[:, cells].T
        first += count
    return {"points": points.int(), **{name: tensor.half().contiguous() for name, tensor in kept.items()}}


def require_same_classes(card: ModelCard, dataset: DetectionDataset, role: str) -> None:
    """Refuse a model whose classes are not the dataset's, in the same order.

    Raises:
        InputError: They differ.
    """
    if card.classes != dataset.classes:
        raise InputError(
            f"{role} {card.architecture}",
            f"knows the classes {_shorten(card.classes)}, the data has {_shorten(dataset.classes)}",
            "Fine-tune it on the data (train-teacher does, when the classes differ) or use data with its classes",
        )


def _shorten(classes: list[str]) -> str:
    shown = ", ".join(classes[:5])
    return f"[{shown}, … {len(classes)} in all]" if len(classes) > 5 else f"[{shown}]"


def _criterion(network: DetectionModel) -> v8DetectionLoss:
    # The loss object is used for its box decoding and its assigner alone, which read no hyperparameters.
    network.args = None
    return v8DetectionLoss(network)

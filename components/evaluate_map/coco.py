"""COCO's average precision of detections against labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from pydantic import BaseModel, ConfigDict

# COCO counts at most this many detections of a class in an image.
MAX_DETECTIONS = 100

RECALL_POINTS = np.linspace(0, 1, 101)

_ALL_AREAS = 0


class ClassMetrics(BaseModel):
    """How well one class is detected.

    Attributes:
        ap: Average precision over IoU 0.50:0.05:0.95, 0..1, or ``None`` where no box is labelled with the class.
        ap50: The same at IoU 0.50.
        boxes: Labelled boxes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ap: float | None
    ap50: float | None
    boxes: int


class CocoMetrics(BaseModel):
    """COCO's figures, each 0..1, or ``None`` where no box is labelled that it could be measured on.

    Attributes:
        map: Mean average precision over classes and IoU 0.50:0.05:0.95 (mAP50-95).
        map50: The same at IoU 0.50.
        map75: The same at IoU 0.75.
        map_small: mAP50-95 of boxes below 32² pixels.
        map_medium: mAP50-95 of boxes from 32² to 96² pixels.
        map_large: mAP50-95 of boxes above 96² pixels.
        per_class: Figures by class name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    map: float | None
    map50: float | None
    map75: float | None
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    per_class: dict[str, ClassMetrics]


@dataclass(frozen=True)
class PrecisionRecall:
    """How precise each class is at each recall, at IoU 0.50. The mean over recall is the class's AP50.

    Attributes:
        precision: Best precision at each of :data:`RECALL_POINTS` or beyond, 0..1, [classes, 101]; NaN where no box is
            labelled with the class.
        score: Lowest score that must count to get there, 0..1, [classes, 101]; 0 where no score is low enough.
    """

    precision: np.ndarray
    score: np.ndarray


def coco_metrics(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> CocoMetrics:
    """Measure detections by the COCO protocol.

    Args:
        ground_truth: A COCO annotation file's content with ``images``, ``annotations`` and ``categories``; the category
            of class index c has the id c + 1.
        detections: A COCO result file's content: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in
            pixels) and ``score``.
        classes: Class names by class index.

    Returns:
        The figures; they equal those of pycocotools.
    """
    return measure(ground_truth, detections, classes)[0]


def measure(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> tuple[CocoMetrics, PrecisionRecall]:
    """Measure detections as :func:`coco_metrics` does, and return the curves behind the figures too."""
    truth = COCO(dict(ground_truth), use_deepcopy=True)
    evaluation = COCOeval_faster(truth, truth.loadRes(list(detections)), "bbox", extra_calc=False)
    evaluation.params.maxDets = [1, 10, MAX_DETECTIONS]
    evaluation.run()
    names = ("map", "map50", "map75", "map_small", "map_medium", "map_large")
    figures = {name: _known(value) for name, value in zip(names, evaluation.stats, strict=False)}
    # IoU threshold x recall x class x area x largest number of detections
    precision, scores = (evaluation.eval[name][:, :, :, _ALL_AREAS, -1] for name in ("precision", "scores"))
    boxes = np.bincount([a["category_id"] - 1 for a in ground_truth["annotations"]], minlength=len(classes))
    per_class = {
        name: ClassMetrics(
            ap=_known(precision[:, :, index].mean()),
            ap50=_known(precision[0, :, index].mean()),
            boxes=int(boxes[index]),
        )
        for index, name in enumerate(classes)
    }
    at_50 = precision[0].T
    curves = PrecisionRecall(np.where(at_50 < 0, np.nan, at_50), np.maximum(scores[0].T, 0))
    return CocoMetrics(**figures, per_class=per_class), curves


def _known(value: float) -> float | None:
    # COCO marks with -1 what cannot be measured.
    return None if value < 0 else float(value)

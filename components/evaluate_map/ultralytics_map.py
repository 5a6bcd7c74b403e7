"""Mean average precision as ultralytics counts it, for those who compare with what its validation prints.

Matching is the same as COCO's, the integral is not. Precision falls in steps as recall grows, and on such a step
ultralytics takes the value behind it where COCO takes the one before; behind the last step that is 0. At recall 0 it
takes 1, and it integrates by the trapezoid rule, whose ends weigh half. So a class that is found without a mistake has
0.995, and few boxes of a class make few and large steps. Besides, all detections of an image count, not the best 100 of
a class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import numpy as np
from ultralytics.utils.metrics import ap_per_class

from yolo_distill.components.evaluate_map.matches import IOU_THRESHOLDS, ClassMatches, find_matches

# Where ap_per_class returns average precision.
_AP = 5


@dataclass(frozen=True)
class UltralyticsMap:
    """Mean average precision, 0..1, or ``None`` where no box is labelled.

    Attributes:
        map: Over IoU 0.50:0.05:0.95.
        map50: At IoU 0.50.
    """

    map: float | None = None
    map50: float | None = None


def ultralytics_map(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], max_detections: int
) -> UltralyticsMap:
    """Count mAP by ultralytics' own function.

    Args:
        ground_truth: A COCO annotation file's content, without crowds.
        detections: A COCO result file's content.
        max_detections: The most detections that an image has.
    """
    matches = find_matches(ground_truth, detections, max_detections)
    labels = np.repeat(np.arange(len(matches)), [one.boxes.sum() for one in matches])
    if not len(labels):
        return UltralyticsMap()
    classes = np.repeat(np.arange(len(matches)), [len(one.score) for one in matches])
    scores = np.concatenate([one.score for one in matches])
    ap = ap_per_class(np.concatenate([_hits(one) for one in matches]), scores, classes, labels)[_AP]
    return UltralyticsMap(float(ap.mean()), float(ap[:, 0].mean()))


def _hits(matches: ClassMatches) -> np.ndarray:
    """Return whether each detection hits a label at each threshold, [D, 10]."""
    hits = np.zeros((len(matches.score), len(IOU_THRESHOLDS)), dtype=bool)
    for column, rows in zip(hits.T, matches.hits, strict=True):
        column[rows] = True
    return hits

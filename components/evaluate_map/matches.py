"""Which detections hit a label, kept so that average precision can be counted anew for any resample of the images.

The matches of an image do not depend on the other images: they are found once. What a resample changes is how often an
image counts, which is a weight here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from yolo_distill.components.evaluate_map.coco import MAX_DETECTIONS, RECALL_POINTS

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
# Values of the largest intermediate array, which stays in the processor's cache.
_CHUNK = 300_000


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class that count, the best score first.

    Attributes:
        image: [D] index of each detection's image.
        score: [D] score of each detection, never rising.
        hits: For each of :data:`IOU_THRESHOLDS`, the ascending positions 0..D-1 of the detections that hit a label.
        boxes: [I] labelled boxes of the class in each image.
    """

    image: np.ndarray
    score: np.ndarray
    hits: list[np.ndarray]
    boxes: np.ndarray


def find_matches(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], max_detections: int = MAX_DETECTIONS
) -> list[ClassMatches]:
    """Match detections with labels by the COCO protocol.

    Args:
        ground_truth: A COCO annotation file's content, without crowds, as :func:`.evaluate.coco_ground_truth` makes it.
        detections: A COCO result file's content.
        max_detections: How many detections of a class in an image count, the best ones.

    Returns:
        The matches of each class, by class index; images are counted in the order of their ids.
    """
    truth = COCO(dict(ground_truth), use_deepcopy=True)
    found = truth.loadRes(list(detections))
    matched = [_matched(truth, found, threshold, max_detections) for threshold in IOU_THRESHOLDS]
    images = {image: index for index, image in enumerate(sorted(truth.getImgIds()))}
    return [
        _class_matches(
            [a for a in found.dataset["annotations"] if a["category_id"] == category],
            [images[a["image_id"]] for a in truth.dataset["annotations"] if a["category_id"] == category],
            images,
            matched,
            max_detections,
        )
        for category in sorted(truth.getCatIds())
    ]


def average_precision(matches: ClassMatches, counts: np.ndarray) -> np.ndarray:
    """Count COCO's average precision for resamples of the images.

    It is what pycocotools says of a set in which each image appears that many times, its copies side by side. (Only
    detections of one image with exactly the same score may be ordered differently.)

    Args:
        matches: The matches of one class.
        counts: [R, I] whole numbers: how often each resample has each image.

    Returns:
        [R, 10] average precision at each of :data:`IOU_THRESHOLDS`, 0..1; NaN where a resample has no box of the class.
    """
    step = max(1, _CHUNK // max(1, len(matches.image)))
    parts = [_average_precision(matches, counts[start : start + step]) for start in range(0, len(counts), step)]
    return np.concatenate(parts)


def _average_precision(matches: ClassMatches, counts: np.ndarray) -> np.ndarray:
    boxes = counts @ matches.boxes
    reached, row = _reached_recall_points(boxes)
    # Resamples last: whole rows are taken and added up, which is several times as fast.
    weights = np.ascontiguousarray(counts.T, dtype=np.int32)[matches.image]
    seen = weights.cumsum(axis=0, dtype=np.int32)
    result = np.zeros((len(counts), len(matches.hits)))
    for number, hits in enumerate(matches.hits):
        found = weights[hits].cumsum(axis=0, dtype=np.int32)
        precision = found / (seen[hits] + np.spacing(1))
        # The best precision at this recall or a higher one; between two hits it only falls.
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        points = np.diff(reached[row, found], axis=0, prepend=0)
        result[:, number] = (envelope * points).sum(axis=0) / len(RECALL_POINTS)
    result[boxes == 0] = np.nan
    return result


def _reached_recall_points(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a table of the recall points that n found boxes reach, [..., n], and the row of each resample in it."""
    totals, row = np.unique(boxes, return_inverse=True)
    recalls = np.arange(totals.max() + 1) / np.maximum(totals, 1)[:, None]
    return np.searchsorted(RECALL_POINTS, recalls, side="right"), row


def _matched(truth: COCO, found: COCO, threshold: float, max_detections: int) -> set[int]:
    """Return the ids of the detections that hit a label at an overlap threshold."""
    evaluation = COCOeval_faster(truth, found, "bbox", extra_calc=False)
    parameters = evaluation.params
    parameters.iouThrs, parameters.maxDets = np.array([threshold]), [max_detections]
    parameters.areaRng, parameters.areaRngLbl = parameters.areaRng[:1], parameters.areaRngLbl[:1]
    evaluation.evaluate()
    evaluation.accumulate()
    return {int(pair.partition("_")[0]) for pair in evaluation.eval["matched"]}


def _class_matches(
    detections: list[dict[str, Any]],
    labelled: list[int],
    images: Mapping[int, int],
    matched: list[set[int]],
    max_detections: int,
) -> ClassMatches:
    image = np.array([images[d["image_id"]] for d in detections], dtype=np.int64)
    score = np.array([d["score"] for d in detections], dtype=float)
    ids = np.array([d["id"] for d in detections], dtype=np.int64)
    by_image = np.lexsort((-score, image))
    # How many detections of the same image are better.
    rank = np.arange(len(image)) - np.searchsorted(image[by_image], image[by_image])
    counted = by_image[rank < max_detections]
    order = counted[np.argsort(-score[counted], kind="stable")]
    hits = [np.flatnonzero(np.isin(ids[order], list(at))) for at in matched]
    return ClassMatches(image[order], score[order], hits, np.bincount(labelled, minlength=len(images)))

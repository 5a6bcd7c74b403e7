"""The confusion matrix: what labelled objects are taken for, and what is seen where nothing is labelled.

A detection takes the label that it overlaps most, whatever their classes, best scores first (ultralytics'
``ConfusionMatrix``, whose thresholds are the defaults here, so that the figures are those of its validation).
"""

from collections.abc import Sequence
from pathlib import Path

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from ultralytics.utils.metrics import ConfusionMatrix as Counter

from yolo_distill.components.shared.detector import Detections
from yolo_distill.components.shared.files import write_text
from yolo_distill.components.shared.records import read_record

CONFUSION_NAME = "confusion.json"
BACKGROUND = "background"
OTHERS = "other classes"

_CONFIDENCE = 0.25
_IOU = 0.45


class Confusion(BaseModel):
    """A confusion matrix.

    Attributes:
        categories: The class names by class index, then ``background``.
        matrix: Objects by what they are labelled as (row) and what they are detected as (column). The last row counts
            detections where nothing is labelled, the last column labels that nothing was detected at.
        confidence: Detections with a score at or below it did not count.
        iou: Overlap above which a detection takes a label.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    categories: list[str]
    matrix: list[list[int]]
    confidence: float = _CONFIDENCE
    iou: float = _IOU


class ConfusionCounter:
    """Counts a confusion matrix image by image.

    Args:
        classes: Class names by class index.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = list(classes)
        self._counter = Counter(dict(enumerate(classes)))

    def add(self, boxes: np.ndarray, labels: np.ndarray, found: Detections) -> None:
        """Count one image.

        Args:
            boxes: Labelled corners x1, y1, x2, y2 in pixels, [n, 4].
            labels: Labelled class indices, int64 [n].
            found: The detections.
        """
        detections = {"bboxes": found.boxes, "conf": found.scores, "cls": found.classes}
        truth = {"bboxes": boxes.astype(np.float32), "cls": labels}
        self._counter.process_batch(
            {name: torch.from_numpy(value) for name, value in detections.items()},
            {name: torch.from_numpy(value) for name, value in truth.items()},
            conf=_CONFIDENCE,
            iou_thres=_IOU,
        )

    def result(self) -> Confusion:
        """Return the matrix of all images so far."""
        # Ultralytics has detections in rows.
        matrix = self._counter.matrix.T.astype(int).tolist()
        return Confusion(categories=[*self._classes, BACKGROUND], matrix=matrix)


def condensed(confusion: Confusion, most: int) -> Confusion:
    """Keep the classes that are confused most and add up the rest as one.

    Args:
        confusion: A confusion matrix.
        most: Classes to keep, at least 1.

    Returns:
        The matrix itself if it has no more classes; else one of ``most`` classes in their order, then
        ``other classes`` and ``background``, which counts the same objects.
    """
    matrix, classes = np.array(confusion.matrix), len(confusion.categories) - 1
    if classes <= most:
        return confusion
    wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
    kept = np.sort(np.argsort(-wrong[:classes], kind="stable")[:most])
    place = np.full(classes + 1, most)
    place[kept], place[-1] = np.arange(most), most + 1
    added = np.zeros((most + 2, most + 2), dtype=int)
    np.add.at(added, (place[:, None], place[None, :]), matrix)
    names = [*(confusion.categories[index] for index in kept), OTHERS, BACKGROUND]
    return confusion.model_copy(update={"categories": names, "matrix": added.tolist()})


def write_confusion(folder: Path, confusion: Confusion) -> None:
    """Write a confusion matrix into an evaluation artifact."""
    write_text(folder / CONFUSION_NAME, confusion.model_dump_json() + "\n")


def read_confusion(folder: Path) -> Confusion:
    """Read the confusion matrix of an evaluation artifact.

    Raises:
        InputError: The folder holds none.
    """
    return read_record(
        folder,
        CONFUSION_NAME,
        Confusion,
        artifact="an evaluation with a confusion matrix",
        record="confusion matrix",
        origin="Give an evaluate-map output",
        again="Evaluate the model again",
    )

"""Whether two detectors give the same answers to the same images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from faster_coco_eval import mask
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from yolo_distill.components.prepare_data.dataset import DetectionDataset, Split
from yolo_distill.components.shared.detector import (
    Detections,
    Detector,
    Placement,
    postprocess,
    preprocess,
    read_batches,
)
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import Precision

# Boxes of anchor points below this score are not compared: no detection that anyone looks at comes of them.
CONFIDENCE = 0.05

# Two detections are one and the same if they have the same class and overlap at least this much.
SAME_IOU = 0.9

# What another order of float32 arithmetic may change: pixels of the network input, and class scores.
BOX_TOLERANCE = 0.5
SCORE_TOLERANCE = 1e-3

# What rounding weights to 16 bits may change besides.
FP16_BOX_TOLERANCE = 2.0
FP16_SCORE_TOLERANCE = 0.02

_BATCH = 10

PARITY_IMAGES = 50


class ParityError(RuntimeError):
    """A converted model does not compute what its original computes."""


@dataclass(frozen=True)
class Parity:
    """How far a candidate's answers are from a reference's.

    Attributes:
        images: Images compared.
        anchors: Anchor points where either detector gives a class a score above :data:`CONFIDENCE`, and the best one of
            each image.
        box_difference: Largest difference of a corner coordinate at those anchor points, in network pixels.
        score_difference: Largest difference of a class score at any anchor point, 0..1.
        reference_score: Highest class score that the reference gives anywhere.
        candidate_score: Highest class score that the candidate gives anywhere.
        detections: Detections of the reference above :data:`CONFIDENCE` after non-maximum suppression.
        unmatched: Detections of either that the other does not have. Where a score or an overlap lies on a threshold,
            the smallest difference makes one.
    """

    images: int
    anchors: int
    box_difference: float
    score_difference: float
    reference_score: float
    candidate_score: float
    detections: int
    unmatched: int

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the figures by name, each name starting with the prefix."""
        return {f"{prefix}_{name}": float(value) for name, value in asdict(self).items()}

    def require(self, conversion: str, precision: Precision = "fp32") -> None:
        """Refuse a floating point conversion that changes answers.

        Args:
            conversion: What was converted, for the message.
            precision: Of the candidate's weights. 16 bits may change more than another order of float32 arithmetic.

        Raises:
            ParityError: A difference reaches the tolerance of the precision, or is not a number.
        """
        half = precision == "fp16"
        boxes = FP16_BOX_TOLERANCE if half else BOX_TOLERANCE
        scores = FP16_SCORE_TOLERANCE if half else SCORE_TOLERANCE
        if not (self.box_difference < boxes and self.score_difference < scores):
            raise ParityError(
                f"{conversion} changes the model's answers on {self.images} images: boxes by up to "
                f"{self.box_difference:.3g} px (allowed: below {boxes}), scores by up to "
                f"{self.score_difference:.3g} (allowed: below {scores})"
            )


def sample_images(dataset: DetectionDataset, split: Split, count: int) -> list[Path]:
    """Choose images that are spread evenly over a split.

    Args:
        dataset: The dataset artifact.
        split: The split, labelled or not.
        count: Images to choose; all of a smaller split.

    Raises:
        InputError: The split is empty.
    """
    records = dataset.split(split)
    if not records:
        raise InputError(
            dataset.root,
            f"its {split} split has no image to compare models on",
            f"Prepare the data with a {split} split",
        )
    chosen = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    return [dataset.image_path(records[index]) for index in chosen]


def compare_detectors(reference: Detector, candidate: Detector, images: Sequence[Path]) -> Parity:
    """Compare two detectors anchor point by anchor point, and by what they detect.

    Args:
        reference: The original; both have the same classes and input size.
        candidate: What was made of it.
        images: Image files, at least one.

    Returns:
        The largest differences and the counts over all images.

    Raises:
        InputError: An image cannot be read.
    """
    parts: list[Parity] = []
    # A batch at a time: the runtimes' idle threads stay busy for a while, and in each other's way.
    for batch in read_batches(images, _BATCH):
        inputs, placements = preprocess(batch, reference.imgsz)
        answers = zip(reference.infer(inputs), candidate.infer(inputs), placements, strict=True)
        parts += [_compare(wanted, given, placement) for wanted, given, placement in answers]
    return _total(parts)


def _compare(wanted: np.ndarray, given: np.ndarray, placement: Placement) -> Parity:
    best = np.maximum(wanted[4:].max(axis=0), given[4:].max(axis=0))
    anchors = np.flatnonzero((best > CONFIDENCE) | (np.arange(best.size) == best.argmax()))
    found, other = (postprocess(raw[None], [placement], CONFIDENCE)[0] for raw in (wanted, given))
    return Parity(
        images=1,
        anchors=anchors.size,
        box_difference=float(np.abs(_corners(wanted[:4, anchors].T) - _corners(given[:4, anchors].T)).max()),
        score_difference=float(np.abs(wanted[4:] - given[4:]).max()),
        reference_score=float(wanted[4:].max()),
        candidate_score=float(given[4:].max()),
        detections=len(found),
        unmatched=len(found) + len(other) - 2 * _matches(found, other),
    )


def _total(parts: list[Parity]) -> Parity:
    def largest(name: str) -> float:
        # numpy's maximum keeps NaN, where Python's may drop it.
        return float(np.max([getattr(part, name) for part in parts]))

    return Parity(
        images=len(parts),
        anchors=sum(part.anchors for part in parts),
        box_difference=largest("box_difference"),
        score_difference=largest("score_difference"),
        reference_score=largest("reference_score"),
        candidate_score=largest("candidate_score"),
        detections=sum(part.detections for part in parts),
        unmatched=sum(part.unmatched for part in parts),
    )


def _corners(boxes: np.ndarray) -> np.ndarray:
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def _matches(found: Detections, other: Detections) -> int:
    """Count how many detections can be paired with one of the same class that overlaps, each in one pair at most."""
    if not (len(found) and len(other)):
        return 0
    overlap = mask.iou(_rectangles(found.boxes), _rectangles(other.boxes), [0] * len(other))
    same = (overlap >= SAME_IOU) & (found.classes[:, None] == other.classes)
    return int(same[linear_sum_assignment(same, maximize=True)].sum())


def _rectangles(corners: np.ndarray) -> np.ndarray:
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).astype(np.float64)

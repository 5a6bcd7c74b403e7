"""A picture of labels and detections side by side, for the eye to judge."""

from collections.abc import Sequence

import cv2
import numpy as np

from yolo_distill.components.shared.detector import Detections
from yolo_distill.components.shared.drawing import Colour, draw_box, draw_text

# Weaker detections would cover the image.
SHOWN_CONFIDENCE = 0.25

_CELL = 480
_GAP = 6
_LABEL_COLOUR = (60, 170, 60)
_DETECTION_COLOUR = (30, 90, 230)


def side_by_side(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, found: Detections, classes: Sequence[str]
) -> np.ndarray:
    """Draw an image twice: with its labels at the left, with what was detected at the right.

    Args:
        image: BGR, uint8 [height, width, 3].
        boxes: Labelled corners x1, y1, x2, y2 in pixels, [n, 4].
        labels: Labelled class indices, int64 [n].
        found: The detections; those above :data:`SHOWN_CONFIDENCE` are drawn.
        classes: Class names by class index.

    Returns:
        BGR, uint8 [h, w, 3], its width the same for every image.
    """
    scale = _CELL / image.shape[1]
    shown = found.scores > SHOWN_CONFIDENCE
    left = _draw(image, scale, boxes, [classes[c] for c in labels], _LABEL_COLOUR)
    captions = [f"{classes[c]} {s:.2f}" for c, s in zip(found.classes[shown], found.scores[shown], strict=True)]
    right = _draw(image, scale, found.boxes[shown], captions, _DETECTION_COLOUR)
    return np.hstack([left, np.full((len(left), _GAP, 3), 255, np.uint8), right])


def contact_sheet(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Stack pictures of :func:`side_by_side` under a heading.

    Args:
        rows: At least one picture.

    Returns:
        BGR, uint8 [h, w, 3].
    """
    heading = np.full((36, rows[0].shape[1], 3), 255, np.uint8)
    draw_text(heading, "labels", (8, 25), _LABEL_COLOUR)
    draw_text(heading, f"detections with a score above {SHOWN_CONFIDENCE}", (_CELL + _GAP + 8, 25), _DETECTION_COLOUR)
    gap = np.full((_GAP, rows[0].shape[1], 3), 255, np.uint8)
    return np.vstack([heading, *(part for row in rows for part in (row, gap))])


def _draw(image: np.ndarray, scale: float, boxes: np.ndarray, captions: Sequence[str], colour: Colour) -> np.ndarray:
    size = (_CELL, max(round(image.shape[0] * scale), 1))
    canvas = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    for box, caption in zip(boxes * scale, captions, strict=True):
        draw_box(canvas, box, caption, colour)
    return np.asarray(canvas)

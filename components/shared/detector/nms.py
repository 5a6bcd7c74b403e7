"""Class-wise non-maximum suppression, the same for every runtime."""

import cv2
import numpy as np

# Candidates looked at in one go: more than most images need to fill up, few enough to take a few milliseconds.
_CHUNK = 1000


def non_maximum_suppression(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, iou: float, max_detections: int
) -> np.ndarray:
    """Drop every box that a better box of the same class overlaps.

    Candidates are taken best first in chunks and the work stops as soon as enough boxes are kept. What is kept depends
    on better boxes alone, so that the answer is exactly that of looking at all candidates at once.

    Args:
        boxes: Corners x1, y1, x2, y2, [n, 4].
        scores: Above 0, [n].
        classes: Class indices, [n].
        iou: Overlap (intersection over union) above which the worse box is dropped, 0..1.
        max_detections: Boxes to keep at most.

    Returns:
        Indices of the kept boxes, best first, int64 [≤ max_detections].
    """
    order = np.argsort(-scores, kind="stable")
    corners = boxes.astype(np.float64)
    # Each class gets a strip of its own, as wide as all boxes together, so that boxes of two classes never overlap.
    strip = np.ptp(corners[:, [0, 2]]) + 1 if len(boxes) else 0.0
    left = corners[:, 0] + classes * strip
    rectangles = np.stack([left, corners[:, 1], *(corners[:, 2:] - corners[:, :2]).T], axis=1)
    kept = order[:0]
    for start in range(0, len(order), _CHUNK):
        candidates = np.concatenate([kept, order[start : start + _CHUNK]])
        chosen = cv2.dnn.NMSBoxes(rectangles[candidates], scores[candidates].astype(np.float32), 0.0, iou)
        kept = candidates[np.asarray(chosen, dtype=np.int64)]
        if len(kept) >= max_detections:
            break
    return kept[:max_detections]

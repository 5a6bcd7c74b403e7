"""What a detector is and what it finds."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from yolo_distill.components.shared.detector.letterbox import ImageSize


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, best first.

    Attributes:
        boxes: Corners x1, y1, x2, y2 in pixels of the original image, float32 [n, 4].
        scores: Class scores in 0..1, float32 [n], never rising.
        classes: Class indices, int64 [n].
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


class Detector(Protocol):
    """A network that is ready to run."""

    @property
    def classes(self) -> list[str]:
        """Class names by class index."""
        ...

    @property
    def imgsz(self) -> ImageSize:
        """Size of the network input in pixels: the side of a square, or height and width."""
        ...

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Run the network.

        Args:
            batch: Letterboxed RGB images in 0..1, C-contiguous float32 [B, 3, H, W], B ≥ 1.

        Returns:
            For each of N anchor points the box centre x, y, width and height in pixels of the network input and a score
            in 0..1 per class, float32 [B, 4 + classes, N].
        """
        ...

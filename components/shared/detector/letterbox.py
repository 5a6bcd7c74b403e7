"""Fitting an image into the network input and boxes back into the image."""

from dataclasses import dataclass

import cv2
import numpy as np

from yolo_distill.components.shared.model_card import PIXELS

PAD_VALUE = 114

# Side of a square in pixels, or height and width.
ImageSize = int | tuple[int, int]


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the network input.

    Attributes:
        width: Pixels of the original image.
        height: Pixels of the original image.
        gain_x: Network pixels per image pixel, along x.
        gain_y: The same along y; rounding to whole pixels makes it differ a little.
        left: Padding left of the image in network pixels.
        top: Padding above the image in network pixels.
    """

    width: int
    height: int
    gain_x: float
    gain_y: float
    left: int
    top: int

    def to_image(self, boxes: np.ndarray) -> np.ndarray:
        """Map corners x1, y1, x2, y2 [n, 4] from network input to image pixels, clipped to the image."""
        offset = np.array([self.left, self.top] * 2)
        gain = np.array([self.gain_x, self.gain_y] * 2)
        mapped: np.ndarray = np.clip((boxes - offset) / gain, 0, [self.width, self.height] * 2)
        return mapped


def height_and_width(imgsz: ImageSize) -> tuple[int, int]:
    """Return height and width in pixels."""
    return (imgsz, imgsz) if isinstance(imgsz, int) else imgsz


def letterbox(image: np.ndarray, imgsz: ImageSize) -> tuple[np.ndarray, Placement]:
    """Scale an image to fit the network input, centred, and pad it with grey.

    Pixel for pixel what ultralytics' ``LetterBox`` does, so that a network sees at inference what it saw in training.

    Args:
        image: uint8 [height, width, 3].
        imgsz: Size of the network input.

    Returns:
        The network input, uint8 [H, W, 3], and where the image lies in it.
    """
    height, width = image.shape[:2]
    full_height, full_width = height_and_width(imgsz)
    gain = min(full_height / height, full_width / width)
    # A very thin image keeps at least one pixel.
    new_width, new_height = max(round(width * gain), 1), max(round(height * gain), 1)
    if (new_width, new_height) != (width, height):
        image = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    # An odd pixel of padding goes to the right and below, hence the 0.1.
    left, top = round((full_width - new_width) / 2 - 0.1), round((full_height - new_height) / 2 - 0.1)
    padded = np.full((full_height, full_width, 3), PAD_VALUE, np.uint8)
    padded[top : top + new_height, left : left + new_width] = image
    return padded, Placement(width, height, new_width / width, new_height / height, left, top)


def to_pixels(batch: np.ndarray) -> np.ndarray:
    """Turn letterboxed RGB planes in 0..1, float32 [B, 3, H, W], back into the BGR bytes [B, H, W, 3] they were."""
    return np.ascontiguousarray(np.rint(batch[:, ::-1] * np.float32(255)).astype(np.uint8).transpose(0, 2, 3, 1))


def network_input(batch: np.ndarray, preprocessing: str) -> np.ndarray:
    """Return letterboxed planes as a network takes them.

    Args:
        batch: RGB in 0..1, float32 [B, 3, H, W].
        preprocessing: What the network's card says of its input.
    """
    return to_pixels(batch) if preprocessing == PIXELS else batch

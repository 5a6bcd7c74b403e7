"""Reading images while the detector works."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from yolo_distill.components.shared.errors import InputError


def read_image(path: Path) -> np.ndarray:
    """Read an image as BGR, uint8 [height, width, 3].

    Raises:
        InputError: It cannot be read, or has more pixels than Pillow takes for harmless.
    """
    _require_size(path)
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise _unreadable(path)
    return np.asarray(image)


def _require_size(path: Path) -> None:
    """Refuse an image by its header, before its pixels take memory."""
    limit = Image.MAX_IMAGE_PIXELS or math.inf
    try:
        with Image.open(path) as image:
            too_large = image.width * image.height > limit
    except Image.DecompressionBombError:
        too_large = True
    # Pillow and its plugins raise whatever comes up on broken bytes.
    except Exception as error:
        raise _unreadable(path) from error
    if too_large:
        raise InputError(path, f"has more than {limit / 1e6:.0f} million pixels", "Make it smaller")


def _unreadable(path: Path) -> InputError:
    return InputError(path, "cannot be read as an image", "Prepare the data again")


def read_batches(paths: Sequence[Path], size: int) -> Iterator[list[np.ndarray]]:
    """Read images in order, the next batch in a thread while the caller works on the last.

    Args:
        paths: The image files.
        size: Images a batch; the last one may be smaller.

    Yields:
        The next images, see :func:`read_image`.

    Raises:
        InputError: An image cannot be read.
    """
    batches = [paths[start : start + size] for start in range(0, len(paths), size)]
    with ThreadPoolExecutor(max_workers=1) as thread:
        running: Future[list[np.ndarray]] | None = None
        for batch in [*batches, []]:
            last, running = running, thread.submit(_read, batch)
            if last is not None:
                yield last.result()


def _read(paths: Sequence[Path]) -> list[np.ndarray]:
    return [read_image(path) for path in paths]

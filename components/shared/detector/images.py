"""Reading images while the detector works."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from yolo_distill.components.shared.errors import InputError


def read_image(path: Path) -> np.ndarray:
    """Read an image as BGR, uint8 [height, width, 3].

    Raises:
        InputError: It cannot be read.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(path, "cannot be read as an image", "Prepare the data again")
    return np.asarray(image)


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

"""The 15 corruptions of COCO-C, each at five severities.

Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", brought
to detection by Michaelis et al. 2019, "Benchmarking Robustness in Object Detection". The pictures are made by the
latter's ``imagecorruptions``, in the branch that is kept up with numpy (``imagecorruptions-imaug``).
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import imagecorruptions
import numpy as np

CORRUPTIONS: tuple[str, ...] = tuple(imagecorruptions.get_corruption_names("common"))
SEVERITIES = (1, 2, 3, 4, 5)

# The library refuses images with a shorter side in pixels.
LEAST_SIDE = 32

# These two have a source of randomness of their own.
_SEEDED = ("glass_blur", "impulse_noise")


def corrupt(image: np.ndarray, corruption: str, severity: int, seed: int) -> np.ndarray:
    """Corrupt an image.

    Args:
        image: BGR, uint8 [height, width, 3], no side below :data:`LEAST_SIDE`.
        corruption: One of :data:`CORRUPTIONS`.
        severity: One of :data:`SEVERITIES`.
        seed: Below 2³². The same seed makes the same picture.

    Returns:
        BGR, uint8 [height, width, 3].
    """
    own = {"seed": seed} if corruption in _SEEDED else {}
    with _numpy_seed(seed):
        result = imagecorruptions.corrupt(
            np.ascontiguousarray(image[..., ::-1]), severity=severity, corruption_name=corruption, **own
        )
    return np.ascontiguousarray(result[..., ::-1])


def image_seed(seed: int, *parts: object) -> int:
    """Return the seed of one image, below 2³², from the run's seed and what tells the image apart."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:4], "little")


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which the library draws from, and put it back."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)

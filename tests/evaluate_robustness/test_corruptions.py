"""The 15 corruptions: what they make, and that it can be made again."""

import numpy as np
import pytest

from yolo_distill.components.evaluate_robustness.corruptions import CORRUPTIONS, corrupt, image_seed

# Of these nothing is random.
FIXED = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Blobs in colour on a slope, of odd sides."""
    y, x = np.mgrid[:75, :101]
    planes = [128 + 60 * np.sin(x / 9 + shift) + 60 * np.cos(y / 7 - shift) for shift in (0, 1, 2)]
    return np.clip(np.stack(planes, axis=2), 0, 255).astype(np.uint8)


def test_they_are_those_of_coco_c() -> None:
    assert len(CORRUPTIONS) == 15
    assert {"snow", "frost", "fog", "elastic_transform"} <= set(CORRUPTIONS)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_the_same_seed_makes_the_same_picture(corruption: str, image: np.ndarray) -> None:
    before, state = image.copy(), np.random.get_state()[1].copy()
    first, again, other = (corrupt(image, corruption, 3, seed) for seed in (7, 7, 8))
    assert (first.shape, first.dtype) == (image.shape, np.uint8)
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == (corruption in FIXED)
    assert not np.array_equal(first, image)
    # Neither the image nor numpy's own randomness is touched.
    assert np.array_equal(image, before)
    assert np.array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("corruption", ["gaussian_noise", "contrast", "brightness", "defocus_blur"])
def test_a_higher_severity_changes_more(corruption: str, image: np.ndarray) -> None:
    changes = [np.abs(corrupt(image, corruption, s, 0).astype(float) - image).mean() for s in (1, 3, 5)]
    assert changes[0] < changes[1] < changes[2]


def test_colours_are_those_of_the_image() -> None:
    # Blue stays blue: the library wants the channels the other way round.
    blue = np.zeros((40, 40, 3), np.uint8)
    blue[..., 0] = 200
    made = corrupt(blue, "jpeg_compression", 1, 0).mean(axis=(0, 1))
    assert made[0] > 150 and made[1:].max() < 50


def test_seeds_differ_by_image_and_condition() -> None:
    seeds = {image_seed(seed, image, severity) for seed in (0, 1) for image in "ab" for severity in (1, 2)}
    assert len(seeds) == 8 and all(0 <= seed < 2**32 for seed in seeds)
    assert image_seed(0, "a", 1) == image_seed(0, "a", 1)

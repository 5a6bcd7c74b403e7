from dataclasses import dataclass, field

import cv2
import numpy as np
import pytest

from yolo_distill.components.export_openvino.parity import ParityError, compare_detectors, sample_images
from yolo_distill.components.shared.errors import InputError


@dataclass
class Fixed:
    """Gives every image the same answer."""

    raw: np.ndarray
    classes: list[str] = field(default_factory=lambda: ["cat", "dog"])
    imgsz: int = 64

    def infer(self, batch):
        return np.repeat(self.raw[None], len(batch), axis=0)


@pytest.fixture
def raw():
    """Three objects, of which the last is below the score that is looked at."""
    answer = np.zeros((6, 3), np.float32)
    answer[:4] = np.array([[20, 20, 10, 10], [40, 40, 12, 8], [50, 20, 6, 6]]).T
    answer[4:] = [[0.9, 0.0, 0.02], [0.0, 0.6, 0.0]]
    return answer


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in range(12)]
    for path in paths:
        cv2.imwrite(str(path), np.zeros((64, 64, 3), np.uint8))
    return paths


def test_equal_detectors(raw, images):
    parity = compare_detectors(Fixed(raw), Fixed(raw), images)
    assert (parity.images, parity.anchors, parity.detections, parity.unmatched) == (12, 24, 24, 0)
    assert (parity.box_difference, parity.score_difference) == (0, 0)
    assert (parity.reference_score, parity.candidate_score) == pytest.approx((0.9, 0.9))
    parity.require("nothing")
    assert parity.metrics("onnx")["onnx_detections"] == 24


def test_a_box_that_moves(raw, images):
    moved = raw.copy()
    moved[0, 1] += 0.4
    moved[2, 1] += 0.4
    parity = compare_detectors(Fixed(raw), Fixed(moved), images)
    # Centre and half of the width add up at one corner.
    assert parity.box_difference == pytest.approx(0.6, abs=1e-5)
    assert parity.unmatched == 0
    with pytest.raises(ParityError, match=r"The test changes .* boxes by up to 0\.6 px"):
        parity.require("The test")


def test_a_box_that_nobody_sees_may_move(raw, images):
    moved = raw.copy()
    moved[0, 2] += 5
    compare_detectors(Fixed(raw), Fixed(moved), images).require("The test")


def test_a_weak_network_is_compared_at_its_best_anchor_point(raw, images):
    weak, moved = raw.copy(), raw.copy()
    weak[4:] /= 1000
    moved[4:] /= 1000
    moved[0, 0] += 5
    parity = compare_detectors(Fixed(weak), Fixed(moved), images[:1])
    assert (parity.anchors, parity.detections) == (1, 0)
    assert parity.box_difference == pytest.approx(5)


@pytest.mark.parametrize("change, allowed", [(0.0009, True), (0.0011, False)])
def test_a_score_that_changes_anywhere(raw, images, change, allowed):
    other = raw.copy()
    other[5, 2] += change
    parity = compare_detectors(Fixed(raw), Fixed(other), images)
    assert parity.score_difference == pytest.approx(change, abs=1e-6)
    if allowed:
        parity.require("The test")
    else:
        with pytest.raises(ParityError, match="scores by up to"):
            parity.require("The test")


@pytest.mark.parametrize("row", [0, 4])
def test_an_answer_that_is_not_a_number(raw, images, row):
    broken = raw.copy()
    broken[row, 0] = np.nan
    with pytest.raises(ParityError, match="nan"):
        compare_detectors(Fixed(raw), Fixed(broken), images).require("The test")


def test_detections_without_a_partner_are_counted_on_both_sides(raw, images):
    other = raw.copy()
    other[4:, 1] = [0.6, 0.0]
    parity = compare_detectors(Fixed(raw), Fixed(other), images[:1])
    assert (parity.detections, parity.unmatched) == (2, 2)
    parity = compare_detectors(Fixed(raw), Fixed(np.zeros_like(raw)), images[:1])
    assert (parity.detections, parity.unmatched) == (2, 2)


def test_images_are_spread_over_the_split(digits):
    records = digits.split("val")
    expected = [digits.image_path(records[index]) for index in (0, 8, 15)]
    assert sample_images(digits, "val", 3) == expected
    assert len(sample_images(digits, "val", 50)) == len(records)


def test_a_split_without_images(digits):
    empty = digits.manifest.model_copy(update={"images": digits.split("train")})
    with pytest.raises(InputError, match="its val split has no image to compare models on"):
        sample_images(type(digits)(digits.root, empty), "val", 3)

import time

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import numpy as np
import pytest
import torch
import torchvision
from ultralytics.data.augment import LetterBox
from ultralytics.utils.ops import scale_boxes

from yolo_distill.components.shared.detector import Placement, letterbox, postprocess, preprocess
from yolo_distill.components.shared.detector.nms import non_maximum_suppression


def candidates(rng, count, classes, extent=320.0):
    corner, size = rng.uniform(-20, extent, (count, 2)), rng.gamma(2, 25, (count, 2))
    boxes = np.concatenate([corner, corner + size], axis=1)
    return boxes, rng.uniform(0.001, 1, count).astype(np.float32), rng.integers(0, classes, count)


def reference_nms(boxes, scores, classes, iou, max_detections):
    """Torchvision's, one class at a time, in double precision."""
    kept = []
    for label in np.unique(classes):
        index = np.flatnonzero(classes == label)
        chosen = torchvision.ops.nms(torch.from_numpy(boxes[index]), torch.from_numpy(scores[index]).double(), iou)
        kept.append(index[chosen.numpy()])
    kept = np.concatenate(kept)
    return kept[np.argsort(-scores[kept], kind="stable")][:max_detections]


@pytest.mark.parametrize("count, classes", [(1, 1), (40, 3), (3500, 1), (3500, 80), (12000, 10)])
@pytest.mark.parametrize("iou", [0.3, 0.7])
def test_nms_keeps_what_torchvision_keeps_class_by_class(count, classes, iou):
    boxes, scores, labels = candidates(np.random.default_rng(count + classes), count, classes)
    expected = reference_nms(boxes, scores, labels, iou, 300)
    assert non_maximum_suppression(boxes, scores, labels, iou, 300).tolist() == expected.tolist()


def test_nms_looks_past_a_first_thousand_of_duplicates():
    boxes = np.tile([10.0, 10.0, 50.0, 50.0], (2501, 1))
    boxes[-1] += 200
    scores = np.linspace(1, 0.5, 2501, dtype=np.float32)
    assert non_maximum_suppression(boxes, scores, np.zeros(2501, int), 0.7, 300).tolist() == [0, 2500]


def test_nms_never_lets_classes_meet():
    # Far outside the input, as an untrained network may answer.
    boxes = np.array([[-900.0, 0, 900, 10], [-900, 0, 900, 10], [-900, 0, 900, 10]])
    kept = non_maximum_suppression(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 1, 0]), 0.7, 300)
    assert kept.tolist() == [0, 1]


def test_nms_is_fast_with_every_anchor_point_a_candidate():
    rng = np.random.default_rng(0)
    raw = np.concatenate([rng.uniform(0, 320, (1, 4, 2100)), rng.beta(0.3, 20, (1, 10, 2100))], axis=1)
    _, placements = preprocess([np.zeros((320, 320, 3), np.uint8)], 320)
    times = []
    for _ in range(15):
        start = time.process_time()
        postprocess(raw.astype(np.float32), placements)
        times.append(time.process_time() - start)
    assert min(times) < 0.02


@pytest.mark.parametrize(
    "shape", [(480, 640), (640, 480), (320, 320), (333, 517), (17, 1001), (1, 900), (1000, 2), (100, 80)]
)
@pytest.mark.parametrize("imgsz", [320, 416])
def test_letterbox_is_ultralytics_own_pixel_for_pixel(shape, imgsz):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    square, placement = letterbox(image, imgsz)
    assert np.array_equal(square, LetterBox((imgsz, imgsz))(image=image))
    boxes = np.array([[50.0, 60.0, 200.0, 210.0], [0.0, 0.0, imgsz, imgsz]])
    expected = scale_boxes((imgsz, imgsz), boxes.copy(), shape)
    assert placement.to_image(boxes) == pytest.approx(expected, abs=1e-9)


def test_preprocess_makes_planes_of_red_green_blue_from_0_to_1():
    image = np.zeros((32, 32, 3), np.uint8)
    image[...] = (255, 51, 0)
    batch, _ = preprocess([image, image], 32)
    assert batch.shape == (2, 3, 32, 32)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    assert batch[1, :, 5, 5].tolist() == pytest.approx([0, 0.2, 1])


def test_postprocess_counts_a_box_once_for_each_of_its_classes():
    raw = np.zeros((1, 6, 3), np.float32)
    raw[0, :4] = np.array([[100, 100, 40, 20], [101, 100, 40, 20], [300, 310, 60, 60]]).T
    raw[0, 4:] = [[0.9, 0.8, 0.0], [0.0, 0.3, 0.25]]
    found = postprocess(raw, [Placement(640, 640, 0.5, 0.5, 0, 0)], confidence=0.25)[0]
    # The second box is the first one again in class 0, and alone in class 1; a score on the threshold is dropped.
    assert found.classes.tolist() == [0, 1]
    assert found.scores == pytest.approx([0.9, 0.3])
    assert found.boxes == pytest.approx(np.array([[160, 180, 240, 220], [162, 180, 242, 220]]))
    assert (found.boxes.dtype, found.scores.dtype, found.classes.dtype) == (np.float32, np.float32, np.int64)


def test_postprocess_clips_boxes_to_the_image_and_keeps_the_best():
    raw = np.zeros((1, 5, 400), np.float32)
    raw[0, 0] = np.arange(400) * 10
    raw[0, 1:4] = [[5], [4], [40]]
    raw[0, 4] = np.linspace(0.1, 0.9, 400)
    found = postprocess(raw, [Placement(3000, 20, 1.0, 1.0, 0, 0)])[0]
    assert len(found) == 300
    assert (np.diff(found.scores) <= 0).all()
    assert found.boxes[:, 1].min() == 0
    assert found.boxes[:, 3].max() == 20
    assert found.boxes[:, [0, 2]].max() <= 3000


def test_postprocess_of_nothing_is_empty():
    found = postprocess(np.zeros((1, 7, 50), np.float32), [Placement(10, 10, 1.0, 1.0, 0, 0)])[0]
    assert found.boxes.shape == (0, 4)
    assert len(found) == 0

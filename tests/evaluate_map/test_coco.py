import contextlib
import io
import itertools

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolo_distill.components.evaluate_map.coco import coco_metrics

CLASSES = ["cat", "dog", "owl", "yak"]
OVERALL = ("map", "map50", "map75", "map_small", "map_medium", "map_large")


def reference(truth, detections):
    """pycocotools' figures: overall, then average precision and that at 0.50 by class index, -1 where unknown."""
    with contextlib.redirect_stdout(io.StringIO()):
        labels = COCO()
        labels.dataset = {"info": {}, **truth}
        labels.createIndex()
        found = COCO()
        found.dataset = {
            **labels.dataset,
            "annotations": [
                {**d, "id": number, "iscrowd": 0, "area": d["bbox"][2] * d["bbox"][3]}
                for number, d in enumerate(detections, 1)
            ],
        }
        found.createIndex()
        evaluation = COCOeval(labels, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return evaluation.stats[:6], precision.mean(axis=(0, 1)), precision[0].mean(axis=0)


def scenes(seed, images=12, boxes=20, noise=0.15, false=30, labelled=CLASSES, shown=CLASSES, decimals=2):
    """Labels of all sizes and noisy detections of them: shifted, mislabelled, doubled, missed and made up."""
    rng = np.random.default_rng(seed)
    annotations, detections, number = [], [], itertools.count(1)
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, boxes)):
            x, y = rng.uniform(0, 400, 2)
            w, h = rng.lognormal(3.8, 0.9, 2)
            label = int(rng.integers(len(labelled)))
            category = CLASSES.index(labelled[label]) + 1
            annotations.append(
                {"id": next(number), "image_id": image, "category_id": category, "bbox": [x, y, w, h], "area": w * h}
                | {"iscrowd": 0}
            )
            for _ in range(rng.choice(3, p=[0.15, 0.7, 0.15])):
                shift = rng.normal(0, noise, 4) * [w, h, w, h]
                wrong = CLASSES.index(shown[rng.integers(len(shown))]) + 1
                box = np.clip(np.array([x, y, w, h]) + shift, 0, None)
                found = category if rng.random() < 0.85 and CLASSES[category - 1] in shown else wrong
                score = round(float(rng.beta(4, 2)), decimals)
                detections.append({"image_id": image, "category_id": found, "bbox": box.tolist(), "score": score})
        for _ in range(rng.integers(0, false)):
            box = np.concatenate([rng.uniform(0, 400, 2), rng.lognormal(3.8, 0.9, 2)]).tolist()
            category = CLASSES.index(shown[rng.integers(len(shown))]) + 1
            score = round(float(rng.beta(1, 4)), decimals)
            detections.append({"image_id": image, "category_id": category, "bbox": box, "score": score})
    truth = {
        "images": [{"id": image, "width": 640, "height": 640} for image in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for index, name in enumerate(CLASSES, 1)],
    }
    return truth, detections


def assert_equal_to_pycocotools(truth, detections):
    overall, ap, ap50 = reference(truth, detections)
    metrics = coco_metrics(truth, detections, CLASSES)
    ours = [getattr(metrics, name) for name in OVERALL]
    ours += [value for name in CLASSES for value in (metrics.per_class[name].ap, metrics.per_class[name].ap50)]
    theirs = [*overall, *(value for pair in zip(ap, ap50, strict=True) for value in pair)]
    for one, other in zip(ours, theirs, strict=True):
        assert (other == -1) if one is None else one == pytest.approx(other, abs=1e-6)
    return metrics


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_pycocotools_on_noisy_detections(seed):
    metrics = assert_equal_to_pycocotools(*scenes(seed))
    assert 0.05 < metrics.map < 0.9


def test_equal_to_pycocotools_with_more_detections_than_count():
    assert_equal_to_pycocotools(*scenes(1, images=3, boxes=60, false=500))


def test_equal_to_pycocotools_with_equal_scores():
    assert_equal_to_pycocotools(*scenes(2, decimals=0))


def test_equal_to_pycocotools_with_a_class_that_has_no_boxes():
    metrics = assert_equal_to_pycocotools(*scenes(3, labelled=CLASSES[:2]))
    assert metrics.per_class["yak"].model_dump() == {"ap": None, "ap50": None, "boxes": 0}
    assert metrics.map == pytest.approx(np.mean([metrics.per_class[name].ap for name in CLASSES[:2]]))


def test_equal_to_pycocotools_with_a_class_that_is_never_found():
    metrics = assert_equal_to_pycocotools(*scenes(4, shown=CLASSES[:3]))
    assert metrics.per_class["yak"].ap == 0
    assert metrics.per_class["yak"].boxes > 0


def test_equal_to_pycocotools_without_detections():
    truth, _ = scenes(5)
    metrics = assert_equal_to_pycocotools(truth, [])
    assert metrics.map == 0


def test_equal_to_pycocotools_with_images_without_boxes():
    truth, detections = scenes(6)
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] != 1]
    assert_equal_to_pycocotools(truth, detections)


def test_perfect_detections_and_unknown_sizes():
    box = {"image_id": 1, "category_id": 2, "bbox": [10.0, 10.0, 20.0, 20.0]}
    truth, _ = scenes(0, images=1, boxes=1, false=1)
    truth["annotations"] = [{"id": 1, **box, "area": 400.0, "iscrowd": 0}]
    metrics = assert_equal_to_pycocotools(truth, [{**box, "score": 0.9}])
    assert (metrics.map, metrics.map50, metrics.map_small) == (1, 1, 1)
    assert (metrics.map_medium, metrics.map_large) == (None, None)


def test_the_arguments_stay_as_they_are():
    truth, detections = scenes(7)
    before = repr((truth, detections))
    coco_metrics(truth, detections, CLASSES)
    assert repr((truth, detections)) == before

"""The confusion matrix, precision over recall and ultralytics' mAP, on answers that can be counted by hand."""

import re

import numpy as np
import pytest

from tests.evaluate_map.test_coco import CLASSES, scenes
from yolo_distill.components.evaluate_map.coco import RECALL_POINTS, measure
from yolo_distill.components.evaluate_map.confusion import Confusion, ConfusionCounter, condensed, read_confusion
from yolo_distill.components.evaluate_map.evaluation import EvaluatedModel, Evaluation, EvaluationSettings
from yolo_distill.components.evaluate_map.report import report
from yolo_distill.components.evaluate_map.ultralytics_map import UltralyticsMap, ultralytics_map
from yolo_distill.components.shared.detector import Detections
from yolo_distill.components.shared.errors import InputError

BOX = np.array([10.0, 10, 50, 50])


def found(*detections: tuple[np.ndarray, float, int]) -> Detections:
    boxes, scores, classes = zip(*detections, strict=True)
    return Detections(np.array(boxes, np.float32), np.array(scores, np.float32), np.array(classes, np.int64))


def test_objects_are_counted_by_what_they_are_taken_for():
    counter = ConfusionCounter(["cat", "dog"])
    # A cat is found, one is taken for a dog, one is missed; a dog is seen where nothing is, and a weak one is not seen.
    boxes = np.stack([BOX, BOX + 100, BOX + 200])
    counter.add(
        boxes,
        np.array([0, 0, 0]),
        found((BOX + 2, 0.9, 0), (BOX + 100, 0.8, 1), (BOX + 300, 0.7, 1), (BOX + 200, 0.2, 0)),
    )
    counter.add(np.zeros((0, 4)), np.zeros(0, np.int64), found((BOX, 0.6, 0)))
    counter.add(
        BOX[None], np.array([1]), Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0))
    )
    confusion = counter.result()
    assert confusion.categories == ["cat", "dog", "background"]
    assert confusion.matrix == [[1, 1, 1], [0, 0, 1], [1, 1, 0]]


def test_a_label_goes_to_the_best_of_two_detections():
    counter = ConfusionCounter(["cat", "dog"])
    counter.add(BOX[None], np.array([0]), found((BOX, 0.9, 1), (BOX, 0.8, 0)))
    assert counter.result().matrix == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_of_many_classes_those_confused_most_are_kept_and_none_is_lost():
    matrix = np.diag([5, 5, 5, 5, 0])
    matrix[1, 3] = matrix[3, 1] = 7
    matrix[0, 4] = 1
    confusion = Confusion(categories=["a", "b", "c", "d", "background"], matrix=matrix.tolist())
    shown = condensed(confusion, 2)
    assert shown.categories == ["b", "d", "other classes", "background"]
    assert shown.matrix == [[5, 7, 0, 0], [7, 5, 0, 0], [0, 0, 10, 1], [0, 0, 0, 0]]
    assert condensed(confusion, 4) is confusion


def test_a_folder_without_a_confusion_matrix(tmp_path):
    with pytest.raises(InputError, match=r"it has no confusion\.json"):
        read_confusion(tmp_path)


def test_the_mean_of_a_precision_curve_is_the_ap50():
    truth, detections = scenes(3, labelled=CLASSES[:3])
    metrics, curves = measure(truth, detections, CLASSES)
    assert curves.precision.shape == (len(CLASSES), len(RECALL_POINTS))
    for name, precision, score in zip(CLASSES[:3], curves.precision, curves.score, strict=False):
        assert precision.mean() == pytest.approx(metrics.per_class[name].ap50)
        assert (np.diff(precision) <= 0).all() and (np.diff(score) <= 0).all()
    assert np.isnan(curves.precision[3]).all()


def one_class(hits: list[bool], boxes: int):
    """Labels in a row, of which the first so many are found, in the order of the scores; misses lie elsewhere."""
    at = [[100.0 * n, 0.0, 50.0, 50.0] for n in range(boxes)]
    label = {"image_id": 1, "category_id": 1}
    truth = {
        "images": [{"id": 1, "width": 5000, "height": 5000}],
        "annotations": [{**label, "id": n + 1, "bbox": b, "area": 2500.0, "iscrowd": 0} for n, b in enumerate(at)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    places = iter(at)
    detections = [
        {**label, "bbox": next(places) if hit else [0.0, 3000.0, 50.0, 50.0], "score": 0.9 - 0.01 * n}
        for n, hit in enumerate(hits)
    ]
    return truth, detections


def test_ultralytics_looks_behind_a_step_of_the_curve_where_coco_looks_before_it():
    # Precision is 1 up to recall 0.5 and 2/3 from there to 1.
    scene = one_class([True, False, True], boxes=2)
    assert measure(*scene, ["cat"])[0].map50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    # At recall 0.5 it takes 2/3, at recall 1 nothing; and the ends of a trapezoid rule weigh half.
    theirs = ultralytics_map(*scene, max_detections=300)
    assert theirs.map50 == pytest.approx((50 + 50 * 2 / 3 - 0.5) / 100)
    assert theirs.map == theirs.map50


def test_ultralytics_gives_995_of_1000_for_perfection():
    scene = one_class([True, True], boxes=2)
    assert measure(*scene, ["cat"])[0].map == pytest.approx(1)
    assert ultralytics_map(*scene, max_detections=300).map == pytest.approx(0.995)


def test_ultralytics_counts_more_detections_of_a_class_than_coco():
    truth, detections = one_class([False] * 100 + [True], boxes=1)
    assert measure(truth, detections, ["cat"])[0].map50 == 0
    assert ultralytics_map(truth, detections, max_detections=300).map50 == pytest.approx(1 / 101, abs=0.01)
    assert ultralytics_map(truth, detections, max_detections=300).map50 > 0


def test_without_labels_there_is_no_figure():
    truth, detections = one_class([True], boxes=1)
    assert ultralytics_map({**truth, "annotations": []}, detections, max_detections=300) == UltralyticsMap()


def evaluated(classes: int) -> tuple[Evaluation, str]:
    names = [f"<b>{n}</b>" for n in range(classes)]
    truth, detections = one_class([True, False], boxes=3)
    truth["categories"] = [{"id": n, "name": name} for n, name in enumerate(names, 1)]
    figures, curves = measure(truth, detections, names)
    model = EvaluatedModel(
        name="<script>",
        format="onnx",
        precision="fp32",
        digest="0",
        imgsz=64,
        architecture="x",
        parameters=1,
        gflops=1,
        lineage={},
    )
    settings = EvaluationSettings(coco_max_detections=100, protocol="COCO bbox")
    evaluation = Evaluation(
        **figures.model_dump(), model=model, dataset="d", split="val", images=1, settings=settings, ultralytics_map=0.5
    )
    matrix = np.eye(classes + 1, dtype=int)
    matrix[0, 1] = 2
    confusion = Confusion(categories=[*names, "background"], matrix=matrix.tolist())
    return evaluation, report(evaluation, curves, confusion)


@pytest.mark.parametrize("classes", [2, 30])
def test_the_page_needs_nothing_else_and_names_cannot_break_out_of_it(classes):
    _, page = evaluated(classes)
    assert not re.search(r"(?:src|href)=\"(?!data:image/)", page)
    assert "<script>" not in page and "<b>" not in page
    assert ("The 20 of 30 classes that are confused most." in page) == (classes == 30)
    assert ("A thin line for each class." in page) == (classes == 30)
    assert "mAP50-95 50.0 of these detections" in page


def test_an_evaluation_that_was_made_without_ultralytics_figure_is_read(tmp_path):
    evaluation, _ = evaluated(2)
    older = Evaluation.model_validate(evaluation.model_dump(exclude={"ultralytics_map", "ultralytics_map50"}))
    assert older.ultralytics_map is None
    assert "ultralytics_map" not in older.metrics

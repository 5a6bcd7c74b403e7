import json
import shutil
from pathlib import Path

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import cv2
import numpy as np
import pytest
import yaml
from kfp import dsl
from ultralytics import YOLO

from yolo_distill.components.evaluate_map.coco import coco_metrics
from yolo_distill.components.evaluate_map.component import evaluate_map as component
from yolo_distill.components.evaluate_map.confusion import read_confusion
from yolo_distill.components.evaluate_map.evaluate import coco_ground_truth, evaluate
from yolo_distill.components.evaluate_map.evaluation import read_evaluation
from yolo_distill.components.evaluate_map.pictures import contact_sheet, side_by_side
from yolo_distill.components.prepare_data.dataset import DetectionDataset, describe_image, write_index
from yolo_distill.components.shared.detector import Detections
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import read_card
from yolo_distill.components.train_teacher.checkpoint import write_checkpoint_artifact


@pytest.fixture(scope="module")
def evaluated(digits, student_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated") / "evaluation"
    return evaluate(digits, student_dir, "val", folder), folder


def copy_of(dataset: DetectionDataset, folder: Path) -> Path:
    shutil.copytree(dataset.root, folder)
    return folder


def reindexed(root: Path, dataset: DetectionDataset, classes: list[str] | None = None) -> DetectionDataset:
    """Describe the images in a folder anew, after something was done to them."""
    records = [
        describe_image(root, r.file, r.split, r.width, r.height)
        for r in dataset.manifest.images
        if (root / r.file).is_file()
    ]
    write_index(root, classes or dataset.classes, records, "test")
    return DetectionDataset.open(root)


def test_the_artifact_says_what_was_evaluated(evaluated, digits, student_dir):
    evaluation, folder = evaluated
    assert read_evaluation(folder) == evaluation
    card = read_card(student_dir)
    assert evaluation.model.name == card.name
    assert evaluation.model.digest == card.digests[card.file]
    assert (evaluation.model.format, evaluation.model.precision) == ("pytorch", "fp32")
    assert (evaluation.dataset, evaluation.split, evaluation.images) == (digits.digest, "val", 16)
    assert evaluation.settings.coco_max_detections == 100
    boxes = sum(record.boxes for record in digits.split("val"))
    assert sum(figures.boxes for figures in evaluation.per_class.values()) == boxes
    assert evaluation.metrics["map50"] == evaluation.map50


def test_the_figures_are_those_of_the_files(evaluated, digits):
    evaluation, folder = evaluated
    truth, found = (json.loads((folder / name).read_text()) for name in ("ground_truth.json", "detections.json"))
    assert found
    metrics = coco_metrics(truth, found, digits.classes)
    assert metrics.model_dump() == evaluation.model_dump(include=set(type(metrics).model_fields))
    assert truth == coco_ground_truth(digits, digits.split("val"))


def test_everything_is_written_by_the_component(digits, student_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    kinds = {
        "evaluation": dsl.Artifact,
        "metrics": dsl.Metrics,
        "confusion": dsl.ClassificationMetrics,
        "report": dsl.HTML,
    }
    made = {name: kind(name=name, uri=str(tmp_path / name)) for name, kind in kinds.items()}
    inputs = {"dataset": dsl.Dataset(uri=str(digits.root)), "model": dsl.Model(uri=str(student_dir))}
    component.python_func(**inputs, **made)
    evaluation = read_evaluation(tmp_path / "evaluation")
    assert made["metrics"].metadata == evaluation.metrics
    assert evaluation.metrics["ultralytics_map"] == evaluation.ultralytics_map
    logged = made["confusion"].metadata["confusionMatrix"]
    confusion = read_confusion(tmp_path / "evaluation")
    assert [one["displayName"] for one in logged["annotationSpecs"]] == [*digits.classes, "background"]
    assert [one["row"] for one in logged["rows"]] == confusion.matrix
    # Every labelled box is in its class' row, found or missed.
    assert [sum(row) for row in confusion.matrix[:-1]] == [one.boxes for one in evaluation.per_class.values()]
    page = (tmp_path / "report").read_text()
    assert page == (tmp_path / "evaluation" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert all(f'<td class="text">{name}</td>' in page for name in digits.classes)


def test_the_truth_itself_scores_1(digits):
    truth = coco_ground_truth(digits, digits.split("test"))
    found = [{**annotation, "score": 0.5} for annotation in truth["annotations"]]
    assert coco_metrics(truth, found, digits.classes).map == pytest.approx(1)


def test_labels_become_coco_boxes_in_pixels(digits):
    record = digits.split("val")[0]
    truth = coco_ground_truth(digits, [record])
    label, x, y, w, h = digits.labels(record)[0]
    annotation = truth["annotations"][0]
    assert annotation["category_id"] == label + 1
    expected = [(x - w / 2) * record.width, (y - h / 2) * record.height, w * record.width, h * record.height]
    assert annotation["bbox"] == pytest.approx(expected, abs=1e-3)
    assert truth["categories"][int(label)] == {"id": label + 1, "name": digits.classes[int(label)]}


def test_the_picture_shows_labels_and_detections_side_by_side():
    image = np.full((100, 200, 3), 90, np.uint8)
    box = np.array([[20.0, 30, 120, 80]])
    found = Detections(
        boxes=np.array([[100, 10, 190, 90], [5, 5, 30, 30]], np.float32),
        scores=np.array([0.9, 0.1], np.float32),
        classes=np.array([0, 0]),
    )
    row = side_by_side(image, box, np.array([1]), found, ["cat", "dog"])
    left, right = row[:, :480], row[:, -480:]
    scale = 480 / 200
    changed = [np.argwhere((half != 90).any(axis=2)) / scale for half in (left, right)]
    # y, x of the outermost changed pixels; a caption sits on top of its box
    assert changed[0].max(axis=0) == pytest.approx([80, 120], abs=1)
    assert changed[0].min(axis=0)[1] == pytest.approx(20, abs=1)
    assert changed[1].max(axis=0) == pytest.approx([90, 190], abs=1)
    # The weak detection is not drawn.
    assert changed[1].min(axis=0)[1] == pytest.approx(100, abs=1)
    sheet = contact_sheet([row, row])
    assert sheet.shape[1] == row.shape[1]
    assert sheet.shape[0] > 2 * row.shape[0]


def test_the_artifact_holds_a_picture(evaluated):
    picture = cv2.imread(str(evaluated[1] / "detections.jpg"))
    assert picture.shape[0] > 6 * 400


def test_progress_is_reported(digits, student_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("YOLO_DISTILL_PROGRESS", str(tmp_path / "progress"))
    evaluate(digits, student_dir, "val", tmp_path / "evaluation")
    events = [json.loads(line) for line in (tmp_path / "progress").read_text().splitlines()]
    assert [(event["done"], event["total"], event["unit"]) for event in events] == [(8, 16, "image"), (16, 16, "image")]


def test_unlabelled_images_do_not_count(digits, student_dir, tmp_path):
    root = copy_of(digits, tmp_path / "data")
    for record in digits.split("val")[:10]:
        (root / record.label_file).unlink()
    evaluation = evaluate(reindexed(root, digits), student_dir, "val", tmp_path / "evaluation")
    assert evaluation.images == 6


def test_a_split_that_does_not_exist(digits, student_dir, tmp_path):
    with pytest.raises(InputError, match=r"split 'validation': is not a split\. Choose one of train, val, test"):
        evaluate(digits, student_dir, "validation", tmp_path / "evaluation")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("labels", ["none", "empty"])
def test_a_split_without_labelled_boxes(digits, student_dir, tmp_path, labels):
    root = copy_of(digits, tmp_path / "data")
    for record in digits.split("val"):
        (root / record.label_file).unlink()
        if labels == "empty":
            (root / record.label_file).touch()
    with pytest.raises(InputError, match="its val split has no labelled box"):
        evaluate(reindexed(root, digits), student_dir, "val", tmp_path / "evaluation")
    assert not (tmp_path / "evaluation").exists()


def test_a_model_of_other_classes(digits, student_dir, tmp_path):
    root = copy_of(digits, tmp_path / "data")
    other = reindexed(root, digits, classes=[*digits.classes, "ten"])
    with pytest.raises(InputError, match="are not the dataset's"):
        evaluate(other, student_dir, "val", tmp_path / "evaluation")


def test_a_truncated_image(digits, student_dir, tmp_path):
    root = copy_of(digits, tmp_path / "data")
    victim = root / digits.split("val")[9].file
    victim.write_bytes(victim.read_bytes()[:20])
    with pytest.raises(InputError, match=f"{victim.name}: cannot be read as an image"):
        evaluate(reindexed(root, digits), student_dir, "val", tmp_path / "evaluation")
    assert not (tmp_path / "evaluation").exists()


def test_an_image_of_another_size_than_its_labels_were_drawn_on(digits, student_dir, tmp_path):
    root = copy_of(digits, tmp_path / "data")
    victim = root / digits.split("val")[0].file
    cv2.imwrite(str(victim), np.zeros((50, 60, 3), np.uint8))
    with pytest.raises(InputError, match="is 60x50 pixels, its manifest says 160x160"):
        evaluate(reindexed(root, digits), student_dir, "val", tmp_path / "evaluation")


def test_a_folder_that_is_no_evaluation(tmp_path):
    with pytest.raises(InputError, match=r"is not an evaluation, it has no evaluation\.json"):
        read_evaluation(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"map": 2}')
    with pytest.raises(InputError, match="is not a valid evaluation"):
        read_evaluation(tmp_path)


@pytest.fixture(scope="module")
def photographs(coco_photographs) -> DetectionDataset:
    return coco_photographs(12)


def test_photographs_are_detected_as_well_as_by_ultralytics_own_validation(photographs, coco_weights, tmp_path):
    model = tmp_path / "model"
    write_checkpoint_artifact(model, coco_weights, name="coco", imgsz=640, architecture="yolov8n.yaml", lineage={})
    ours = evaluate(photographs, model, "val", tmp_path / "evaluation")
    settings = {"imgsz": 640, "rect": False, "plots": False, "save_json": True, "workers": 0, "verbose": False}
    data = tmp_path / "data.yaml"
    # ultralytics asks for a training split even where it does not train.
    data.write_text(
        yaml.safe_dump(
            {"path": str(photographs.root), "train": "images/val", "val": "images/val"}
            | {"names": dict(enumerate(photographs.classes))}
        )
    )
    printed = YOLO(coco_weights).val(data=data, device="cpu", project=tmp_path, name="theirs", **settings)
    truth = json.loads((tmp_path / "evaluation" / "ground_truth.json").read_text())
    ids = {Path(image["file_name"]).name: image["id"] for image in truth["images"]}
    found = json.loads((tmp_path / "theirs" / "predictions.json").read_text())
    found = [{**detection, "image_id": ids[detection["file_name"]]} for detection in found]
    theirs = coco_metrics(truth, found, photographs.classes)
    assert ours.map > 0.3
    assert ours.map == pytest.approx(theirs.map, abs=0.003)
    assert ours.map50 == pytest.approx(theirs.map50, abs=0.003)
    # By ultralytics' own count, what its validation says; by COCO's, another figure.
    assert ours.ultralytics_map == pytest.approx(printed.box.map, abs=0.003)
    assert ours.ultralytics_map50 == pytest.approx(printed.box.map50, abs=0.003)

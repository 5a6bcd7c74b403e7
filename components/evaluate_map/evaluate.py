"""Evaluating a model on one split of a dataset by the COCO protocol."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolo_distill.components.evaluate_map.coco import MAX_DETECTIONS, measure
from yolo_distill.components.evaluate_map.confusion import ConfusionCounter, write_confusion
from yolo_distill.components.evaluate_map.evaluation import (
    DETECTIONS_NAME,
    GROUND_TRUTH_NAME,
    PICTURE_NAME,
    REPORT_NAME,
    EvaluatedModel,
    Evaluation,
    EvaluationSettings,
    write_evaluation,
)
from yolo_distill.components.evaluate_map.pictures import contact_sheet, side_by_side
from yolo_distill.components.evaluate_map.report import report
from yolo_distill.components.evaluate_map.ultralytics_map import ultralytics_map
from yolo_distill.components.prepare_data.dataset import SPLITS, DetectionDataset, ImageRecord
from yolo_distill.components.shared.detector import Detections, detect, open_detector, read_batches, require_classes
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import new_directory, write_text
from yolo_distill.components.shared.model_card import read_card
from yolo_distill.components.shared.progress import report_progress

BATCH = 8
SETTINGS = EvaluationSettings(
    coco_max_detections=MAX_DETECTIONS, protocol="COCO bbox, 101 recall points, IoU 0.50:0.05:0.95"
)

_PICTURES = 6


def evaluate(dataset: DetectionDataset, model_folder: Path, split: str, output: Path) -> Evaluation:
    """Run a model over a split's labelled images and measure its mean average precision.

    Args:
        dataset: The dataset artifact.
        model_folder: The model artifact, of any format.
        split: ``train``, ``val`` or ``test``.
        output: Where the evaluation artifact appears.

    Returns:
        The figures, as written.

    Raises:
        InputError: There is no such split or no labelled box in it, the classes of model and dataset differ, or an
            image or the model cannot be read.
    """
    records = labelled_images(dataset, split)
    card = read_card(model_folder)
    require_classes(model_folder, card, dataset.classes)
    detector = open_detector(model_folder)
    counter = ConfusionCounter(dataset.classes)
    pictured = {round(i) for i in np.linspace(0, len(records) - 1, _PICTURES)}
    pictures: list[np.ndarray] = []
    results: list[dict[str, Any]] = []
    done = 0
    for images in read_batches([dataset.image_path(record) for record in records], BATCH):
        found = detect(detector, images, SETTINGS.confidence, SETTINGS.iou, SETTINGS.max_detections)
        for image, detections in zip(images, found, strict=True):
            record = records[done]
            require_size(dataset, record, image)
            done += 1
            results += coco_results(done, detections)
            counter.add(*dataset.boxes(record), detections)
            if done - 1 in pictured:
                pictures.append(side_by_side(image, *dataset.boxes(record), detections, dataset.classes))
        report_progress(done, len(records), "image")
    truth = coco_ground_truth(dataset, records)
    figures, curves = measure(truth, results, dataset.classes)
    theirs = ultralytics_map(truth, results, SETTINGS.max_detections)
    evaluation = Evaluation(
        **figures.model_dump(),
        model=EvaluatedModel.of(card),
        dataset=dataset.digest,
        split=records[0].split,
        images=len(records),
        settings=SETTINGS,
        ultralytics_map=theirs.map,
        ultralytics_map50=theirs.map50,
    )
    confusion = counter.result()
    page = report(evaluation, curves, confusion)
    with new_directory(output) as folder:
        write_text(folder / DETECTIONS_NAME, json.dumps(results))
        write_text(folder / GROUND_TRUTH_NAME, json.dumps(truth))
        cv2.imwrite(str(folder / PICTURE_NAME), contact_sheet(pictures))
        write_confusion(folder, confusion)
        write_text(folder / REPORT_NAME, page)
        write_evaluation(folder, evaluation)
    return evaluation


def coco_ground_truth(dataset: DetectionDataset, records: list[ImageRecord]) -> dict[str, Any]:
    """Return the labels of some images as the content of a COCO annotation file.

    Image ids count from 1 in the order given; the category of class index c has the id c + 1.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, record in enumerate(records, 1):
        images.append({"id": image_id, "file_name": record.file, "width": record.width, "height": record.height})
        for box, label in zip(*dataset.boxes(record), strict=True):
            bbox = _bbox(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(label) + 1,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": index, "name": name} for index, name in enumerate(dataset.classes, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_results(image_id: int, found: Detections) -> list[dict[str, Any]]:
    """Return the detections of one image as entries of a COCO result file."""
    return [
        {"image_id": image_id, "category_id": int(label) + 1, "bbox": _bbox(box), "score": round(float(score), 6)}
        for box, score, label in zip(found.boxes, found.scores, found.classes, strict=True)
    ]


def _bbox(corners: np.ndarray) -> list[float]:
    x1, y1, x2, y2 = corners.tolist()
    return [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]


def labelled_images(dataset: DetectionDataset, split: str) -> list[ImageRecord]:
    """Return the images of a split that count.

    Raises:
        InputError: There is no such split or no labelled box in it.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r}", "is not a split", f"Choose one of {', '.join(SPLITS)}")
    records = [record for record in dataset.split(split) if record.labelled]
    if not any(record.boxes for record in records):
        raise InputError(
            dataset.root,
            f"its {split} split has no labelled box to measure against",
            "Prepare the data with labelled images in that split",
        )
    return records


def require_size(dataset: DetectionDataset, record: ImageRecord, image: np.ndarray) -> None:
    """Refuse an image that its labels were not drawn on.

    Raises:
        InputError: Its size is not that in the manifest.
    """
    height, width = image.shape[:2]
    if (width, height) != (record.width, record.height):
        raise InputError(
            dataset.image_path(record),
            f"is {width}x{height} pixels, its manifest says {record.width}x{record.height}",
            "Prepare the data again",
        )

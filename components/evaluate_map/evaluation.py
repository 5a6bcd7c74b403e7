"""The evaluation artifact: how good a model is on one split of a dataset, and the detections that say so.

Layout::

    evaluation.json     the figures
    detections.json     every detection, a COCO result file
    ground_truth.json   the labels, a COCO annotation file
    detections.jpg      some images with labels and detections side by side
    confusion.json      what labelled objects are taken for
    report.html         figures, precision over recall and the confusion matrix as a page
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from yolo_distill.components.evaluate_map.coco import CocoMetrics
from yolo_distill.components.prepare_data.dataset import Split
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import write_text
from yolo_distill.components.shared.model_card import ModelCard, ModelFormat, Precision
from yolo_distill.components.shared.records import read_record

EVALUATION_NAME = "evaluation.json"
DETECTIONS_NAME = "detections.json"
GROUND_TRUTH_NAME = "ground_truth.json"
PICTURE_NAME = "detections.jpg"
REPORT_NAME = "report.html"

# Fields of an evaluation that must be the same for figures to compare.
CONDITIONS = ("dataset", "split", "images", "settings")


class EvaluatedModel(BaseModel):
    """Which model was evaluated.

    Attributes:
        name: The model card's name.
        format: The runtime that ran it.
        precision: Numeric precision of the weights.
        digest: SHA-256 of the model file.
        imgsz: Side of the square network input in pixels.
        architecture: What it was built from.
        parameters: Number of weights of the unfused network.
        gflops: Cost of one image in 10^9 floating point operations.
        lineage: What it was made from, as on its card: ``dataset``, ``seed``, ``recipe``, ``teacher``, ...
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    format: ModelFormat
    precision: Precision
    digest: str
    imgsz: int
    architecture: str
    parameters: int
    gflops: float
    lineage: dict[str, str]

    @classmethod
    def of(cls, card: ModelCard) -> "EvaluatedModel":
        """Summarise a model card."""
        shared = card.model_dump(include=set(cls.model_fields) - {"digest"})
        return cls(**shared, digest=card.digest)


class EvaluationSettings(BaseModel):
    """How detections were made and counted.

    Attributes:
        confidence: Detections with a score at or below it were dropped.
        iou: Overlap above which non-maximum suppression dropped the worse box.
        max_detections: Detections kept per image.
        coco_max_detections: Detections per image and class that COCO's protocol counts.
        protocol: Whose average precision it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    confidence: float = 0.001
    iou: float = 0.7
    max_detections: int = 300
    coco_max_detections: int
    protocol: str


class Evaluation(CocoMetrics):
    """An evaluation's figures and what they were measured on.

    Attributes:
        model: The model.
        dataset: The dataset's digest.
        split: The split.
        images: Labelled images in the split, all of which count.
        settings: How detections were made and counted.
        ultralytics_map: What ultralytics' own function says of the same detections, mAP50-95, 0..1: for comparison with
            what its validation prints. ``None`` where no box is labelled, or in an evaluation made before it was taken.
        ultralytics_map50: The same at IoU 0.50.
    """

    schema_version: int = 1
    model: EvaluatedModel
    dataset: str
    split: Split
    images: int
    settings: EvaluationSettings
    ultralytics_map: float | None = None
    ultralytics_map50: float | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The overall figures that could be measured, by name."""
        names = (
            *("map", "map50", "map75", "map_small", "map_medium", "map_large"),
            *("ultralytics_map", "ultralytics_map50"),
        )
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Write an evaluation's figures into its artifact."""
    write_text(folder / EVALUATION_NAME, evaluation.model_dump_json(indent=2) + "\n")


def read_evaluation(folder: Path) -> Evaluation:
    """Read an evaluation's figures from its artifact.

    Raises:
        InputError: The folder is no evaluation artifact.
    """
    return read_record(
        folder,
        EVALUATION_NAME,
        Evaluation,
        artifact="an evaluation",
        record="evaluation",
        origin="Give an evaluate-map output",
        again="Evaluate the model again",
    )


def read_coco_files(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read the labels and the detections of an evaluation artifact, which are COCO files.

    Raises:
        InputError: One of them is missing or is not JSON.
    """
    contents = []
    for name in (GROUND_TRUTH_NAME, DETECTIONS_NAME):
        try:
            contents.append(json.loads((folder / name).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise InputError(folder / name, f"cannot be read: {error}", "Evaluate the model again") from error
    return contents[0], contents[1]

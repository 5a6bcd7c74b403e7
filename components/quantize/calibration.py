"""The images that ranges are measured on."""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from yolo_distill.components.prepare_data.dataset import DetectionDataset, ImageRecord
from yolo_distill.components.shared.detector import preprocess, read_image
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import write_text
from yolo_distill.components.shared.progress import report_progress

CALIBRATION_NAME = "calibration.json"


def draw_calibration(dataset: DetectionDataset, count: int, seed: int) -> list[ImageRecord]:
    """Draw training images without replacement.

    Args:
        dataset: The dataset artifact.
        count: Images to draw, at least 1; all of a smaller split.
        seed: The same seed draws the same images of the same dataset.

    Raises:
        InputError: No image is asked for, or the training split is empty.
    """
    if count < 1:
        raise InputError(f"calibration_images {count}", "is less than 1", "Choose at least 1, a few hundred are usual")
    records = dataset.split("train")
    if not records:
        raise InputError(dataset.root, "its train split is empty", "Prepare the data with training images")
    return random.Random(seed).sample(records, min(count, len(records)))


def calibration_inputs(dataset: DetectionDataset, records: Sequence[ImageRecord], imgsz: int) -> Iterator[np.ndarray]:
    """Read calibration images one after the other and report how far it is.

    Args:
        dataset: The dataset artifact.
        records: The images.
        imgsz: Side of the square network input in pixels.

    Yields:
        The network's input, float32 [1, 3, imgsz, imgsz].

    Raises:
        InputError: An image cannot be read.
    """
    for number, record in enumerate(records, 1):
        report_progress(number, len(records), "image", "calibration")
        yield preprocess([read_image(dataset.image_path(record))], imgsz)[0]


def calibration_lineage(dataset: DetectionDataset, records: Sequence[ImageRecord], seed: int) -> dict[str, str]:
    """Return what a model card says of the images that ranges were measured on."""
    return {
        "calibration_dataset": dataset.digest,
        "calibration_images": str(len(records)),
        "calibration_seed": str(seed),
    }


def write_calibration(folder: Path, records: Sequence[ImageRecord]) -> None:
    """List the images in a model artifact, each with its SHA-256."""
    listed = [{"file": record.file, "sha256": record.sha256} for record in records]
    write_text(folder / CALIBRATION_NAME, json.dumps(listed, indent=1) + "\n")

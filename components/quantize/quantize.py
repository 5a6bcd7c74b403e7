"""Post-training quantisation of an OpenVINO model to 8-bit integers."""

import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path

import yolo_distill.components.shared.detector.openvino_env  # noqa: F401  openvino reports home when imported

# isort: split
import nncf
import numpy as np
import openvino

from yolo_distill.components.export_openvino.artifact import write_converted_card
from yolo_distill.components.export_openvino.parity import PARITY_IMAGES, Parity, compare_detectors, sample_images
from yolo_distill.components.prepare_data.dataset import DetectionDataset, ImageRecord
from yolo_distill.components.quantize.tail import decoding_tail
from yolo_distill.components.shared.detector import open_detector, preprocess, read_image, require_classes
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import new_directory, write_text
from yolo_distill.components.shared.model_card import ModelCard, read_card
from yolo_distill.components.shared.progress import report_progress

CALIBRATION_NAME = "calibration.json"

# An INT8 model whose highest score is a smaller part of the FP32 model's is broken, not just less exact.
_KEPT_SCORE = 0.5


class QuantizationError(RuntimeError):
    """The quantised model computes nothing of use."""


def quantize(
    dataset: DetectionDataset, model_folder: Path, output: Path, calibration_images: int = 300, seed: int = 0
) -> tuple[ModelCard, Parity]:
    """Quantise a model's convolutions with ranges measured on training images.

    Args:
        dataset: The dataset artifact. Training images calibrate, validation images compare.
        model_folder: An FP32 OpenVINO model artifact.
        output: Where the INT8 model artifact appears.
        calibration_images: Training images to measure on, at least 1; all of a smaller split.
        seed: Seed of their draw.

    Returns:
        The INT8 model's card, and how far its answers are from the FP32 model's.

    Raises:
        InputError: The model is not an FP32 OpenVINO one or has other classes than the dataset, no calibration image is
            asked for, the training or the validation split is empty, or an image cannot be read.
        QuantizationError: The INT8 model has lost its scores; nothing is left behind.
    """
    card = read_card(model_folder)
    if (card.format, card.precision) != ("openvino", "fp32"):
        raise InputError(
            model_folder,
            f"is an {card.precision} model in {card.format} format",
            "Give an fp32 OpenVINO model artifact",
        )
    require_classes(model_folder, card, dataset.classes)
    drawn = draw_calibration(dataset, calibration_images, seed)
    compared = sample_images(dataset, "val", PARITY_IMAGES)
    with new_directory(output) as folder:
        openvino.save_model(
            _quantized(model_folder / card.file, card.imgsz, dataset, drawn), folder / "model.xml", False
        )
        calibration = [{"file": record.file, "sha256": record.sha256} for record in drawn]
        write_text(folder / CALIBRATION_NAME, json.dumps(calibration, indent=1) + "\n")
        quantized = write_converted_card(
            folder,
            card,
            name=f"{card.name.removesuffix('-openvino')}-int8",
            format="openvino",
            precision="int8",
            file="model.xml",
            lineage={
                "calibration_dataset": dataset.digest,
                "calibration_images": str(len(drawn)),
                "calibration_seed": str(seed),
            },
        )
        parity = compare_detectors(open_detector(model_folder), open_detector(folder), compared)
        # Written so that NaN is an error too.
        if not parity.candidate_score > _KEPT_SCORE * parity.reference_score:
            raise QuantizationError(
                f"the INT8 model's highest score on {parity.images} images is {parity.candidate_score:.3g}, "
                f"the FP32 model's {parity.reference_score:.3g}"
            )
    return quantized, parity


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


def _quantized(file: Path, imgsz: int, dataset: DetectionDataset, records: Sequence[ImageRecord]) -> openvino.Model:
    def network_input(item: tuple[int, ImageRecord]) -> np.ndarray:
        number, record = item
        report_progress(number, len(records), "image", "calibration")
        return preprocess([read_image(dataset.image_path(record))], imgsz)[0]

    nncf.set_log_level(logging.WARNING)
    model = openvino.Core().read_model(file)
    return nncf.quantize(
        model,
        nncf.Dataset(list(enumerate(records, 1)), network_input),
        # The quick bias correction leaves scores of small networks almost twice as far off.
        fast_bias_correction=False,
        # Activations after SiLU are lopsided, so that they get a zero point of their own.
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(records),
        ignored_scope=nncf.IgnoredScope(names=decoding_tail(model)),
    )

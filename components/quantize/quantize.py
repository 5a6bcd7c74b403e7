"""Post-training quantisation to 8-bit integers, by one of several methods."""

from pathlib import Path
from typing import Literal, get_args

import yolo_distill.components.shared.detector.openvino_env  # noqa: F401  openvino reports home when imported

# isort: split
import openvino

from yolo_distill.components.evaluate_map.evaluate import labelled_images
from yolo_distill.components.export_openvino.artifact import write_converted_card
from yolo_distill.components.export_openvino.parity import PARITY_IMAGES, Parity, compare_detectors, sample_images
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.quantize.calibration import (
    calibration_inputs,
    calibration_lineage,
    draw_calibration,
    write_calibration,
)
from yolo_distill.components.quantize.linear import refuse_dynamic_linear
from yolo_distill.components.quantize.onnx_int8 import quantize_onnx
from yolo_distill.components.quantize.openvino_int8 import float_layers, quantize_openvino, quantize_with_accuracy
from yolo_distill.components.shared.detector import open_detector, require_classes
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import new_directory
from yolo_distill.components.shared.model_card import ModelCard, ModelFormat, read_card

Method = Literal["nncf", "accuracy-aware", "onnx-qdq"]

# Asked for because PyTorch offers it; the answer is an explanation.
DYNAMIC_LINEAR = "dynamic-linear"

_FORMATS: dict[str, ModelFormat] = {"nncf": "openvino", "accuracy-aware": "openvino", "onnx-qdq": "onnx"}

# An INT8 model whose highest score is a smaller part of the FP32 model's is broken, not just less exact.
_KEPT_SCORE = 0.5

_VALIDATION_SPLIT = "val"


class QuantizationError(RuntimeError):
    """The quantised model computes nothing of use, or loses more than was allowed."""


def quantize(
    dataset: DetectionDataset,
    model_folder: Path,
    output: Path,
    calibration_images: int = 300,
    seed: int = 0,
    method: str = "nncf",
    max_drop: float = 1.0,
) -> tuple[ModelCard, Parity]:
    """Quantise a model's convolutions with ranges measured on training images.

    Args:
        dataset: The dataset artifact. Training images calibrate, validation images compare.
        model_folder: An FP32 model artifact: OpenVINO for ``nncf`` and ``accuracy-aware``, ONNX for ``onnx-qdq``.
        output: Where the INT8 model artifact appears.
        calibration_images: Training images to measure on, at least 1; all of a smaller split.
        seed: Seed of their draw.
        method: One of :data:`Method`.
        max_drop: Points of mAP50-95 (0..100) on the validation split that ``accuracy-aware`` may lose.

    Returns:
        The INT8 model's card, and how far its answers are from the FP32 model's.

    Raises:
        InputError: There is no such method, the model is not an FP32 one of its format or has other classes than the
            dataset, no calibration image is asked for, the training or the validation split is empty, or an image or
            the model cannot be read.
        QuantizationError: The INT8 model has lost its scores or too much mAP; nothing is left behind.
    """
    card = read_card(model_folder)
    if method == DYNAMIC_LINEAR:
        refuse_dynamic_linear(model_folder, card)
    _require_fit(model_folder, card, method, max_drop)
    require_classes(model_folder, card, dataset.classes)
    drawn = draw_calibration(dataset, calibration_images, seed)
    validation = labelled_images(dataset, _VALIDATION_SPLIT) if method == "accuracy-aware" else []
    compared = sample_images(dataset, "val", PARITY_IMAGES)
    reference = open_detector(model_folder)
    with new_directory(output) as folder:
        file, lineage = "model.xml", dict[str, str]()
        if method == "onnx-qdq":
            file = "model.onnx"
            quantize_onnx(model_folder / card.file, folder / file, calibration_inputs(dataset, drawn, card.imgsz))
        elif method == "nncf":
            model = quantize_openvino(model_folder, card, dataset, drawn)
            openvino.save_model(model, folder / file, compress_to_fp16=False)
        else:
            model, drop = quantize_with_accuracy(model_folder, card, dataset, drawn, validation, max_drop)
            lineage = _accuracy_lineage(model, drop, max_drop)
            openvino.save_model(model, folder / file, compress_to_fp16=False)
        write_calibration(folder, drawn)
        quantized = write_converted_card(
            folder,
            card,
            name=f"{card.name.removesuffix('-openvino')}-int8",
            format=card.format,
            precision="int8",
            file=file,
            lineage={**calibration_lineage(dataset, drawn, seed), "quantization": method, **lineage},
        )
        parity = compare_detectors(reference, open_detector(folder), compared)
        # Written so that NaN is an error too.
        if not parity.candidate_score > _KEPT_SCORE * parity.reference_score:
            raise QuantizationError(
                f"the INT8 model's highest score on {parity.images} images is {parity.candidate_score:.3g}, "
                f"the FP32 model's {parity.reference_score:.3g}"
            )
    return quantized, parity


def _require_fit(folder: Path, card: ModelCard, method: str, max_drop: float) -> None:
    if method not in get_args(Method):
        raise InputError(f"method {method!r}", "is not known", f"Choose one of {', '.join(get_args(Method))}")
    # Written so that NaN is refused too.
    if not 0 <= max_drop <= 100:
        raise InputError(f"max_drop {max_drop}", "is not in 0..100", "Choose points of mAP50-95, such as 1")
    needed = _FORMATS[method]
    if (card.format, card.precision) != (needed, "fp32"):
        spoken = {"openvino": "OpenVINO", "onnx": "ONNX"}[needed]
        raise InputError(
            folder,
            f"is an {card.precision} model in {card.format} format",
            f"Give an fp32 {spoken} model artifact",
        )


def _accuracy_lineage(model: openvino.Model, drop: float, max_drop: float) -> dict[str, str]:
    """Return what accuracy control came to, unless it could not keep its bound."""
    returned = float_layers(model)
    # Written so that NaN is an error too.
    if not drop <= max_drop:
        raise QuantizationError(
            f"with {len(returned)} layers in floating point the model still loses {drop:.2f} points mAP50-95, "
            f"{max_drop:g} are allowed"
        )
    return {
        "validation_split": _VALIDATION_SPLIT,
        "max_drop": f"{max_drop:g}",
        "drop": f"{drop:.3f}",
        "float_layers": ",".join(returned),
    }

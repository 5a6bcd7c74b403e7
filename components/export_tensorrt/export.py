"""From ONNX to a TensorRT engine, on the GPU that will run it."""

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from yolo_distill.components.export_openvino.artifact import write_converted_card
from yolo_distill.components.export_openvino.parity import PARITY_IMAGES, Parity, compare_detectors, sample_images
from yolo_distill.components.export_tensorrt.precision import write_fp16, write_int8
from yolo_distill.components.prepare_data.dataset import DetectionDataset, ImageRecord
from yolo_distill.components.quantize.calibration import (
    calibration_inputs,
    calibration_lineage,
    draw_calibration,
    write_calibration,
)
from yolo_distill.components.shared.detector import open_detector, require_classes
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import new_directory, write_bytes
from yolo_distill.components.shared.model_card import ModelCard, Precision, read_card
from yolo_distill.components.shared.progress import report_progress

_PRECISIONS: dict[str, Precision] = {"fp16": "fp16", "int8": "int8"}
_STEPS = 3


class EngineError(RuntimeError):
    """TensorRT refuses a model."""


def export_engine(
    dataset: DetectionDataset,
    model_folder: Path,
    output: Path,
    precision: str = "fp16",
    calibration_images: int = 300,
    seed: int = 0,
) -> tuple[ModelCard, Parity]:
    """Build an engine and compare it with the ONNX model.

    Args:
        dataset: The dataset artifact. Training images calibrate, validation images compare.
        model_folder: An FP32 ONNX model artifact.
        output: Where the engine's artifact appears.
        precision: ``fp16`` or ``int8``.
        calibration_images: Training images to measure INT8 ranges on, at least 1; all of a smaller split.
        seed: Seed of their draw.

    Returns:
        The engine's card, and how far its answers are from the ONNX model's.

    Raises:
        InputError: There is no such precision, the model is not an FP32 ONNX one or has other classes than the dataset,
            there is no image to calibrate with or to compare on, TensorRT is not installed, or there is no GPU.
        EngineError: TensorRT cannot build an engine; nothing is left behind.
        ParityError: An FP16 engine changes the answers; nothing is left behind.
    """
    if precision not in _PRECISIONS:
        raise InputError(f"precision {precision!r}", "is not known", f"Choose one of {', '.join(_PRECISIONS)}")
    card = read_card(model_folder)
    if (card.format, card.precision) != ("onnx", "fp32"):
        raise InputError(
            model_folder, f"is an {card.precision} model in {card.format} format", "Give an fp32 ONNX model artifact"
        )
    require_classes(model_folder, card, dataset.classes)
    drawn = draw_calibration(dataset, calibration_images, seed) if precision == "int8" else []
    compared = sample_images(dataset, "val", PARITY_IMAGES)
    require_gpu()
    with new_directory(output) as folder, TemporaryDirectory() as scratch:
        typed = Path(scratch) / "model.onnx"
        write_typed(model_folder / card.file, typed, dataset, drawn, card.imgsz)
        report_progress(1, _STEPS, "model", "ONNX typed")
        write_bytes(folder / "model.engine", _build(typed))
        if drawn:
            write_calibration(folder, drawn)
        exported = write_converted_card(
            folder,
            card,
            name=f"{card.name.removesuffix('-onnx')}-tensorrt-{precision}",
            format="tensorrt",
            precision=_PRECISIONS[precision],
            file="model.engine",
            lineage=_lineage(dataset, drawn, seed),
        )
        report_progress(2, _STEPS, "model", "engine built")
        parity = compare_detectors(open_detector(model_folder), open_detector(folder), compared)
        if precision == "fp16":
            parity.require("The export to TensorRT", "fp16")
        report_progress(3, _STEPS, "model", "engine checked")
    return exported, parity


def require_gpu() -> None:
    """Refuse to go on where no engine can be built.

    Raises:
        InputError: TensorRT is not installed, or PyTorch sees no GPU.
    """
    if find_spec("tensorrt") is None:
        raise InputError(
            "TensorRT", "is not installed", "Install the extra 'tensorrt', or run the step in the tensorrt image"
        )
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            "TensorRT",
            "builds an engine on the GPU that will run it, and there is none",
            "Run the step on a machine with an NVIDIA GPU",
        )


def write_typed(
    source: Path, target: Path, dataset: DetectionDataset, calibration: list[ImageRecord], imgsz: int
) -> None:
    """Write the ONNX model that the engine is built from: INT8 where there are images to calibrate with, else FP16.

    Raises:
        InputError: An image or the model cannot be read.
    """
    if calibration:
        write_int8(source, target, calibration_inputs(dataset, calibration, imgsz))
    else:
        write_fp16(source, target)


def _build(model: Path) -> bytes:
    import tensorrt

    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    # Version 11 knows no other networks, 10 has to be told.
    typed = 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(model.read_bytes()):
        raise EngineError(f"TensorRT cannot read the model: {_errors(parser)}")
    engine = builder.build_serialized_network(network, builder.create_builder_config())
    if engine is None:
        raise EngineError("TensorRT cannot build an engine of the model; its log says why")
    return bytes(engine)


def _errors(parser: Any) -> str:
    return "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))


def _lineage(dataset: DetectionDataset, drawn: list[ImageRecord], seed: int) -> dict[str, str]:
    import tensorrt
    import torch

    # An engine fits the GPU and the version that it was built with.
    lineage = {"tensorrt": tensorrt.__version__, "gpu": torch.cuda.get_device_name()}
    return lineage | (calibration_lineage(dataset, drawn, seed) if drawn else {})

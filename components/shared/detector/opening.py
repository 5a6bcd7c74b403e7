"""Opening a model artifact with the runtime that its format needs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from yolo_distill.components.shared.cores import usable_cores
from yolo_distill.components.shared.detector.detections import Detector
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import ModelCard, read_card

_REMEDY = "Make the model again"


def open_detector(folder: Path, threads: int | None = None) -> Detector:
    """Open a model artifact and run it once.

    Args:
        folder: The model artifact.
        threads: CPU threads of the network; all that this process may use by default.

    Returns:
        The detector. It has run once, so that lazy set-up is done.

    Raises:
        InputError: The folder is no model artifact, its files are missing, changed or broken, or the network's input or
            output is not what a detector has.
    """
    card = read_card(folder)
    try:
        detector = _open(folder, card, threads or usable_cores())
        output = detector.infer(np.zeros((1, 3, card.imgsz, card.imgsz), np.float32))
    except InputError:
        raise
    except Exception as error:  # each runtime has exceptions of its own, without a common base
        raise InputError(
            folder / card.file, f"cannot be run in {card.format} format: {_first_line(error)}", _REMEDY
        ) from error
    channels = 4 + len(card.classes)
    if output.ndim != 3 or output.shape[:2] != (1, channels):
        raise InputError(
            folder / card.file,
            f"is not a detector of {len(card.classes)} classes: an output of shape 1x{channels}xN is expected "
            f"(4 box coordinates and {len(card.classes)} class scores at N anchor points), "
            f"it has {'x'.join(map(str, output.shape))}",
            "Give a detection model and a card that lists its classes",
        )
    return detector


def require_classes(folder: Path, card: ModelCard, classes: Sequence[str]) -> None:
    """Refuse a model that was made for other classes than a dataset's.

    Args:
        folder: The model artifact.
        card: Its card.
        classes: The dataset's class names by class index.

    Raises:
        InputError: The lists differ in length, names or order.
    """
    if card.classes != list(classes):
        raise InputError(
            folder,
            f"its classes ({_some(card.classes)}) are not the dataset's ({_some(classes)})",
            "Give a model trained on this dataset's classes, in the same order",
        )


def _some(classes: Sequence[str]) -> str:
    return f"{len(classes)}: {', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}"


def _open(folder: Path, card: ModelCard, threads: int) -> Detector:
    # The runtimes are imported here, so that a step loads the one it needs: torch alone takes seconds.
    if card.format == "pytorch":
        from yolo_distill.components.shared.detector.pytorch_runtime import PyTorchDetector

        return PyTorchDetector(folder / card.file, card, threads)
    if card.format == "onnx":
        from yolo_distill.components.shared.detector.onnx_runtime import OnnxDetector

        return OnnxDetector(folder / card.file, card, threads)
    from yolo_distill.components.shared.detector.openvino_runtime import OpenVinoDetector

    return OpenVinoDetector(folder / card.file, card, threads)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".rstrip(": ")

"""Opening a model, of ours or from elsewhere, with the runtime that its format needs."""

from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import numpy as np

from yolo_distill.components.shared.cores import usable_cores
from yolo_distill.components.shared.detector.detections import Detector
from yolo_distill.components.shared.detector.instructions import suited_instructions
from yolo_distill.components.shared.detector.letterbox import PAD_VALUE
from yolo_distill.components.shared.detector.locating import ModelFile, locate_model
from yolo_distill.components.shared.detector.metadata import Declared, read_declared
from yolo_distill.components.shared.detector.network import Network, NetworkDetector, Signature
from yolo_distill.components.shared.detector.recognition import (
    EXPORT_AGAIN,
    input_size,
    recognise,
    require_card,
    require_detection,
)
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import ModelCard, ModelFormat

_RUNTIMES: dict[ModelFormat, str] = {
    "pytorch": "pytorch_runtime.PyTorchNetwork",
    "onnx": "onnx_runtime.OnnxNetwork",
    "openvino": "openvino_runtime.OpenVinoNetwork",
    "ncnn": "ncnn_runtime.NcnnNetwork",
    "tensorrt": "tensorrt_runtime.TensorRtNetwork",
}


def open_detector(model: Path, threads: int | None = None, imgsz: int | None = None) -> Detector:
    """Open a model and run it once.

    Args:
        model: A model artifact, or an export of a YOLOv8 detection model from elsewhere: an ``.onnx``, ``.xml``,
            ``.param``, ``.engine`` or ``.pt`` file, or a folder that holds one.
        threads: CPU threads of the network; all that this process may use by default.
        imgsz: Side of the square network input in pixels for a model that takes any; what the model says by default.

    Returns:
        The detector. It has run once, so that lazy set-up is done. A model that says no class names has numbers for
        them.

    Raises:
        InputError: There is no model, its files are missing, changed or broken, or the network's input or output is not
            what a detector has.
    """
    found = locate_model(model)
    try:
        network = _open(found, threads or usable_cores())
        declared = _declared(found.card, network.signature)
        require_detection(found, network.signature, declared)
        batch, height, width = input_size(found, network.signature.inputs[0], declared, imgsz)
        image = np.full((batch or 1, 3, height, width), PAD_VALUE / 255, np.float32)
        output = network.run(image)[:1]
    except InputError:
        raise
    except Exception as error:  # each runtime has exceptions of its own, without a common base
        raise InputError(
            found.path,
            f"cannot be run in {found.format} format: {_first_line(error)}",
            "Make the model again" if found.card else EXPORT_AGAIN,
        ) from error
    if found.card:
        classes, transposed = require_card(found.path, found.card, output), False
    else:
        classes, transposed = recognise(found.path, declared, output, height, width)
    return NetworkDetector(classes, height if height == width else (height, width), network, batch, transposed)


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


def _open(found: ModelFile, threads: int) -> Network:
    # The runtimes are imported here, so that a step loads the one it needs: torch alone takes seconds.
    module, _, name = _RUNTIMES[found.format].partition(".")
    try:
        runtime = getattr(import_module(f"{__package__}.{module}"), name)
    except ModuleNotFoundError as error:
        raise InputError(
            found.path,
            f"is in {found.format} format, which needs the package {error.name}, and that is not installed",
            "Install it, or give the model in another format",
        ) from error
    with suited_instructions(found.card.gflops) if found.card and found.format == "openvino" else nullcontext():
        network: Network = runtime(found.path, threads)
    return network


def _declared(card: ModelCard | None, signature: Signature) -> Declared:
    if card:
        return Declared(classes=card.classes, imgsz=(card.imgsz, card.imgsz))
    return read_declared(signature.metadata)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".rstrip(": ")

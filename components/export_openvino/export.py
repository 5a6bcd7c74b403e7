"""From an ultralytics checkpoint to ONNX and on to OpenVINO, each step checked against the one before."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import yolo_distill.components.shared.detector.openvino_env  # noqa: F401  openvino reports home when imported

# isort: split
import onnx
import openvino
from openvino.preprocess import ColorFormat, PrePostProcessor

from yolo_distill.components.export_openvino.artifact import write_converted_card
from yolo_distill.components.export_openvino.exporter import run_exporter
from yolo_distill.components.export_openvino.parity import PARITY_IMAGES, Parity, compare_detectors, sample_images
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.detector import open_detector, require_classes
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import new_directory
from yolo_distill.components.shared.model_card import PIXELS, ModelCard, read_card
from yolo_distill.components.shared.progress import report_progress

# The newest that ONNX Runtime's accelerators and its own quantiser take in full.
OPSET = 18

_STEPS = 4


@dataclass(frozen=True)
class Exported:
    """The two models an export makes, and how close they are to what they were made from.

    Attributes:
        onnx: Card of the ONNX model.
        openvino: Card of the OpenVINO model.
        onnx_parity: ONNX against PyTorch.
        openvino_parity: OpenVINO against ONNX.
    """

    onnx: ModelCard
    openvino: ModelCard
    onnx_parity: Parity
    openvino_parity: Parity


def export(
    dataset: DetectionDataset,
    model_folder: Path,
    onnx_output: Path,
    openvino_output: Path,
    pixel_input: bool = False,
) -> Exported:
    """Convert a PyTorch model and check that it still gives the same answers.

    Args:
        dataset: The dataset artifact, whose validation images the models are compared on.
        model_folder: A PyTorch model artifact.
        onnx_output: Where the ONNX model artifact appears.
        openvino_output: Where the OpenVINO model artifact appears.
        pixel_input: Whether the OpenVINO model takes the letterboxed image as it is, BGR bytes [1, H, W, 3], and scales
            and reorders it itself.

    Returns:
        Cards and comparisons.

    Raises:
        InputError: The model is not a PyTorch one, has other classes than the dataset, or the dataset has no validation
            image.
        ParityError: A conversion changes the answers; nothing is left behind.
    """
    card = read_card(model_folder)
    if card.format != "pytorch":
        raise InputError(model_folder, f"is in {card.format} format", "Give a PyTorch model artifact")
    require_classes(model_folder, card, dataset.classes)
    images = sample_images(dataset, "val", PARITY_IMAGES)
    with new_directory(onnx_output) as onnx_folder, new_directory(openvino_output) as openvino_folder:
        _write_onnx(model_folder / card.file, card.imgsz, onnx_folder / "model.onnx")
        onnx_card = write_converted_card(
            onnx_folder,
            card,
            name=f"{card.name}-onnx",
            format="onnx",
            file="model.onnx",
            lineage={"opset": str(OPSET)},
        )
        report_progress(1, _STEPS, "model", "ONNX written")
        model = openvino.convert_model(onnx_folder / "model.onnx")
        if pixel_input:
            model = with_pixel_input(model)
        openvino.save_model(model, openvino_folder / "model.xml", compress_to_fp16=False)
        openvino_card = write_converted_card(
            openvino_folder,
            onnx_card,
            name=f"{card.name}-openvino",
            format="openvino",
            file="model.xml",
            preprocessing=PIXELS if pixel_input else card.preprocessing,
            # The type that the answers were checked in; by itself a CPU with bf16 would compute in that.
            lineage={"inference_precision": "f32"},
        )
        report_progress(2, _STEPS, "model", "OpenVINO written")
        onnx_parity = _check(model_folder, onnx_folder, images, "The export to ONNX")
        report_progress(3, _STEPS, "model", "ONNX checked")
        openvino_parity = _check(onnx_folder, openvino_folder, images, "The conversion to OpenVINO")
        report_progress(4, _STEPS, "model", "OpenVINO checked")
    return Exported(onnx_card, openvino_card, onnx_parity, openvino_parity)


def compress(dataset: DetectionDataset, model_folder: Path, output: Path) -> tuple[ModelCard, Parity]:
    """Store an OpenVINO model's weights in 16 bits and check that it still gives the same answers.

    Args:
        dataset: The dataset artifact, whose validation images the models are compared on.
        model_folder: An FP32 OpenVINO model artifact.
        output: Where the FP16 model artifact appears.

    Returns:
        The FP16 model's card, and how far its answers are from the FP32 model's.

    Raises:
        InputError: The model is not an FP32 OpenVINO one, or the dataset has no validation image.
        ParityError: The answers change; nothing is left behind.
    """
    card = read_card(model_folder)
    if (card.format, card.precision) != ("openvino", "fp32"):
        raise InputError(
            model_folder,
            f"is an {card.precision} model in {card.format} format",
            "Give an fp32 OpenVINO model artifact",
        )
    images = sample_images(dataset, "val", PARITY_IMAGES)
    with new_directory(output) as folder:
        model = openvino.Core().read_model(model_folder / card.file)
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=True)
        compressed = write_converted_card(
            folder, card, name=f"{card.name}-fp16", format="openvino", precision="fp16", file="model.xml", lineage={}
        )
        parity = _check(model_folder, folder, images, "The compression to FP16")
    return compressed, parity


def with_pixel_input(model: openvino.Model) -> openvino.Model:
    """Let a network take letterboxed images as OpenCV has them.

    Args:
        model: A network of one input, RGB in 0..1, float32 [1, 3, H, W].

    Returns:
        The same network behind its own preprocessing, with an input of BGR bytes, uint8 [1, H, W, 3].
    """
    steps = PrePostProcessor(model)
    image = steps.input()
    image.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    image.tensor().set_color_format(ColorFormat.BGR)
    image.model().set_layout(openvino.Layout("NCHW"))
    image.preprocess().convert_element_type(openvino.Type.f32).convert_color(ColorFormat.RGB).scale(255.0)
    return steps.build()


def _write_onnx(checkpoint: Path, imgsz: int, target: Path) -> None:
    with TemporaryDirectory() as folder:
        model = onnx.load(
            run_exporter(checkpoint, Path(folder), format="onnx", imgsz=imgsz, opset=OPSET, simplify=True)
        )
    # Without the date, equal weights make equal files, so that digests and caches hold.
    kept = [entry for entry in model.metadata_props if entry.key != "date"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, target)


def _check(reference: Path, candidate: Path, images: Sequence[Path], conversion: str) -> Parity:
    parity = compare_detectors(open_detector(reference), open_detector(candidate), images)
    parity.require(conversion, read_card(candidate).precision)
    return parity

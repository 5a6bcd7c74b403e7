"""From an ultralytics checkpoint to NCNN, for phones and small boards."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from yolo_distill.components.export_openvino.artifact import write_converted_card
from yolo_distill.components.export_openvino.exporter import run_exporter
from yolo_distill.components.export_openvino.parity import PARITY_IMAGES, Parity, compare_detectors, sample_images
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.detector import open_detector, require_classes
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import new_directory
from yolo_distill.components.shared.model_card import ModelCard, read_card
from yolo_distill.components.shared.progress import report_progress

_STEPS = 2


def export_ncnn(dataset: DetectionDataset, model_folder: Path, output: Path) -> tuple[ModelCard, Parity]:
    """Convert a PyTorch model to NCNN with weights of 16 bits and check that it still gives the same answers.

    Args:
        dataset: The dataset artifact, whose validation images the models are compared on.
        model_folder: A PyTorch model artifact.
        output: Where the NCNN model artifact appears.

    Returns:
        The NCNN model's card, and how far its answers are from PyTorch's.

    Raises:
        InputError: The model is not a PyTorch one, has other classes than the dataset, or the dataset has no validation
            image.
        ParityError: The conversion changes the answers; nothing is left behind.
    """
    card = read_card(model_folder)
    if card.format != "pytorch":
        raise InputError(model_folder, f"is in {card.format} format", "Give a PyTorch model artifact")
    require_classes(model_folder, card, dataset.classes)
    images = sample_images(dataset, "val", PARITY_IMAGES)
    with new_directory(output) as folder:
        _write_ncnn(model_folder / card.file, card.imgsz, folder)
        exported = write_converted_card(
            folder,
            card,
            name=f"{card.name}-ncnn",
            format="ncnn",
            precision="fp16",
            file="model.ncnn.param",
            lineage={},
        )
        report_progress(1, _STEPS, "model", "NCNN written")
        parity = compare_detectors(open_detector(model_folder), open_detector(folder), images)
        parity.require("The export to NCNN", "fp16")
        report_progress(2, _STEPS, "model", "NCNN checked")
    return exported, parity


def _write_ncnn(checkpoint: Path, imgsz: int, target: Path) -> None:
    with TemporaryDirectory() as folder:
        made = run_exporter(checkpoint, Path(folder), format="ncnn", imgsz=imgsz, quantize=16)
        # Its metadata has a date and its Python file a path; the card says the rest.
        for suffix in (".param", ".bin"):
            shutil.copyfile(made / f"model.ncnn{suffix}", target / f"model.ncnn{suffix}")

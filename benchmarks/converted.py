"""A trained model as the pipeline exports and quantises it, made once for all benchmarks that need it."""

from pathlib import Path
from typing import Any

from yolo_distill.components.export_openvino.export import export
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.quantize.quantize import quantize


def exported(dataset: DetectionDataset, model: Path, folder: Path) -> Path:
    """Return the folder with a PyTorch model artifact's ``onnx`` and ``openvino`` artifacts."""
    if not (folder / "openvino").is_dir():
        export(dataset, model, folder / "onnx", folder / "openvino")
    return folder


def quantized(
    dataset: DetectionDataset, folder: Path, name: str = "int8", source: str = "openvino", **settings: Any
) -> Path:
    """Return an INT8 model artifact in a folder of :func:`exported`.

    Args:
        dataset: The dataset artifact.
        folder: The exported model.
        name: How the INT8 one is called there.
        source: Which export it is made from.
        **settings: Of the quantize step, where they are not its defaults.
    """
    if not (folder / name).is_dir():
        quantize(dataset, folder / source, folder / name, **settings)
    return folder / name

from pathlib import Path

import pytest

from yolo_distill.components.export_openvino.export import export
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.quantize.quantize import quantize


@pytest.fixture(scope="session")
def models(digits: DetectionDataset, lively_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a run leaves it: distilled, onnx, openvino and int8. Nothing was trained."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "distilled").symlink_to(lively_dir)
    export(digits, lively_dir, folder / "onnx", folder / "openvino")
    quantize(digits, folder / "openvino", folder / "int8", calibration_images=8)
    return folder

from pathlib import Path

import pytest

from yolo_distill.components.export_openvino.export import export
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.quantize.quantize import quantize


@pytest.fixture(scope="session")
def models(digits: DetectionDataset, student_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a run leaves it: distilled, onnx, openvino and int8. The student is poor but real."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "distilled").symlink_to(student_dir)
    export(digits, student_dir, folder / "onnx", folder / "openvino")
    quantize(digits, folder / "openvino", folder / "int8", calibration_images=8)
    return folder

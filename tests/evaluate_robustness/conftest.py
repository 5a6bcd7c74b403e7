import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from yolo_distill.components.evaluate_robustness.robustness import RobustnessSettings
from yolo_distill.components.prepare_data.dataset import DetectionDataset, describe_image, write_index
from yolo_distill.components.shared.detector import detect, open_detector, read_image
from yolo_distill.components.train_teacher.checkpoint import write_checkpoint_artifact


@pytest.fixture(scope="session")
def brief() -> RobustnessSettings:
    """Little of everything."""
    return RobustnessSettings(
        corruptions=("contrast", "jpeg_compression"), severities=(1, 5), epsilons=(0, 8), pgd_steps=2, images=0
    )


@pytest.fixture(scope="session")
def answered(digits: DetectionDataset, lively_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    """Eight images whose labels are the best answers of the model itself, so that there is accuracy to lose."""
    root = tmp_path_factory.mktemp("answered") / "data"
    shutil.copytree(digits.root, root)
    records, detector = digits.split("val")[:8], open_detector(lively_dir)
    for record, found in zip(
        records, detect(detector, [read_image(digits.image_path(r)) for r in records]), strict=True
    ):
        size = np.array([record.width, record.height])
        lines = []
        for box, label in zip(found.boxes[:4], found.classes[:4], strict=True):
            centre, sides = (box[:2] + box[2:]) / 2 / size, (box[2:] - box[:2]) / size
            lines.append(f"{label} {centre[0]:.6f} {centre[1]:.6f} {sides[0]:.6f} {sides[1]:.6f}\n")
        (root / record.label_file).write_text("".join(lines))
    described = [describe_image(root, r.file, r.split, r.width, r.height) for r in records]
    write_index(root, digits.classes, described, "test")
    return DetectionDataset.open(root)


@pytest.fixture(scope="session")
def trained(coco_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows COCO's classes, at 320 px."""
    target = tmp_path_factory.mktemp("trained") / "model"
    write_checkpoint_artifact(target, coco_weights, name="coco", imgsz=320, architecture="yolov8n.yaml", lineage={})
    return target


@pytest.fixture(scope="session")
def photographs(coco_photographs: Callable[[int], DetectionDataset]) -> DetectionDataset:
    return coco_photographs(8)

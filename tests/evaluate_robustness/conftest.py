import shutil
from pathlib import Path

import cv2
import pytest

from yolo_distill.components.evaluate_robustness.robustness import RobustnessSettings
from yolo_distill.components.prepare_data.dataset import DetectionDataset, describe_image, write_index
from yolo_distill.components.shared.detector.pytorch_runtime import load_network
from yolo_distill.components.train_teacher.checkpoint import write_checkpoint_artifact


@pytest.fixture(scope="session")
def brief() -> RobustnessSettings:
    """Little of everything."""
    return RobustnessSettings(
        corruptions=("contrast", "jpeg_compression"), severities=(1, 5), epsilons=(0, 8), pgd_steps=2, images=0
    )


@pytest.fixture(scope="session")
def trained(coco_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows COCO's classes, at 320 px."""
    target = tmp_path_factory.mktemp("trained") / "model"
    write_checkpoint_artifact(target, coco_weights, name="coco", imgsz=320, architecture="yolov8n.yaml", lineage={})
    return target


@pytest.fixture(scope="session")
def photographs(test_data: Path, coco_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    """Eight of COCO's validation images."""
    source, root = test_data / "coco128", tmp_path_factory.mktemp("photographs")
    (root / "images" / "val").mkdir(parents=True)
    (root / "labels" / "val").mkdir(parents=True)
    records = []
    for path in sorted((source / "images" / "val2017").iterdir())[:8]:
        shutil.copy(path, root / "images" / "val")
        shutil.copy(source / "labels" / "val2017" / f"{path.stem}.txt", root / "labels" / "val")
        height, width = cv2.imread(str(path)).shape[:2]
        records.append(describe_image(root, f"images/val/{path.name}", "val", width, height))
    write_index(root, list(load_network(coco_weights).names.values()), records, "coco128")
    return DetectionDataset.open(root)

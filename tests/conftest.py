"""What the tests of several steps share."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.prepare_data.prepare import prepare


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    """Tiny scenes of handwritten digits: 160 px, 48 for training, 16 each for validation and testing."""
    return prepare("digits:train=48,val=16,test=16,size=160", tmp_path_factory.mktemp("digits") / "dataset")


@pytest.fixture(scope="session")
def teacher_dir(digits: DetectionDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher trained for one epoch: its answers are poor, its files are real."""
    from yolo_distill.components.shared.training import train_settings
    from yolo_distill.components.train_teacher.train import train_teacher

    target = tmp_path_factory.mktemp("teacher") / "teacher"
    train_teacher(digits, "yolov8n.yaml", train_settings(epochs=1, imgsz=160, batch=16, seed=0), target)
    return target


@pytest.fixture(scope="session")
def student_dir(digits: DetectionDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student trained plainly for one epoch."""
    from yolo_distill.components.distill_train.train import distill
    from yolo_distill.components.shared.training import train_settings

    target = tmp_path_factory.mktemp("student") / "student"
    settings = train_settings(epochs=1, imgsz=160, batch=16, seed=1)
    distill(digits, "yolov8n.yaml", settings, target, name="plain")
    return target


@pytest.fixture(scope="session")
def lively_dir(digits: DetectionDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights whose answers differ from image to image, unlike those of a hardly trained one."""
    from tests.lively import lively_model

    target = tmp_path_factory.mktemp("lively") / "model"
    lively_model(digits, target)
    return target


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real data sets, which are not part of this repository."""
    folder = Path(os.environ.get("YOLO_DISTILL_TEST_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: set YOLO_DISTILL_TEST_DATA to a folder that holds bccd/ and coco128/")
    return folder


@pytest.fixture(scope="session")
def bccd_root(test_data: Path) -> Path:
    """BCCD: 364 photographs of blood cells with Pascal VOC labels."""
    return test_data / "bccd" / "BCCD"


@pytest.fixture(scope="session")
def coco_weights(test_data: Path) -> Path:
    """A YOLOv8n that knows COCO's 80 classes."""
    return test_data.parent / "weights" / "yolov8n-coco.pt"


@pytest.fixture(scope="session")
def coco_photographs(
    test_data: Path, coco_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], DetectionDataset]:
    """Makes dataset artifacts of the first of COCO's validation images."""
    import cv2

    from yolo_distill.components.prepare_data.dataset import describe_image, write_index
    from yolo_distill.components.shared.detector.pytorch_runtime import load_network

    def make(count: int) -> DetectionDataset:
        source, root = test_data / "coco128", tmp_path_factory.mktemp("photographs")
        (root / "images" / "val").mkdir(parents=True)
        (root / "labels" / "val").mkdir(parents=True)
        records = []
        for path in sorted((source / "images" / "val2017").iterdir())[:count]:
            shutil.copy(path, root / "images" / "val")
            shutil.copy(source / "labels" / "val2017" / f"{path.stem}.txt", root / "labels" / "val")
            height, width = cv2.imread(str(path)).shape[:2]
            records.append(describe_image(root, f"images/val/{path.name}", "val", width, height))
        write_index(root, list(load_network(coco_weights).names.values()), records, "coco128")
        return DetectionDataset.open(root)

    return make

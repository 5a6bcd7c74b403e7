from pathlib import Path

import pytest

from tests.benchmark.models import five_benchmark, five_evaluations
from yolo_distill.components.compare.comparison import Role
from yolo_distill.components.prepare_data.dataset import DetectionDataset


@pytest.fixture(scope="session")
def evaluations(digits: DetectionDataset, teacher_dir: Path, student_dir: Path) -> dict[Role, Path]:
    return five_evaluations(digits.root, teacher_dir, student_dir)


@pytest.fixture(scope="session")
def measured(digits: DetectionDataset, teacher_dir: Path, student_dir: Path) -> Path:
    return five_benchmark(digits.root, teacher_dir, student_dir)

from pathlib import Path

import pytest

from tests.benchmark.models import five_evaluations, five_models
from yolo_distill.components.compare.comparison import Role
from yolo_distill.components.prepare_data.dataset import DetectionDataset


@pytest.fixture(scope="session")
def models(digits: DetectionDataset, teacher_dir: Path, student_dir: Path) -> dict[Role, Path]:
    return five_models(digits.root, teacher_dir, student_dir)


@pytest.fixture(scope="session")
def evaluations(digits: DetectionDataset, teacher_dir: Path, student_dir: Path) -> dict[Role, Path]:
    return five_evaluations(digits.root, teacher_dir, student_dir)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an MLflow database that does not exist yet."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(autouse=True)
def on_sqlite(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "YOLO_DISTILL_PIPELINE_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")

from pathlib import Path

import pytest

from yolo_distill.components.distill_train.history import TrainingHistory, write_history
from yolo_distill.components.distill_train.recipe import load_recipe
from yolo_distill.components.distill_train.train import choose_teacher, distill
from yolo_distill.components.evaluate_map.evaluate import evaluate
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.training import train_settings
from yolo_distill.components.shared.views import Augmentation
from yolo_distill.components.teacher_cache_logits.build import CacheSettings, build_cache
from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat

RECIPES = ("plain", "default", "original")
SEEDS = (0, 3)


@pytest.fixture(scope="session")
def artifacts(
    digits: DetectionDataset, teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Path], list[Path]]:
    """Evaluations and histories of three recipes with two seeds each: small and poor, but real."""
    folder = tmp_path_factory.mktemp("ablation")
    build_cache(digits, teacher_dir, CacheSettings(Augmentation(imgsz=64), 1, 1, AnswerFormat()), folder / "cache")
    evaluations, histories = [], []
    for name in RECIPES:
        recipe = None if name == "plain" else load_recipe(name)
        for seed in SEEDS:
            place = folder / f"{name}-{seed}"
            trained = distill(
                digits,
                "yolov8p.yaml",
                train_settings(epochs=1, imgsz=64, batch=16, seed=seed),
                place / "student",
                name=name,
                recipe=recipe,
                teacher=recipe and choose_teacher(recipe, folder / "cache", None),
                teacher_model=teacher_dir,
            )
            write_history(place / "history", TrainingHistory(model=trained.card.digest, epochs=trained.history))
            evaluate(digits, place / "student", "val", place / "evaluation")
            evaluations.append(place / "evaluation")
            histories.append(place / "history")
    return evaluations, histories

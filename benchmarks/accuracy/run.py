"""Trains and evaluates the arms of the accuracy comparison; what is there already is not run again.

    python benchmarks/accuracy/run.py --data ~/data/BCCD --pretrained yolov8n-coco.pt --arms plain,default --seeds 0,1,2

The criteria are in CRITERIA.md; report.py draws the conclusions.
"""

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import typer
from pydantic import BaseModel, ConfigDict

from yolo_distill.components.distill_train.recipe import load_recipe
from yolo_distill.components.distill_train.train import choose_teacher, distill
from yolo_distill.components.evaluate_map.evaluate import evaluate
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.prepare_data.prepare import prepare
from yolo_distill.components.shared.files import write_text
from yolo_distill.components.shared.training import TrainSettings, train_settings
from yolo_distill.components.teacher_cache_logits.build import CacheSettings, build_cache
from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat
from yolo_distill.components.train_teacher.checkpoint import write_checkpoint_artifact
from yolo_distill.components.train_teacher.train import train_teacher

STOCK_ARMS = ("ultralytics", "ultralytics-same")
OPEN_VIEWS, CLOSED_VIEWS = 40, 10

# Options of this script and of those that go on with its students.
Data = Annotated[str, typer.Option(help="The data set, such as BCCD's folder.")]
Pretrained = Annotated[Path, typer.Option(help="Checkpoint that the teacher is fine-tuned from.")]
Work = Annotated[Path, typer.Option(help="Folder of everything that is made.")]
Seeds = Annotated[str, typer.Option(help="Comma-separated.")]
Student = Annotated[str, typer.Option(help="Model YAML or checkpoint.")]
ImageSize = Annotated[int, typer.Option(help="Side of the square input in pixels.")]


class Experiment(BaseModel):
    """What all arms have in common.

    Attributes:
        work: Folder of everything that is made.
        student: Model YAML or checkpoint.
        epochs: Length of each student's training.
        imgsz: Side of the square input in pixels.
    """

    model_config = ConfigDict(frozen=True)

    work: Path
    student: str
    epochs: int
    imgsz: int

    @property
    def dataset(self) -> DetectionDataset:
        """The dataset artifact."""
        return DetectionDataset.open(self.work / "dataset")

    @property
    def teacher(self) -> Path:
        """The teacher's model artifact."""
        return self.work / "teacher"

    @property
    def cache(self) -> Path:
        """The teacher cache."""
        return self.work / "cache"

    def trained(self, arm: str, seed: int) -> Path:
        """Return the folder of an arm's trained student, whose model of the last epoch is in ``last``."""
        return self.work / "students" / f"{arm}-{seed}"

    def settings(self, seed: int, epochs: int | None = None) -> TrainSettings:
        """Return how a training of this project is told to run."""
        return train_settings(epochs=epochs or self.epochs, imgsz=self.imgsz, batch=16, seed=seed)


def main(
    data: Data,
    pretrained: Pretrained,
    work: Work = Path("runs/accuracy"),
    arms: Annotated[str, typer.Option(help="plain, ultralytics, ultralytics-same, and recipes.")] = (
        "plain,ultralytics,default"
    ),
    seeds: Seeds = "0,1,2",
    student: Student = "yolov8p.yaml",
    epochs: Annotated[int, typer.Option(help="Length of each student's training.")] = 50,
    imgsz: ImageSize = 320,
) -> None:
    """Train and evaluate every arm with every seed."""
    experiment = Experiment(work=work, student=student, epochs=epochs, imgsz=imgsz)
    if not (work / "dataset").is_dir():
        prepare(data, work / "dataset")
    if not experiment.teacher.is_dir():
        train_teacher(experiment.dataset, str(pretrained), experiment.settings(0, 40), experiment.teacher, work)
    for split in ("val", "test"):
        measured(experiment, experiment.teacher, work / "evaluations" / "teacher", split)
    for seed in map(int, seeds.split(",")):
        for arm in arms.split(","):
            # A process of its own for each, so that nothing of one training is left in the next.
            if not (experiment.trained(arm, seed) / "run.json").is_file():
                command = [sys.executable, __file__, "one", arm, str(seed), experiment.model_dump_json()]
                subprocess.run(command, check=True)


def one(arm: str, seed: int, experiment: Experiment) -> None:
    """Train one arm with one seed and evaluate it on val and test."""
    folder = experiment.trained(arm, seed)
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.time()
    if arm in STOCK_ARMS:
        history = train_stock(experiment, folder, seed, same=arm == "ultralytics-same")
    else:
        history = train_ours(experiment, folder, arm, seed)
    seconds = time.time() - begun
    for model in sorted(path.parent for path in folder.glob("*/model.json")):
        for split in ("val", "test"):
            measured(experiment, model, experiment.work / "evaluations" / f"{arm}-{seed}-{model.name}", split)
    record = {"arm": arm, "seed": seed, "seconds": seconds, "epochs": experiment.epochs, "history": history}
    write_text(folder / "run.json", json.dumps(record, indent=1) + "\n")


def train_ours(experiment: Experiment, folder: Path, arm: str, seed: int) -> list[dict[str, float]]:
    """Train a student with this project, plainly or by a recipe."""
    recipe = None if arm == "plain" else load_recipe(arm)
    if recipe is not None and not recipe.needs_online and not experiment.cache.is_dir():
        views = CacheSettings(experiment.settings(0).augmentation, OPEN_VIEWS, CLOSED_VIEWS, AnswerFormat())
        build_cache(experiment.dataset, experiment.teacher, views, experiment.cache, experiment.work)
    teacher = recipe and choose_teacher(recipe, experiment.cache, experiment.teacher)
    result = distill(
        experiment.dataset,
        experiment.student,
        experiment.settings(seed),
        folder / "last",
        name=arm,
        recipe=recipe,
        teacher=teacher,
        teacher_model=experiment.teacher,
        work_root=experiment.work,
    )
    return result.history


def train_stock(experiment: Experiment, folder: Path, seed: int, *, same: bool) -> list[dict[str, float]]:
    """Train a student with ultralytics' own distillation.

    Args:
        experiment: What all arms have in common.
        folder: Where the students go.
        seed: Seed of initial weights and image order.
        same: Whether optimiser and learning rates are those of the other arms, rather than ultralytics' defaults.
    """
    from ultralytics.models.yolo.detect import DetectionTrainer

    from yolo_distill.components.distill_train.train import STUDENTS_FOLDER
    from yolo_distill.components.shared.training import resolve_model

    ours = experiment.settings(seed)
    changed: dict[str, Any] = {}
    if same:
        changed = {
            "optimizer": ours.optimizer,
            "lr0": ours.lr0,
            "lrf": ours.lrf,
            "cos_lr": True,
            "nbs": ours.batch,
            "weight_decay": ours.weight_decay,
            "warmup_epochs": min(3.0, ours.epochs / 10),
            "warmup_bias_lr": ours.lr0,
        }
    trainer = DetectionTrainer(
        overrides={
            "model": resolve_model(experiment.student, STUDENTS_FOLDER),
            "data": str(experiment.dataset.data_yaml),
            "epochs": ours.epochs,
            "imgsz": ours.imgsz,
            "batch": ours.batch,
            "seed": seed,
            "device": "cpu",
            "plots": False,
            "distill_model": str(experiment.teacher / "model.pt"),
            "project": str(folder.absolute()),
            "name": "training",
            **changed,
        }
    )
    trainer.train()
    with (folder / "training" / "results.csv").open() as file:
        rows = [{name.strip(): float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    for name in ("last", "best"):
        write_checkpoint_artifact(
            folder / name,
            folder / "training" / "weights" / f"{name}.pt",
            name="ultralytics",
            imgsz=ours.imgsz,
            architecture=experiment.student,
            lineage={"dataset": experiment.dataset.digest, "seed": str(seed), "epochs": str(ours.epochs)},
        )
    return [
        {"epoch": row["epoch"], "seconds": row["time"], "metrics/mAP50-95": row["metrics/mAP50-95(B)"]} for row in rows
    ]


def measured(experiment: Experiment, model: Path, target: Path, split: str) -> None:
    """Evaluate a model on a split unless that is done."""
    output = target / split
    if not output.is_dir():
        result = evaluate(experiment.dataset, model, split, output)
        print(f"{target.name} {split}: mAP50-95 {100 * (result.map or 0):.2f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], int(sys.argv[3]), Experiment.model_validate_json(sys.argv[4]))
    else:
        typer.run(main)

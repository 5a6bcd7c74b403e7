"""Where an epoch's time goes: a plain training of this project and one from a warm cache, part by part.

python benchmarks/epoch_profile.py --data ~/data/BCCD
"""

import functools
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import typer
from rich.console import Console
from rich.table import Table

from yolo_distill.components.benchmark.machine import describe_machine
from yolo_distill.components.distill_train.criterion import DistillationLoss
from yolo_distill.components.distill_train.recipe import load_recipe
from yolo_distill.components.distill_train.train import DistillationTrainer
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.prepare_data.prepare import prepare
from yolo_distill.components.shared.cores import usable_cores
from yolo_distill.components.shared.training import FastDetectionModel, ViewTrainer, train_settings
from yolo_distill.components.shared.views import Augmentation, ViewDataset
from yolo_distill.components.teacher_cache_logits.build import CacheSettings, build_cache
from yolo_distill.components.teacher_cache_logits.cache import TeacherCache
from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat

IMGSZ, STUDENT = 320, "yolov8n.yaml"
PARTS = (
    "make views",
    "read the cache",
    "forward",
    "detection loss",
    "distillation terms",
    "backward",
    "optimiser and EMA",
    "rest",
)


class Clock:
    """Adds up the time that calls take, without that of clocked calls inside them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its calls clocked."""

        @functools.wraps(function)
        def clocked(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - begun
                self.seconds[part] += took - self._inner.pop()
                self._inner[-1] += took

        return clocked


def main(
    data: Annotated[str, typer.Option(help="A data set, such as BCCD's folder.")],
    teacher: Annotated[str, typer.Option(help="Stock teacher; its weights are random.")] = "yolov8m.yaml",
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = (
        Path(__file__).parent / "results/epoch-profile.json"
    ),
) -> None:
    """Profile the second epoch of both trainings and draw them."""
    from cache import random_teacher

    work = Path(tempfile.mkdtemp(prefix="bench-profile-"))
    prepare(data, work / "dataset")
    dataset = DetectionDataset.open(work / "dataset")
    views = CacheSettings(Augmentation(imgsz=IMGSZ), 2, 0, AnswerFormat())
    build_cache(dataset, random_teacher(work, teacher), views, work / "cache")
    settings = train_settings(epochs=2, imgsz=IMGSZ, batch=16, close_mosaic=0)
    arms = {
        "plain": ViewTrainer(dataset, settings, STUDENT, work / "plain"),
        "from the cache": DistillationTrainer(
            dataset,
            settings,
            STUDENT,
            work / "distilled",
            recipe=load_recipe("default"),
            teacher=TeacherCache(work / "cache"),
        ),
    }
    figures = {name: profile(trainer) for name, trainer in arms.items()}
    result = {
        "machine": describe_machine(usable_cores()).model_dump(),
        "settings": {"imgsz": IMGSZ, "student": STUDENT, "teacher": teacher, "batch": 16},
        "seconds": figures,
        "reading_as_part_of_the_loader": figures["from the cache"]["read the cache"]
        / (figures["from the cache"]["read the cache"] + figures["from the cache"]["make views"]),
    }
    output.write_text(json.dumps(result, indent=1) + "\n")
    draw(figures, output.with_suffix(".png"))
    table = Table("part", *figures)
    for part in PARTS:
        table.add_row(part, *(f"{seconds[part]:.2f} s" for seconds in figures.values()))
    table.add_row("all", *(f"{sum(seconds.values()):.2f} s" for seconds in figures.values()))
    Console().print(table)
    Console().print(f"reading the cache is {result['reading_as_part_of_the_loader']:.1%} of the loader's time")


def profile(trainer: ViewTrainer) -> dict[str, float]:
    """Train two epochs and return the seconds of the second, by part."""
    import torch

    clock = Clock()
    whole: list[float] = []
    originals = [
        (ViewDataset, "__getitem__", "make views"),
        (TeacherCache, "read", "read the cache"),
        (FastDetectionModel, "predict", "forward"),
        (DistillationLoss, "distillation_terms", "distillation terms"),
        (torch.Tensor, "backward", "backward"),
        (ViewTrainer, "optimizer_step", "optimiser and EMA"),
    ]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in originals]
    kept.append((FastDetectionModel, "loss", FastDetectionModel.loss))

    def start(_: Any) -> None:
        clock.seconds.clear()
        whole.append(time.perf_counter())

    trainer.add_callback("on_train_epoch_start", start)
    trainer.add_callback("on_train_epoch_end", lambda _: whole.append(time.perf_counter() - whole.pop()))
    last: dict[str, float] = {}
    trainer.add_callback("on_train_epoch_end", lambda _: last.update(clock.seconds))
    try:
        for owner, name, part in originals:
            setattr(owner, name, clock.wrap(part, getattr(owner, name)))
        # What a loss call does besides its forward pass and the terms is the detection loss.
        FastDetectionModel.loss = clock.wrap("detection loss", FastDetectionModel.loss)
        trainer.train()
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)
    parts = {part: last.get(part, 0.0) for part in PARTS}
    parts["rest"] = whole[-1] - sum(parts.values())
    return parts


def draw(figures: dict[str, dict[str, float]], target: Path) -> None:
    """Draw one bar a training."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 2.6))
    left = [0.0] * len(figures)
    for part in PARTS:
        widths = [seconds[part] for seconds in figures.values()]
        axes.barh(list(figures), widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_xlabel(f"seconds of an epoch, {STUDENT}, {IMGSZ} px")
    axes.legend(ncols=4, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.4))
    figure.tight_layout()
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    typer.run(main)

"""How the cost of distilling from a cache grows with images, views, and anchor points kept.

Each figure is taken in a process of its own: the median time of the counted epochs, the process's peak memory, and the
size of the cache. Data are the embedded digits, of which there can be any number.

    python benchmarks/cache_growth.py
"""

import json
import multiprocessing as mp
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import typer
from rich.console import Console
from rich.table import Table

IMGSZ, STUDENT, TEACHER = 160, "yolov8p.yaml", "yolov8n.yaml"
BASE = {"images": 200, "views": 2, "top_k": 64}
SWEEPS: dict[str, tuple[int, ...]] = {"images": (200, 400, 800), "views": (2, 4, 8), "top_k": (16, 64, 256)}


def main(
    epochs: Annotated[int, typer.Option(help="Counted epochs of each training.")] = 3,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = (
        Path(__file__).parent / "results/cache-growth.json"
    ),
) -> None:
    """Measure every point of every sweep and draw them."""
    from yolo_distill.components.benchmark.machine import describe_machine
    from yolo_distill.components.shared.cores import usable_cores

    context = mp.get_context("spawn")
    rows: list[dict[str, Any]] = []
    for sweep, values in SWEEPS.items():
        for value in values:
            ours, theirs = context.Pipe()
            process = context.Process(target=measure, args=({**BASE, sweep: value}, epochs, theirs))
            process.start()
            rows.append({"sweep": sweep, **ours.recv()})
            process.join()
            print(json.dumps(rows[-1]), flush=True)
    result = {
        "machine": describe_machine(usable_cores()).model_dump(),
        "settings": {"imgsz": IMGSZ, "student": STUDENT, "teacher": TEACHER, "epochs": epochs},
        "points": rows,
    }
    output.write_text(json.dumps(result, indent=1) + "\n")
    draw(rows, output.with_suffix(".png"))
    show(rows)


def measure(point: dict[str, int], epochs: int, pipe: Connection) -> None:
    """Build a cache, train from it and report epoch time, peak memory and bytes."""
    from yolo_distill.components.benchmark.machine import peak_memory_bytes
    from yolo_distill.components.distill_train.recipe import load_recipe
    from yolo_distill.components.distill_train.train import STUDENTS_FOLDER, DistillationTrainer
    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.prepare_data.prepare import prepare
    from yolo_distill.components.shared.training import train_settings
    from yolo_distill.components.shared.views import Augmentation
    from yolo_distill.components.teacher_cache_logits.build import CacheSettings, build_cache
    from yolo_distill.components.teacher_cache_logits.cache import TeacherCache
    from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat
    from yolo_distill.components.train_teacher.train import train_teacher

    work = Path(tempfile.mkdtemp(prefix="bench-growth-"))
    prepare(f"digits:train={point['images']},val=8,test=8", work / "dataset")
    dataset = DetectionDataset.open(work / "dataset")
    settings = train_settings(epochs=1, imgsz=IMGSZ, batch=16)
    train_teacher(dataset, TEACHER, settings, work / "teacher")
    wanted = CacheSettings(Augmentation(imgsz=IMGSZ), point["views"], 0, AnswerFormat(top_k=point["top_k"]))
    begun = time.perf_counter()
    manifest = build_cache(dataset, work / "teacher", wanted, work / "cache")
    built = time.perf_counter() - begun
    trainer = DistillationTrainer(
        dataset,
        train_settings(epochs=epochs + 1, imgsz=IMGSZ, batch=16, close_mosaic=0),
        str(STUDENTS_FOLDER / STUDENT),
        work / "training",
        recipe=load_recipe("default"),
        teacher=TeacherCache(work / "cache"),
    )
    seconds: list[float] = []
    trainer.add_callback("on_train_epoch_start", lambda _: seconds.append(-time.perf_counter()))
    trainer.add_callback("on_train_epoch_end", lambda _: seconds.append(seconds.pop() + time.perf_counter()))
    trainer.train()
    pipe.send(
        {
            **point,
            "epoch_seconds": statistics.median(seconds[1:]),
            "build_seconds": built,
            "peak_memory_mb": peak_memory_bytes() / 1e6,
            "cache_mb": manifest.bytes / 1e6,
        }
    )


def draw(rows: list[dict[str, Any]], target: Path) -> None:
    """Draw epoch time, memory and cache size over each of what grows."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    tops = {name: 1.1 * max(row[name] for row in rows) for name in ("epoch_seconds", "peak_memory_mb", "cache_mb")}
    shown = {"epoch_seconds": "epoch, s", "peak_memory_mb": "peak memory, MB", "cache_mb": "cache, MB"}
    figure, panels = plt.subplots(len(shown), len(SWEEPS), figsize=(10, 7), squeeze=False, sharey="row")
    for column, sweep in enumerate(SWEEPS):
        points = [row for row in rows if row["sweep"] == sweep]
        for line, (name, label) in enumerate(shown.items()):
            axes = panels[line][column]
            axes.plot([p[sweep] for p in points], [p[name] for p in points], marker="o")
            axes.set_ylim(0, tops[name])
            if column == 0:
                axes.set_ylabel(label)
            if line == len(shown) - 1:
                axes.set_xlabel(sweep)
    figure.suptitle(f"{STUDENT} from a cache of {TEACHER}, {IMGSZ} px; elsewhere {BASE}")
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the figures."""
    names = ("sweep", "images", "views", "top_k", "epoch_seconds", "build_seconds", "peak_memory_mb", "cache_mb")
    table = Table(*names)
    for row in rows:
        table.add_row(*(f"{row[n]:.1f}" if isinstance(row[n], float) else str(row[n]) for n in names))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)

"""What the teacher cache costs and saves.

Arms are real trainings in processes of their own. They take turns epoch by epoch: one works while the others wait. The
first epoch of each is a warm-up and is not counted. Ultralytics leaves one core out of its computation on CPUs; its
arms are told to use all of them, as ours do, and the plain one is measured as it comes, too.

    python benchmarks/cache.py --data ~/data/BCCD
"""

import json
import multiprocessing as mp
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import typer
from rich.console import Console
from rich.table import Table

IMGSZ, BATCH, STUDENT = 320, 16, "yolov8n.yaml"
BUILD_VIEWS, BUILD_ROUNDS = 4, 2
COCO_IMAGES, COCO_VIEWS = 118_287, 10


def main(
    data: Annotated[Path, typer.Option(help="A data set, such as BCCD's folder.")],
    rounds: Annotated[int, typer.Option(help="Counted epochs of each arm.")] = 3,
    teachers: Annotated[str, typer.Option(help="Stock teachers, comma-separated; their weights are random.")] = (
        "yolov8m.yaml,yolov8x.yaml"
    ),
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path(__file__).parent / "results/cache.json",
) -> None:
    """Measure epochs in turns, the build of the cache, and bytes per view."""
    from yolo_distill.components.benchmark.machine import describe_machine
    from yolo_distill.components.prepare_data.prepare import prepare
    from yolo_distill.components.shared.cores import usable_cores

    work = Path(tempfile.mkdtemp(prefix="bench-cache-"))
    prepare(str(data), work / "dataset")
    names = teachers.split(",")
    builds = {name: measure_build(work, name) for name in names}
    arms: dict[str, Callable[[Path, Connection, int], None]] = {
        "plain ultralytics, fp32": plain_ultralytics,
        "plain ultralytics, its own thread count": plain_as_it_comes,
        "ours, warm cache, fp32": ours_fp32,
        "ours, warm cache, default precision": ours_default,
    }
    jobs = {name: (function, names[0]) for name, function in arms.items()}
    jobs |= {f"ultralytics distill_model={name}": (builtin, name) for name in names}
    seconds = take_turns(work, jobs, rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    plain, untouched, fp32, default = (medians[name] for name in arms)
    ratios = {
        "ours fp32 / plain": fp32 / plain,
        "ours default / plain": default / plain,
        "ours fp32 / plain with its own thread count": fp32 / untouched,
        "ours default / plain with its own thread count": default / untouched,
        **{f"distill_model={n} / ours default": medians[f"ultralytics distill_model={n}"] / default for n in names},
        **{f"distill_model={n} / ours fp32": medians[f"ultralytics distill_model={n}"] / fp32 for n in names},
        **{f"build / bare forward, {n}": b["build_per_view"] / b["bare"] for n, b in builds.items()},
        **{f"build / bare forward in PyTorch, {n}": b["build_per_view"] / b["bare_pytorch"] for n, b in builds.items()},
        **{f"PyTorch / chosen engine, {n}": b["bare_pytorch"] / b["bare"] for n, b in builds.items()},
    }
    result = {
        "machine": describe_machine(usable_cores()).model_dump(),
        "settings": {"imgsz": IMGSZ, "batch": BATCH, "student": STUDENT, "rounds": rounds},
        "epoch_seconds": seconds,
        "epoch_median": medians,
        "build": builds,
        "bytes": bytes_per_view(),
        "ratios": ratios,
        "coco_train2017": {name: coco_cost(build) for name, build in builds.items()},
        "break_even_epochs": {
            name: 10 * build["build_per_view"] / (medians[f"ultralytics distill_model={name}"] - default)
            for name, build in builds.items()
        },
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    draw_break_even(result, output.with_name("cache-break-even.png"))
    show(result)


def take_turns(work: Path, jobs: dict[str, tuple[Callable[..., None], str]], rounds: int) -> dict[str, list[float]]:
    """Run every arm epoch by epoch in turns and return the seconds of each counted epoch by arm."""
    context = mp.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name, (function, teacher) in jobs.items():
        ours, theirs = context.Pipe()
        context.Process(target=function, args=(work, theirs, rounds + 1, teacher), daemon=True).start()
        pipes[name] = ours
        # Set-up is not measured, and one at a time spares memory.
        ours.recv()
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, pipe in pipes.items():
            pipe.send("go")
            took = pipe.recv()
            print(f"round {turn} {name}: {took:.2f} s", flush=True)
            if turn:
                seconds[name].append(took)
    return seconds


class Turns:
    """Callbacks that make a trainer wait for its turn before each epoch and report how long the epoch took."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.begun = self.took = 0.0

    def start(self, _: Any) -> None:
        """Wait for the turn."""
        self.pipe.send("ready") if not self.begun else None
        self.pipe.recv()
        self.begun = time.perf_counter()

    def end(self, _: Any) -> None:
        """Stop the clock."""
        self.took = time.perf_counter() - self.begun

    def report(self, _: Any) -> None:
        """Report the epoch once its validation and checkpoint are done, which would disturb the next arm."""
        self.pipe.send(self.took)

    def attach(self, trainer: Any) -> None:
        """Install the callbacks."""
        trainer.add_callback("on_train_epoch_start", self.start)
        trainer.add_callback("on_train_epoch_end", self.end)
        trainer.add_callback("on_fit_epoch_end", self.report)


def plain_ultralytics(work: Path, pipe: Connection, epochs: int, _: str) -> None:
    """Train the student with ultralytics alone, on all cores."""
    _stock(work, pipe, epochs, {})


def plain_as_it_comes(work: Path, pipe: Connection, epochs: int, _: str) -> None:
    """Train the student with ultralytics alone, on as many cores as it chooses."""
    _stock(work, pipe, epochs, {}, all_cores=False)


def builtin(work: Path, pipe: Connection, epochs: int, teacher: str) -> None:
    """Train the student with ultralytics' own distillation, the teacher online."""
    _stock(work, pipe, epochs, {"distill_model": str(random_teacher(work, teacher) / "model.pt")})


def ours_fp32(work: Path, pipe: Connection, epochs: int, teacher: str) -> None:
    """Train the student from the warm cache, in float32 like the plain arm."""
    import torch

    from yolo_distill.components.shared import training

    training.fast_autocast_dtype = lambda _: torch.float32
    ours_default(work, pipe, epochs, teacher)


def ours_default(work: Path, pipe: Connection, epochs: int, teacher: str) -> None:
    """Train the student from the warm cache as the pipeline does."""
    from yolo_distill.components.distill_train.recipe import load_recipe
    from yolo_distill.components.distill_train.train import DistillationTrainer
    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.shared.training import train_settings
    from yolo_distill.components.teacher_cache_logits.cache import TeacherCache

    trainer = DistillationTrainer(
        DetectionDataset.open(work / "dataset"),
        train_settings(epochs=epochs, imgsz=IMGSZ, batch=BATCH, close_mosaic=0),
        STUDENT,
        work / f"run-{mp.current_process().pid}",
        recipe=load_recipe("default"),
        teacher=TeacherCache(work / f"cache-{teacher}"),
    )
    _run(trainer, pipe)


def _stock(work: Path, pipe: Connection, epochs: int, overrides: dict[str, Any], *, all_cores: bool = True) -> None:
    import torch
    from ultralytics.models.yolo.detect import DetectionTrainer

    from yolo_distill.components.shared.cores import usable_cores

    trainer = DetectionTrainer(
        overrides={
            "model": STUDENT,
            "data": str(work / "dataset/data.yaml"),
            "epochs": epochs,
            "imgsz": IMGSZ,
            "batch": BATCH,
            "close_mosaic": 0,
            "val": False,
            "plots": False,
            "device": "cpu",
            "optimizer": "AdamW",
            "project": str(work),
            "name": f"run-{mp.current_process().pid}",
            **overrides,
        }
    )
    if all_cores:
        torch.set_num_threads(usable_cores())
    _run(trainer, pipe)


def _run(trainer: Any, pipe: Connection) -> None:
    Turns(pipe).attach(trainer)
    # Validation falls outside the epochs that are measured; the last one is skipped to save time.
    trainer.final_eval = lambda: None
    trainer.train()


def random_teacher(work: Path, name: str) -> Path:
    """Return the model artifact of a teacher with random weights, which are as fast as trained ones."""
    import torch
    from ultralytics.nn.tasks import DetectionModel

    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.train_teacher.checkpoint import write_checkpoint_artifact

    target = work / f"teacher-{name}"
    if not target.exists():
        classes = DetectionDataset.open(work / "dataset").classes
        network = DetectionModel(name, nc=len(classes), verbose=False)
        network.names = dict(enumerate(classes))
        network.args = {"imgsz": IMGSZ}
        checkpoint = work / f"{name}.pt"
        torch.save({"model": network, "ema": None, "train_args": {}, "epoch": -1}, checkpoint)
        write_checkpoint_artifact(target, checkpoint, name="teacher", imgsz=IMGSZ, architecture=name, lineage={})
    return target


def measure_build(work: Path, name: str) -> dict[str, float | str]:
    """Build a cache and compare it, view by view, with the bare forward passes of the same engine.

    Rounds take turns: PyTorch's forward passes, those of the engine that builds caches, a build. A build of
    ``BUILD_VIEWS`` views is measured, so that what is done once (opening data and teacher, converting the teacher)
    counts as it does in a small cache; it is shown by itself, too.
    """
    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.shared.views import Augmentation, View, ViewDataset
    from yolo_distill.components.teacher_cache_logits.build import CacheSettings, build_cache
    from yolo_distill.components.teacher_cache_logits.stream import TorchStream, open_stream
    from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat, Teacher

    dataset = DetectionDataset.open(work / "dataset")
    folder = random_teacher(work, name)
    settings = CacheSettings(Augmentation(imgsz=IMGSZ), BUILD_VIEWS, 0, AnswerFormat())
    views = ViewDataset(dataset, settings.augmentation)
    size = settings.batch
    batches = [
        views.collate_fn([views[views.key(View(0, closed=False), index)] for index in chunk])
        for chunk in (range(start, min(start + size, len(views))) for start in range(0, len(views), size))
    ]
    teacher = Teacher(folder)
    opening: list[float] = []
    with timed(opening):
        chosen = open_stream(teacher, IMGSZ)
    streams = {"pytorch": TorchStream(teacher), "chosen": chosen}
    seconds: dict[str, list[float]] = {"pytorch": [], "chosen": [], "build": []}
    for turn in range(BUILD_ROUNDS + 1):
        for engine, stream in streams.items():
            with timed(seconds[engine]):
                for _ in stream.answers(batches):
                    pass
        target = work / (f"cache-{name}" if turn == BUILD_ROUNDS else f"cache-{turn}-{name}")
        with timed(seconds["build"]):
            manifest = build_cache(dataset, folder, settings, target)
    # The first round warms up.
    median = {what: statistics.median(values[1:]) for what, values in seconds.items()}
    return {
        "engine": type(chosen).__name__,
        "bare_pytorch": median["pytorch"],
        "bare": median["chosen"],
        "build_per_view": median["build"] / BUILD_VIEWS,
        "conversion": opening[0],
        "images": len(views),
        "bytes_per_view": manifest.bytes / BUILD_VIEWS / len(views),
    }


def draw_break_even(result: dict[str, Any], target: Path) -> None:
    """Draw the time that has passed over the epochs of a training, with a cache of ten views and online."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    ours = result["epoch_median"]["ours, warm cache, default precision"]
    figure, panels = plt.subplots(1, len(result["build"]), figsize=(5.5 * len(result["build"]), 4), squeeze=False)
    for axes, (name, build) in zip(panels[0], result["build"].items(), strict=True):
        epochs = range(101)
        online = result["epoch_median"][f"ultralytics distill_model={name}"]
        axes.plot(epochs, [n * online / 60 for n in epochs], label="ultralytics distill_model=", color="tab:red")
        axes.plot(
            epochs,
            [(10 * build["build_per_view"] + n * ours) / 60 for n in epochs],
            label="ours: build a cache of 10 views, then train",
            color="tab:blue",
        )
        axes.plot(
            epochs, [n * ours / 60 for n in epochs], label="ours: every later run", color="tab:blue", linestyle=":"
        )
        even = result["break_even_epochs"][name]
        axes.axvline(even, color="grey", linewidth=0.8)
        axes.set(title=f"{name}: even after {even:.1f} epochs", xlabel="epochs", ylabel="minutes", xlim=(0, 100))
        axes.set_ylim(bottom=0)
        axes.legend()
    settings = result["settings"]
    figure.suptitle(f"{settings['student']}, {settings['imgsz']} px, {result['machine']['cpu']}")
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def coco_cost(build: dict[str, Any]) -> dict[str, float | str]:
    """Return what a cache of COCO train2017 would cost at 640 px, from the build that was measured at 320 px."""
    pixels = (640 / IMGSZ) ** 2
    seconds = build["build_per_view"] / build["images"] * pixels
    return {
        "hours_on_this_machine": round(seconds * COCO_IMAGES * COCO_VIEWS / 3600, 1),
        "arithmetic": f"{seconds:.4f} s a view ({pixels:.0f} x that at {IMGSZ} px) x {COCO_IMAGES} images "
        f"x {COCO_VIEWS} views",
    }


def bytes_per_view() -> list[dict[str, float | str | int]]:
    """Return what a view takes by size, classes and format, from real answers of a v8x with random weights."""
    import torch
    from ultralytics.nn.tasks import DetectionModel

    from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat, TeacherAnswers, sparse_answers

    rows: list[dict[str, float | str | int]] = []
    for classes in (3, 80):
        network = DetectionModel("yolov8x.yaml", nc=classes, verbose=False).eval()
        for side in (320, 640):
            with torch.inference_mode():
                raw = network(torch.rand(1, 3, side, side))[1]
            answers = TeacherAnswers(raw["scores"], raw["boxes"], list(raw["feats"]))
            count = raw["scores"].shape[2]
            for features in ("fp16", "int8", "none"):
                wanted = AnswerFormat(top_k=256, features=features)
                # Points spread over the levels as the anchor points are.
                mask = torch.zeros(1, count, dtype=torch.bool)
                mask[0, torch.randperm(count)[:300]] = True
                kept = sparse_answers(answers, mask, wanted)[0]
                size = sum(tensor.numel() * tensor.element_size() for tensor in kept.values())
                rows.append(
                    {
                        "imgsz": side,
                        "classes": classes,
                        "features": features,
                        "points": 300,
                        "bytes": size,
                        "coco_train2017_10_views_gb": round(size * COCO_IMAGES * COCO_VIEWS / 1e9, 1),
                        "arithmetic": f"{size} B x {COCO_IMAGES} images x {COCO_VIEWS} views",
                    }
                )
    return rows


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    """Append the seconds that the block takes."""
    begun = time.perf_counter()
    yield
    into.append(time.perf_counter() - begun)


def show(result: dict[str, Any]) -> None:
    """Print the figures."""
    console = Console()
    table = Table("arm", "epoch, median s", title="Epochs, in turns")
    for name, value in result["epoch_median"].items():
        table.add_row(name, f"{value:.2f}")
    console.print(table)
    table = Table("ratio", "value")
    for name, value in result["ratios"].items():
        table.add_row(name, f"{value:.2f}")
    console.print(table)
    table = Table("imgsz", "classes", "features", "bytes a view", "COCO train2017 x 10 views, GB")
    for row in result["bytes"]:
        table.add_row(*(str(row[k]) for k in ("imgsz", "classes", "features", "bytes", "coco_train2017_10_views_gb")))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)

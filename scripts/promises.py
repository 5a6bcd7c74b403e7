"""What was promised beside what was measured, from the files of a folder of results."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What the speed of a model is called by, where the file names its checkpoint.
MODELS = {"yolov8n-coco.pt": "YOLOv8n", "yolov8p.yaml": "yolov8p"}


@dataclass(frozen=True)
class Row:
    """A promise.

    Attributes:
        what: What was measured.
        measured: The figure.
        bar: What it may be at least or at most.
        at_least: Which of the two.
        unit: What figure and bar are written with.
        beside: What else belongs to the figure, such as its interval.
    """

    what: str
    measured: float
    bar: float
    at_least: bool
    unit: str
    beside: str = ""

    @property
    def kept(self) -> bool:
        """Whether the promise was kept."""
        return self.measured >= self.bar if self.at_least else self.measured <= self.bar

    def line(self) -> str:
        """Return it as a row of the table."""
        bar = f"at {'least' if self.at_least else 'most'} {self.unit.format(self.bar)}"
        measured = self.unit.format(self.measured) + self.beside
        return f"| {self.what} | {bar} | {measured} | {'yes' if self.kept else '**no**'} |\n"


def promises_table(results: Path) -> str:
    """Return all promises as a table, with the figures of a folder of results."""
    found = {file: json.loads((results / file).read_text(encoding="utf-8")) for file in READERS}
    lines = [row.line() for file, read in READERS.items() for row in read(found[file])]
    return "| | Promised | Measured | Kept |\n| --- | --- | --- | --- |\n" + "".join(lines)


def accuracy(found: Mapping[str, Any]) -> Iterator[Row]:
    """Yield what distillation brings."""
    against = {
        "plain": "plain training",
        "ultralytics": "ultralytics' `distill_model=` with its defaults",
        "ultralytics-same": "the same with our optimiser and learning rates",
    }
    for one in found["differences"]:
        what = f"`{one['arm']}` against {against[one['against']]}, {one['split']}"
        interval = f" ({one['low']:+.1f} to {one['high']:+.1f})"
        yield Row(what, one["estimate"], one["bar"], True, "{:+.1f} points", interval)
    for split, part in found["of_teacher"].items():
        yield Row(f"part of the teacher's mAP50-95, {split}", 100 * part, 95, True, "{:.1f} %")
    part = found["time_to_plain"]["mean"]
    yield Row("time until plain training's final mAP is reached, part of plain's", 100 * part, 50, False, "{:.0f} %")


def cache(found: Mapping[str, Any]) -> Iterator[Row]:
    """Yield what a distilled epoch costs."""
    ratios = found["ratios"]
    yield Row("distilled epoch / plain ultralytics epoch, fp32", ratios["ours fp32 / plain"], 1.1, False, "{:.2f}")
    yield Row("the same in default precision", ratios["ours default / plain"], 0.75, False, "{:.2f}")
    for teacher, bar in {"yolov8m": 2.5, "yolov8x": 5.0}.items():
        ratio = ratios[f"distill_model={teacher}.yaml / ours fp32"]
        yield Row(f"epoch with `distill_model={teacher}.yaml` / distilled epoch, fp32", ratio, bar, True, "{:.2f}")
    for teacher in ("yolov8m", "yolov8x"):
        for engine, name in {"in PyTorch": " in PyTorch", "by the engine that builds": ""}.items():
            ratio = ratios[f"build / bare forward{name}, {teacher}.yaml"]
            what = f"building the cache / the teacher's bare forward passes {engine}, {teacher}"
            yield Row(what, ratio, 1.15, False, "{:.2f}")


def epoch_profile(found: Mapping[str, Any]) -> Iterator[Row]:
    """Yield what reading the cache costs."""
    part = 100 * found["reading_as_part_of_the_loader"]
    yield Row("reading the cache, part of the loader's time", part, 5, False, "{:.1f} %")


def openvino_speed(found: Mapping[str, Any]) -> Iterator[Row]:
    """Yield what OpenVINO and INT8 bring, and whether it is measured right."""
    for model, figures in found["models"].items():
        name, ratios = MODELS[model], figures["ratios"]
        for precision in ("FP32", "INT8"):
            ratio = ratios[f"ours / benchmark_app, {precision}"]
            what = f"throughput by our benchmark and by `benchmark_app`, apart, {name} {precision}"
            yield Row(what, 100 * abs(ratio - 1), 5, False, "{:.1f} %")
        yield Row(f"throughput, INT8 / FP32, {name}", ratios["INT8 / FP32"], 2, True, "{:.2f}")
        yield Row(f"throughput, INT8 / PyTorch FP32, {name}", ratios["INT8 / PyTorch FP32"], 4, True, "{:.2f}")
        for split, points in figures["drop_points"].items():
            yield Row(f"mAP50-95 lost by INT8, {name}, {split}", points, 1, False, "{:.2f} points")


def prune(found: Mapping[str, Any]) -> Iterator[Row]:
    """Yield what pruning costs and brings."""
    for split, points in found["points_below_unpruned"].items():
        what = f"mAP50-95 lost by pruning to {found['settings']['keep_flops']:.0%} of the FLOPs and recovery, {split}"
        yield Row(what, points, found["allowed_points"], False, "{:.2f} points")
    for precision in ("FP32", "INT8"):
        ratio = found["speed"][f"network latency, pruned / unpruned, {precision}"]
        yield Row(f"latency, pruned / unpruned, {precision}", ratio, 1, False, "{:.2f}")


def s3(found: Mapping[str, Any]) -> Iterator[Row]:
    """Yield what a large file costs in memory."""
    grown = found["median"]["ours"]["grown_mib"]
    what = f"memory for {found['settings']['megabytes'] / 1024:.0f} GiB to object storage and back"
    yield Row(what, grown, 200, False, "{:.0f} MiB")


READERS = {
    "accuracy.json": accuracy,
    "cache.json": cache,
    "epoch-profile.json": epoch_profile,
    "openvino-speed.json": openvino_speed,
    "prune.json": prune,
    "s3.json": s3,
}

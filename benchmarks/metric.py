"""How fast mAP is counted: this project's COCO protocol against pycocotools', on the same detections.

python benchmarks/metric.py --images 500
"""

import contextlib
import io
import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console
from rich.table import Table

from yolo_distill.components.benchmark.machine import describe_machine
from yolo_distill.components.evaluate_map.coco import coco_metrics
from yolo_distill.components.shared.cores import usable_cores

CLASSES = [f"class {number}" for number in range(80)]
# As many as COCO's validation images have, and as many as ultralytics keeps.
BOXES, DETECTIONS = 7, 300


def main(
    images: Annotated[int, typer.Option(help="Images to count on.")] = 500,
    rounds: Annotated[int, typer.Option(help="Rounds, in which the two take turns.")] = 3,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path(__file__).parent / "results/metric.json",
) -> None:
    """Count mAP of made-up detections with both and compare the time."""
    truth, found = scene(images)
    arms = {"ours": ours, "pycocotools": theirs}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    figures = {name: arm(truth, found) for name, arm in arms.items()}
    for _ in range(rounds):
        for name, arm in arms.items():
            begun = time.perf_counter()
            arm(truth, found)
            seconds[name].append(time.perf_counter() - begun)
    ratios = [other / own for own, other in zip(seconds["ours"], seconds["pycocotools"], strict=True)]
    result = {
        "machine": describe_machine(usable_cores()).model_dump(),
        "settings": {"images": images, "boxes": BOXES, "detections": DETECTIONS, "classes": len(CLASSES)},
        "seconds": seconds,
        "map": figures,
        "largest_difference": float(np.abs(np.subtract(figures["ours"], figures["pycocotools"])).max()),
        "times_as_fast": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
    }
    output.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("", "median", "mAP50-95", "mAP50")
    for name, values in figures.items():
        table.add_row(name, f"{statistics.median(seconds[name]):.2f} s", *(f"{value:.6f}" for value in values))
    Console().print(table)
    Console().print(
        f"{statistics.median(ratios):.1f} times as fast ({min(ratios):.1f} to {max(ratios):.1f}), "
        f"{images} images with {DETECTIONS} detections each"
    )


def scene(images: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return labels and detections: a third of the latter near a label, the rest anywhere, as a detector's tail is."""
    random = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        boxes = np.concatenate([random.uniform(0, 400, (BOXES, 2)), random.lognormal(4, 0.8, (BOXES, 2))], axis=1)
        labels = random.integers(1, len(CLASSES) + 1, BOXES)
        for box, label in zip(boxes, labels, strict=True):
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": int(label), "bbox": box.tolist()}
            annotations.append(entry | {"area": float(box[2] * box[3]), "iscrowd": 0})
        for _ in range(DETECTIONS):
            near = random.random() < 1 / 3
            one = random.integers(BOXES)
            box = boxes[one] + random.normal(0, 0.1, 4) * np.tile(boxes[one, 2:], 2)
            if not near:
                box = np.concatenate([random.uniform(0, 400, 2), random.lognormal(4, 0.8, 2)])
            label = labels[one] if near else random.integers(1, len(CLASSES) + 1)
            score = float(random.beta(4, 3) if near else random.beta(1, 6))
            detections.append({"image_id": image, "category_id": int(label), "bbox": box.tolist(), "score": score})
    images_ = [{"id": image, "width": 640, "height": 640} for image in range(1, images + 1)]
    categories = [{"id": index, "name": name} for index, name in enumerate(CLASSES, 1)]
    return {"info": {}, "images": images_, "annotations": annotations, "categories": categories}, detections


def ours(truth: dict[str, Any], found: list[dict[str, Any]]) -> list[float]:
    """Count mAP50-95 and mAP50 as evaluate-map does."""
    metrics = coco_metrics(truth, found, CLASSES)
    return [float(metrics.map or 0), float(metrics.map50 or 0)]


def theirs(truth: dict[str, Any], found: list[dict[str, Any]]) -> list[float]:
    """Count the same with pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        labels = COCO()
        labels.dataset = truth
        labels.createIndex()
        evaluation = COCOeval(labels, labels.loadRes([dict(one) for one in found]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats[:2]]


if __name__ == "__main__":
    typer.run(main)

"""What pruning costs, what distillation brings back, and how much faster the narrower network really is.

For each seed a model is trained on the data, pruned, and recovered in two ways that differ in the teacher alone: from
the cached answers of the unpruned model, and plainly. The narrow architecture is trained from random weights, too, with
the same teacher: what it learns without inherited weights. Accuracy is measured on the test split. Latency and
throughput are those of the OpenVINO models of the first seed, which run in turns.

    python benchmarks/prune.py --data ~/data/BCCD --model yolov8n-coco.pt
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import typer
import yaml
from rich.console import Console
from rich.table import Table

from yolo_distill.components.distill_train.recipe import load_recipe
from yolo_distill.components.distill_train.train import distill
from yolo_distill.components.evaluate_map.evaluate import evaluate
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.prepare_data.prepare import prepare
from yolo_distill.components.prune.prune import Pruned, prune, pruning_target
from yolo_distill.components.shared.detector.pytorch_runtime import load_network
from yolo_distill.components.shared.training import TrainSettings, train_settings
from yolo_distill.components.teacher_cache_logits.build import CacheSettings, build_cache
from yolo_distill.components.teacher_cache_logits.cache import TeacherCache
from yolo_distill.components.train_teacher.train import train_teacher


def main(
    data: Annotated[Path, typer.Option(help="A data set, such as BCCD's folder.")],
    model: Annotated[str, typer.Option(help="What is trained on the data and pruned.")] = "yolov8n.yaml",
    keep_flops: Annotated[float, typer.Option(help="Part of the floating point operations to keep.")] = 0.5,
    importance: Annotated[str, typer.Option(help="How channels are valued.")] = "group_l2",
    epochs: Annotated[int, typer.Option(help="Epochs of the model that is pruned.")] = 60,
    recovery_epochs: Annotated[int, typer.Option(help="Epochs of each way of recovering.")] = 60,
    imgsz: Annotated[int, typer.Option(help="Side of the square input in pixels.")] = 320,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 16,
    views: Annotated[int, typer.Option(help="Cached views with mosaic, and as many without.")] = 10,
    seeds: Annotated[str, typer.Option(help="Seeds, comma-separated.")] = "0,1,2",
    seconds: Annotated[float, typer.Option(help="Measuring time of each model's speed.")] = 30.0,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path(__file__).parent / "results/prune.json",
) -> None:
    """Measure accuracy before pruning, after it and after recovery, and speed before and after."""
    from yolo_distill.components.benchmark.machine import describe_machine
    from yolo_distill.components.shared.cores import usable_cores

    work = Path(tempfile.mkdtemp(prefix="bench-prune-"))
    prepare(str(data), work / "dataset")
    dataset = DetectionDataset.open(work / "dataset")
    runs = []
    for seed in (int(text) for text in seeds.split(",")):
        folder = work / f"seed-{seed}"
        first = train_settings(epochs=epochs, imgsz=imgsz, batch=batch, seed=seed)
        train_teacher(dataset, model, first, folder / "original")
        narrow = prune(
            folder / "original",
            folder / "pruned",
            pruning_target(keep_flops, 0.0),
            importance=importance,
            dataset=dataset,
            seed=seed,
        )
        recover(dataset, folder, train_settings(epochs=recovery_epochs, imgsz=imgsz, batch=batch, seed=seed), views)
        runs.append({"seed": seed, **describe(narrow), "map": accuracies(dataset, folder)})
        print(json.dumps(runs[-1]), flush=True)
    first_folder = work / f"seed-{seeds.partition(',')[0]}"
    result = {
        "machine": describe_machine(usable_cores()).model_dump(),
        "settings": {
            "model": Path(model).name,
            "keep_flops": keep_flops,
            "importance": importance,
            "epochs": epochs,
            "recovery_epochs": recovery_epochs,
            "imgsz": imgsz,
            "batch": batch,
            "views": views,
            "images": {split: len(dataset.split(split)) for split in ("train", "val", "test")},
        },
        "runs": runs,
        "mean_map": {arm: statistics.fmean(run["map"][arm] for run in runs) for arm in runs[0]["map"]},
        "speed": speed(dataset, first_folder, seconds),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    show(result)


def recover(dataset: DetectionDataset, folder: Path, settings: TrainSettings, views: int) -> None:
    """Train the pruned model with its teacher and without, and its architecture from random weights."""
    build_cache(dataset, folder / "original", CacheSettings(settings.augmentation, views, views), folder / "cache")
    recipe, cache = load_recipe("default"), TeacherCache(folder / "cache")
    described = folder / "narrow.yaml"
    described.write_text(yaml.safe_dump(load_network(folder / "pruned" / "model.pt").yaml))
    pruned = folder / "pruned"
    distill(dataset, "", settings, folder / "distilled", name="distilled", recipe=recipe, teacher=cache, initial=pruned)
    distill(dataset, "", settings, folder / "plain", name="plain", initial=pruned)
    distill(
        dataset,
        str(described),
        settings,
        folder / "random",
        name="random",
        recipe=recipe.model_copy(update={"initial": "random"}),
        teacher=TeacherCache(folder / "cache"),
    )


def describe(narrow: Pruned) -> dict[str, float]:
    """Return how large the pruned model is."""
    card = narrow.card
    return {
        "kept_flops": narrow.flops,
        "kept_parameters": narrow.parameters,
        "gflops": card.gflops,
        "parameters": card.parameters,
    }


def accuracies(dataset: DetectionDataset, folder: Path) -> dict[str, float]:
    """Return mAP50-95 on the test split by arm, in 0..1."""
    arms = {
        "original": "original",
        "pruned, not recovered": "pruned",
        "pruned, recovered by distillation": "distilled",
        "pruned, recovered plainly": "plain",
        "same architecture from random weights, distilled": "random",
    }
    return {
        arm: evaluate(dataset, folder / name, "test", folder / "evaluations" / name).map or 0.0
        for arm, name in arms.items()
    }


def speed(dataset: DetectionDataset, folder: Path, seconds: float) -> dict[str, Any]:
    """Measure the OpenVINO models before and after pruning, in turns."""
    from yolo_distill.components.benchmark.benchmark import benchmark
    from yolo_distill.components.export_openvino.export import export

    models = {}
    for name in ("original", "distilled"):
        export(dataset, folder / name, folder / f"{name}-onnx", folder / f"{name}-openvino")
        models[name] = folder / f"{name}-openvino"
    measured = benchmark(dataset, models, seconds, folder / "benchmark", split="test")
    figures: dict[str, Any] = {
        name: entry.model_dump(include={"end_to_end", "network", "throughput", "size_bytes", "samples"})
        for name, entry in measured.entries.items()
    }
    before, after = measured.entries["original"], measured.entries["distilled"]
    return figures | {
        "disturbance": measured.disturbance,
        "network latency, original / pruned": before.network.p50 / after.network.p50,
        "throughput, pruned / original": after.throughput / before.throughput,
    }


def show(result: dict[str, Any]) -> None:
    """Print the figures."""
    console = Console()
    table = Table("arm", "mAP50-95, mean", *(f"seed {run['seed']}" for run in result["runs"]), title="Test split")
    for arm, mean in result["mean_map"].items():
        table.add_row(arm, f"{mean:.3f}", *(f"{run['map'][arm]:.3f}" for run in result["runs"]))
    console.print(table)
    table = Table("OpenVINO FP32", "network p50, ms", "image p50, ms", "images/s", title="Speed, in turns")
    for name, label in (("original", "original"), ("distilled", "pruned")):
        figures = result["speed"][name]
        table.add_row(
            label,
            f"{figures['network']['p50']:.2f}",
            f"{figures['end_to_end']['p50']:.2f}",
            f"{figures['throughput']:.1f}",
        )
    console.print(table)
    kept = ", ".join(f"{run['kept_flops']:.3f}" for run in result["runs"])
    console.print(f"Kept of the floating point operations: {kept}")


if __name__ == "__main__":
    typer.run(main)

"""What pruning a distilled student costs, what distillation brings back, and how much faster the narrow network is.

The student is that of the accuracy comparison, distilled by a recipe. It is pruned and recovered in two ways that
differ in the teacher alone: with the teacher that it has learned from, and plainly. The narrow architecture is
distilled without a student to inherit from, too. Pruned students have been trained twice, the others once. Latency and
throughput are those of the OpenVINO models of the first seed, in FP32 and INT8, which run in turns.

    python benchmarks/prune.py --data ~/data/BCCD --pretrained yolov8n-coco.pt

What is there already is not made again, and an unfinished training goes on; with the folder of the accuracy comparison
as ``--work``, its teacher, cache and students are used.
"""

import json
import statistics
from pathlib import Path
from typing import Annotated, Any

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import typer
import yaml
from accuracy.run import Data, Experiment, ImageSize, Pretrained, Seeds, Student, Work, measured, train_ours
from accuracy.run import main as train_students
from converted import exported, quantized
from rich.console import Console
from rich.table import Table

from yolo_distill.components.benchmark.benchmark import benchmark
from yolo_distill.components.benchmark.machine import describe_machine
from yolo_distill.components.distill_train.recipe import load_recipe
from yolo_distill.components.distill_train.train import choose_teacher, distill
from yolo_distill.components.evaluate_map.evaluation import read_evaluation
from yolo_distill.components.prune.prune import prune, pruning_target
from yolo_distill.components.shared.cores import usable_cores
from yolo_distill.components.shared.detector.pytorch_runtime import load_network
from yolo_distill.components.shared.files import write_text
from yolo_distill.components.shared.model_card import read_card

SPLITS = ("val", "test")
UNPRUNED = "unpruned, distilled"
PRUNED = "pruned, not recovered"
DISTILLED = "pruned, recovered by distillation"
PLAIN = "pruned, recovered plainly"
NARROW = "same architecture, not pruned, distilled"
# Points of mAP50-95 that the recovered student may lack, on average over seeds.
BAR_POINTS = 1.5


def main(
    data: Data,
    pretrained: Pretrained,
    work: Work = Path("runs/accuracy"),
    recipe: Annotated[str, typer.Option(help="How the student is distilled and recovered.")] = "default",
    keep_flops: Annotated[float, typer.Option(help="Part of the floating point operations to keep.")] = 0.5,
    importance: Annotated[str, typer.Option(help="How channels are valued.")] = "group_taylor",
    seeds: Seeds = "0,1,2",
    student: Student = "yolov8p.yaml",
    epochs: Annotated[int, typer.Option(help="Length of each training and of each recovery.")] = 50,
    imgsz: ImageSize = 320,
    seconds: Annotated[float, typer.Option(help="Measuring time of each model's speed.")] = 30.0,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path(__file__).parent / "results/prune.json",
) -> None:
    """Measure accuracy before pruning, after it and after recovery, and speed before and after."""
    experiment = Experiment(work=work, student=student, epochs=epochs, imgsz=imgsz)
    train_students(data, pretrained, work, recipe, seeds, student, epochs, imgsz)
    pruned = work / f"pruned-{recipe}-{importance}-{keep_flops:g}"
    runs = []
    for seed in map(int, seeds.split(",")):
        models = students(experiment, pruned / f"seed-{seed}", recipe, keep_flops, importance, seed)
        runs.append({"seed": seed, **kept(models[PRUNED]), "map": accuracies(experiment, pruned, models, seed)})
        print(json.dumps(runs[-1]), flush=True)
    first = pruned / f"seed-{seeds.partition(',')[0]}"
    speed = measured_speed(experiment, first, experiment.trained(recipe, runs[0]["seed"]) / "last", seconds)
    mean = {
        split: {arm: statistics.fmean(run["map"][split][arm] for run in runs) for arm in models} for split in SPLITS
    }
    result = {
        "machine": describe_machine(usable_cores()).model_dump(),
        "settings": {
            "student": Path(student).name,
            "recipe": recipe,
            "keep_flops": keep_flops,
            "importance": importance,
            "epochs": epochs,
            "imgsz": imgsz,
            "images": {split: len(experiment.dataset.split(split)) for split in ("train", *SPLITS)},
        },
        "runs": runs,
        "mean_map": mean,
        "points_below_unpruned": {split: 100 * (each[UNPRUNED] - each[DISTILLED]) for split, each in mean.items()},
        "allowed_points": BAR_POINTS,
        "speed": speed,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, json.dumps(result, indent=1) + "\n")
    show(result)


def students(
    experiment: Experiment, folder: Path, recipe_name: str, keep_flops: float, importance: str, seed: int
) -> dict[str, Path]:
    """Prune a distilled student and recover it; return the model artifacts of one seed by arm."""
    models = {
        UNPRUNED: experiment.trained(recipe_name, seed) / "last",
        PRUNED: folder / "pruned",
        DISTILLED: folder / "distilled" / "last",
        PLAIN: folder / "plain" / "last",
        NARROW: folder / "narrow" / "last",
    }
    if not models[PRUNED].is_dir():
        target = pruning_target(keep_flops, 0.0)
        dataset = experiment.dataset
        prune(models[UNPRUNED], models[PRUNED], target, importance=importance, dataset=dataset, seed=seed)
    recipe = load_recipe(recipe_name)
    teacher = choose_teacher(recipe, experiment.cache, experiment.teacher)
    for arm, how in ((DISTILLED, (recipe, teacher)), (PLAIN, (None, None))):
        if not models[arm].is_dir():
            distill(
                experiment.dataset,
                "",
                experiment.settings(seed),
                models[arm],
                name=models[arm].parent.name,
                recipe=how[0],
                teacher=how[1],
                initial=models[PRUNED],
                work_root=experiment.work,
            )
    if not models[NARROW].is_dir():
        described = folder / "narrow.yaml"
        write_text(described, yaml.safe_dump(load_network(models[PRUNED] / "model.pt").yaml))
        alike = experiment.model_copy(update={"student": str(described)})
        train_ours(alike, models[NARROW].parent, recipe_name, seed)
    return models


def kept(pruned: Path) -> dict[str, float]:
    """Return how large a pruned model is."""
    card = read_card(pruned)
    return {
        "kept_flops": float(card.lineage["kept_flops"]),
        "kept_parameters": float(card.lineage["kept_parameters"]),
        "gflops": card.gflops,
        "parameters": card.parameters,
    }


def accuracies(experiment: Experiment, pruned: Path, models: dict[str, Path], seed: int) -> dict[str, dict[str, float]]:
    """Return mAP50-95 (0..1) by split and arm."""
    values: dict[str, dict[str, float]] = {}
    for split in SPLITS:
        for number, (arm, model) in enumerate(models.items()):
            target = pruned / "evaluations" / f"arm-{number}-seed-{seed}"
            measured(experiment, model, target, split)
            values.setdefault(split, {})[arm] = read_evaluation(target / split).map or 0.0
    return values


def measured_speed(experiment: Experiment, folder: Path, original: Path, seconds: float) -> dict[str, Any]:
    """Measure the OpenVINO models before and after pruning, in turns."""
    models = {}
    for name, model in (("unpruned", original), ("pruned", folder / "distilled" / "last")):
        converted = exported(experiment.dataset, model, folder / "converted" / name)
        int8 = quantized(experiment.dataset, converted)
        models |= {f"{name} FP32": converted / "openvino", f"{name} INT8": int8}
    result = benchmark(experiment.dataset, models, seconds, folder / "benchmark", split="test")
    figures: dict[str, Any] = {
        name: entry.model_dump(include={"end_to_end", "network", "throughput", "size_bytes", "samples"})
        for name, entry in result.entries.items()
    }
    for precision in ("FP32", "INT8"):
        before, after = (result.entries[f"{name} {precision}"] for name in ("unpruned", "pruned"))
        figures[f"network latency, pruned / unpruned, {precision}"] = after.network.p50 / before.network.p50
        figures[f"throughput, pruned / unpruned, {precision}"] = after.throughput / before.throughput
    return figures | {"disturbance": result.disturbance}


def show(result: dict[str, Any]) -> None:
    """Print the figures."""
    console = Console()
    for split, means in result["mean_map"].items():
        table = Table("arm", "mAP50-95, mean", *(f"seed {run['seed']}" for run in result["runs"]), title=split)
        for arm, mean in means.items():
            table.add_row(arm, f"{100 * mean:.2f}", *(f"{100 * run['map'][split][arm]:.2f}" for run in result["runs"]))
        console.print(table)
        below = result["points_below_unpruned"][split]
        console.print(f"Recovered by distillation: {below:.2f} points below unpruned, allowed: {BAR_POINTS}")
    table = Table("OpenVINO", "network p50, ms", "image p50, ms", "images/s", title="Speed, in turns")
    for name, figures in result["speed"].items():
        if isinstance(figures, dict):
            network, image = figures["network"]["p50"], figures["end_to_end"]["p50"]
            table.add_row(name, f"{network:.2f}", f"{image:.2f}", f"{figures['throughput']:.1f}")
    console.print(table)
    for name, figure in result["speed"].items():
        if not isinstance(figure, dict):
            console.print(f"{name}: {figure:.3f}")
    console.print("Kept of the floating point operations: ", *(run["kept_flops"] for run in result["runs"]))


if __name__ == "__main__":
    typer.run(main)

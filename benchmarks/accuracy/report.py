"""Judges the accuracy runs by CRITERIA.md: writes the figures and draws them.

python benchmarks/accuracy/report.py --work runs/accuracy
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import matplotlib as mpl
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from yolo_distill.components.benchmark.machine import describe_machine
from yolo_distill.components.evaluate_map.difference import LEVEL, RESAMPLES, score_evaluations
from yolo_distill.components.evaluate_map.evaluation import read_evaluation
from yolo_distill.components.evaluate_map.paired import ModelScores, Resamples, paired_difference
from yolo_distill.components.shared.cores import usable_cores
from yolo_distill.components.shared.model_card import read_card

SPLITS = ("val", "test")
# Seed that recipes are chosen with; the claims are judged with the others.
EXPLORING = 100
# The last is no claim of CRITERIA.md: the arm that differs in distillation alone is held to the same bar.
CLAIMS = (("default", "plain", 3.4), ("default", "ultralytics", 1.0), ("default", "ultralytics-same", 1.0))


def main(
    work: Annotated[Path, typer.Option(help="The folder of run.py.")] = Path("runs/accuracy"),
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = (
        Path(__file__).parents[1] / "results/accuracy.json"
    ),
    disturbed: Annotated[str, typer.Option(help="Arms that shared their cores, whose times say nothing.")] = "",
) -> None:
    """Judge what has been run."""
    runs = [json.loads(path.read_text()) for path in sorted(work.glob("students/*/run.json"))]
    timed = [run for run in runs if run["arm"] not in disturbed.split(",")]
    seeds = seeds_by_arm(runs)
    teacher = {split: mean_map([evaluation(work, "teacher", split)]) for split in SPLITS}
    arms = {arm: describe(work, arm, numbers, timed) for arm, numbers in seeds.items()}
    parameters = {"teacher": read_card(work / "teacher").parameters}
    parameters["student"] = read_card(next(work.glob("students/default-*/last"))).parameters
    result = {
        "machine": describe_machine(usable_cores()).model_dump(),
        "parameters": parameters,
        "teacher": teacher,
        "arms": arms,
        "explored": explored(work, runs),
        "differences": [
            {**difference(work, one, other, sorted(seeds[one] & seeds[other]), split), "bar": bar}
            for one, other, bar in CLAIMS
            if one in seeds and other in seeds and seeds[one] & seeds[other]
            for split in SPLITS
        ],
        "of_teacher": {split: arms["default"][split] / teacher[split] for split in SPLITS},
        "time_to_plain": time_to(timed, "default", "plain"),
    }
    output.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, timed, output.with_suffix(".png"))
    show(result)


def seeds_by_arm(runs: Iterable[dict[str, Any]]) -> dict[str, set[int]]:
    """Return which seeds each arm was run with, those for exploring aside."""
    seeds: dict[str, set[int]] = {}
    for run in runs:
        if run["seed"] != EXPLORING:
            seeds.setdefault(run["arm"], set()).add(run["seed"])
    return seeds


def evaluation(work: Path, model: str, split: str) -> Path:
    """Return where the evaluation of a model lies; of two checkpoints that of the one which is better on val."""
    if model == "teacher":
        return work / "evaluations" / model / split
    found = sorted((work / "evaluations").glob(f"{model}-*/val"))
    return max(found, key=lambda folder: read_evaluation(folder).map or 0.0).with_name(split)


def mean_map(folders: Sequence[Path]) -> float:
    """Return the mean mAP50-95 of evaluations, in points."""
    return float(np.mean([100 * (read_evaluation(folder).map or 0.0) for folder in folders]))


def describe(work: Path, arm: str, seeds: Iterable[int], runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return an arm's figures: by seed, their mean by split, and the median seconds of its trainings."""
    by_seed = {
        seed: {split: mean_map([evaluation(work, f"{arm}-{seed}", split)]) for split in SPLITS}
        for seed in sorted(seeds)
    }
    means = {split: float(np.mean([one[split] for one in by_seed.values()])) for split in SPLITS}
    spread = {}
    if len(by_seed) > 1:
        spread = {f"{split}_sd": float(np.std([one[split] for one in by_seed.values()], ddof=1)) for split in SPLITS}
    seconds = [run["seconds"] for run in runs if run["arm"] == arm and run["seed"] in by_seed]
    return {
        **means,
        **spread,
        "seconds": float(np.median(seconds)) if seconds else None,
        "by_seed": by_seed,
    }


def explored(work: Path, runs: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Return what was tried to choose the default recipe: mAP50-95 on val, in points."""
    return {
        run["arm"]: mean_map([evaluation(work, f"{run['arm']}-{run['seed']}", "val")])
        for run in runs
        if run["seed"] == EXPLORING
    }


def difference(work: Path, one: str, other: str, seeds: Sequence[int], split: str) -> dict[str, Any]:
    """Compare two arms by a paired bootstrap over images and seeds, in points."""
    folders = [[evaluation(work, f"{arm}-{seed}", split) for seed in seeds] for arm in (one, other)]
    resamples = Resamples.draw(read_evaluation(folders[0][0]).images, len(seeds), RESAMPLES)
    scores: list[list[ModelScores]] = [list(score_evaluations(arm, resamples)) for arm in folders]
    found = paired_difference(*scores, resamples, LEVEL).map
    points = {name: 100 * value for name, value in found.model_dump().items()}
    return {"arm": one, "against": other, "split": split, "seeds": list(seeds), **points}


def time_to(runs: Sequence[dict[str, Any]], arm: str, against: str) -> dict[str, float] | None:
    """Return when an arm reaches the other's final accuracy, as parts of the other's time; means over common seeds.

    Both are validated by ultralytics while they train. Epochs of one training take the same time.
    """
    ours, theirs = ({run["seed"]: run for run in runs if run["arm"] == name} for name in (arm, against))
    parts = []
    for seed in sorted((ours.keys() & theirs.keys()) - {EXPLORING}):
        goal = validations(theirs[seed])[-1][1]
        reached = [when for when, value in validations(ours[seed]) if value >= goal]
        if not reached:
            return None
        parts.append(reached[0] / theirs[seed]["seconds"])
    return {"mean": float(np.mean(parts)), "worst": max(parts), "seeds": len(parts)} if parts else None


def validations(run: dict[str, Any]) -> list[tuple[float, float]]:
    """Return the validations of a training: seconds since its begin, and mAP50-95 in points."""
    return [
        (
            record.get("seconds", run["seconds"] * record["epoch"] / run["epochs"]),
            100 * record["metrics/mAP50-95"],
        )
        for record in run["history"]
        if "metrics/mAP50-95" in record
    ]


def draw(result: dict[str, Any], runs: Sequence[dict[str, Any]], target: Path) -> None:
    """Draw accuracy over time, and the accuracy of every seed."""
    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, (over_time, *by_split) = plt.subplots(1, 3, figsize=(14, 4.2), width_ratios=(2, 1, 1))
    colours = dict(zip(result["arms"], plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    for run in runs:
        if run["seed"] != EXPLORING:
            seconds, values = zip(*validations(run), strict=True)
            label = run["arm"] if run["seed"] == min(result["arms"][run["arm"]]["by_seed"]) else None
            over_time.plot(seconds, values, color=colours[run["arm"]], alpha=0.8, label=label)
    over_time.axhline(result["teacher"]["val"], color="black", linestyle=":", label="teacher")
    over_time.set_xlabel("seconds of training")
    over_time.set_ylabel("val mAP50-95 while training, by ultralytics")
    over_time.legend()
    for axes, split in zip(by_split, SPLITS, strict=True):
        for place, (arm, figures) in enumerate(result["arms"].items()):
            values = [one[split] for one in figures["by_seed"].values()]
            axes.plot([place] * len(values), values, "o", color=colours[arm], alpha=0.7)
            axes.plot([place - 0.2, place + 0.2], [figures[split]] * 2, color=colours[arm], linewidth=2)
        axes.axhline(result["teacher"][split], color="black", linestyle=":")
        axes.set_xlim(-0.6, len(result["arms"]) - 0.4)
        axes.set_xticks(range(len(result["arms"])), list(result["arms"]), rotation=20, fontsize=8)
        axes.set_title(f"{split} mAP50-95, COCO protocol; a dot a seed")
        axes.title.set_fontsize(9)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def show(result: dict[str, Any]) -> None:
    """Print the figures."""
    console = Console()
    table = Table("arm", "seeds", *(f"{split} mAP50-95" for split in SPLITS), "seconds")
    table.add_row("teacher", "", *(f"{result['teacher'][split]:.1f}" for split in SPLITS), "")
    for arm, figures in result["arms"].items():
        accuracies = (f"{figures[split]:.1f}" for split in SPLITS)
        seconds = f"{figures['seconds']:.0f}" if figures["seconds"] else "disturbed"
        table.add_row(arm, str(len(figures["by_seed"])), *accuracies, seconds)
    console.print(table)
    for one in result["differences"]:
        met = "met" if one["estimate"] >= one["bar"] else "missed"
        console.print(
            f"{one['arm']} - {one['against']}, {one['split']}, {len(one['seeds'])} seed(s): {one['estimate']:+.1f} "
            f"({one['low']:+.1f} to {one['high']:+.1f}), bar {one['bar']:+.1f}: {met}"
        )
    share = result["parameters"]["student"] / result["parameters"]["teacher"]
    kept = ", ".join(f"{split} {part:.1%}" for split, part in result["of_teacher"].items())
    console.print(f"default keeps of the teacher's mAP50-95: {kept}, with {share:.0%} of its parameters")
    if found := result["time_to_plain"]:
        console.print(
            f"default reaches plain's final val mAP after {found['mean']:.0%} of its time (worst {found['worst']:.0%})"
        )
    console.print("explored with seed 100, val:", {arm: round(value, 1) for arm, value in result["explored"].items()})


if __name__ == "__main__":
    typer.run(main)

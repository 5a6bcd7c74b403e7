"""How robust the students are: COCO-C's corruptions, FGSM and PGD on the teacher and on what was made of it.

Every model sees the same images. Attacks go by each model's own gradient; no gradient flows through the INT8 model, so
that attacks on the student that it was made of are tried on it. The INT8 model is made as the pipeline makes it. What
is there already is not measured again.

    python benchmarks/robustness.py --dataset runs/accuracy/dataset --teacher runs/accuracy/teacher \
        --plain runs/accuracy/students/plain-0/last --distilled runs/accuracy/students/default-0/last
"""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer
from converted import exported, quantized
from matplotlib.figure import Figure

from yolo_distill.components.compare_robustness.compare import compare_robustness
from yolo_distill.components.evaluate_robustness.evaluate import evaluate_robustness
from yolo_distill.components.evaluate_robustness.robustness import AttackResult, Robustness, RobustnessSettings
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.files import write_text

RESULTS = Path(__file__).with_name("results")


def main(
    dataset: Annotated[Path, typer.Option(help="Dataset artifact.")],
    teacher: Annotated[Path, typer.Option(help="Model artifact of the teacher.")],
    plain: Annotated[Path, typer.Option(help="That of the student that was trained without one.")],
    distilled: Annotated[Path, typer.Option(help="That of the distilled student.")],
    work: Annotated[Path, typer.Option(help="Folder of everything that is made.")] = Path("runs/robustness"),
    split: Annotated[str, typer.Option(help="The split to measure on.")] = "val",
    images: Annotated[int, typer.Option(help="Images of it to draw; 0 for all.")] = 0,
) -> None:
    """Measure, print the table, write figures and picture into results/."""
    data, settings = DetectionDataset.open(dataset), RobustnessSettings(images=images)
    int8 = quantized(data, exported(data, distilled, work))
    models = {"teacher": (teacher, None), "plain": (plain, None), "distilled": (distilled, None)}
    models["INT8"] = (int8, distilled)
    for name, (model, source) in models.items():
        if not (work / name).is_dir():
            evaluate_robustness(data, model, split, settings, work / name, source)
    table = work / "robustness.md"
    found = compare_robustness({name: work / name for name in models}, table, work / "robustness.html")
    print(table.read_text())
    for line in surprises(found):
        print(line)
    RESULTS.mkdir(exist_ok=True)
    draw(found).savefig(RESULTS / "robustness.png", dpi=120)
    figures = {name: {"by_severity": by_severity(one), **one.metrics} for name, one in found.items()}
    first = found["teacher"]
    record = {"images": len(first.images), "boxes": first.boxes, "split": first.split, "models": figures}
    write_text(RESULTS / "robustness.json", json.dumps(record, indent=1) + "\n")


def by_severity(model: Robustness) -> dict[int, float]:
    """Return mAP50-95, 0..1, by severity, the mean over corruptions; clean images are severity 0."""
    return {0: model.clean.map} | {one: model.at_severity(one) for one in model.measured.severities}


def by_epsilon(model: Robustness, attack: AttackResult) -> dict[float, float]:
    """Return mAP50-95, 0..1, by the largest change of a pixel in 1/255; clean images are changed by 0."""
    return {0: model.clean.map} | {at: value.map for at, value in attack.by_epsilon.items()}


def surprises(models: Mapping[str, Robustness]) -> list[str]:
    """Return where a model gets better by a stronger attack or by more severe corruptions."""
    curves = {f"{name}, severity": by_severity(model) for name, model in models.items()}
    for name, model in models.items():
        curves |= {f"{name}, {one.attack}": by_epsilon(model, one) for one in model.attacks if one.attack != "noise"}
    rises = [
        f"{name}: from {low} to {high}, mAP50-95 rises by {100 * (curve[high] - curve[low]):.2f} points"
        for name, curve in curves.items()
        for low, high in pairwise(curve)
        if curve[high] > curve[low]
    ]
    return rises or ["mAP50-95 falls from each strength to the next, for every model"]


def draw(models: Mapping[str, Robustness]) -> Figure:
    """Draw mAP50-95 over the strength of attacks and of corruptions."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    attacked, corrupted = figure.subplots(1, 2, sharey=True)
    for number, (name, model) in enumerate(models.items()):
        for one, style in zip(model.attacks, (":", "--", "-"), strict=True):
            points = by_epsilon(model, one)
            # One legend tells the attacks, the other the models.
            label = None if number else one.attack
            attacked.plot(list(points), [100 * y for y in points.values()], style, color=f"C{number}", label=label)
        severities = by_severity(model)
        corrupted.plot(
            list(severities), [100 * y for y in severities.values()], marker=".", color=f"C{number}", label=name
        )
    attacked.set(xlabel="largest change of a pixel, in 1/255", ylabel="mAP50-95 in %", ylim=(0, None))
    corrupted.set(xlabel="severity; mean over COCO-C's 15 corruptions")
    for axis in (attacked, corrupted):
        axis.grid(alpha=0.3)
    attacked.legend(loc="center right", fontsize="small")
    corrupted.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    typer.run(main)

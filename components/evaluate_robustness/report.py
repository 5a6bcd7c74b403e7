"""Robustness as a page that needs nothing else."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from yolo_distill.components.evaluate_robustness.robustness import Robustness
from yolo_distill.components.evaluate_robustness.summary import summary
from yolo_distill.components.shared.curves import inline_png
from yolo_distill.components.shared.pages import COLOURS, render_page

_STYLES = {"noise": ":", "fgsm": "--", "pgd": "-"}


def report(models: Mapping[str, Robustness]) -> str:
    """Draw how robust one or more models are.

    Args:
        models: See :func:`.summary.summary`; at most as many as there are colours.

    Returns:
        A self-contained HTML page.
    """
    first = next(iter(models.values()))
    return render_page(
        "yolo_distill.components.evaluate_robustness",
        "report.html",
        summary(models),
        first=first,
        models=models,
        attacks=inline_png(_attacks(models)) if first.attacks else "",
        severities=inline_png(_severities(models)) if first.corruptions else "",
        corruptions=inline_png(_corruptions(models)) if first.corruptions else "",
    )


def _attacks(models: Mapping[str, Robustness]) -> Figure:
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    for (name, model), colour in zip(models.items(), COLOURS, strict=False):
        for one in model.attacks:
            epsilons = {0.0: model.clean} | one.by_epsilon
            label = f"{name}, {one.attack}"
            points = [100 * at.map for at in epsilons.values()]
            axis.plot(list(epsilons), points, _STYLES[one.attack], marker=".", color=colour, label=label)
    axis.set_xlabel("largest change of a pixel, in 1/255")
    _finish(figure)
    return figure


def _severities(models: Mapping[str, Robustness]) -> Figure:
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    for (name, model), colour in zip(models.items(), COLOURS, strict=False):
        severities = [0, *model.measured.severities]
        points = [100 * model.clean.map, *(100 * model.at_severity(one) for one in severities[1:])]
        axis.plot(severities, points, marker=".", color=colour, label=name)
    axis.set_xticks([0, *next(iter(models.values())).measured.severities])
    axis.set_xlabel("severity; mean over corruptions")
    _finish(figure)
    return figure


def _corruptions(models: Mapping[str, Robustness]) -> Figure:
    names = next(iter(models.values())).measured.corruptions
    figure = Figure(figsize=(9, 1.2 + len(names) * (0.2 + 0.14 * len(models))), layout="constrained")
    axis = figure.subplots()
    height = 0.8 / len(models)
    for number, ((name, model), colour) in enumerate(zip(models.items(), COLOURS, strict=False)):
        places = [at + (number + 0.5) * height - 0.4 for at in range(len(names))]
        axis.barh(places, [100 * one.mean for one in model.corruptions], height, color=colour, label=name)
        axis.axvline(100 * model.clean.map, color=colour, linewidth=1, linestyle=":")
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axis.invert_yaxis()
    axis.set_xlabel("mAP50-95 in %; mean over severities, dotted: clean")
    axis.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def _finish(figure: Figure) -> None:
    (axis,) = figure.axes
    axis.set_ylabel("mAP50-95 in %")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)

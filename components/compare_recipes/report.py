"""The comparison of recipes as a page that needs nothing else."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from yolo_distill.components.compare_recipes.comparison import RecipeComparison
from yolo_distill.components.compare_recipes.summary import summary
from yolo_distill.components.compare_recipes.trials import Trial
from yolo_distill.components.distill_train.recipe import PLAIN
from yolo_distill.components.evaluate_map.difference import LEVEL, points, span
from yolo_distill.components.evaluate_map.paired import Interval
from yolo_distill.components.shared.curves import inline_png
from yolo_distill.components.shared.pages import COLOURS, render_page

_MOST_CLASSES = 20
_VALIDATED = "metrics/mAP50-95"
_PLAIN_COLOUR = COLOURS[1]
# Neighbours in the ranking should not look alike, as the two blues do.
_RECIPE_COLOURS = tuple(COLOURS[number] for number in (2, 5, 4, 6, 3, 0))


def report(comparison: RecipeComparison, arms: Mapping[str, Sequence[Trial]]) -> str:
    """Draw a comparison.

    Args:
        comparison: The figures.
        arms: The trials by recipe, whose validation curves are shown.

    Returns:
        A self-contained HTML page.
    """
    colours = _colours([recipe.name for recipe in comparison.recipes])
    classes = _shown_classes(comparison)
    return render_page(
        "yolo_distill.components.compare_recipes",
        "report.html",
        summary(comparison),
        comparison=comparison,
        level=LEVEL,
        points=points,
        span=span,
        gains=inline_png(_gains(comparison, colours)),
        curves=inline_png(_curves(arms, colours)),
        per_class=inline_png(_per_class(comparison, classes, colours)),
        shown_classes=len(classes),
        all_classes=len(comparison.recipes[0].per_class),
    )


def _gains(comparison: RecipeComparison, colours: Mapping[str, str]) -> Figure:
    gains = comparison.gains
    figure = Figure(figsize=(9, 1.2 + 0.5 * len(gains)), layout="constrained")
    axis = figure.subplots()
    for at, gain in enumerate(gains):
        colour = colours[gain.recipe]
        axis.plot(_ends(gain.adjusted), [at, at], color=colour, linewidth=1.5)
        axis.plot(_ends(gain.map), [at, at], color=colour, linewidth=5, alpha=0.5, solid_capstyle="butt")
        axis.plot(100 * gain.map.estimate, at, marker="o", color=colour)
    _finish(axis, [gain.recipe for gain in gains], "points mAP50-95 against plain training")
    return figure


def _curves(arms: Mapping[str, Sequence[Trial]], colours: Mapping[str, str]) -> Figure:
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    for name, colour in colours.items():
        curves = [
            {record["epoch"]: 100 * record[_VALIDATED] for record in trial.history.epochs if _VALIDATED in record}
            for trial in arms[name]
        ]
        epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = np.array([[curve[epoch] for epoch in epochs] for curve in curves])
        axis.plot(epochs, values.mean(axis=0), marker=".", color=colour, label=name)
        axis.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    axis.set_xlabel("epoch")
    axis.set_ylabel("mAP50-95 in % of the training's own validation")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def _per_class(comparison: RecipeComparison, classes: list[str], colours: Mapping[str, str]) -> Figure:
    gains = comparison.gains
    figure = Figure(figsize=(9, 1.2 + (0.25 + 0.2 * len(gains)) * len(classes)), layout="constrained")
    axis = figure.subplots()
    for number, gain in enumerate(gains):
        shift = 0.6 * ((number + 0.5) / len(gains) - 0.5)
        known = [(at + shift, one) for at, name in enumerate(classes) if (one := gain.per_class[name]) is not None]
        for at, interval in known:
            axis.plot(_ends(interval), [at, at], color=colours[gain.recipe], linewidth=1.5)
        estimates = [100 * interval.estimate for _, interval in known]
        axis.plot(estimates, [at for at, _ in known], "o", markersize=4, color=colours[gain.recipe], label=gain.recipe)
    _finish(axis, classes, "points AP50-95 against plain training")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def _finish(axis: Axes, labels: list[str], quantity: str) -> None:
    axis.axvline(0, color="#888", linewidth=1)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.set_xlabel(quantity)
    axis.grid(alpha=0.3, axis="x")


def _ends(interval: Interval) -> list[float]:
    return [100 * interval.low, 100 * interval.high]


def _colours(names: list[str]) -> dict[str, str]:
    """Return a colour for each recipe; plain training always has the same."""
    rest = cycle(_RECIPE_COLOURS)
    return {name: _PLAIN_COLOUR if name == PLAIN else next(rest) for name in names}


def _shown_classes(comparison: RecipeComparison) -> list[str]:
    """Return all classes, or of many those that the recipes changed most, in the dataset's order."""
    names = list(comparison.recipes[0].per_class)

    def change(name: str) -> float:
        return max(abs(one.estimate) if (one := gain.per_class[name]) else 0.0 for gain in comparison.gains)

    chosen = set(sorted(names, key=change, reverse=True)[:_MOST_CLASSES])
    return [name for name in names if name in chosen]

"""The comparison as a page that needs nothing else."""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, StrMethodFormatter

from yolo_distill.components.compare.comparison import ROLES, ComparedModel, Comparison, Role
from yolo_distill.components.compare.summary import runtime, summary, title
from yolo_distill.components.evaluate_map.evaluation import PICTURE_NAME
from yolo_distill.components.shared.curves import inline_png
from yolo_distill.components.shared.pages import COLOURS, render_page

_MOST_CLASSES = 20
_COLOURS: dict[Role, str] = dict(zip(ROLES, COLOURS, strict=False))
_FRONT = "on the front: no other model is as accurate for less, or more accurate for as little"
_TRAINED: tuple[Role, ...] = ("plain", "distilled", "teacher")


def report(comparison: Comparison, evaluations: Mapping[Role, Path]) -> str:
    """Draw a comparison.

    Args:
        comparison: The figures.
        evaluations: The evaluation artifacts, whose pictures are shown where they have some.

    Returns:
        A self-contained HTML page.
    """
    pictures = {role: evaluations[role] / PICTURE_NAME for role in (*_TRAINED, "quantized") if role in evaluations}
    classes = _shown_classes(comparison)
    return render_page(
        "yolo_distill.components.compare",
        "report.html",
        summary(comparison),
        comparison=comparison,
        trade_off=inline_png(_trade_off(comparison)),
        per_class=inline_png(_per_class(comparison, classes)),
        shown_classes=len(classes),
        all_classes=len(comparison.models[0].per_class),
        pictures=[
            (_label(comparison.model_of(role)), _inline_jpeg(picture))
            for role, picture in pictures.items()
            if picture.is_file()
        ],
    )


def _trade_off(comparison: Comparison) -> Figure:
    """Draw accuracy over latency and over size, each with the front of the models that none beats in both."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    costs: tuple[tuple[str, Callable[[ComparedModel], float]], ...] = (
        ("median latency of one image in ms, logarithmic", lambda model: model.latency_ms),
        ("size of the model's files in MB, logarithmic", lambda model: model.size_bytes / 1e6),
    )
    for axis, (label, cost) in zip(panels, costs, strict=True):
        _draw_front(axis, [(cost(model), 100 * model.map) for model in comparison.models])
        for model in comparison.models:
            point = (cost(model), 100 * model.map)
            axis.scatter(*point, s=60, color=_COLOURS[model.role], label=_label(model), zorder=3)
            # Aslant, so that neighbours of equal accuracy do not run into each other.
            axis.annotate(model.role, point, (5, 9), textcoords="offset points", rotation=40, rotation_mode="anchor")
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.6)))
        axis.margins(0.25, 0.2)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("mAP50-95 in %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _draw_front(axis: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Draw the front of cost and accuracy as the stairs it is: between two models there is none to choose."""
    front = pareto_front(points)
    costs, accuracies = zip(*front, strict=True)
    axis.step(costs, accuracies, where="post", color="grey", linewidth=1, zorder=1)
    axis.scatter(costs, accuracies, s=190, facecolors="none", edgecolors="grey", label=_FRONT, zorder=2)


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points of cost and accuracy that no other beats in one and equals in the other, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def _per_class(comparison: Comparison, classes: list[str]) -> Figure:
    figure = Figure(figsize=(9, 1 + 0.55 * len(classes)), layout="constrained")
    axis = figure.subplots()
    height = 0.8 / len(_TRAINED)
    for number, role in enumerate(_TRAINED):
        model = comparison.model_of(role)
        # A class without a labelled box has no bar.
        bars = [(at, ap) for at, name in enumerate(classes) if (ap := model.per_class[name].ap) is not None]
        axis.barh(
            [at + (number - 1) * height for at, _ in bars],
            [100 * ap for _, ap in bars],
            height,
            color=_COLOURS[role],
            label=title(model),
        )
    boxes = comparison.model_of("teacher").per_class
    axis.set_yticks(range(len(classes)), [f"{name} ({boxes[name].boxes} boxes)" for name in classes])
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("AP50-95 in %")
    axis.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside upper center", ncols=len(_TRAINED), frameon=False)
    return figure


def _shown_classes(comparison: Comparison) -> list[str]:
    """Return all classes, or of many those that distillation changed most, in the dataset's order."""
    plain, distilled = (comparison.model_of(role).per_class for role in ("plain", "distilled"))

    def change(name: str) -> float:
        return abs((distilled[name].ap or 0) - (plain[name].ap or 0))

    chosen = set(sorted(plain, key=change, reverse=True)[:_MOST_CLASSES])
    return [name for name in plain if name in chosen]


def _label(model: ComparedModel) -> str:
    return f"{title(model)}, {runtime(model)}"


def _inline_jpeg(path: Path) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"

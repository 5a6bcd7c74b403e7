"""An evaluation as a page that needs nothing else: figures by class, precision over recall, and what is confused."""

import numpy as np
from matplotlib.figure import Figure

from yolo_distill.components.evaluate_map.coco import RECALL_POINTS, ClassMetrics, PrecisionRecall
from yolo_distill.components.evaluate_map.confusion import Confusion, condensed
from yolo_distill.components.evaluate_map.evaluation import Evaluation
from yolo_distill.components.shared.curves import inline_png
from yolo_distill.components.shared.pages import COLOURS, render_page
from yolo_distill.components.shared.summary import Summary

# With more, curves that are told apart by colour are not told apart any more.
_MOST_COLOURED = len(COLOURS) - 1
_MOST_CONFUSED = 20


def report(evaluation: Evaluation, curves: PrecisionRecall, confusion: Confusion) -> str:
    """Draw an evaluation.

    Args:
        evaluation: The figures.
        curves: Precision over recall of the same detections.
        confusion: Their confusion matrix.

    Returns:
        A self-contained HTML page.
    """
    shown = condensed(confusion, _MOST_CONFUSED)
    return render_page(
        "yolo_distill.components.evaluate_map",
        "report.html",
        _summary(evaluation),
        evaluation=evaluation,
        confusion=confusion,
        precision_recall=inline_png(_precision_recall(list(evaluation.per_class), curves, confusion.confidence)),
        confusion_matrix=inline_png(_confusion_matrix(shown)),
        coloured=len(evaluation.per_class) <= _MOST_COLOURED,
        shown_classes=min(_MOST_CONFUSED, len(evaluation.per_class)),
        all_classes=len(evaluation.per_class),
    )


def _summary(evaluation: Evaluation) -> Summary:
    overall = ClassMetrics(
        ap=evaluation.map, ap50=evaluation.map50, boxes=sum(one.boxes for one in evaluation.per_class.values())
    )
    model, findings = evaluation.model, []
    if evaluation.ultralytics_map is not None:
        findings.append(
            f"Ultralytics' own function says mAP50-95 {_percent(evaluation.ultralytics_map)} of these detections: it "
            "interpolates otherwise. That is the figure to compare with what its validation prints."
        )
    return Summary(
        title=f"Evaluation of {model.name}",
        columns=("Class", "Boxes", "AP50-95", "AP50"),
        text_columns=1,
        rows=[_row("all", overall), *(_row(name, one) for name, one in evaluation.per_class.items())],
        findings=findings,
        caveats=[
            f"{evaluation.images} images of the {evaluation.split} split, {evaluation.settings.protocol}, in per cent. "
            "A class with few boxes says little."
        ],
    )


def _row(name: str, figures: ClassMetrics) -> tuple[str, ...]:
    return name, str(figures.boxes), _percent(figures.ap), _percent(figures.ap50)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _precision_recall(classes: list[str], curves: PrecisionRecall, confidence: float) -> Figure:
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axis = figure.subplots()
    known = [index for index in range(len(classes)) if not np.isnan(curves.precision[index]).any()]
    coloured = len(classes) <= _MOST_COLOURED
    for index in known:
        precision = curves.precision[index]
        colour, width = (COLOURS[index + 1], 1.5) if coloured else ("#999", 0.7)
        label = f"{classes[index]}, AP50 {100 * precision.mean():.1f}" if coloured else None
        axis.plot(RECALL_POINTS, precision, color=colour, linewidth=width, label=label)
        counting = np.flatnonzero(curves.score[index] > confidence)
        if coloured and len(counting):
            axis.plot(RECALL_POINTS[counting[-1]], precision[counting[-1]], "o", color=colour)
    if known:
        mean = curves.precision[known].mean(axis=0)
        label = f"mean, mAP50 {100 * mean.mean():.1f}"
        axis.plot(RECALL_POINTS, mean, color=COLOURS[0], linewidth=2.5, label=label)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("recall at IoU 0.50")
    axis.set_ylabel("precision")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left")
    return figure


def _confusion_matrix(confusion: Confusion) -> Figure:
    matrix, size = np.array(confusion.matrix), len(confusion.categories)
    side = 4 + 0.4 * size
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(size), confusion.categories, rotation=90)
    axis.set_yticks(range(size), confusion.categories)
    axis.set_xlabel("detected as")
    axis.set_ylabel("labelled as")
    return figure

"""Training curves as a page that needs nothing else."""

import base64
import html
import io
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

mpl.use("Agg")


def curves_page(title: str, history: Sequence[dict[str, float]]) -> str:
    """Draw a training's losses and validation metrics over its epochs.

    Args:
        title: Heading of the page.
        history: One record an epoch, with ``epoch``, ``train/…`` losses and, where taken, ``metrics/…``.

    Returns:
        A self-contained HTML page.
    """
    losses = sorted({name for record in history for name in record if name.startswith("train/")})
    metrics = ["metrics/mAP50", "metrics/mAP50-95"]
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, names, label in ((left, losses, "training loss"), (right, metrics, "validation, 0..1")):
        for name in names:
            points = [(record["epoch"], record[name]) for record in history if name in record]
            if points:
                axis.plot(*zip(*points, strict=True), marker=".", label=name.partition("/")[2])
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.legend()
    left.set_yscale("log")
    right.set_ylim(0, 1)
    return (
        f"<!doctype html><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<h1>{html.escape(title)}</h1><img alt='training curves' src='{inline_png(figure)}'>"
    )


def inline_png(figure: Figure) -> str:
    """Return a figure as a ``data:`` address of a PNG picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

"""What a training step leaves in Kubeflow and in MLflow besides its artifacts' own files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolo_distill.components.shared.curves import curves_page
from yolo_distill.components.shared.files import write_text
from yolo_distill.components.shared.model_card import ModelCard
from yolo_distill.components.shared.task import TaskRun

if TYPE_CHECKING:
    from kfp import dsl


def report_training(
    run: TaskRun,
    title: str,
    card: ModelCard,
    history: Sequence[dict[str, float]],
    *,
    model: "dsl.Model",
    curves: "dsl.HTML",
    metrics: "dsl.Metrics",
) -> None:
    """Report a training that has ended.

    Args:
        run: The step's MLflow run, which gets the model and every epoch's figures.
        title: Heading of the curves.
        card: The trained model's card.
        history: One record an epoch.
        model: The model artifact, already written.
        curves: Where the page of curves goes.
        metrics: Gets the network's cost and its last validation.
    """
    write_text(Path(curves.path), curves_page(title, history))
    for record in history:
        run.log_metrics(record, step=int(record["epoch"]))
    run.log_model(Path(model.path))
    model.metadata.update(card.model_dump(include={"name", "architecture", "parameters", "gflops"}))
    for name, value in _last_metrics(card, history).items():
        metrics.log_metric(name, value)


def _last_metrics(card: ModelCard, history: Sequence[dict[str, float]]) -> dict[str, float]:
    metrics = {"parameters": float(card.parameters), "gflops": card.gflops}
    for record in history:
        metrics |= {name.partition("/")[2]: v for name, v in record.items() if "mAP" in name}
    return metrics

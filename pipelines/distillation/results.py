"""What a run of the distillation pipeline leaves for its user."""

from rich.console import Console

from yolo_distill.components.compare.comparison import read_comparison
from yolo_distill.components.compare.summary import summary
from yolo_distill.pipelines.distillation.pipeline import RESULTS
from yolo_distill.pipelines.events import RunWatch
from yolo_distill.pipelines.plan import RunPlan
from yolo_distill.pipelines.results import publish, show

_PLACES = {
    "Table": "table.md",
    "Report": "report.html",
    "Data report": "data-report.html",
    "INT8 model": "int8",
    "Student": "distilled/model.pt",
    "NCNN model": "ncnn",
    "TensorRT": "tensorrt",
    "Robustness": "robustness.html",
    "All": "",
}


def publish_results(plan: RunPlan, watch: RunWatch) -> None:
    """Copy what a run has made, or taken over, into its folder, and point ``latest`` there.

    Args:
        plan: The run.
        watch: What its tasks have made.
    """
    publish(plan, watch, RESULTS)


def show_results(plan: RunPlan, console: Console) -> None:
    """Show the table, what follows from it, where everything is and how to look at the run in MLflow.

    Args:
        plan: A run whose results are published.
        console: Where to show them.
    """
    show(plan, summary(read_comparison(plan.folder / "comparison")), _PLACES, console)

"""Where the results of a run are put for its user, and how they are shown."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from yolo_distill.components.shared.summary import Summary
from yolo_distill.pipelines.display import shown_path
from yolo_distill.pipelines.events import RunWatch
from yolo_distill.pipelines.plan import RunPlan

_LATEST = "latest"


def publish(plan: RunPlan, watch: RunWatch, results: Mapping[str, tuple[list[str], str]]) -> None:
    """Copy what a run has made, or taken over, into its folder, and point ``latest`` there.

    Args:
        plan: The run.
        watch: What its tasks have made.
        results: The tasks of which at most one makes the result, and their output, by the name that it is found under.
    """
    for name, (tasks, output) in results.items():
        ran = [task for task in tasks if watch.tasks[task].state != "skipped"]
        if not ran:
            continue
        [made] = [watch.tasks[task].outputs[output] for task in ran]
        target = plan.folder / name
        if made.is_dir():
            shutil.copytree(made, target, dirs_exist_ok=True)
        else:
            shutil.copy(made, target)
    link = plan.output / f".{_LATEST}-{plan.name}"
    link.symlink_to(plan.name)
    link.replace(plan.output / _LATEST)


def show(plan: RunPlan, found: Summary, places: Mapping[str, str], console: Console) -> None:
    """Show a table, what follows from it, where everything is and how to look at the run in MLflow.

    Args:
        plan: A run whose results are published.
        found: What came out.
        places: What lies where in the run's folder, as far as it was made.
        console: Where to show them.
    """
    columns = list(zip(found.columns, *found.rows, strict=True))
    widths = [max(map(len, cells)) for cells in columns]
    if sum(widths) + len(widths) > console.width:
        # Words that are broken or cut off cannot be read.
        widths = [max(len(word) for cell in cells for word in cell.split() or [""]) for cells in columns]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold underline")
    for number, (title, width) in enumerate(zip(found.columns, widths, strict=True)):
        table.add_column(title, justify="left" if number < found.text_columns else "right", width=width)
    for row in found.rows:
        table.add_row(*row)
    console.print()
    console.print(table)
    console.print()
    for finding in found.findings:
        console.print(f"• {finding}", markup=False, highlight=False, soft_wrap=True)
    for caveat in found.caveats:
        console.print(f"! {caveat}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print()
    for label, path in places.items():
        if not (plan.folder / path).exists():
            continue
        console.print(f"{label:<12} {shown_path(plan.folder / path)}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{'MLflow':<12} {_mlflow_command(plan.tracking_uri)}", markup=False, highlight=False, soft_wrap=True)


def _mlflow_command(tracking_uri: str) -> str:
    if not tracking_uri.startswith("sqlite:"):
        return f"open {tracking_uri}"
    program = Path(sys.executable).parent / "mlflow"
    return f"{shown_path(program)} ui --backend-store-uri {tracking_uri}, then open http://127.0.0.1:5000"

"""What the terminal shows while a pipeline runs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from yolo_distill.pipelines.events import RunWatch, TaskView

_MARKS = {
    "waiting": ("·", "dim"),
    "skipped": ("-", "dim"),
    "cached": ("↺", "cyan"),
    "done": ("✓", "green"),
    "failed": ("✗", "bold red"),
}

# Without a terminal, seconds between two lines on the progress of one task.
_LINE_INTERVAL = 15.0


class Display(Protocol):
    """Shows how far a run is."""

    def update(self, changed: list[TaskView]) -> None:
        """Take note of the tasks that something happened to."""


@contextmanager
def run_display(watch: RunWatch, console: Console) -> Iterator[Display]:
    """Show a run: as a table that is kept up to date on a terminal, elsewhere as lines of text.

    Args:
        watch: The run.
        console: Where to show it.
    """
    if not console.is_terminal:
        yield _LineDisplay(watch, console)
        return
    table = _TableDisplay(watch)
    with Live(table, console=console, refresh_per_second=8):
        yield table


class _TableDisplay:
    def __init__(self, watch: RunWatch) -> None:
        self._watch = watch
        self._started = time.time()
        self._spinner = Spinner("dots", style="yellow")

    def update(self, changed: list[TaskView]) -> None:
        """Do nothing: the table is drawn from the watch, several times a second."""

    def __rich__(self) -> RenderableType:
        tasks = self._watch.tasks.values()
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(no_wrap=True)
        table.add_column(width=24)
        table.add_column(justify="right", width=7)
        table.add_column(no_wrap=True, overflow="ellipsis", style="dim")
        for task in tasks:
            table.add_row(self._mark(task), Text(task.title), _bar(task), _clock(task.seconds), _note(task))
        ended = sum(task.state in {"done", "cached", "failed"} for task in tasks)
        wanted = sum(task.state != "skipped" for task in tasks)
        table.add_row("", "", f"{ended} of {wanted} tasks", _clock(time.time() - self._started), style="bold")
        return table

    def _mark(self, task: TaskView) -> RenderableType:
        return self._spinner if task.state == "running" else Text(*_MARKS[task.state])


class _LineDisplay:
    def __init__(self, watch: RunWatch, console: Console) -> None:
        self._watch = watch
        self._console = console
        self._started = time.time()
        self._states = {name: task.state for name, task in watch.tasks.items()}
        self._shown = dict.fromkeys(watch.tasks, 0.0)

    def update(self, changed: list[TaskView]) -> None:
        """Print a line for each new state, and for progress every now and then."""
        for task in sorted(changed, key=lambda task: task.ended or task.started or 0.0):
            if task.state != self._states[task.name]:
                self._states[task.name] = task.state
                self._print(task, task.state)
            elif task.progress and time.time() - self._shown[task.name] >= _LINE_INTERVAL:
                self._print(task, _note(task))

    def _print(self, task: TaskView, text: str) -> None:
        self._shown[task.name] = time.time()
        clock = _clock(time.time() - self._started)
        took = f" in {_clock(task.seconds)}" if task.state in {"done", "failed"} else ""
        self._console.print(f"[{clock:>6}] {task.title}: {text}{took}", markup=False, highlight=False, soft_wrap=True)


def shown_path(path: Path) -> str:
    """Return a path as a person would type it in the working directory."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def _bar(task: TaskView) -> RenderableType:
    if task.state != "running":
        return Text(task.state, style=_MARKS[task.state][1])
    done, total = (task.progress.done, task.progress.total) if task.progress else (0, None)
    return ProgressBar(total=total, completed=done or 0)


def _note(task: TaskView) -> str:
    if task.error:
        return task.error
    if task.state != "running" or task.progress is None:
        return ""
    progress = task.progress
    return f"{progress.unit} {progress.done}/{progress.total}  {progress.note}".rstrip()


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"

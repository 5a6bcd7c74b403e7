"""What happens to the tasks of a run, as JSON lines on disk: one file a task, written by runner and task alike.

The runner writes a line when the task changes its state, the task writes its progress and, should the user's input be
at fault, the error (:mod:`yolo_distill.components.shared.progress`). Who displays the run reads them.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from yolo_distill.pipelines.graph import PlannedTask

TaskState = Literal["waiting", "running", "cached", "done", "failed", "skipped"]


class TaskEvent(BaseModel):
    """One line of a task's event file.

    Attributes:
        time: Seconds since the epoch.
        state: What the task has become.
        outputs: Path of each artifact it made, by output name; comes with ``done`` and ``cached``.
        metrics: What it measured, likewise.
        done: Units of work finished.
        total: Units of work in all.
        unit: What is counted.
        note: A remark on the progress.
        error: What is wrong with the user's input.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    time: float = Field(default_factory=time.time)
    state: TaskState | None = None
    outputs: dict[str, Path] = {}
    metrics: dict[str, float] = {}
    done: int | None = None
    total: int | None = None
    unit: str = ""
    note: str = ""
    error: str | None = None


@dataclass
class TaskView:
    """What is known of one task.

    Attributes:
        name: The task's name in the pipeline.
        title: How people call it.
        state: What it is doing.
        started: When it began to run, in seconds since the epoch.
        ended: When it ended.
        progress: The latest progress event.
        error: What is wrong with the user's input, if that stopped it.
        outputs: Path of each artifact it made, by output name.
        metrics: What it measured.
    """

    name: str
    title: str
    state: TaskState = "waiting"
    started: float | None = None
    ended: float | None = None
    progress: TaskEvent | None = None
    error: str | None = None
    outputs: dict[str, Path] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """How long the task has run so far, or ``None`` if it has not."""
        return None if self.started is None else (self.ended or time.time()) - self.started

    def take(self, event: TaskEvent) -> None:
        """Bring the view up to date with one more event."""
        if event.state == "running":
            self.started, self.progress = event.time, None
        if event.state in {"done", "cached", "failed"}:
            self.ended, self.outputs, self.metrics = event.time, event.outputs, event.metrics
        self.state = event.state or self.state
        self.error = event.error or self.error
        if event.total:
            self.progress = event


class RunWatch:
    """Follows the event files of a run.

    Attributes:
        tasks: Every task of the pipeline by name, in the order in which they are shown.
    """

    def __init__(self, folder: Path, tasks: Iterable[PlannedTask]) -> None:
        """Begin to watch.

        Args:
            folder: Where the event files are or will be.
            tasks: The tasks of the pipeline.
        """
        self.tasks = {
            task.name: TaskView(task.name, task.title, "skipped" if task.skipped else "waiting") for task in tasks
        }
        self._folder = folder
        self._offsets = dict.fromkeys(self.tasks, 0)

    def poll(self) -> list[TaskView]:
        """Read what was written since the last call.

        Returns:
            The tasks that something happened to.
        """
        return [task for task in self.tasks.values() if self._read(task)]

    def _read(self, task: TaskView) -> bool:
        path = event_file(self._folder, task.name)
        if not path.is_file():
            return False
        with path.open("rb") as file:
            file.seek(self._offsets[task.name])
            unread = file.read()
        # A line that is still being written has no end yet.
        complete = unread[: unread.rfind(b"\n") + 1]
        for line in complete.splitlines():
            task.take(TaskEvent.model_validate_json(line))
        self._offsets[task.name] += len(complete)
        return bool(complete)


def event_file(folder: Path, task: str) -> Path:
    """Return where a task's events are written."""
    return folder / f"{task}.jsonl"


def write_event(folder: Path, task: str, event: TaskEvent) -> None:
    """Append one event to a task's file."""
    folder.mkdir(parents=True, exist_ok=True)
    with event_file(folder, task).open("a", encoding="utf-8") as file:
        file.write(event.model_dump_json(exclude_none=True) + "\n")

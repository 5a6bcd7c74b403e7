"""Start a planned run in a process of its own, show how it gets on, and end it with everything that it started."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from rich.console import Console
from rich.text import Text

from yolo_distill.pipelines.display import run_display
from yolo_distill.pipelines.events import RunWatch
from yolo_distill.pipelines.graph import planned_tasks
from yolo_distill.pipelines.plan import RunPlan

# With this the process of a run ends when the user's input is at fault and no task has said so.
INPUT_ERROR_STATUS = 2

_POLL_SECONDS = 0.2
# How long the processes of a run have to end by themselves.
_GRACE_SECONDS = 15.0
# Lines of the log that are shown when a task fails for a reason of its own.
_TAIL_LINES = 15


class RunError(Exception):
    """A pipeline run failed.

    Args:
        message: What is wrong.
        by_input: Whether it is something that the user gave.
        log_tail: The end of the log, where it may tell more.
    """

    def __init__(self, message: str, *, by_input: bool, log_tail: str = "") -> None:
        super().__init__(message)
        self.by_input = by_input
        self.log_tail = log_tail


def run_pipeline(plan: RunPlan, console: Console, *, verbose: bool = False) -> RunWatch:
    """Run a plan whose folder holds the compiled pipeline.

    Args:
        plan: The run.
        console: Where to show how it gets on.
        verbose: Whether to show the log as well.

    Returns:
        The ended run.

    Raises:
        RunError: A task failed.
    """
    plan.save()
    plan.log.parent.mkdir(parents=True, exist_ok=True)
    watch = RunWatch(plan.events, planned_tasks(plan.pipeline, plan.arguments))
    # KFP leaves a temporary folder behind for every task.
    with TemporaryDirectory(prefix="yolo-distill-", ignore_cleanup_errors=True) as scratch:
        process = _start(plan, Path(scratch))
        try:
            with plan.log.open("rb") as log, run_display(watch, console) as display:
                running = True
                while running:
                    running = _still_running(process)
                    if verbose:
                        _echo(log, console)
                    display.update(watch.poll())
        finally:
            _end(process)
    if process.returncode != 0:
        raise _run_error(watch, plan, process.returncode)
    return watch


def _start(plan: RunPlan, scratch: Path) -> "subprocess.Popen[bytes]":
    with plan.log.open("wb") as log:
        # A session of its own: Ctrl-C reaches this process alone, which then ends all of that session at once.
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "yolo_distill.pipelines.local_run", str(plan.file)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(scratch)},
        )


def _still_running(process: "subprocess.Popen[bytes]") -> bool:
    try:
        process.wait(_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False


def _echo(log: BufferedReader, console: Console) -> None:
    for line in log.readlines():
        console.print(Text.from_ansi(line.decode(errors="replace").rstrip("\n")), soft_wrap=True)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a run that has not ended by itself, with all its processes: kindly at first."""
    if process.poll() is not None:
        return
    process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < deadline and _group_lives(process):
        time.sleep(0.1)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _group_lives(process: "subprocess.Popen[bytes]") -> bool:
    # The tasks may outlive the runner that they were started by.
    process.poll()
    for other in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            if os.getpgid(other.pid) == process.pid and other.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False


def _run_error(watch: RunWatch, plan: RunPlan, status: int) -> RunError:
    failed = [task for task in watch.tasks.values() if task.state in {"failed", "running"}]
    for task in failed:
        if task.error:
            return RunError(task.error, by_input=True)
    log = plan.log.read_text(encoding="utf-8", errors="replace").rstrip()
    if status == INPUT_ERROR_STATUS:
        return RunError(log.splitlines()[-1], by_input=True)
    what = f"the step {failed[0].title!r} failed" if failed else "the run could not be started"
    return RunError(f"{what}; everything it printed is in {plan.log}", by_input=False, log_tail=_tail(log))


def _tail(log: str) -> str:
    """Return the last lines that a task has printed, which KFP indents, or of the whole log if no task has."""
    lines = log.rpartition("Streamed logs:")[2].splitlines()
    printed = [line for line in lines if line.startswith("    ") and line.strip()]
    return textwrap.dedent("\n".join((printed or lines)[-_TAIL_LINES:]))

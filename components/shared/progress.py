"""How far a step is, for whoever watches it."""

import json
import os
import time
from pathlib import Path

PROGRESS_FILE_VARIABLE = "YOLO_DISTILL_PROGRESS"


def report_progress(done: int, total: int, unit: str, note: str = "") -> None:
    """Tell the watcher how far the running step is.

    Events are appended as JSON lines to the file named by ``YOLO_DISTILL_PROGRESS``; without it they are printed, so
    that a pod's log shows them.

    Args:
        done: Units finished, 0..total.
        total: Units in all.
        unit: What is counted, such as ``epoch`` or ``image``.
        note: A short remark, such as the current loss.
    """
    event = {"done": done, "total": total, "unit": unit, "note": note}
    _report(event, f"{unit} {done}/{total} {note}".rstrip())


def report_error(message: str) -> None:
    """Tell the watcher why the running step ends, so that nobody has to dig it out of a traceback.

    Args:
        message: One line for the user.
    """
    _report({"error": message}, f"error: {message}")


def _report(event: dict[str, object], line: str) -> None:
    path = os.environ.get(PROGRESS_FILE_VARIABLE)
    if path is None:
        print(line, flush=True)
        return
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.time(), **event}) + "\n")

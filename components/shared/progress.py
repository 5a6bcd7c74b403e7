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
    path = os.environ.get(PROGRESS_FILE_VARIABLE)
    if path is None:
        print(f"{unit} {done}/{total} {note}".rstrip(), flush=True)
        return
    event = {"time": time.time(), "done": done, "total": total, "unit": unit, "note": note}
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")

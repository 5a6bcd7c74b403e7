"""Calling the program as a user does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = Path(sys.executable).parent / "yolo-distill"


def run(folder: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run ``yolo-distill predict`` in a folder."""
    command = [PROGRAM, "predict", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def done(folder: Path, *arguments: object) -> str:
    """Run it and return what it shows."""
    process = run(folder, *arguments)
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


def results(folder: Path) -> list[dict[str, Any]]:
    """Return every line of the results."""
    return [json.loads(line) for line in (folder / "detections.jsonl").read_text().splitlines()]

"""Ultralytics does what it is asked for and no more, wherever it is imported."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from yolo_distill.components.shared.cores import usable_cores

ROOT = Path(__file__).parents[2]
TELL = """
import os
import yolo_distill.components.shared.ultralytics_env
import torch, ultralytics
from yolo_distill.components.shared.cores import usable_cores
from ultralytics.utils import SETTINGS
print(usable_cores(), torch.get_num_threads(), os.environ["YOLO_AUTOINSTALL"], SETTINGS["mlflow"], SETTINGS["sync"])
"""


@pytest.mark.parametrize("told", ["", "1"])
def test_a_process_keeps_its_cores(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    done = subprocess.run([sys.executable, "-c", TELL], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*[told or str(usable_cores())] * 2, "false", "False", "False"]


def _imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""


def test_it_is_never_imported_before_it_was_told() -> None:
    for path in sorted(ROOT.glob("components/**/*.py")):
        imports = list(_imported(ast.parse(path.read_text())))
        lines = [line for line, name in imports if name.split(".")[0] == "ultralytics"]
        told = [line for line, name in imports if name == "yolo_distill.components.shared.ultralytics_env"]
        if lines and path.name != "ultralytics_env.py":
            assert told, f"{path} imports ultralytics as it is"
            assert min(told) < min(lines), f"{path} imports ultralytics as it is"

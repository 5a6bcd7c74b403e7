"""What the README of the benchmarks says is what was measured."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def summary() -> ModuleType:
    spec = importlib.util.spec_from_file_location("summary", FOLDER / "summary.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_figures_are_fresh(summary: ModuleType) -> None:
    readme = FOLDER / "README.md"
    assert readme.read_text() == summary.fresh_text(readme, FOLDER / "results"), "run make docs"


def test_a_broken_promise_is_shown(summary: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "results", tmp_path / "results")
    pruned = tmp_path / "results" / "prune.json"
    figures = json.loads(pruned.read_text())
    figures["points_below_unpruned"] = {"val": figures["allowed_points"] + 0.01, "test": figures["allowed_points"]}
    pruned.write_text(json.dumps(figures))
    text = summary.fresh_text(FOLDER / "README.md", tmp_path / "results")
    assert "recovery, val | at most 1.50 points | 1.51 points | **no** |" in text
    assert "recovery, test | at most 1.50 points | 1.50 points | yes |" in text

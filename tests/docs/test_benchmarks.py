"""What the README of the benchmarks says is what was measured."""

import json
import shutil
from pathlib import Path

from generate_readmes import fresh_text

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_the_figures_are_fresh() -> None:
    readme = FOLDER / "README.md"
    assert readme.read_text() == fresh_text(readme), "run make docs"


def test_a_broken_promise_is_shown(tmp_path: Path) -> None:
    copy = tmp_path / "benchmarks"
    shutil.copytree(FOLDER / "results", copy / "results")
    shutil.copy(FOLDER / "README.md", copy)
    pruned = copy / "results" / "prune.json"
    figures = json.loads(pruned.read_text())
    figures["points_below_unpruned"] = {"val": figures["allowed_points"] + 0.01, "test": figures["allowed_points"]}
    pruned.write_text(json.dumps(figures))
    text = fresh_text(copy / "README.md")
    assert "recovery, val | at most 1.50 points | 1.51 points | **no** |" in text
    assert "recovery, test | at most 1.50 points | 1.50 points | yes |" in text

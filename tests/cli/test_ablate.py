"""Two recipes with two seeds through the real command line, on a handful of tiny scenes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from yolo_distill.components.compare_recipes.comparison import read_comparison

pytestmark = pytest.mark.slow

PROGRAM = Path(sys.executable).parent / "yolo-distill"
TINY = (
    "--data=digits:train=16,val=8,test=8,size=96",
    "--imgsz=96",
    "--epochs=1",
    "--teacher-epochs=1",
    "--teacher=yolov8n.yaml",
    "--student=yolov8p.yaml",
    "--batch=8",
    "--views=1",
    "--closed-views=1",
    "--recipes=plain,default",
    "--seeds=0,1",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def _ablate(folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [PROGRAM, "ablate", *TINY]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def first(folder: Path) -> str:
    """What the first run shows."""
    return _ablate(folder)


def test_it_ends_with_the_verdict_and_the_way_to_everything(folder: Path, first: str) -> None:
    latest = folder / "runs" / "latest"
    comparison = read_comparison(latest / "comparison")
    assert {recipe.name for recipe in comparison.recipes} == {"plain", "default"}
    assert comparison.seeds == [0, 1]
    # After one epoch nobody has found anything yet.
    assert comparison.winner == "no difference"
    assert "• No difference: " in first
    for name in ("table.md", "report.html", "data-report.html"):
        assert f"runs/{latest.readlink()}/{name}" in first
        assert (latest / name).is_file()


def test_mlflow_has_every_trial_under_one_run(folder: Path, first: str) -> None:
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name == "yolo-distill"]
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert parent.info.status == "FINISHED"
    trained = [run.data.params for run in children if run.data.tags["yolo_distill.step"] == "distill-train"]
    assert {(params["recipe"], params["seed"]) for params in trained} == {
        (recipe, seed) for recipe in ("plain", "default") for seed in ("0", "1")
    }
    assert len(children) == 3 + 2 * 4 + 1


def test_a_second_run_takes_over_everything(folder: Path, first: str) -> None:
    first_run = (folder / "runs" / "latest").resolve()
    shown = _ablate(folder)
    states = re.findall(r"\] .*: (\w+)", shown)
    assert states and set(states) == {"cached"}
    second_run = (folder / "runs" / "latest").resolve()
    assert second_run != first_run
    assert not list((second_run / "tasks").rglob("model.pt"))
    assert json.loads((second_run / "run.json").read_text())["arguments"]["trials"][3]["student"] == "default 1"

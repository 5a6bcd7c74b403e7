"""The whole road through the real command line, on a handful of tiny scenes; then again from the cache."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from ultralytics import YOLO

from yolo_distill.components.compare.comparison import read_comparison
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.model_card import read_card

pytestmark = pytest.mark.slow

PROGRAM = Path(sys.executable).parent / "yolo-distill"
TINY = (
    "--data=digits:train=16,val=8,test=8,size=96",
    "--imgsz=96",
    "--epochs=1",
    "--teacher-epochs=1",
    "--teacher=yolov8n.yaml",
    "--student=yolov8n.yaml",
    "--batch=8",
    "--views=1",
    "--cache-parts=2",
    "--calibration-images=8",
    "--benchmark-seconds=1",
)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}


def _run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [PROGRAM, "run", *TINY, *arguments], cwd=folder, env=_environment(), capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def first(folder: Path) -> str:
    """What the first run shows."""
    done = _run(folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_ends_with_the_table_and_the_way_to_everything(folder: Path, first: str) -> None:
    latest = folder / "runs" / "latest"
    comparison = read_comparison(latest / "comparison")
    assert [model.role for model in comparison.models] == ["teacher", "plain", "distilled", "openvino", "quantized"]
    for model in comparison.models:
        assert f"{100 * model.map:.1f}" in first
    assert "mlflow ui --backend-store-uri sqlite:///" in first
    for name in ("table.md", "report.html", "int8", "distilled/model.pt"):
        assert f"runs/{latest.readlink()}/{name}" in first
        assert (latest / name).exists()


def test_what_it_made_can_be_used_without_this_package(folder: Path, first: str) -> None:
    latest = folder / "runs" / "latest"
    model = YOLO(latest / "distilled" / "model.pt")
    assert list(model.names.values()) == [str(digit) for digit in range(10)]
    for name in ("teacher", "plain", "distilled", "onnx", "openvino", "int8"):
        assert read_card(latest / name).imgsz == 96


def test_nothing_is_written_beside_the_output(folder: Path, first: str) -> None:
    assert [path.name for path in folder.iterdir()] == ["runs"]


def test_mlflow_has_the_run_its_tasks_its_data_and_the_model(folder: Path, first: str) -> None:
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name == "yolo-distill"]
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.run_name == str((folder / "runs" / "latest").readlink())
    assert parent.info.status == "FINISHED"
    assert parent.data.params["epochs"] == "1"
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 17
    parts = [run.data.params["part"] for run in children if run.info.run_name.startswith("teacher-cache-shards")]
    assert sorted(parts) == ["1/2", "2/2"]
    assert {child.info.status for child in children} == {"FINISHED"}
    [data] = (folder / "runs" / "latest" / "tasks").glob("*/prepare-data/dataset")
    digests = {entry.dataset.digest for child in children for entry in child.inputs.dataset_inputs}
    assert digests == {DetectionDataset.open(data).digest[:36]}
    [version] = client.search_model_versions("name='yolo-distill'")
    assert version.run_id in {child.info.run_id for child in children}


def test_a_second_run_takes_over_everything(folder: Path, first: str) -> None:
    first_run = str((folder / "runs" / "latest").readlink())
    started = time.monotonic()
    done = _run(folder)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 60
    states = re.findall(r"\] .*: (\w+)", done.stdout)
    assert states == ["cached"] * 17
    second_run = str((folder / "runs" / "latest").readlink())
    assert second_run != first_run
    tables = [(folder / "runs" / run / "table.md").read_text() for run in (first_run, second_run)]
    assert tables[0] == tables[1]


def _run_until(folder: Path, told: str, *arguments: str) -> tuple[str, "subprocess.CompletedProcess[str]"]:
    """Run until something is told, then interrupt; return what was told so far and how the program ended."""
    command = [PROGRAM, "run", *TINY, *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if told in line:
            break
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert children
    assert psutil.wait_procs(children, timeout=10)[1] == []
    return "".join(seen), subprocess.CompletedProcess(command, process.returncode, stderr=errors)


def test_the_teacher_can_be_asked_at_every_step(folder: Path, first: str) -> None:
    done = _run(folder, "--teacher-answers=online", "--benchmark-seconds=0.2")
    assert done.returncode == 0, done.stderr
    states = dict(re.findall(r"\] (.*): (done|cached)", done.stdout))
    for same in ("Prepare the data", "Train the teacher", "Train the student plainly", "Evaluate the plain student"):
        assert states[same] == "cached"
    assert states["Distil with the teacher at every step"] == "done"
    latest = folder / "runs" / "latest"
    assert len(states) == 14
    assert not list((latest / "tasks").glob("*/teacher-cache*"))
    [made] = (latest / "tasks").glob("*/distill-train-6/student")
    assert read_card(latest / "distilled").digests == read_card(made).digests


def test_the_teacher_can_be_asked_about_the_original_images(folder: Path, first: str) -> None:
    distilled = "Distil from the images as they are: done"
    text, ended = _run_until(folder, distilled, "--teacher-answers=original", "--recipe=original")
    assert distilled in text, ended.stderr
    assert "Train the teacher: cached" in text
    assert "Ask the teacher about every view" not in text


def test_what_is_asked_for_besides_is_made_from_what_is_there(folder: Path, first: str) -> None:
    done = _run(
        folder,
        "--pruning=on",
        "--quantization=qat",
        "--qat-epochs=1",
        "--mobile=ncnn",
        "--robustness=on",
        "--robustness-images=1",
        "--benchmark-seconds=0.2",
    )
    assert done.returncode == 0, done.stderr
    states = dict(re.findall(r"\] (.*): (done|cached)", done.stdout))
    for same in (
        "Cache the teacher's answers, to prune by",
        "Train the student that will be pruned",
        "Cache the teacher's answers, to quantise by",
    ):
        assert states[same] == "cached"
    latest = folder / "runs" / "latest"
    kept = read_comparison(latest / "comparison").model_of("distilled").gflops / read_card(latest / "unpruned").gflops
    assert kept == pytest.approx(0.5, abs=0.05)
    assert read_card(latest / "ncnn").lineage["parent"] == read_card(latest / "distilled").digest
    aware = read_card(latest / "quantize-aware")
    assert aware.lineage["parent"] == read_card(latest / "distilled").digest
    assert read_card(latest / "int8").name == f"{aware.name}-int8"
    table = (latest / "robustness.md").read_text()
    assert re.findall(r"^\| (\w+) \|", table, re.MULTILINE) == ["Model", "teacher", "plain", "distilled", "INT8"]
    for name in ("ncnn", "robustness.html"):
        assert f"runs/{latest.readlink()}/{name}" in done.stdout


def test_a_changed_recipe_repeats_what_depends_on_it_alone(folder: Path, first: str) -> None:
    (folder / "mine.yaml").write_text("name: mine\ndescription: x\nterms:\n- {loss: binary_kl, weight: 1.0}\n")
    text, ended = _run_until(folder, "Train the student by distillation: running", "--recipe=mine.yaml")
    (folder / "mine.yaml").unlink()
    assert "Train the teacher: cached" in text
    assert "Cache the teacher's answers: cached" in text
    assert not re.search(r": (done|failed)", text)
    assert ended.returncode == 130
    assert ended.stderr == "error: interrupted; the next run goes on where this one stopped\n"


def test_bad_data_is_told_in_one_line(folder: Path) -> None:
    (folder / "empty").mkdir()
    started = time.monotonic()
    done = subprocess.run(
        [PROGRAM, "run", "--data=empty", "--output=other"],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    (folder / "empty").rmdir()
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "empty" in done.stderr
    assert time.monotonic() - started < 60
    [run] = (folder / "other").glob("*/run.json")
    assert json.loads(run.read_text())["arguments"]["source"] == str(folder / "empty")
    assert not list((folder / "other").glob("*/tasks/*/prepare-data/dataset*"))

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from tests.shared_task.server import free_port
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared import lineage
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.task import task_run


def runs() -> dict[str, Run]:
    """The runs of the test's experiment by name."""
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", lineage.DEFAULT_EXPERIMENT)
    found = mlflow.search_runs(experiment_names=[experiment], output_format="list")
    return {run.info.run_name: run for run in found}


def start_task(step: str, body: str) -> "subprocess.Popen[str]":
    code = (
        "from yolo_distill.components.shared.task import task_run\n"
        f"with task_run({step!r}) as run:\n    print('started', flush=True)\n    {body}\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_importing_is_quick() -> None:
    code = "import sys, yolo_distill.components.shared.task; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_tasks_of_a_pipeline_run_hang_below_one_parent(on_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_DISTILL_PIPELINE_RUN_ID", "run-7")
    monkeypatch.setenv("YOLO_DISTILL_PIPELINE_RUN_NAME", "digits")
    # The first tasks start at once, each in a process of its own, and both find no parent.
    tasks = [start_task(step, "run.log_metrics({'loss': 1.5})") for step in ("one", "two")]
    assert [task.wait() for task in tasks] == [0, 0]
    with task_run("evaluate-map", "teacher", {"split": "val"}):
        assert runs()["digits"].info.status == "RUNNING"
    assert len(mlflow.search_runs(filter_string="attributes.run_name = 'digits'", search_all_experiments=True)) == 1
    tree = runs()
    parent = tree.pop("digits")
    assert set(tree) == {"one", "two", "evaluate-map teacher"}
    assert {run.data.tags["mlflow.parentRunId"] for run in tree.values()} == {parent.info.run_id}
    assert {run.data.tags["kfp.pipeline_run_id"] for run in (parent, *tree.values())} == {"run-7"}
    assert parent.info.status == "FINISHED"
    assert tree["one"].data.metrics == {"loss": 1.5}
    child = tree["evaluate-map teacher"]
    assert child.data.params == {"split": "val"}
    assert child.data.tags["yolo_distill.step"] == "evaluate-map"
    assert child.data.tags["yolo_distill.subject"] == "teacher"
    assert child.data.tags["version.mlflow"] == mlflow.__version__


def test_tasks_that_start_at_once_agree_on_the_parent(on_server: str) -> None:
    client, experiment = lineage.connect()
    with ThreadPoolExecutor(1) as thread:
        joined = thread.submit(lineage.pipeline_run, client, experiment, "run-6", contention_seconds=3)
        while not client.search_runs([experiment]):
            time.sleep(0.05)
        # Another task began to make the run a little earlier, but it becomes visible only now.
        tags = {lineage.PIPELINE_RUN_ID_TAG: "run-6"}
        other = client.create_run(experiment, start_time=int(time.time() * 1000) - 5000, tags=tags)
        assert joined.result().info.run_id == other.info.run_id
    assert [run.info.run_id for run in client.search_runs([experiment])] == [other.info.run_id]


def test_a_task_takes_up_the_run_that_kubeflow_made(on_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client, experiment = lineage.connect()
    given = client.create_run(experiment, run_name="made by the plugin", tags={"mlflow.parentRunId": "p"})
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    monkeypatch.setenv("YOLO_DISTILL_PIPELINE_RUN_ID", "ignored")
    with task_run("prepare-data", params={"seed": 0}) as run:
        assert run.run_id == given.info.run_id
    assert list(runs()) == ["made by the plugin"]
    kept = runs()["made by the plugin"]
    assert (kept.info.status, kept.data.params) == ("FINISHED", {"seed": "0"})
    assert kept.data.tags["mlflow.parentRunId"] == "p"
    # Kubernetes starts the pod again with the same variables; MLflow has dropped this one from the environment.
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    with task_run("prepare-data", params={"seed": 0}) as run:
        assert runs()["made by the plugin"].info.status == "RUNNING"


def test_a_failed_task_says_why_and_a_later_try_makes_up_for_it(
    on_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("YOLO_DISTILL_PIPELINE_RUN_ID", "run-8")
    monkeypatch.setenv("YOLO_DISTILL_PROGRESS", str(tmp_path / "progress.jsonl"))
    with pytest.raises(InputError), task_run("train-teacher"):
        raise InputError("https://me:secret@host/x?key=secret", "is no model", "Give another")
    failed = runs()
    assert failed["train-teacher"].info.status == failed["pipeline run-8"].info.status == "FAILED"
    (event,) = map(json.loads, (tmp_path / "progress.jsonl").read_text().splitlines())
    assert event["error"] == "https://host/x is no model. Give another"
    assert failed["train-teacher"].data.tags["yolo_distill.error"] == f"InputError: {event['error']}"
    with task_run("train-teacher"):
        pass
    assert runs()["pipeline run-8"].info.status == "FINISHED"


def test_an_error_that_is_not_the_users_is_not_reported_as_one(
    on_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("YOLO_DISTILL_PROGRESS", str(tmp_path / "progress.jsonl"))
    with pytest.raises(ZeroDivisionError), task_run("train-teacher"):
        print(1 / 0)
    assert runs()["train-teacher"].info.status == "FAILED"
    assert not (tmp_path / "progress.jsonl").exists()


def test_a_terminated_task_is_killed(on_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_DISTILL_PIPELINE_RUN_ID", "run-9")
    task = start_task("distill-train", "import time; time.sleep(60)")
    assert task.stdout and task.stdout.readline() == "started\n"
    task.send_signal(signal.SIGTERM)
    assert task.wait(timeout=30) == 128 + signal.SIGTERM
    assert {name: run.info.status for name, run in runs().items()} == {
        "distill-train": "KILLED",
        "pipeline run-9": "KILLED",
    }


def test_the_callers_handling_of_sigterm_comes_back(on_server: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with task_run("compare"):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_dataset_is_logged_with_its_whole_digest(on_server: str, digits: DetectionDataset) -> None:
    with task_run("distill-train") as run:
        run.log_dataset(digits, context="training")
    logged = runs()["distill-train"]
    (entry,) = logged.inputs.dataset_inputs
    tags = {tag.key: tag.value for tag in entry.tags}
    assert len(digits.digest) == 64
    assert entry.dataset.digest == digits.digest[:36]
    assert tags["digest"] == logged.data.tags["dataset.digest"] == digits.digest
    assert tags["mlflow.data.context"] == "training"
    assert json.loads(entry.dataset.source)["uri"] == digits.root.as_uri()


def test_a_model_is_found_by_what_it_is(on_server: str, teacher_dir: Path) -> None:
    with task_run("train-teacher") as run:
        run.log_model(teacher_dir)
    with task_run("evaluate-map", "teacher") as run:
        model_id = run.use_model(teacher_dir)
        run.log_metrics({"map": 0.25})
    # A search leaves out which models a run used.
    made, used = (mlflow.get_run(runs()[name].info.run_id) for name in ("train-teacher", "evaluate-map teacher"))
    assert [model.model_id for model in made.outputs.model_outputs] == [model_id]
    assert [model.model_id for model in used.inputs.model_inputs] == [model_id]
    model = mlflow.get_logged_model(model_id)
    card = json.loads((teacher_dir / "model.json").read_text())
    assert model.tags["model.digest"] == card["digests"]["model.pt"]
    assert model.tags["lineage.dataset"] == card["lineage"]["dataset"]
    assert model.tags["model.uri"] == teacher_dir.as_uri()
    assert {metric.key: metric.value for metric in model.metrics} == {"map": 0.25}
    files = mlflow.artifacts.list_artifacts(run_id=made.info.run_id, artifact_path=teacher_dir.name)
    names = {Path(file.path).name for file in files}
    assert "model.json" in names
    assert "model.pt" not in names, "the weights are not stored a second time"


def test_curves_and_parameters_of_any_kind(on_server: str) -> None:
    params = {"source": "https://me:secret@host/data.zip?sig=secret", "long": "x" * 10_000, "flag": True, "epochs": 2}
    with task_run("train-teacher", params=params) as run:
        run.log_metrics({"train/cls_loss": 2.0}, step=1)
        run.log_metrics({"train/cls_loss": 1.0, "metrics/mAP50(B)": 0.5}, step=2)
        run.log_metrics({"AP of a class called 1/2 & more": 0.5})
    logged = runs()["train-teacher"]
    curve = mlflow.MlflowClient().get_metric_history(run.run_id, "train/cls_loss")
    assert [(point.step, point.value) for point in curve] == [(1, 2.0), (2, 1.0)]
    assert logged.data.metrics["metrics/mAP50"] == 0.5
    assert logged.data.metrics["AP of a class called 1/2 _ more"] == 0.5
    assert logged.data.params["source"] == "https://host/data.zip"
    assert logged.data.params["long"] == "x" * 6000
    assert (logged.data.params["flag"], logged.data.params["epochs"]) == ("true", "2")


def test_artifacts_lie_beside_the_sqlite_file(on_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "working-directory"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (tmp_path / "note.txt").write_text("kept")
    with task_run("compare") as run:
        run.log_artifact(tmp_path / "note.txt")
    assert [file.read_text() for file in on_sqlite.glob("mlartifacts/*/artifacts/note.txt")] == ["kept"]
    assert not list(elsewhere.iterdir())


def test_the_code_is_named(on_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_DISTILL_GIT_COMMIT", "0123abcd")
    monkeypatch.setenv("YOLO_DISTILL_IMAGE", "registry/image@sha256:42")
    with task_run("compare"):
        pass
    tags = runs()["compare"].data.tags
    assert tags["mlflow.source.git.commit"] == "0123abcd"
    assert tags["yolo_distill.image"] == "registry/image@sha256:42"


def test_a_server_that_is_not_there_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(InputError, match=r"MLflow at http://127\.0\.0\.1.*cannot be used") as caught, task_run("x"):
        pytest.fail("the task must not start")
    assert time.monotonic() - started < 5
    assert "secret" not in str(caught.value)


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "_CONNECT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(InputError, match="cannot be used"), task_run("x"):
            pytest.fail("the task must not start")
        assert time.monotonic() - started < 10
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_a_file_that_is_no_database_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.db").write_text("not a database " * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(InputError, match="cannot be used"), task_run("x"):
        pytest.fail("the task must not start")

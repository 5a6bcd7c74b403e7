"""Runs whose tasks are containers: what these are given, how their ends are told, and that none is left over."""

import io
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kfp.compiler import Compiler
from mlflow import MlflowClient
from rich.console import Console

from tests.pipelines.engine import Engine
from tests.pipelines.throwaway import branches
from yolo_distill.components.shared.errors import InputError
from yolo_distill.pipelines.containers import RUN_LABEL, docker_runner, image_ids
from yolo_distill.pipelines.launch import RunError, run_pipeline
from yolo_distill.pipelines.plan import RunPlan

IMAGES = {"python:3.11": "sha256:" + 64 * "a"}
PlanContainers = Callable[..., RunPlan]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    started = Engine()
    started.images = IMAGES
    monkeypatch.setenv("DOCKER_HOST", started.address)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def plan_containers(tmp_path_factory: pytest.TempPathFactory) -> PlanContainers:
    """Plans runs of the pipeline with a loop and branches whose tasks are containers."""
    output = tmp_path_factory.mktemp("runs")

    def plan(**arguments: str | list[str]) -> RunPlan:
        made = RunPlan.new(output, arguments, images=IMAGES)
        made.folder.mkdir(parents=True)
        Compiler().compile(branches, str(made.pipeline))
        return made

    return plan


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in filter(lambda name: name.startswith(("AWS_", "MLFLOW_")), list(os.environ)):
        monkeypatch.delenv(name)


def test_every_task_is_a_container_without_privileges(
    engine: Engine, plan_containers: PlanContainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("HOSTNAME", "not passed on")
    plan = plan_containers(way="other")
    tasks = run_pipeline(plan, Console(file=io.StringIO(), width=120)).tasks
    states = {name: task.state for name, task in tasks.items()}
    # The pipeline's output is that of the branch which ran.
    assert [states[name] for name in ("note-2", "read", "note-3", "join")] == ["done", "done", "done", "skipped"]
    assert tasks["note-3"].outputs["made"].read_text() == "end"
    assert len(engine.made) == 3
    assert engine.containers == {}
    for made in engine.made:
        host = made["HostConfig"]
        assert made["Image"] == "python:3.11"
        assert made["User"] == f"{os.getuid()}:{os.getgid()}"
        assert made["Labels"] == {RUN_LABEL: plan.run_id}
        assert (host["ReadonlyRootfs"], host["CapDrop"], host["NetworkMode"]) == (True, ["ALL"], "host")
        assert host["SecurityOpt"] == ["no-new-privileges"]
        assert not host.get("Privileged") and not host.get("AutoRemove")
        environment = dict(entry.split("=", 1) for entry in made["Env"])
        assert environment["YOLO_DISTILL_IMAGE"] == f"python:3.11 {IMAGES['python:3.11']}"
        assert environment["YOLO_DISTILL_PIPELINE_RUN_ID"] == plan.run_id
        assert environment["MLFLOW_TRACKING_URI"] == plan.tracking_uri
        assert environment["AWS_ACCESS_KEY_ID"] == "mine"
        assert "HOSTNAME" not in environment
        mounts = {mount["Target"]: mount for mount in host["Mounts"]}
        assert mounts.keys() == {str(plan.output), environment["TMPDIR"]}
        assert {mount["Source"] for mount in mounts.values()} == mounts.keys()


def test_results_are_kept_by_image(engine: Engine, plan_containers: PlanContainers) -> None:
    plan = plan_containers(way="other")
    assert plan.cache == plan_containers().cache
    others = [plan.model_copy(update={"images": images}) for images in ({}, {"python:3.11": "sha256:" + 64 * "b"})]
    assert len({plan.cache, *(other.cache for other in others)}) == 3


def test_a_container_that_fails_is_told_in_the_steps_own_words(
    engine: Engine, plan_containers: PlanContainers, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"bad: is no word. Give another") as caught:
        run_pipeline(plan_containers(words=[f"bad {tmp_path / 'x'}"]), Console(file=io.StringIO(), width=120))
    assert caught.value.by_input
    assert engine.containers == {}


def test_the_end_of_a_run_ends_its_containers(
    engine: Engine,
    plan_containers: PlanContainers,
    start_run: Callable[[RunPlan], subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    words = [tmp_path / name for name in "abc"]
    plan = plan_containers(words=[f"endless {word}" for word in words])
    process = start_run(plan)
    deadline = time.monotonic() + 60
    while sum(bool(word.exists() and word.read_text()) for word in words) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    running = [container.process for container in engine.containers.values()]
    assert len(running) == 2
    process.send_signal(signal.SIGINT)
    process.wait(30)
    assert engine.containers == {}
    assert all(container.returncode == -signal.SIGKILL for container in running)
    # No other took their place.
    assert len(engine.made) == 2
    client = MlflowClient(plan.tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    [run] = client.search_runs(experiments, f"attributes.run_name = '{plan.name}'")
    assert run.info.status == "KILLED"


def test_data_and_named_files_are_mounted_to_be_read_and_stores_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("data", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "ca.pem").touch()
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere/mlflow.db")
    monkeypatch.chdir(tmp_path)
    arguments = {"source": str(tmp_path / "data"), "cache_root": str(tmp_path / "answers")}
    runner = docker_runner(RunPlan.new(tmp_path / "runs", arguments, images=IMAGES))
    mounted = {mount["Target"]: mount.get("ReadOnly", False) for mount in runner.container_run_args["mounts"]}
    read = {str(tmp_path / name) for name in ("ca.pem", "data")}
    written = {str(tmp_path / name) for name in ("runs", "answers", "elsewhere")}
    assert {place for place, only_read in mounted.items() if only_read} == read
    assert written < mounted.keys() - read
    assert (tmp_path / "answers").is_dir()
    # Nobody but this process knows what the name is relative to.
    environment = runner.container_run_args["environment"]
    assert environment["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/elsewhere/mlflow.db"


def test_what_is_missing_is_told_before_anything_runs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert image_ids(IMAGES) == IMAGES
    with pytest.raises(InputError, match=r"no/such:1: the container engine has no such image. Build it"):
        image_ids(["no/such:1"])
    engine.security = ["name=seccomp,profile=default", "name=rootless"]
    with pytest.raises(InputError, match="runs rootless"):
        image_ids(IMAGES)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    with pytest.raises(InputError, match="no container engine answers"):
        image_ids(IMAGES)
    assert engine.made == []

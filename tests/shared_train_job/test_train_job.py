"""A training as a TrainJob: what is sent, how it is followed, and what the step makes of its end."""

import _thread
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from tests.shared_train_job.api_server import NAMESPACE, Cluster, Failure, serve_cluster
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared import worker
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import write_text
from yolo_distill.components.shared.train_job.choice import training_launcher
from yolo_distill.components.shared.train_job.launcher import TrainJobLauncher
from yolo_distill.components.shared.train_job.settings import SETTINGS_VARIABLE, TrainJobSettings
from yolo_distill.components.shared.train_job.staging import stage
from yolo_distill.components.shared.training import TrainingJob, last_checkpoint, read_epochs, train_settings

IMAGE = "registry.example.org/yolo-distill@sha256:" + "0" * 64
SETTINGS = train_settings(epochs=2, imgsz=64, batch=16)
NAME = "yolo-distill-0123456789abcdef"


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Programs that a shell has started in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with serve_cluster() as cluster:
        yield cluster


@pytest.fixture
def job(tmp_path: Path, digits: DetectionDataset) -> TrainingJob:
    folder = tmp_path / "volume" / "work" / "training" / NAME.removeprefix("yolo-distill-")
    folder.mkdir(parents=True)
    return TrainingJob(dataset=digits.root, model="yolov8p.yaml", settings=SETTINGS, folder=folder)


def launcher(cluster: Cluster, tmp_path: Path, **settings: Any) -> TrainJobLauncher:
    configuration = client.Configuration(host=cluster.address)
    # What is tried again, the launcher decides.
    configuration.retries = False
    volume = {"claim": "yolo-distill", "mount": str(tmp_path / "volume")}
    given = TrainJobSettings(**{"image": IMAGE, "nodes": 2, "poll_seconds": 0.01, "volumes": [volume], **settings})
    return TrainJobLauncher(given, tmp_path / "volume" / "work", client.ApiClient(configuration), NAMESPACE)


def train(train_job: dict[str, Any], epochs: int) -> TrainingJob:
    """Leave what nodes would leave after some epochs."""
    job = TrainingJob.model_validate_json(Path(train_job["spec"]["trainer"]["command"][-1]).read_text())
    write_text(last_checkpoint(job.folder), "weights")
    write_text(job.folder / "history.json", json.dumps([{"epoch": n + 1.0} for n in range(epochs)]))
    return job


def completes(train_job: dict[str, Any], looks: int) -> tuple[str, str] | None:
    if looks == 1:
        train(train_job, epochs=1)
    if looks < 2:
        return None
    train(train_job, epochs=2)
    return "Complete", "jobset completed successfully"


def test_a_training_is_handed_over_followed_and_cleaned_up(
    cluster: Cluster, tmp_path: Path, job: TrainingJob, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.runs, cluster.log = completes, "Starting training\nloss 3.2\n"
    launcher(
        cluster,
        tmp_path,
        processes=4,
        requests={"cpu": "8", "nvidia.com/gpu": "4"},
        limits={"memory": "48Gi", "nvidia.com/gpu": "4"},
        env={"AWS_DEFAULT_REGION": "us-east-1"},
        secrets=[{"variable": "AWS_SECRET_ACCESS_KEY", "secret": "s3", "key": "secretkey"}],
        shm="8Gi",
        node_selector={"pool": "gpu"},
        tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}],
        image_pull_secrets=["registry"],
    )(job)
    [sent] = cluster.created
    assert cluster.train_jobs == {}
    assert cluster.deleted == [sent["metadata"]["name"]] == [NAME]
    trainer = sent["spec"]["trainer"]
    assert (trainer["image"], trainer["numNodes"]) == (IMAGE, 2)
    assert trainer["command"][:5] == ["python", "-m", "torch.distributed.run", "--nproc-per-node", "4"]
    assert {"name": "AWS_DEFAULT_REGION", "value": "us-east-1"} in trainer["env"]
    reference = {"secretKeyRef": {"name": "s3", "key": "secretkey"}}
    assert {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": reference} in trainer["env"]
    told = TrainingJob.model_validate_json(Path(trainer["command"][-1]).read_text())
    # Everything that the nodes read lies on their volume.
    assert told.dataset.is_relative_to(tmp_path / "volume")
    assert DetectionDataset.open(told.dataset).digest == DetectionDataset.open(job.dataset).digest
    [patch] = sent["spec"]["runtimePatches"]
    [node] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "yolo-distill"}
    printed = capsys.readouterr().out
    assert "Starting training\nloss 3.2\n" in printed
    assert "epoch 1/2" in printed
    assert "epoch 2/2" in printed


def test_two_nodes_train_as_they_are_told(cluster: Cluster, tmp_path: Path, job: TrainingJob) -> None:
    """The command of the TrainJob, run as the runtime runs it: once a node, with torchrun's settings by environment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    nodes: list[subprocess.Popen[bytes]] = []

    def run(train_job: dict[str, Any], looks: int) -> tuple[str, str] | None:
        trainer = train_job["spec"]["trainer"]
        shared = {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}
        command = [sys.executable, *trainer["command"][1:]]
        if not nodes:
            for number in range(trainer["numNodes"]):
                environment = {**os.environ, **shared, "PET_NODE_RANK": str(number)}
                nodes.append(subprocess.Popen(command, env=environment))
        statuses = [node.poll() for node in nodes]
        if None in statuses:
            time.sleep(0.3)
            return None
        return ("Complete", "") if statuses == [0, 0] else ("Failed", f"nodes ended with {statuses}")

    cluster.runs = run
    one_epoch = job.model_copy(update={"settings": train_settings(epochs=1, imgsz=64, batch=16)})
    model = Path(__file__).parents[2] / "components" / "distill_train" / "students" / "yolov8p.yaml"
    launcher(cluster, tmp_path, restarts=0)(one_epoch.model_copy(update={"model": str(model)}))
    [record] = read_epochs(job.folder)
    assert record["train/box_loss"] > 0
    assert "metrics/mAP50-95" in record
    assert not list(job.folder.glob("error*"))


@pytest.mark.parametrize(
    ("method", "failures"),
    [
        ("POST", [Failure.DROP_AFTER]),
        ("POST", [Failure.BROKEN, Failure.DROP, Failure.UNAVAILABLE]),
        ("GET", [Failure.DROP, Failure.BROKEN, Failure.TOO_MANY]),
        ("DELETE", [Failure.UNAVAILABLE, Failure.DROP_AFTER]),
    ],
)
def test_what_passes_is_waited_for(
    cluster: Cluster, tmp_path: Path, job: TrainingJob, method: str, failures: list[Failure]
) -> None:
    cluster.runs = completes
    cluster.fail(method, *failures)
    launcher(cluster, tmp_path)(job)
    assert not cluster.failures
    assert len(cluster.created) == 1
    assert cluster.train_jobs == {}


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (Failure.FORBIDDEN, r"refuses it: forbidden by the test\. Apply manifests/components/trainer"),
        (Failure.UNAUTHORIZED, r"refuses it: unauthorized by the test"),
        (Failure.NOT_FOUND, r"does not know TrainJobs\. Install Kubeflow Trainer 2"),
    ],
)
def test_what_kubernetes_refuses_is_said(
    cluster: Cluster, tmp_path: Path, job: TrainingJob, failure: Failure, message: str
) -> None:
    cluster.fail("POST", failure)
    with pytest.raises(InputError, match=message):
        launcher(cluster, tmp_path)(job)
    assert cluster.created == []


def test_what_trainer_refuses_is_said(cluster: Cluster, tmp_path: Path, job: TrainingJob) -> None:
    with pytest.raises(InputError, match=r"no such runtime\. Mend train_job in the cluster file"):
        launcher(cluster, tmp_path, runtime="missing")(job)
    cluster.runs = completes
    launcher(cluster, tmp_path, runtime="our-torch", runtime_kind="TrainingRuntime")(job)


def test_a_server_that_stays_away_is_given_up(cluster: Cluster, tmp_path: Path, job: TrainingJob) -> None:
    cluster.fail("POST", *[Failure.BROKEN] * 6)
    with pytest.raises(RuntimeError, match=r"Kubernetes does not answer: status 500, 6 times"):
        launcher(cluster, tmp_path)(job)


def test_a_lost_node_costs_no_more_than_its_epoch(
    cluster: Cluster, tmp_path: Path, job: TrainingJob, capsys: pytest.CaptureFixture[str]
) -> None:
    def loses_nodes(train_job: dict[str, Any], looks: int) -> tuple[str, str] | None:
        if len(cluster.created) < 3:
            train(train_job, epochs=1)
            return "Failed", "node was shut down"
        assert len(read_epochs(job.folder)) == 1
        train(train_job, epochs=2)
        return "Complete", ""

    cluster.runs = loses_nodes
    launcher(cluster, tmp_path, restarts=2)(job)
    assert len(cluster.created) == len(cluster.deleted) == 3
    assert capsys.readouterr().out.count("failed (JobsEnded: node was shut down) and is started again") == 2


def test_a_failed_training_fails_the_step(cluster: Cluster, tmp_path: Path, job: TrainingJob) -> None:
    cluster.runs = lambda train_job, looks: ("Failed", "backoff limit exceeded")
    with pytest.raises(RuntimeError, match=f"TrainJob {NAME} failed: JobsEnded: backoff limit exceeded"):
        launcher(cluster, tmp_path, restarts=1)(job)
    assert len(cluster.created) == 2
    assert cluster.train_jobs == {}


def test_the_nodes_own_error_is_the_step_s(cluster: Cluster, tmp_path: Path, job: TrainingJob) -> None:
    def fails(error: Exception) -> None:
        def run(train_job: dict[str, Any], looks: int) -> tuple[str, str]:
            worker.leave_error(job.folder, error)
            return "Failed", ""

        cluster.runs = run

    fails(ZeroDivisionError("division by zero"))
    with pytest.raises(RuntimeError, match="ZeroDivisionError: division by zero"):
        launcher(cluster, tmp_path, restarts=0)(job)
    fails(InputError("student", "has other strides", "Choose another"))
    with pytest.raises(InputError, match=r"student: has other strides\. Choose another"):
        launcher(cluster, tmp_path, restarts=5)(job)
    assert len(cluster.created) == 2


def test_a_train_job_that_somebody_deletes_fails_the_step(cluster: Cluster, tmp_path: Path, job: TrainingJob) -> None:
    def vanishes(train_job: dict[str, Any], looks: int) -> None:
        if looks == 1:
            del cluster.train_jobs[NAME]

    cluster.runs = vanishes
    with pytest.raises(RuntimeError, match="was deleted while it ran"):
        launcher(cluster, tmp_path)(job)


def test_an_interrupted_step_takes_its_train_job_along(cluster: Cluster, tmp_path: Path, job: TrainingJob) -> None:
    interrupted = threading.Event()

    def interrupts(train_job: dict[str, Any], looks: int) -> None:
        if looks == 2:
            interrupted.set()
            _thread.interrupt_main()

    cluster.runs = interrupts
    with pytest.raises(KeyboardInterrupt):
        launcher(cluster, tmp_path)(job)
    assert interrupted.is_set()
    assert cluster.deleted == [NAME]


def left_behind(cluster: Cluster, tmp_path: Path, job: TrainingJob) -> None:
    """Have a step killed in a way that leaves it no time to clean up."""
    cluster.fail("DELETE", Failure.BROKEN)
    cluster.runs = lambda train_job, looks: _thread.interrupt_main()
    with pytest.raises(KeyboardInterrupt):
        launcher(cluster, tmp_path)(job)
    assert NAME in cluster.train_jobs


def test_a_step_that_is_started_again_follows_what_it_left(cluster: Cluster, tmp_path: Path, job: TrainingJob) -> None:
    left_behind(cluster, tmp_path, job)
    cluster.runs = completes
    launcher(cluster, tmp_path)(job)
    assert len(cluster.created) == 1


def test_a_failure_that_was_left_is_replaced(cluster: Cluster, tmp_path: Path, job: TrainingJob) -> None:
    left_behind(cluster, tmp_path, job)
    condition = {"type": "Failed", "status": "True", "reason": "x", "message": "y"}
    cluster.train_jobs[NAME]["status"] = {"conditions": [condition]}
    cluster.runs = completes
    launcher(cluster, tmp_path)(job)
    assert len(cluster.created) == len(cluster.deleted) == 2


def test_another_s_train_job_is_left_alone(cluster: Cluster, tmp_path: Path, job: TrainingJob) -> None:
    cluster.train_jobs[NAME] = {"metadata": {"name": NAME, "labels": {}}, "spec": {}}
    cluster._looks[NAME] = 0
    with pytest.raises(InputError, match="exists and is not this training's"):
        launcher(cluster, tmp_path)(job)
    assert cluster.deleted == []


def test_success_without_a_checkpoint_is_none(cluster: Cluster, tmp_path: Path, job: TrainingJob) -> None:
    cluster.runs = lambda train_job, looks: ("Complete", "")
    with pytest.raises(RuntimeError, match="do the nodes mount the step's volume"):
        launcher(cluster, tmp_path)(job)


def test_what_cannot_be_trained_is_refused_unsent(cluster: Cluster, tmp_path: Path, job: TrainingJob) -> None:
    with pytest.raises(InputError, match="batch=16: cannot be shared evenly by 6"):
        launcher(cluster, tmp_path, processes=3)(job)
    with pytest.raises(InputError, match="lies on no volume that the nodes mount"):
        launcher(cluster, tmp_path, volumes=[])
    assert cluster.created == []


def test_the_environment_decides_where_training_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SETTINGS_VARIABLE, raising=False)
    assert training_launcher(1, tmp_path) is None
    monkeypatch.setenv(SETTINGS_VARIABLE, json.dumps({"image": IMAGE, "nodes": 0}))
    with pytest.raises(InputError, match=f"{SETTINGS_VARIABLE}: nodes: .*greater than or equal to 1"):
        training_launcher(1, tmp_path)
    monkeypatch.setenv(SETTINGS_VARIABLE, json.dumps({"image": IMAGE, "nodes": 2}))
    with pytest.raises(InputError, match="its nodes share no folder"):
        training_launcher(1, None)


def test_what_is_the_same_is_copied_once(tmp_path: Path, digits: DetectionDataset) -> None:
    first, second = (stage(digits.root, tmp_path / "inputs") for _ in range(2))
    assert first == second
    assert DetectionDataset.open(first).digest == digits.digest
    copies = set()
    for content in ("one", "two"):
        write_text(tmp_path / "model.yaml", content)
        copies.add(stage(tmp_path / "model.yaml", tmp_path / "inputs"))
    assert {copy.read_text() for copy in copies} == {"one", "two"}
    assert {copy.name for copy in copies} == {"model.yaml"}

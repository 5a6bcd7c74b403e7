"""``schedule`` against an HTTP server that speaks the API."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import yaml
from kubernetes.client import ApiClient
from moto.server import ThreadedMotoServer

from tests.remote.api_server import Failure, Kubeflow, package
from tests.remote.conftest import CPU_IMAGE, CommandLine
from yolo_distill.components.shared.errors import InputError
from yolo_distill.pipelines.schedule import checked_trigger

CREATE = ("schedule", "create", "nightly", "--cluster=cluster.yaml")


def only_schedule(kubeflow: Kubeflow) -> dict[str, Any]:
    [schedule] = kubeflow.recurring_runs.values()
    return schedule


def caching(kubeflow: Kubeflow, version_id: str) -> dict[str, bool]:
    spec = kubeflow.versions[version_id]["spec"]
    dags = [part.dag for part in (spec.root, *spec.components.values()) if part.HasField("dag")]
    return {
        name: task.caching_options.enable_cache
        for dag in dags
        for name, task in dag.tasks.items()
        # Branches and loops are tasks, too, but what counts is what runs in them.
        if not spec.components[task.component_ref.name].HasField("dag")
    }


def test_a_schedule_has_what_it_is_told(kubeflow: Kubeflow, program: CommandLine) -> None:
    done = program(
        *CREATE,
        "--cron=30 2 * * mon-fri",
        "--start=2030-01-01T00:00:00+01:00",
        "--end=2031-01-01T00:00:00Z",
        "--max-concurrency=2",
        "--catchup",
        "--service-account=trainer",
        "--mlflow-experiment=nightly",
        "--epochs=3",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Schedule nightly: created (")
    schedule = only_schedule(kubeflow)
    # Kubeflow's expressions begin with the seconds.
    assert schedule["trigger"] == {
        "cron_schedule": {
            "cron": "0 30 2 * * mon-fri",
            "start_time": "2029-12-31T23:00:00+00:00",
            "end_time": "2031-01-01T00:00:00+00:00",
        }
    }
    assert (schedule["max_concurrency"], schedule["no_catchup"], schedule["mode"]) == ("2", False, "ENABLE")
    assert schedule["service_account"] == "trainer"
    assert schedule["plugins_input"] == {"mlflow": {"experiment_name": "nightly"}}
    assert schedule["runtime_config"]["parameters"]["epochs"] == 3
    assert all(caching(kubeflow, schedule["pipeline_version_reference"]["pipeline_version_id"]).values())


def test_a_schedule_that_differs_is_replaced_and_one_that_does_not_is_left_alone(
    kubeflow: Kubeflow, cli: CommandLine
) -> None:
    assert cli(*CREATE, "--every=6h").returncode == 0
    first = only_schedule(kubeflow)
    assert first["trigger"] == {"periodic_schedule": {"interval_second": "21600"}}
    assert first["no_catchup"] is True
    assert "nightly: unchanged (" in cli(*CREATE, "--every=6h").stdout
    assert only_schedule(kubeflow) is first
    done = cli(*CREATE, "--every=6h", "--epochs=2")
    assert "nightly: replaced (" in done.stdout, done.stderr
    second = only_schedule(kubeflow)
    assert second["recurring_run_id"] != first["recurring_run_id"]
    # The successor is there before the old one goes.
    order = [request.method for request in kubeflow.requests if "/recurringruns" in request.path]
    assert order.index("DELETE") > len(order) - 1 - order[::-1].index("POST")


@pytest.mark.parametrize("failure", [Failure.DROP, Failure.DROP_AFTER, Failure.LATE, Failure.BROKEN_AFTER])
def test_there_is_one_schedule_whatever_happens_to_the_answer(
    kubeflow: Kubeflow, cli: CommandLine, failure: Failure
) -> None:
    kubeflow.fail("POST", "/recurringruns", failure)
    done = cli(*CREATE, "--every=1d", "--timeout=2")
    assert done.returncode == 0, done.stderr
    assert str(only_schedule(kubeflow)["recurring_run_id"]) in done.stdout


def test_an_old_schedule_that_stays_is_told_and_goes_the_next_time(kubeflow: Kubeflow, cli: CommandLine) -> None:
    assert cli(*CREATE, "--every=1d").returncode == 0
    old = only_schedule(kubeflow)["recurring_run_id"]
    kubeflow.fail("DELETE", f"/recurringruns/{old}", *[Failure.BROKEN] * 3)
    done = cli(*CREATE, "--every=2d")
    assert done.returncode == 1
    assert f"its successor is there, but the old one ({old}) could not be deleted: fails (500" in done.stderr
    assert "nightly: replaced (" in cli(*CREATE, "--every=2d").stdout
    assert only_schedule(kubeflow)["trigger"]["periodic_schedule"]["interval_second"] == "172800"


def test_schedules_are_listed_paused_resumed_and_deleted(kubeflow: Kubeflow, cli: CommandLine) -> None:
    assert cli("schedule", "list").stdout == "There are no schedules.\n"
    assert cli(*CREATE, "--cron=0 0 3 ? * SUN").returncode == 0
    only = only_schedule(kubeflow)
    # More than fit on a page.
    for number in range(4):
        kubeflow.recurring_runs[str(number)] = {**only, "display_name": f"other-{number}", "recurring_run_id": "x"}
    shown = cli("schedule", "list").stdout
    assert re.search(
        rf"nightly\s*│ cron 0 0 3 \? \* SUN\s*│ enabled\s*│ 1\s*│ no\s*│ {only['recurring_run_id']}", shown
    )
    assert all(f"other-{number}" in shown for number in range(4))
    assert cli("schedule", "pause", "nightly").stdout == "Schedule nightly: paused\n"
    assert only["status"] == "DISABLED"
    assert "nightly: unchanged, and it is paused (" in cli(*CREATE, "--cron=0 0 3 ? * SUN").stdout
    assert cli("schedule", "resume", "nightly").stdout == "Schedule nightly: resumed\n"
    assert only["status"] == "ENABLED"
    # The first request is carried out, so that the second finds nothing to delete.
    kubeflow.fail("DELETE", f"/recurringruns/{only['recurring_run_id']}", Failure.DROP_AFTER)
    assert cli("schedule", "delete", "nightly").stdout == "Schedule nightly: deleted\n"
    assert len(kubeflow.recurring_runs) == 4
    done = cli("schedule", "delete", "nightly")
    assert done.returncode == 2
    assert "error: schedule nightly: there is none of that name. `yolo-distill schedule list` shows all" in done.stderr


def test_data_that_can_change_are_read_anew_each_time(kubeflow: Kubeflow, cli: CommandLine) -> None:
    storage = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    storage.start()
    try:
        host, port = storage.get_host_and_port()
        access = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
        access |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        client = boto3.client(
            "s3",
            endpoint_url=access["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id="x",
            aws_secret_access_key="x",
        )
        client.create_bucket(Bucket="data")
        arguments = ("--cluster=cluster.yaml", "--data=s3://data/set/")
        digests = []
        for name in ("one.png", "two.png"):
            client.put_object(Bucket="data", Key=f"set/{name}", Body=b"x")
            done = cli("submit", *arguments, **access)
            assert done.returncode == 0, done.stderr
            digests.append(list(kubeflow.runs.values())[-1]["runtime_config"]["parameters"]["source_digest"])
        # A run is told what the prefix holds, so that the server's cache notices.
        assert digests[0] != digests[1]
        done = cli("schedule", "create", "weekly", *arguments, "--every=1w", **access)
        assert done.returncode == 0, done.stderr
    finally:
        storage.stop()
    schedule = only_schedule(kubeflow)
    assert schedule["runtime_config"]["parameters"]["source_digest"] == ""
    cached = caching(kubeflow, schedule["pipeline_version_reference"]["pipeline_version_id"])
    assert [name for name, kept in cached.items() if not kept] == ["prepare-data"]


def test_a_schedule_can_be_kept_as_kubernetes_objects(offline: CommandLine, folder: Path) -> None:
    arguments = (*CREATE, "--manifest=out.yaml", "--epochs=3", "--namespace=team-a", "--service-account=default-editor")
    done = offline(*arguments, "--cron=0 3 * * 0", "--experiment=nightly")
    assert done.returncode == 0, done.stderr
    config, job = yaml.safe_load_all((folder / "out.yaml").read_text())
    for document, kind in ((config, "V1ConfigMap"), (job, "V1CronJob")):
        # What Kubernetes' own models do not know would be lost.
        assert _through_model(document, kind) == document
        assert document["metadata"]["namespace"] == "team-a"
    assert yaml.safe_load(config["data"]["params.yaml"]) == {"epochs": 3}
    assert config["data"]["cluster.yaml"] == (folder / "cluster.yaml").read_text()
    assert job["spec"]["schedule"] == "0 3 * * 0"
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "default-editor"
    [container] = pod["containers"]
    assert container["image"] == CPU_IMAGE
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "--wait" in container["args"]


def test_what_the_cron_job_does_makes_one_run(
    offline: CommandLine, kubeflow: Kubeflow, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arguments = (
        "--manifest=out.yaml",
        f"--host={kubeflow.address}",
        "--every=6h",
        "--epochs=3",
        "--experiment=nightly",
    )
    assert offline(*CREATE, *arguments).returncode == 0
    config, job = yaml.safe_load_all((folder / "out.yaml").read_text())
    assert job["spec"]["schedule"] == "0 */6 * * *"
    mounted = tmp_path_factory.mktemp("etc")
    for name, content in config["data"].items():
        (mounted / name).write_text(content)
    (mounted / "token").write_text("pod")
    kubeflow.login = ("Authorization", "Bearer pod")
    kubeflow.run_state = "SUCCEEDED"
    [container] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    command = [argument.replace("/etc/yolo-distill", str(mounted)) for argument in container["args"]]
    for _ in range(2):
        done = offline(
            *command,
            YOLO_DISTILL_REQUEST_ID="1f0c2b1e-7a54-4d6c-8b5e-0a9d8c7b6a50",
            KF_PIPELINES_SA_TOKEN_PATH=str(mounted / "token"),
        )
        assert done.returncode == 0, done.stderr
    [run] = kubeflow.runs.values()
    assert run["display_name"] == "nightly"
    assert run["runtime_config"]["parameters"]["epochs"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--cron, --every: it takes one of them"),
        (["--cron=0 3 * * *", "--every=1d"], "--cron, --every: it takes one of them"),
        (["--cron=0 3"], "--cron '0 3': has 2 fields"),
        (["--cron=60 3 * * *"], "--cron '60 3 * * *': '60' is no minutes"),
        (["--every=soon"], "--every soon: is not an interval"),
        (["--every=30s"], "--every 30s: is less than a minute"),
        (["--every=1d", "--end=tomorrow"], "--end tomorrow: is not a time"),
        (["--every=1d", "--end=2020-01-01T00:00:00Z"], "--end 2020-01-01T00:00:00Z: is before the first run"),
        (["--every=1d", "--max-concurrency=11"], "--max-concurrency 11: it should be from 1 to 10"),
        (["--every=1d", "--manifest=x.yaml", "--catchup"], "--catchup: a CronJob never makes up for more than one"),
        (["--every=1d", "--manifest=x.yaml", "--max-concurrency=2"], "a CronJob limits its jobs to one at a time"),
        (["--every=7h", "--manifest=x.yaml"], "--every 25200s: a CronJob has no such interval"),
        (["--cron=5 0 3 * * *", "--manifest=x.yaml"], "a CronJob knows no seconds"),
        (["--every=1d", "--manifest=x.yaml", "--start=2030-01-01"], "--start, --end: a CronJob begins when it is"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(
    offline: CommandLine, folder: Path, arguments: list[str], message: str
) -> None:
    done = offline(*CREATE, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "x.yaml").exists()


@pytest.mark.parametrize(
    ("written", "understood"),
    [
        ("*/15 8-18 * * 1-5", "0 */15 8-18 * * 1-5"),
        ("0 0 9 ? * 2-6", "0 0 9 ? * 2-6"),
        ("0 0 1,15 jan-jun *", "0 0 0 1,15 jan-jun *"),
        ("10-50/10 * * * sat", "0 10-50/10 * * * sat"),
    ],
)
def test_cron_expressions_get_seconds(written: str, understood: str) -> None:
    assert checked_trigger(written, None, None, None).cron == understood


@pytest.mark.parametrize(
    "expression",
    ["* * * * 7", "* * 0 * *", "* 24 * * *", "5-1 * * * *", "* * * foo *", "*/0 * * * *", "* * * * ,", "a b"],
)
def test_wrong_cron_expressions_are_refused(expression: str) -> None:
    with pytest.raises(InputError, match="--cron"):
        checked_trigger(expression, None, None, None)


def test_the_server_of_these_tests_refuses_what_is_no_pipeline() -> None:
    with pytest.raises(Exception, match="no field named"):
        package(b"pipelineInfo: {name: x}\nroots: {}\n")


def _through_model(document: dict[str, Any], kind: str) -> Any:
    client = ApiClient()
    answer = SimpleNamespace(data=json.dumps(document))
    return client.sanitize_for_serialization(client.deserialize(answer, kind))

"""``submit``, ``status`` and ``cancel`` against an HTTP server that speaks the API."""

import re
import socket
from pathlib import Path

import pytest

from tests.remote.api_server import Failure, Kubeflow
from tests.remote.conftest import CPU_IMAGE, TRAIN_IMAGE, CommandLine

SUBMIT = ("submit", "--cluster=cluster.yaml")


def only_run(kubeflow: Kubeflow) -> dict[str, object]:
    [run] = kubeflow.runs.values()
    return run


def one_line(text: str) -> str:
    assert text.startswith("error: ")
    assert text.count("\n") == 1, text
    assert "secret" not in text
    return text


def test_a_run_has_what_file_and_flags_say(kubeflow: Kubeflow, program: CommandLine, folder: Path) -> None:
    (folder / "params.yaml").write_text("epochs: 7\nimgsz: 320\nseed: 5\n")
    done = program(
        *SUBMIT,
        "--params=params.yaml",
        "--epochs=9",
        "--experiment=nightly",
        "--run-name=first try",
        "--service-account=trainer",
        "--pipeline-root=s3://bucket/artifacts",
        "--mlflow-experiment=distillation",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    run = only_run(kubeflow)
    assert f"Run first try: {run['run_id']} " in done.stdout
    assert f"{kubeflow.address}/#/runs/details/{run['run_id']}\n" in done.stdout
    parameters = run["runtime_config"]["parameters"]
    assert {name: parameters[name] for name in ("epochs", "imgsz", "seed", "views")} == {
        "epochs": 9,
        "imgsz": 320,
        "seed": 5,
        "views": 8,
    }
    assert len(parameters["source_digest"]) == 64
    assert (parameters["work_root"], parameters["cache_root"]) == ("/cache/work", "s3://teachers/answers")
    assert run["runtime_config"]["pipeline_root"] == "s3://bucket/artifacts"
    assert run["service_account"] == "trainer"
    assert run["plugins_input"] == {"mlflow": {"experiment_name": "distillation"}}
    assert kubeflow.experiments[run["experiment_id"]]["display_name"] == "nightly"


def test_the_same_pipeline_is_uploaded_once(kubeflow: Kubeflow, cli: CommandLine) -> None:
    outputs = [cli(*SUBMIT, f"--seed={seed}", "--no-mlflow") for seed in (1, 2)]
    assert [done.returncode for done in outputs] == [0, 0], outputs[1].stderr
    assert len(kubeflow.runs) == 2
    assert len(kubeflow.pipelines) == len(kubeflow.experiments) == 1
    [version] = kubeflow.versions.values()
    assert re.fullmatch(r"0\.1\.0-[0-9a-f]{16}", version["name"])
    images = {executor["container"]["image"] for executor in version["spec"].deployment_spec["executors"].values()}
    assert images == {CPU_IMAGE, TRAIN_IMAGE}
    assert all(run["plugins_input"] == {"mlflow": {"disabled": True}} for run in kubeflow.runs.values())
    # Another pipeline is another version.
    assert cli(*SUBMIT, "--no-cache").returncode == 0
    assert len(kubeflow.versions) == 2


@pytest.mark.parametrize(
    ("failure", "requests"),
    [
        (Failure.DROP, 2),
        (Failure.DROP_AFTER, 1),
        (Failure.UNAVAILABLE, 2),
        (Failure.BROKEN_AFTER, 1),
        (Failure.LATE, 1),
    ],
)
def test_there_is_one_run_whatever_happens_to_the_answer(
    kubeflow: Kubeflow, cli: CommandLine, failure: Failure, requests: int
) -> None:
    kubeflow.fail("POST", "/runs", failure)
    done = cli(*SUBMIT, "--timeout=2")
    assert done.returncode == 0, done.stderr
    assert len(kubeflow.sent("POST", "/runs")) == requests
    assert str(only_run(kubeflow)["run_id"]) in done.stdout


def test_a_failing_server_is_not_asked_again_and_the_request_can_be_repeated(
    kubeflow: Kubeflow, cli: CommandLine, program: CommandLine
) -> None:
    kubeflow.fail("POST", "/runs", Failure.BROKEN)
    done = program(*SUBMIT)
    assert done.returncode == 1
    told = one_line(done.stderr)
    assert f"{kubeflow.address}: fails (500 Internal Server Error: broken by the test)" in told
    assert "whether it made the run is unknown" in told
    request_id = re.search(r"--request-id (\w+)", told)[1]
    assert len(kubeflow.sent("POST", "/runs")) == 1
    for _ in range(2):
        done = cli(*SUBMIT, f"--request-id={request_id}")
        assert done.returncode == 0, done.stderr
    assert request_id in str(only_run(kubeflow)["description"])


def test_an_upload_that_is_not_answered_is_found_again(kubeflow: Kubeflow, program: CommandLine) -> None:
    kubeflow.fail("POST", "/experiments", Failure.DROP_AFTER)
    kubeflow.fail("POST", "/pipelines", Failure.DROP_AFTER)
    kubeflow.fail("POST", "/pipelines/upload_version", Failure.DROP_AFTER)
    kubeflow.fail("GET", "/experiments", Failure.BROKEN, Failure.DROP)
    done = program(*SUBMIT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [len(x) for x in (kubeflow.experiments, kubeflow.pipelines, kubeflow.versions, kubeflow.runs)] == [1] * 4


def test_what_somebody_else_uploads_at_the_same_time_is_used(kubeflow: Kubeflow, cli: CommandLine) -> None:
    assert cli(*SUBMIT).returncode == 0
    [pipeline_id], [version_id] = kubeflow.pipelines, kubeflow.versions
    # The first look comes before the other's upload, the second after it.
    kubeflow.fail("GET", f"/pipelines/{pipeline_id}/versions", Failure.EMPTY)
    done = cli(*SUBMIT)
    assert done.returncode == 0, done.stderr
    assert len(kubeflow.sent("POST", "/pipelines/upload_version")) == 2
    assert list(kubeflow.versions) == [version_id]
    # A name that is taken by something else is no version of ours.
    kubeflow.versions[version_id]["display_name"] = "renamed"
    done = cli(*SUBMIT)
    assert done.returncode == 1
    assert "has something of that name (409 Conflict: Failed to create a pipeline version)" in one_line(done.stderr)
    assert len(kubeflow.runs) == 2


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (Failure.UNAUTHORIZED, "does not let you in (401 Unauthorized: unauthorized by the test). Log in again"),
        (Failure.FORBIDDEN, "does not let you in (403 Forbidden: forbidden by the test). Log in again"),
        (Failure.REDIRECT, "does not let you in (302 Found). Log in again"),
        (Failure.LOGIN_PAGE, "answers with a page in place of data: it wants a login, or is not the API. Log in"),
    ],
)
def test_a_missing_login_is_told(kubeflow: Kubeflow, cli: CommandLine, failure: Failure, message: str) -> None:
    kubeflow.fail("GET", "/healthz", failure)
    done = cli("schedule", "list")
    assert done.returncode == 2
    assert f"error: {kubeflow.address}: {message}" in one_line(done.stderr)
    assert len(kubeflow.requests) == 1


def test_a_login_that_ends_amid_the_work_is_told(kubeflow: Kubeflow, cli: CommandLine) -> None:
    kubeflow.fail("POST", "/runs", Failure.LOGIN_PAGE)
    done = cli(*SUBMIT)
    assert done.returncode == 2
    assert "it wants a login" in one_line(done.stderr)
    assert kubeflow.runs == {}


def test_logins_are_files(kubeflow: Kubeflow, cli: CommandLine, folder: Path) -> None:
    (folder / "token").write_text("user-secret\n")
    (folder / "cookie").write_text("authservice_session=user-secret\n")
    kubeflow.login = ("Authorization", "Bearer user-secret")
    assert cli("schedule", "list", "--token-file=token").returncode == 0
    assert cli("schedule", "list", KF_PIPELINES_SA_TOKEN_PATH=str(folder / "token")).returncode == 0
    kubeflow.login = ("Cookie", "authservice_session=user-secret")
    done = cli("schedule", "list", "--cookie-file=cookie")
    assert done.returncode == 0, done.stderr
    (folder / "cookie").write_text("authservice_session=old-secret\n")
    done = cli("schedule", "list", "--cookie-file=cookie")
    assert done.returncode == 2
    assert "401 Unauthorized: Unauthenticated: the token is expired" in one_line(done.stderr)


def test_a_server_with_several_users_is_told_which(kubeflow: Kubeflow, cli: CommandLine) -> None:
    kubeflow.multi_user = True
    done = cli(*SUBMIT)
    assert done.returncode == 2
    assert "error: --namespace: is missing, and" in one_line(done.stderr)
    done = cli(*SUBMIT, "--namespace=team-a")
    assert done.returncode == 0, done.stderr
    for made in (kubeflow.experiments, kubeflow.pipelines):
        assert [entry["namespace"] for entry in made.values()] == ["team-a"]


def test_a_server_that_is_late_or_away_is_told(kubeflow: Kubeflow, cli: CommandLine) -> None:
    kubeflow.fail("GET", "/healthz", Failure.LATE)
    done = cli("schedule", "list", "--timeout=0.5")
    assert done.returncode == 1
    assert f"{kubeflow.address}: has not answered within 0.5 s. Try again" in one_line(done.stderr)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
    done = cli("schedule", "list", f"--host={nowhere}")
    assert done.returncode == 1
    assert f"{nowhere}: cannot be reached. Check --host" in one_line(done.stderr)


def test_a_run_is_waited_for_looked_at_and_ended(kubeflow: Kubeflow, cli: CommandLine) -> None:
    kubeflow.run_state = "SUCCEEDED"
    done = cli(*SUBMIT, "--wait")
    assert done.returncode == 0, done.stderr
    run = only_run(kubeflow)
    assert f"{run['run_id']}: succeeded" in done.stdout
    assert "had ended already" in cli("cancel", str(run["run_id"])).stdout
    run |= {
        "state": "FAILED",
        "run_details": {"task_details": [{"display_name": "Benchmark", "state": "FAILED"}]},
        "error": {"code": 13, "message": "the node went away"},
    }
    shown = cli("status", str(run["run_id"])).stdout
    assert re.search(r"Run .*: failed\nthe node went away\n", shown)
    assert re.search(r"Benchmark\s*│ failed", shown)
    request_id = str(run["description"]).split()[-1]
    done = cli(*SUBMIT, "--wait", f"--request-id={request_id}")
    assert done.returncode == 1
    assert f"run {run['run_id']}: it ended as FAILED" in one_line(done.stderr)
    run["state"] = "RUNNING"
    assert "is being ended" in cli("cancel", str(run["run_id"])).stdout
    assert run["state"] == "CANCELING"
    done = cli("status", "no-such-run")
    assert done.returncode == 2
    assert "404 Not Found: ResourceNotFoundError: no-such-run not found" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=cluster.yaml"], "--data cluster.yaml: lies on this machine, where the cluster's pods cannot see it"),
        (["--data=/elsewhere/set"], "--data /elsewhere/set: lies on this machine"),
        (["--data=/cache/../etc"], "--data /cache/../etc: lies on this machine"),
        (["--teacher=teacher.pt"], "--teacher teacher.pt: lies on this machine"),
        (["--recipe=recipe.yaml"], "--recipe recipe.yaml: lies on this machine"),
        (["--tensorrt=fp16"], "--tensorrt fp16: the cluster file names no image for it. Set images.tensorrt there"),
        (["--epochs=0"], "--epochs 0: it should be greater than or equal to 1"),
        (["--data=https://me:secret@host/data.zip"], "the address carries a password"),
        (["--params=list.yaml"], "--params list.yaml: does not map parameters to values"),
        (["--params=typo.yaml"], "--params typo.yaml: epoch: is not a parameter of the pipeline"),
        (["--params=wrong.yaml"], "--epochs many: it should be a valid integer"),
        (["--params=missing.yaml"], "--params missing.yaml: cannot be read (No such file or directory)"),
        (["--cluster=missing.yaml"], "--cluster missing.yaml: cannot be read"),
        (["--service-account=Big Boss"], "--service-account Big Boss: is no name in Kubernetes"),
        (["--namespace=_"], "--namespace _: is no name in Kubernetes"),
        (["--pipeline-root=/artifacts"], "--pipeline-root /artifacts: is no address"),
        (["--run-name= "], "--run-name: is empty"),
        (["--experiment="], "--experiment: is empty"),
        (["--request-id=1"], "--request-id 1: is not 8 to 64 letters"),
        (["--mlflow-experiment=x", "--no-mlflow"], "--mlflow-experiment: makes no sense with --no-mlflow"),
        (["--host=localhost:8888"], "--host localhost:8888: is not an http:// or https:// address"),
        (["--host=http://me:secret@host"], "--host http://host: the address carries a password"),
        (
            ["--host=http://127.0.0.1:9", "--token-file=missing"],
            "--token-file missing: cannot be read (No such file or directory)",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(
    offline: CommandLine, folder: Path, arguments: list[str], message: str
) -> None:
    (folder / "recipe.yaml").write_text("name: x\ndescription: x\nterms:\n- {loss: binary_kl, weight: 1}\n")
    (folder / "teacher.pt").write_bytes(b"PK\x05\x06" + bytes(18))
    (folder / "list.yaml").write_text("- epochs\n")
    (folder / "typo.yaml").write_text("epoch: 3\n")
    (folder / "wrong.yaml").write_text("epochs: many\n")
    done = offline(*SUBMIT, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in one_line(done.stderr)


def test_a_missing_server_is_told(folder: Path) -> None:
    done = CommandLine(folder, own_process=True)("schedule", "list")
    assert done.returncode == 2
    told = one_line(done.stderr)
    assert "error: --host: is missing, and there is neither a pod's service account nor a kubeconfig" in told


def test_data_on_a_mounted_volume_are_taken_at_their_word(kubeflow: Kubeflow, cli: CommandLine) -> None:
    digests = []
    for _ in range(2):
        done = cli(*SUBMIT, "--data=/cache/data/set", "--teacher=/cache/teacher.pt")
        assert done.returncode == 0, done.stderr
        parameters = list(kubeflow.runs.values())[-1]["runtime_config"]["parameters"]
        assert parameters["source"] == "/cache/data/set"
        assert parameters["teacher_model"] == "/cache/teacher.pt"
        assert parameters["imgsz"] == 640
        digests.append(parameters["source_digest"])
    # Nobody can tell from here whether the data have changed.
    assert digests[0] != digests[1]

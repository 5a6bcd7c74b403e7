"""The way of the kind script through a cluster: stand-ins for kind, kubectl and the engine write down what they do.

No cluster can run where these tests do. The storage that the table comes from is a real S3 API.
"""

import json
import os
import shutil
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import boto3
import psutil
import pytest
import yaml
from moto.server import ThreadedMotoServer

from tests.manifests.conftest import MANIFESTS, ROOT

RUN_ID = "0b7c9a52-6f0e-4b6e-9a53-6f2f4e6d8c11"
TABLE = "| Model | mAP |\n| --- | --- |\n| Student | 46.0 |\n"

# Answers that the script asks for; everything else is just written down.
KUBECTL = """#!/bin/sh
echo "kubectl $*" >> "$CALLS"
case "$*" in
    *jsonpath={.data.accesskey}*) printf %s "$ACCESS" | base64 ;;
    *jsonpath={.data.secretkey}*) printf %s "$ACCESS" | base64 ;;
    *"--output json"*) cat "$SECRET_JSON" ;;
    *port-forward*) exec sleep 60 ;;
esac
"""
KIND = """#!/bin/sh
echo "kind $*" >> "$CALLS"
case "$*" in
    "get clusters") echo "$CLUSTERS" ;;
esac
"""
ENGINE = """#!/bin/sh
echo "engine $*" >> "$CALLS"
case "$1" in
    save) : > "$3" ;;
esac
"""
PROGRAM = f"""#!/bin/sh
echo "yolo-distill $*" >> "$CALLS"
echo "Run yolov8-distillation 1: {RUN_ID} (pipeline version 0.1.0-abc)"
exit "$RUN_STATUS"
"""


@pytest.fixture
def storage() -> Iterator[str]:
    """Object storage that holds the table where Kubeflow would put it, beside another run's."""
    server = ThreadedMotoServer(port=0)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="key"
    )
    client.create_bucket(Bucket="mlpipeline")
    root = "v2/artifacts/yolov8-distillation"
    client.put_object(Bucket="mlpipeline", Key=f"{root}/{RUN_ID}/compare/f00/table", Body=TABLE.encode())
    client.put_object(Bucket="mlpipeline", Key=f"{root}/{RUN_ID}/compare/f00/report", Body=b"no")
    client.put_object(Bucket="mlpipeline", Key=f"{root}/another/compare/f00/table", Body=b"another")
    yield address
    server.stop()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of a checkout as the script touches, with the stand-ins in bin/."""
    root = tmp_path / "checkout"
    shutil.copytree(MANIFESTS, root / "manifests", ignore=shutil.ignore_patterns("*.env"))
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    programs = {"bin/kubectl": KUBECTL, "bin/kind": KIND, "bin/git": "#!/bin/sh\n", "bin/docker": ENGINE}
    programs |= {".venv/bin/yolo-distill": PROGRAM, ".venv/bin/python": f'#!/bin/sh\nexec {sys.executable} "$@"\n'}
    for name, text in programs.items():
        program = root / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    (root / "secret.json").write_text(
        json.dumps({"data": {name: b64encode(b"key").decode() for name in ("accesskey", "secretkey")}})
    )
    return root


@pytest.fixture
def roomy() -> None:
    """The script refuses small machines, as it should."""
    if shutil.disk_usage(ROOT).free < 30 * 2**30 or psutil.virtual_memory().total < 11 * 2**30:
        pytest.skip("the script wants 30 GB of disk and 12 GB of memory")


def up(checkout: Path, storage: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    port = storage.rpartition(":")[2]
    environment = {
        "PATH": f"{checkout / 'bin'}{os.pathsep}/usr/bin:/bin",
        "CALLS": str(checkout / "calls"),
        "SECRET_JSON": str(checkout / "secret.json"),
        "ACCESS": "key",
        "ENGINE": "docker",
        "CLUSTERS": "",
        "RUN_STATUS": "0",
        "PORT": port,
        "STORE_PORT": port,
        **settings,
    }
    command = [str(checkout / "manifests" / "kind" / "up.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def calls(checkout: Path) -> list[str]:
    written = checkout / "calls"
    return written.read_text().splitlines() if written.exists() else []


@pytest.mark.usefixtures("roomy")
def test_from_nothing_to_the_table(checkout: Path, storage: str) -> None:
    done = up(checkout, storage, "--epochs", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(TABLE + "\n")
    made = calls(checkout)
    steps = [
        "kind create cluster --config manifests/kind/cluster.yaml",
        "kind load image-archive",
        "cluster-scoped-resources?ref=2.17.0",
        "env/platform-agnostic?ref=2.17.0",
        "apply -k manifests/overlays/kind",
        "rollout status deployment/mlflow",
        "yolo-distill submit",
    ]
    places = [next(index for index, call in enumerate(made) if step in call) for step in steps]
    assert places == sorted(places)
    assert all("--context kind-yolo-distill" in call for call in made if call.startswith("kubectl"))
    (submission,) = (call for call in made if call.startswith("yolo-distill"))
    assert (
        "--cluster manifests/overlays/kind/cluster.yaml --service-account yolo-distill --wait --epochs 3" in submission
    )
    cluster = yaml.safe_load((checkout / "manifests/overlays/kind/cluster.yaml").read_text())
    saved = {call.rpartition(" ")[2] for call in made if call.startswith("engine save")}
    assert set(cluster["images"].values()) < saved


@pytest.mark.usefixtures("roomy")
def test_the_password_is_drawn_once_and_kept_to_oneself(checkout: Path, storage: str) -> None:
    assert up(checkout, storage).returncode == 0
    file = checkout / "manifests" / "overlays" / "kind" / "mlflow" / "mlflow.env"
    text = file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    password, key, secret = (line.partition("=")[2] for line in text.splitlines())
    assert len(password) == 32
    assert password.isalnum()
    assert (key, secret) == ("key", "key")
    again = up(checkout, storage, CLUSTERS="yolo-distill")
    assert again.returncode == 0
    assert file.read_text() == text
    assert password not in again.stdout + again.stderr
    assert sum("kind create" in call for call in calls(checkout)) == 1


@pytest.mark.usefixtures("roomy")
def test_a_failed_run_fails_the_script(checkout: Path, storage: str) -> None:
    done = up(checkout, storage, RUN_STATUS="1")
    assert done.returncode != 0
    assert TABLE not in done.stdout


def test_a_run_without_a_table_is_an_error(storage: str) -> None:
    secret = json.dumps({"data": {name: b64encode(b"key").decode() for name in ("accesskey", "secretkey")}})
    command = [sys.executable, str(MANIFESTS / "kind" / "table.py"), storage, "mlpipeline", "missing"]
    done = subprocess.run(command, input=secret, capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: run missing left no table" in done.stderr


@pytest.mark.parametrize(
    ("program", "text", "words"),
    [
        ("bin/docker", "#!/bin/sh\nexit 1\n", "docker does not answer: is its service running, and may you use it?"),
        (".venv/bin/yolo-distill", None, ".venv is missing: run make setup"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_done(
    checkout: Path, program: str, text: str | None, words: str
) -> None:
    (checkout / program).unlink()
    if text:
        (checkout / program).write_text(text)
        (checkout / program).chmod(0o755)
    done = up(checkout, "http://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr == f"error: {words}\n"
    assert not [call for call in calls(checkout) if not call.startswith("engine info")]

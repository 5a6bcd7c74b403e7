import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
from kfp.client import Client
from typer.testing import CliRunner

from tests.remote.api_server import Kubeflow, serve_kubeflow
from yolo_distill.pipelines.cli import app

PROGRAM = Path(sys.executable).parent / "yolo-distill"
CPU_IMAGE = "registry.example.org/yolo-distill@sha256:" + "a" * 64
TRAIN_IMAGE = "registry.example.org/yolo-distill-cuda@sha256:" + "b" * 64
TENSORRT_IMAGE = "registry.example.org/yolo-distill-tensorrt@sha256:" + "c" * 64
CLUSTER = f"""
images:
  cpu: {CPU_IMAGE}
  train: {TRAIN_IMAGE}
work_root: /cache/work
cache_root: s3://teachers/answers
defaults:
  cpu: 2
  memory: 4Gi
  volumes: [{{claim: yolo-distill, mount: /cache}}]
"""


@dataclass(frozen=True)
class Done:
    """What a command has said, and how it ended."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class CommandLine:
    """The command line in a folder of its user's, without the seconds that a process takes to start.

    Attributes:
        folder: The working directory.
        host: The server that the environment names.
        own_process: Whether each command is a process, as it is for a user.
    """

    folder: Path
    host: str | None = None
    own_process: bool = False

    def __call__(self, *arguments: str, **environment: str) -> Done:
        hidden = ("KF_", "KUBE", "AWS_", "MLFLOW_", "YOLO_DISTILL_REQUEST")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        own = {"HOME": str(self.folder), "COLUMNS": "200"}
        if self.host:
            own["KF_PIPELINES_ENDPOINT"] = self.host
        variables = {**inherited, **own, **environment}
        if self.own_process:
            ended = subprocess.run(
                [PROGRAM, *arguments], cwd=self.folder, env=variables, capture_output=True, text=True, timeout=120
            )
            return Done(ended.returncode, ended.stdout, ended.stderr)
        with chdir(self.folder), patch.dict(os.environ, variables, clear=True):
            result = CliRunner().invoke(app, arguments)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    # Found when kfp is imported, in whoever's home this is.
    monkeypatch.setattr(Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    return tmp_path


@pytest.fixture
def kubeflow() -> Iterator[Kubeflow]:
    with serve_kubeflow() as server:
        yield server


@pytest.fixture
def cli(folder: Path, kubeflow: Kubeflow) -> CommandLine:
    return CommandLine(folder, kubeflow.address)


@pytest.fixture
def program(folder: Path, kubeflow: Kubeflow) -> CommandLine:
    """The program as a user starts it."""
    return CommandLine(folder, kubeflow.address, own_process=True)


@pytest.fixture
def offline(folder: Path) -> CommandLine:
    """The command line where no server is named."""
    return CommandLine(folder)

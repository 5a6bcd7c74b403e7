"""What ``predict`` needs to be installed, and no more."""

import json
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.prediction.commands import results

# Runs the command line where only what the project requires to run models can be imported.
BARE = """
    import json, sys

    class Installed:
        def __init__(self, finder):
            self.finder = finder

        def find_spec(self, name, path=None, target=None):
            return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)

    hidden = set(json.loads(sys.argv.pop(1)))
    assert not hidden & set(sys.modules)
    sys.meta_path[:] = [Installed(finder) for finder in sys.meta_path]
    from yolo_distill.pipelines.cli import app
    app()
"""


def required(root: Path) -> set[str]:
    """Return the distributions that are installed without any extra, by normalised name."""
    pending = [
        Requirement(entry) for entry in tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    ]
    found: set[str] = set()
    while pending:
        requirement = pending.pop()
        if normal(requirement.name) not in found and (
            not requirement.marker or requirement.marker.evaluate({"extra": ""})
        ):
            found.add(normal(requirement.name))
            pending += map(Requirement, metadata.requires(requirement.name) or [])
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def hidden(repo_root: Path) -> list[str]:
    """Return every module that belongs to another distribution than those."""
    kept = required(repo_root) | {"yolo-distill"}
    modules = metadata.packages_distributions()
    others = [name for name, owners in modules.items() if not any(normal(owner) in kept for owner in owners)]
    return [name for name in others if not name.startswith(("__editable__", "_distutils", "yolo_distill"))]


def bare(folder: Path, hidden: list[str], *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", textwrap.dedent(BARE), json.dumps(hidden), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_what_is_hidden(hidden: list[str]) -> None:
    assert {"torch", "ultralytics", "kfp", "mlflow", "nncf", "onnx", "boto3", "sklearn"} <= set(hidden)
    assert not {"cv2", "numpy", "openvino", "onnxruntime", "PIL", "pydantic", "typer", "rich", "yaml"} & set(hidden)


@pytest.mark.parametrize("model", ["int8", "onnx"])
def test_models_run_without_what_made_them(models, digits, tmp_path, hidden, model):
    picture = digits.image_path(digits.split("val")[1])
    process = bare(tmp_path, hidden, "predict", models / model, picture, "--conf=0.2")
    assert (process.returncode, process.stderr) == (0, "")
    assert results(tmp_path / "predictions")[0]["objects"]


def test_what_needs_more_says_so(models, digits, tmp_path, hidden):
    picture = digits.image_path(digits.split("val")[1])
    process = bare(tmp_path, hidden, "predict", models / "distilled", picture)
    assert process.returncode == 2
    assert "is in pytorch format, which needs the package" in process.stderr
    for command in ("run", "compile"):
        process = bare(tmp_path, hidden, command)
        assert process.returncode == 2
        assert process.stderr == (
            "error: yolo-distill: was installed to run models, without the libraries of the pipeline. "
            "Install yolo-distill[pipeline]\n"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_fresh_installation(models, digits, tmp_path, repo_root):
    for name in ("components", "pipelines", "pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        source = repo_root / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    binaries = tmp_path / "venv" / "bin"
    install = [binaries / "pip", "install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt", "."]
    subprocess.run(install, cwd=tmp_path, check=True, timeout=600)
    work = tmp_path / "work"
    work.mkdir()
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    picture = digits.image_path(digits.split("val")[1])
    for model in ("int8", "onnx"):
        command = [binaries / "yolo-distill", "predict", models / model, picture, "--conf=0.2", "-o", model]
        process = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=120)
        assert (process.returncode, process.stderr) == (0, "")
        assert results(work / model)[0]["objects"]
    listed = subprocess.run([binaries / "pip", "list"], capture_output=True, text=True, check=True).stdout.lower()
    assert not re.search(r"^(torch|ultralytics|kfp|mlflow|nncf)\b", listed, re.MULTILINE)

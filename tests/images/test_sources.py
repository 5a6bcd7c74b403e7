"""What can be known of the images without building them; images/test.sh tests the built ones."""

import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from yolo_distill.components.shared.image import CPU_IMAGE, TRAIN_IMAGE

ROOT = Path(__file__).parent.parent.parent
DOCKERFILES = sorted(ROOT.glob("images/**/Dockerfile"))
SCRIPTS = sorted(path for path in ROOT.rglob("*.sh") if not {".venv", "build"} & set(path.relative_to(ROOT).parts))
PYTHON_IMAGE = re.compile(r'PYTHON_IMAGE(?:=|" \{\n  default = ")(?P<image>\S+?)"?\n')


def tool(name: str) -> str:
    """A program that the development dependencies bring along, found beside Python or in PATH."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not path:
        pytest.skip(f"{name} is not installed: pip install -c constraints.txt -e '.[dev]'")
    return path


def run(*command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", **settings}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A container engine that writes down what it is told, in place of building for half an hour."""
    program = tmp_path / "engine"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/told\necho >> {tmp_path}/told\n')
    program.chmod(0o755)
    return program


def told(engine: Path) -> list[list[str]]:
    return [block.splitlines() for block in (engine.parent / "told").read_text().strip().split("\n\n")]


def bake() -> dict[str, dict[str, str]]:
    """Each target of the bake file: its Dockerfile, tag and arguments, with the variables' defaults put in."""
    text = (ROOT / "docker-bake.hcl").read_text()
    defaults = dict(re.findall(r'variable "(\w+)" \{\n  default = "(.*)"\n', text))
    targets = {}
    for name, body in re.findall(r'target "(\w+)" \{\n(.*?)\n\}', text, flags=re.DOTALL):
        fields = dict(re.findall(r"^ +(\w+) += (.*[^{\[])$", body, flags=re.MULTILINE))
        for field, value in fields.items():
            raw = defaults.get(value, value.strip('[]"'))
            fields[field] = re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], raw)
        targets[name] = fields
    return targets


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_hadolint_has_nothing_to_say(dockerfile: Path) -> None:
    done = run(tool("hadolint"), str(dockerfile))
    assert done.returncode == 0, done.stdout


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian:latest\nRUN cd /tmp && sudo apt-get install python\n")
    assert run(tool("hadolint"), str(tmp_path / "Dockerfile")).returncode != 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    assert "set -euo pipefail" in script.read_text()
    done = run(tool("shellcheck"), str(script))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_last_stage_is_locked_down(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    last = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 10001:10001$", last, flags=re.MULTILINE)
    assert not re.search(r"pip install|apt-get|ADD |chmod|ENTRYPOINT", last)
    assert "-c constraints.txt" in text
    for label in ("version", "revision", "licenses"):
        assert f"org.opencontainers.image.{label}=" in last


def test_one_base_for_all() -> None:
    files = [*DOCKERFILES, ROOT / "docker-bake.hcl"]
    images = {match["image"] for file in files for match in PYTHON_IMAGE.finditer(file.read_text())}
    (image,) = images
    assert re.fullmatch(r"docker\.io/library/python:3\.11-slim-bookworm@sha256:[0-9a-f]{64}", image)


def test_the_script_and_the_bake_file_build_the_same(engine: Path) -> None:
    done = run("images/build.sh", ENGINE=str(engine))
    assert done.returncode == 0, done.stderr
    targets = bake()
    calls = told(engine)
    assert len(calls) == 4
    for name, call in zip(("cpu", "cuda", "tensorrt", "mlflow"), calls, strict=True):
        baked = targets[name]
        arguments = dict(value.split("=", 1) for flag, value in pairwise(call) if flag == "--build-arg")
        assert call[call.index("--tag") + 1] == baked.pop("tags")
        assert call[call.index("--file") + 1] == baked.pop("dockerfile")
        assert arguments.pop("GIT_COMMIT")
        baked.pop("inherits")
        assert arguments == baked, name


def test_the_tags_are_those_that_the_components_name() -> None:
    tags = {target["tags"] for target in bake().values() if "tags" in target}
    assert {CPU_IMAGE, TRAIN_IMAGE} <= tags
    cluster = yaml.safe_load((ROOT / "manifests" / "overlays" / "kind" / "cluster.yaml").read_text())
    assert set(cluster["images"].values()) <= tags
    served = (ROOT / "manifests" / "base" / "mlflow" / "server.yaml").read_text()
    assert f"image: {bake()['mlflow']['tags']}\n" in served


def test_what_the_build_needs_to_know_is_passed_on(engine: Path) -> None:
    settings = {
        "REGISTRY": "registry.example.org:5000/team",
        "PYTHON_IMAGE": "localhost/python:3.11-slim",
        "PIP_INDEX_URL": "https://index.example.org/simple",
        "PIP_CONF": "/etc/secret/pip.conf",
        "CA_BUNDLE": "/etc/secret/ca.pem",
        "BUILD_FLAGS": "--network=host --no-cache",
    }
    done = run("images/build.sh", "cpu", ENGINE=str(engine), TORCH_INDEX="", **settings)
    assert done.returncode == 0, done.stderr
    ((command, *call),) = told(engine)
    assert command == "build"
    assert call[call.index("--tag") + 1].startswith("registry.example.org:5000/team/yolo-distill-python:")
    for expected in (
        "PYTHON_IMAGE=localhost/python:3.11-slim",
        "PIP_INDEX_URL=https://index.example.org/simple",
        "TORCH_INDEX=",
        "id=pip.conf,src=/etc/secret/pip.conf",
        "id=ca.pem,src=/etc/secret/ca.pem",
        "--network=host",
        "--no-cache",
    ):
        assert expected in call


@pytest.mark.parametrize(
    ("command", "settings", "words"),
    [
        (("images/build.sh", "rocm"), {}, "there is no image named rocm; there are cpu, cuda, tensorrt and mlflow"),
        (("images/build.sh", "cpu"), {"ENGINE": "no-such-engine"}, "no-such-engine is not installed"),
        (("images/test.sh",), {}, "name one image"),
        (("images/test.sh", "localhost/x:1"), {"ENGINE": "no-such-engine"}, "no-such-engine is not installed"),
        (("manifests/kind/up.sh",), {"ENGINE": "no-such-engine"}, "no-such-engine is not installed"),
    ],
)
def test_scripts_say_what_is_missing(
    engine: Path, command: tuple[str, ...], settings: dict[str, str], words: str
) -> None:
    done = run(*command, **({"ENGINE": str(engine)} | settings))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr


def test_only_what_is_copied_gets_into_the_build() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for dockerfile in DOCKERFILES
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile.read_text(), flags=re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == allowed
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


def test_no_step_asks_for_a_package_that_the_images_lack() -> None:
    # They have OpenCV from opencv-python-headless.
    asking = [path for path in (ROOT / "components").rglob("*.py") if '"opencv-python"' in path.read_text()]
    assert asking == []

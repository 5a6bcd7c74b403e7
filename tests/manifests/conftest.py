"""The manifests as a cluster would get them: rendered by kubectl's own kustomize."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
MANIFESTS = ROOT / "manifests"
OVERLAYS = sorted(path.parent.name for path in MANIFESTS.glob("overlays/*/kustomization.yaml"))

# Stands for every secret value in what is rendered here, so that each place where one ends up is found.
SECRET = "s3cretvalue"


@dataclass(frozen=True)
class Overlay:
    """A rendered overlay."""

    name: str
    text: str
    objects: list[dict[str, Any]]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [item for item in self.objects if item["kind"] == kind]

    def named(self, kind: str, name: str) -> dict[str, Any]:
        (found,) = (item for item in self.of(kind) if item["metadata"]["name"] == name)
        return found

    def pods(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every pod that the overlay makes, by the name of what makes it."""
        for item in self.objects:
            match item["kind"]:
                case "Deployment" | "StatefulSet" | "DaemonSet" | "Job":
                    yield item["metadata"]["name"], item["spec"]["template"]["spec"]
                case "CronJob":
                    yield item["metadata"]["name"], item["spec"]["jobTemplate"]["spec"]["template"]["spec"]
                case "Pod":
                    yield item["metadata"]["name"], item["spec"]


def tool(name: str) -> str:
    """A program that the development dependencies bring along, found beside Python or in PATH."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not path:
        pytest.skip(f"{name} is not installed: pip install -c constraints.txt -e '.[dev]'")
    return path


def render(folder: Path) -> str:
    done = subprocess.run([tool("kubectl"), "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def filled_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifests with the secrets that a user would fill in."""
    copy = tmp_path_factory.mktemp("manifests") / "manifests"
    shutil.copytree(MANIFESTS, copy, ignore=shutil.ignore_patterns("*.env"))
    examples = list(copy.rglob("*.env.example"))
    assert examples
    for example in examples:
        lines = [line + SECRET if line.endswith("=") else line for line in example.read_text().splitlines()]
        example.with_suffix("").write_text("\n".join(lines) + "\n")
    return copy


@pytest.fixture(scope="session", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest, filled_in: Path) -> Overlay:
    text = render(filled_in / "overlays" / request.param)
    return Overlay(request.param, text, [item for item in yaml.safe_load_all(text) if item])

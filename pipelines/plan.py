"""What a local run is told, and how its folders are named."""

import hashlib
import os
import re
import uuid
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata, resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from yolo_distill.components.shared.files import write_text

Argument = str | int | float | bool | list[str] | list[dict[str, str | int]]


class RunPlan(BaseModel):
    """A pipeline run on this machine.

    Layout of ``output``::

        <name>/                 this run: run.json, pipeline.yaml, events/, tasks/ (the artifacts) and the results
        latest                  link to the newest run that succeeded
        logs/<name>.log         everything the tasks printed
        cache/<digest>/         which artifacts answer which task, for this code, these libraries and this MLflow server
        work/                   what an interrupted run has to show, and the teacher's answers, by content
        mlflow.db, mlartifacts/ MLflow, unless the user has a server

    Attributes:
        run_id: Unique id, tagged onto the MLflow runs.
        name: Readable name, unique within ``output``.
        output: Folder of all runs.
        arguments: The pipeline's parameters.
        cached: Whether results of earlier runs may be used.
        tracking_uri: MLflow's tracking server (``MLFLOW_TRACKING_URI``) or the SQLite file in ``output``.
        images: The id of each image whose containers the tasks are, by name; without any, tasks are processes.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    name: str
    output: Path
    arguments: dict[str, Argument]
    cached: bool
    tracking_uri: str
    images: dict[str, str] = {}

    @classmethod
    def new(
        cls,
        output: Path,
        arguments: Mapping[str, Argument],
        *,
        cached: bool = True,
        images: Mapping[str, str] | None = None,
    ) -> "RunPlan":
        """Plan a run; nothing is written yet.

        Args:
            output: Folder of all runs.
            arguments: The pipeline's parameters.
            cached: Whether results of earlier runs may be used.
            images: The id of each image whose containers the tasks shall be, by name.
        """
        output = output.absolute()
        run_id = uuid.uuid4().hex
        return cls(
            run_id=run_id,
            name=f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{run_id[:4]}",
            output=output,
            arguments=dict(arguments),
            cached=cached,
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output / 'mlflow.db'}",
            images=dict(images or {}),
        )

    @property
    def folder(self) -> Path:
        """Everything of this run but its log."""
        return self.output / self.name

    @property
    def file(self) -> Path:
        """Where the plan itself is kept."""
        return self.folder / "run.json"

    @property
    def pipeline(self) -> Path:
        """The compiled pipeline."""
        return self.folder / "pipeline.yaml"

    @property
    def events(self) -> Path:
        """Folder of the tasks' event files."""
        return self.folder / "events"

    @property
    def tasks(self) -> Path:
        """Folder of the tasks' artifacts."""
        return self.folder / "tasks"

    @property
    def log(self) -> Path:
        """Everything that runner and tasks print."""
        return self.output / "logs" / f"{self.name}.log"

    @property
    def cache(self) -> Path:
        """Where the runner remembers which artifacts answer which task.

        KFP's key covers a component's few lines and its arguments. What those lines call is not in it, nor is the
        MLflow server that the results were recorded on, so that they choose the folder. In containers, the images hold
        what is called.
        """
        code = " ".join(sorted(self.images.values())) or code_digest()
        key = hashlib.sha256(f"{code} {self.tracking_uri}".encode()).hexdigest()
        return self.output / "cache" / key[:16]

    def origin(self, artifact: Path) -> str | None:
        """Return the name of the run that made an artifact, or ``None`` if it lies elsewhere."""
        if not artifact.is_relative_to(self.output):
            return None
        return artifact.relative_to(self.output).parts[0]

    def save(self) -> None:
        """Write the plan to its file."""
        write_text(self.file, self.model_dump_json(indent=2) + "\n")


def code_digest() -> str:
    """Return a digest over the components' files and the versions of the libraries they are built on."""
    digest = hashlib.sha256()
    root = Path(str(resources.files("yolo_distill.components")))
    for path in sorted(p for pattern in ("*.py", "*.yaml", "*.html", "*.j2") for p in root.rglob(pattern)):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    for requirement in sorted(metadata.requires("yolo-distill") or []):
        name = re.match(r"[\w.-]+", requirement)
        if name and ("extra ==" not in requirement or 'extra == "pipeline"' in requirement):
            digest.update(f"{name[0]}=={_version(name[0])}\0".encode())
    return digest.hexdigest()


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        # In the images another variant of OpenCV takes its place.
        return ""

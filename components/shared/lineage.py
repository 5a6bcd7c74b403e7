"""Where MLflow runs live, how they hang together and which names they carry.

The tag names of a pipeline run are those of Kubeflow Pipelines' own MLflow plugin, so that the tree of runs looks the
same with and without it. MLflow is imported when it is first used, because that takes seconds.
"""

import importlib.metadata
import logging
import os
import re
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import ModelCard

# MLflow reports its use to its makers unless it is told not to before it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.data.dataset_source import DatasetSource
    from mlflow.entities import LoggedModel, Run

PIPELINE_RUN_ID_VARIABLE = "YOLO_DISTILL_PIPELINE_RUN_ID"
PIPELINE_RUN_NAME_VARIABLE = "YOLO_DISTILL_PIPELINE_RUN_NAME"
GIT_COMMIT_VARIABLE = "YOLO_DISTILL_GIT_COMMIT"
IMAGE_VARIABLE = "YOLO_DISTILL_IMAGE"

PIPELINE_RUN_ID_TAG = "kfp.pipeline_run_id"
STEP_TAG = "yolo_distill.step"
SUBJECT_TAG = "yolo_distill.subject"
IMAGE_TAG = "yolo_distill.image"
ERROR_TAG = "yolo_distill.error"
MODEL_DIGEST_TAG = "model.digest"
DATASET_DIGEST_TAG = "dataset.digest"

DEFAULT_EXPERIMENT = "yolo-distill"
# MLflow refuses longer dataset digests.
DATASET_DIGEST_LENGTH = 36
LIBRARIES = ("kfp", "mlflow", "nncf", "numpy", "onnx", "onnxruntime", "openvino", "torch", "ultralytics")

_PARENT_TAG = "mlflow.parentRunId"
_CONNECT_SECONDS = 10


def connect() -> "tuple[MlflowClient, str]":
    """Connect to the tracking store and find the experiment, quickly or not at all.

    The store is named by ``MLFLOW_TRACKING_URI``, MLflow's own default without it. The experiment is named by
    ``MLFLOW_EXPERIMENT_ID`` or ``MLFLOW_EXPERIMENT_NAME``, ``yolo-distill`` without them, and made when it is missing.

    Returns:
        A client and the experiment's id.

    Raises:
        InputError: The store cannot be reached or used.
    """
    # Making a new database prints a line for every table migration.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    uri = mlflow.get_tracking_uri()
    try:
        with impatience():
            client = mlflow.MlflowClient()
            return client, _experiment_id(client, uri)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        problem = without_credentials(str(error).strip().partition("\n")[0]).rstrip(".")
        raise InputError(
            f"MLflow at {without_credentials(uri)}",
            f"cannot be used: {problem}",
            "Start the server, or set MLFLOW_TRACKING_URI to one that runs or to sqlite:///FILE",
        ) from error


@contextmanager
def impatience() -> Iterator[None]:
    """Make MLflow give up on a server within seconds; left alone it tries for minutes."""
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_CONNECT_SECONDS)}
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update(limits)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def pipeline_run(
    client: "MlflowClient", experiment_id: str, pipeline_run_id: str, contention_seconds: float = 0
) -> "Run":
    """Find the MLflow run of a pipeline run, which is the parent of its tasks' runs, or make it.

    Args:
        client: Client of the tracking store.
        experiment_id: The experiment that holds the pipeline's runs.
        pipeline_run_id: Identity of the pipeline run, as Kubeflow Pipelines knows it.
        contention_seconds: How long to look out for others that make it at the same time, so that all agree on one of
            them. Tasks have to, who launches the pipeline does not.

    Returns:
        The parent run.
    """
    if found := _pipeline_runs(client, experiment_id, pipeline_run_id):
        return found[0]
    own = client.create_run(
        experiment_id,
        tags={PIPELINE_RUN_ID_TAG: pipeline_run_id},
        run_name=os.environ.get(PIPELINE_RUN_NAME_VARIABLE) or f"pipeline {pipeline_run_id}",
    )
    time.sleep(contention_seconds)
    first = _pipeline_runs(client, experiment_id, pipeline_run_id)[0]
    if first.info.run_id != own.info.run_id:
        client.delete_run(own.info.run_id)
    return first


def settle_pipeline_run(client: "MlflowClient", parent: "Run") -> None:
    """Give a pipeline's run the status that its tasks add up to.

    No task knows whether it is the last one, so each of them does this at its end, and the next one that starts sets
    the parent running again. Of a task that was tried more than once the last try counts.

    Args:
        client: Client of the tracking store.
        parent: The pipeline's run.
    """
    tries = client.search_runs(
        [parent.info.experiment_id],
        f"tags.`{_PARENT_TAG}` = '{parent.info.run_id}'",
        order_by=["attributes.start_time ASC"],
    )
    statuses = {run.info.status for run in {run.info.run_name: run for run in tries}.values()}
    if "RUNNING" not in statuses:
        worst = next((status for status in ("FAILED", "KILLED") if status in statuses), "FINISHED")
        client.set_terminated(parent.info.run_id, worst)


def source_tags() -> dict[str, str]:
    """Return tags that say which code ran: git commit, container image and library versions."""
    tags = {f"version.{name}": version for name, version in library_versions().items()}
    if image := os.environ.get(IMAGE_VARIABLE):
        tags[IMAGE_TAG] = image
    commit, dirty = _git_commit()
    if commit:
        tags |= {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(dirty)}
    return tags


def library_versions() -> dict[str, str]:
    """Return the versions of the installed libraries that results depend on, by name."""
    return {name: version for name in LIBRARIES if (version := _version(name))}


def model_tags(card: ModelCard, folder: Path) -> dict[str, str]:
    """Return tags that identify a model and lead to what it was made from.

    Args:
        card: The model's card.
        folder: Where the model artifact lies.

    Returns:
        ``model.*`` for the model itself, with ``model.uri`` where it lies, and ``lineage.*`` for each thing its card
        says of its origin.
    """
    return {
        "model.name": card.name,
        "model.format": card.format,
        "model.precision": card.precision,
        "model.architecture": card.architecture,
        "model.licence": card.licence,
        "model.uri": artifact_uri(folder),
        **_digest_tags(card),
        **{f"lineage.{name}": value for name, value in card.lineage.items()},
    }


def create_logged_model(card: ModelCard, folder: Path, run_id: str) -> "LoggedModel":
    """Make a model known to MLflow, by its card; its files stay where they are.

    Args:
        card: The model's card.
        folder: The model artifact.
        run_id: The run that the model belongs to.
    """
    import mlflow

    run = mlflow.get_run(run_id)
    params = card.model_dump(include={"imgsz", "parameters", "gflops", "architecture", "licence"})
    return mlflow.create_external_model(
        # MLflow refuses some characters in a model's name.
        re.sub("[/:.%\"']", "_", card.name),
        source_run_id=run_id,
        tags={**model_tags(card, folder), "mlflow.source.name": run.data.tags["mlflow.source.name"]},
        params={name: str(value) for name, value in params.items()},
        model_type="object-detector",
        experiment_id=run.info.experiment_id,
    )


def find_logged_model(client: "MlflowClient", experiment_id: str, card: ModelCard) -> "LoggedModel | None":
    """Find the model that a step made known to MLflow, by the digests of all its files; the first of several."""
    same = [f"tags.`{name}` = '{value}'" for name, value in _digest_tags(card).items()]
    found = client.search_logged_models(
        [experiment_id],
        " AND ".join(same),
        order_by=[{"field_name": "creation_timestamp", "ascending": True}],
        max_results=1,
    )
    return found[0] if found else None


def artifact_uri(path: Path) -> str:
    """Return the address of an artifact: Kubeflow's in a pod, where stores are mounted as folders, else ``file://``."""
    from kfp.dsl.types.artifact_types import convert_local_path_to_remote_path

    absolute = path.absolute()
    uri: str = convert_local_path_to_remote_path(str(absolute))
    return absolute.as_uri() if uri == str(absolute) else uri


def dataset_source(path: Path) -> "DatasetSource":
    """Return where a dataset artifact lies, in MLflow's terms."""
    from mlflow.data.dataset_source_registry import resolve_dataset_source

    with warnings.catch_warnings(action="ignore"):
        # minio:// is Kubeflow's name for a store that speaks S3, which MLflow does not know by that name.
        return resolve_dataset_source(re.sub("^minio://", "s3://", artifact_uri(path)))


def without_credentials(text: str) -> str:
    """Return a text with user names, passwords and query strings taken out of every address in it."""
    text = re.sub(r"(\w+://)[^\s/@]*@", r"\1", text)
    return re.sub(r"(\w+://[^\s?#]*)[?#][^\s)'\"]*", r"\1", text)


def metric_name(name: str) -> str:
    """Return a name that MLflow takes for a metric, with ultralytics' ``(B)`` for boxes left out."""
    return re.sub(r"[^\w\-. :/]", "_", re.sub(r"\(\w\)$", "", name))


def _digest_tags(card: ModelCard) -> dict[str, str]:
    files = {f"{MODEL_DIGEST_TAG}.{file}": digest for file, digest in card.digests.items()}
    return {MODEL_DIGEST_TAG: card.digest, **files}


def _experiment_id(client: "MlflowClient", uri: str) -> str:
    from mlflow.exceptions import MlflowException

    if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return str(client.get_experiment(experiment_id).experiment_id)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
    if experiment := client.get_experiment_by_name(name):
        return str(experiment.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=_artifact_location(uri)))
    except MlflowException as error:
        # Another task made it in the meantime.
        if error.error_code == "RESOURCE_ALREADY_EXISTS" and (experiment := client.get_experiment_by_name(name)):
            return str(experiment.experiment_id)
        raise


def _artifact_location(uri: str) -> str | None:
    """Return where artifacts go: beside an sqlite file and not in the working directory; a server knows its own."""
    if urlsplit(uri).scheme != "sqlite":
        return None
    from sqlalchemy.engine import make_url

    database = make_url(uri).database or "mlflow.db"
    return (Path(database).absolute().parent / "mlartifacts").as_uri()


def _pipeline_runs(client: "MlflowClient", experiment_id: str, pipeline_run_id: str) -> "list[Run]":
    found = client.search_runs([experiment_id], f"tags.`{PIPELINE_RUN_ID_TAG}` = '{pipeline_run_id}'")
    # Tasks carry the tag too.
    parents = [run for run in found if _PARENT_TAG not in run.data.tags]
    return sorted(parents, key=lambda run: (run.info.start_time, run.info.run_id))


def _git_commit() -> tuple[str, bool]:
    """Return the commit of this package's code and whether files differ from it; no commit outside a checkout."""
    if commit := os.environ.get(GIT_COMMIT_VARIABLE):
        return commit, False
    file = Path(__file__)
    # An environment may lie inside a checkout of something else: the commit counts if it holds this very file.
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return "", False
    return _git(file.parent, "rev-parse", "HEAD") or "", bool(_git(file.parent, "status", "--porcelain", "-uno"))


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(folder), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None

"""The MLflow run of one pipeline task."""

import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import environ
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared import lineage
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import CARD_NAME, read_card
from yolo_distill.components.shared.progress import report_error

if TYPE_CHECKING:
    from mlflow import ActiveRun, MlflowClient
    from mlflow.entities import Run

# The first tasks of a pipeline start at once, and one's run becomes visible to the other within this time.
_CONTENTION_SECONDS = 2.0


class TaskRun:
    """Records what a task does.

    Attributes:
        run_id: The MLflow run that it records to.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._measured_model: str | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record measured values.

        Args:
            metrics: Values by name; characters that MLflow refuses become underscores.
            step: What the values belong to, such as an epoch.
        """
        import mlflow

        named = {lineage.metric_name(name): float(value) for name, value in metrics.items()}
        mlflow.log_metrics(named, step=step, run_id=self.run_id, model_id=self._measured_model)

    def log_dataset(self, dataset: DetectionDataset, context: str) -> None:
        """Record the dataset that the task reads or makes.

        Args:
            dataset: The dataset artifact.
            context: What it is used for, such as ``training`` or ``evaluation``.
        """
        import mlflow
        from mlflow.data.meta_dataset import MetaDataset

        digest, origin = dataset.digest, lineage.without_credentials(dataset.manifest.source)
        entry = MetaDataset(
            lineage.dataset_source(dataset.root),
            name=origin.rstrip("/").rpartition("/")[2],
            digest=digest[: lineage.DATASET_DIGEST_LENGTH],
        )
        tags = {"digest": digest, "origin": origin[:500]}
        try:
            mlflow.log_input(entry, context=context, tags=tags)
        except mlflow.MlflowException as error:
            if "constraint" not in str(error):
                raise
            # A task at the same time was the first to record this dataset; now it is found.
            mlflow.log_input(entry, context=context, tags=tags)
        self.set_tags({lineage.DATASET_DIGEST_TAG: digest})

    def log_model(self, folder: Path) -> None:
        """Record a model that the task made: its card, and where it lies, but not its weights a second time.

        Args:
            folder: The model artifact.

        Raises:
            InputError: The folder is no valid model artifact.
        """
        import mlflow
        from mlflow.entities import LoggedModelOutput

        model = lineage.create_logged_model(read_card(folder), folder, self.run_id)
        mlflow.MlflowClient().log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])
        mlflow.log_artifact(str(folder / CARD_NAME), folder.name, run_id=self.run_id)

    def use_model(self, folder: Path) -> str:
        """Record that the task measures a model: metrics that are logged from now on are shown with it.

        Args:
            folder: The model artifact.

        Returns:
            The id by which MLflow knows the model: that of the one that its step recorded, a new one where the tracking
            store does not know it.

        Raises:
            InputError: The folder is no valid model artifact.
        """
        import mlflow
        from mlflow.entities import LoggedModelInput

        card, client = read_card(folder), mlflow.MlflowClient()
        experiment_id = client.get_run(self.run_id).info.experiment_id
        known = lineage.find_logged_model(client, experiment_id, card)
        model = known or lineage.create_logged_model(card, folder, self.run_id)
        client.log_inputs(self.run_id, models=[LoggedModelInput(model.model_id)])
        self._measured_model = str(model.model_id)
        return self._measured_model

    def log_artifact(self, path: Path) -> None:
        """Store a file or folder with the run."""
        import mlflow

        mlflow.log_artifact(str(path), run_id=self.run_id)

    def store_folder(self, folder: Path, name: str) -> str:
        """Store a folder's content with the run and return its address there."""
        import mlflow

        mlflow.log_artifacts(str(folder), name, run_id=self.run_id)
        return f"{mlflow.get_run(self.run_id).info.artifact_uri}/{name}"

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Label the run."""
        import mlflow

        mlflow.MlflowClient().log_batch(self.run_id, tags=[mlflow.entities.RunTag(*tag) for tag in tags.items()])


@contextmanager
def task_run(step: str, name: str = "", params: Mapping[str, object] | None = None) -> Iterator[TaskRun]:
    """Record a task in MLflow while the block runs.

    The run is the one that Kubeflow Pipelines' MLflow plugin made for the task, where it did (``MLFLOW_RUN_ID``); else
    a new child of the run that stands for the pipeline run (``YOLO_DISTILL_PIPELINE_RUN_ID``); else a run of its own.
    It ends FINISHED, FAILED with the error, or KILLED when the task is interrupted or terminated.

    Args:
        step: The pipeline step, such as ``evaluate-map``.
        name: What the step works on, such as ``teacher``, when the pipeline has the step more than once.
        params: The step's parameters.

    Yields:
        What the task records to.

    Raises:
        InputError: MLflow cannot be reached; found out before the block starts.
    """
    try:
        with _terminable(), _recorded(step, name, params or {}) as run:
            yield run
    except InputError as error:
        report_error(lineage.without_credentials(str(error)))
        raise


@contextmanager
def _recorded(step: str, name: str, params: Mapping[str, object]) -> Iterator[TaskRun]:
    import mlflow
    from mlflow.exceptions import MlflowException

    client, experiment_id = lineage.connect()
    tags = lineage.source_tags() | {lineage.STEP_TAG: step, lineage.SUBJECT_TAG: name}
    # MLflow would name the script of the runner, which is the same for every step.
    tags["mlflow.source.name"] = f"yolo-distill {step}"
    parent = None if environ.get("MLFLOW_RUN_ID") else _parent(client, experiment_id)
    run_id = _start(f"{step} {name}".strip(), experiment_id, parent, tags).info.run_id
    try:
        mlflow.log_params({key: _param(value) for key, value in params.items()}, run_id=run_id)
        yield TaskRun(run_id)
    except BaseException as error:
        status = "KILLED" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "FAILED"
        # The task's own error matters more than one of MLflow's, and must not wait for it.
        with lineage.impatience(), suppress(MlflowException):
            message = lineage.without_credentials(f"{type(error).__name__}: {error}")
            client.set_tag(run_id, lineage.ERROR_TAG, message)
            _end(client, status, parent)
        raise
    _end(client, "FINISHED", parent)


def _parent(client: "MlflowClient", experiment_id: str) -> "Run | None":
    pipeline_run_id = environ.get(lineage.PIPELINE_RUN_ID_VARIABLE)
    if not pipeline_run_id:
        return None
    parent = lineage.pipeline_run(client, experiment_id, pipeline_run_id, _CONTENTION_SECONDS)
    client.update_run(parent.info.run_id, status="RUNNING")
    return parent


def _start(run_name: str, experiment_id: str, parent: "Run | None", tags: dict[str, str]) -> "ActiveRun":
    import mlflow

    if given := environ.get("MLFLOW_RUN_ID"):
        return mlflow.start_run(run_id=given, tags=tags)
    if parent is None:
        return mlflow.start_run(run_name=run_name, experiment_id=experiment_id, tags=tags)
    tags[lineage.PIPELINE_RUN_ID_TAG] = parent.data.tags[lineage.PIPELINE_RUN_ID_TAG]
    parent_id = parent.info.run_id
    return mlflow.start_run(run_name=run_name, experiment_id=experiment_id, parent_run_id=parent_id, tags=tags)


def _end(client: "MlflowClient", status: str, parent: "Run | None") -> None:
    import mlflow

    mlflow.end_run(status)
    if parent:
        lineage.settle_pipeline_run(client, parent)


def _param(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return lineage.without_credentials(text)


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM, by which Kubernetes ends a pod, into an exception that unwinds the task."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

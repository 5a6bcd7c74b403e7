"""Runs of the distillation pipeline on a Kubeflow Pipelines server: start, look at, wait for, end."""

import hashlib
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from kfp_server_api import (
    V2beta1Experiment,
    V2beta1Pipeline,
    V2beta1PipelineVersionReference,
    V2beta1Run,
    V2beta1RuntimeConfig,
)

from yolo_distill.pipelines.launch import RunError
from yolo_distill.pipelines.remote import RequestError, Server, Trouble, by_field
from yolo_distill.pipelines.remote_arguments import RunOptions

_ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
_POLL_SECONDS = 5.0
# How long a server may be away while a run is waited for.
_PATIENCE_SECONDS = 600.0
_PASSING = {Trouble.DROPPED, Trouble.UNREACHABLE, Trouble.SLOW, Trouble.BROKEN}


@dataclass(frozen=True)
class Version:
    """A pipeline version on the server.

    Attributes:
        pipeline_id: The pipeline.
        version_id: The version.
        name: Name of the version: the program's version and a digest of the compiled pipeline.
    """

    pipeline_id: str
    version_id: str
    name: str

    def reference(self) -> V2beta1PipelineVersionReference:
        """Return how runs refer to it."""
        return V2beta1PipelineVersionReference(pipeline_id=self.pipeline_id, pipeline_version_id=self.version_id)


def new_request_id() -> str:
    """Return an id that makes a submission known again."""
    return uuid.uuid4().hex


@contextmanager
def compiled(compile_to: Callable[[Path], None]) -> Iterator[Path]:
    """Give the compiled pipeline as a file, for as long as it is needed.

    Args:
        compile_to: Writes it.
    """
    with tempfile.TemporaryDirectory(prefix="yolo-distill-") as folder:
        package = Path(folder) / "pipeline.yaml"
        compile_to(package)
        yield package


def ensure_experiment(server: Server, name: str) -> str:
    """Return the id of an experiment, which is made when it is missing.

    Raises:
        RequestError: The server does not answer as it should.
    """
    api = server.client.experiments

    def find() -> V2beta1Experiment | None:
        found = server.ask(
            api.experiment_service_list_experiments,
            filter=by_field("display_name", name),
            namespace=server.namespace or "",
        )
        return next(iter(found.experiments or []), None)

    wanted = V2beta1Experiment(display_name=name, namespace=server.namespace)
    experiment = find() or server.make(api.experiment_service_create_experiment, find, experiment=wanted)
    return str(experiment.experiment_id)


def ensure_version(server: Server, package: Path) -> Version:
    """Upload a compiled pipeline, unless the server has the same one.

    The version's name holds a digest of the content, so that equal content has one name.

    Args:
        server: The server.
        package: The compiled pipeline.

    Raises:
        RequestError: The server does not answer as it should.
    """
    name = yaml.safe_load(package.read_text(encoding="utf-8").partition("\n---")[0])["pipelineInfo"]["name"]
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    version_name = f"{metadata.version('yolo-distill')}-{digest[:16]}"
    pipeline_id = _ensure_pipeline(server, name)

    def find() -> Any:
        found = server.ask(
            server.client.pipelines.pipeline_service_list_pipeline_versions,
            pipeline_id=pipeline_id,
            filter=by_field("display_name", version_name),
        )
        return next(iter(found.pipeline_versions or []), None)

    version = find() or server.make(
        server.client.pipeline_uploads.upload_pipeline_version,
        find,
        uploadfile=str(package),
        name=version_name,
        display_name=version_name,
        pipelineid=pipeline_id,
        description=f"sha256:{digest}",
    )
    return Version(pipeline_id, str(version.pipeline_version_id), version_name)


def _ensure_pipeline(server: Server, name: str) -> str:
    api = server.client.pipelines
    namespace = {"namespace": server.namespace} if server.namespace else {}

    def find() -> Any:
        try:
            return server.ask(api.pipeline_service_get_pipeline_by_name, name=name, **namespace)
        except RequestError as error:
            if error.trouble is Trouble.MISSING:
                return None
            raise

    wanted = V2beta1Pipeline(name=name, display_name=name, namespace=server.namespace)
    pipeline = find() or server.make(api.pipeline_service_create_pipeline, find, pipeline=wanted)
    return str(pipeline.pipeline_id)


def create_run(
    server: Server,
    version: Version,
    arguments: Mapping[str, object],
    options: RunOptions,
    *,
    name: str,
    request_id: str,
    repeated: bool,
) -> V2beta1Run:
    """Start a run.

    The request's id is part of the run's description. Whenever it is unclear whether a request has made a run, the run
    is looked for by it.

    Args:
        server: The server.
        version: What to run.
        arguments: The pipeline's parameters.
        options: How to run it.
        name: Name of the run.
        request_id: Id of this submission; there is one run for each.
        repeated: Whether an earlier submission may have had the id.

    Returns:
        The run, as the server knows it.

    Raises:
        RequestError: The server does not answer as it should.
    """
    api = server.client.runs
    experiment_id = ensure_experiment(server, options.experiment)

    def find() -> V2beta1Run | None:
        found = server.ask(
            api.run_service_list_runs,
            experiment_id=experiment_id,
            filter=by_field("description", request_id, part=True),
        )
        return next(iter(found.runs or []), None)

    if repeated and (earlier := find()):
        return earlier
    run = V2beta1Run(
        display_name=name,
        description=f"Submitted by yolo-distill, request {request_id}",
        experiment_id=experiment_id,
        pipeline_version_reference=version.reference(),
        runtime_config=V2beta1RuntimeConfig(parameters=dict(arguments), pipeline_root=options.pipeline_root),
        service_account=options.service_account,
        plugins_input=options.plugins_input,
    )
    try:
        return server.make(api.run_service_create_run, find, run=run)
    except RequestError as error:
        if error.by_input:
            raise
        remedy = f"Repeat the command with --request-id {request_id}: that makes no second run"
        raise RequestError(
            error.trouble, error.subject, f"{error.problem}; whether it made the run is unknown", remedy
        ) from None


def default_run_name(pipeline: str) -> str:
    """Return a name for a run that was given none."""
    return f"{pipeline} {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"


def get_run(server: Server, run_id: str) -> V2beta1Run:
    """Return a run.

    Raises:
        RequestError: There is no such run, or the server does not answer as it should.
    """
    return server.ask(server.client.runs.run_service_get_run, run_id=run_id)


def cancel_run(server: Server, run_id: str) -> bool:
    """End a run.

    Returns:
        Whether it was still going on.

    Raises:
        RequestError: There is no such run, or the server does not answer as it should.
    """
    if get_run(server, run_id).state in _ENDED:
        return False
    server.ask(server.client.runs.run_service_terminate_run, run_id=run_id)
    return True


def wait_for_run(server: Server, run_id: str, tell: Callable[[str], None]) -> None:
    """Wait until a run has ended.

    Args:
        server: The server.
        run_id: The run.
        tell: Called with each new state.

    Raises:
        RunError: The run has not succeeded.
        RequestError: The server does not answer for ten minutes, or refuses.
    """
    state, last_answer = "", time.monotonic()
    while state not in _ENDED:
        try:
            run = get_run(server, run_id)
        except RequestError as error:
            if error.trouble not in _PASSING or time.monotonic() - last_answer > _PATIENCE_SECONDS:
                raise
        else:
            last_answer = time.monotonic()
            if run.state and run.state != state:
                state = run.state
                tell(state)
        if state not in _ENDED:
            time.sleep(_POLL_SECONDS)
    if state != "SUCCEEDED":
        raise RunError(
            f"run {run_id}: it ended as {state}. `yolo-distill status {run_id}` shows the tasks", by_input=False
        )

"""Has a training done by a TrainJob of Kubeflow Trainer 2: creates it, follows it and takes it away.

The ``kubernetes`` client that KFP brings asks the API server. Kubeflow's SDK cannot say all that is needed here:
secrets as environment variables of the nodes (patches may not hold any), processes a node, and why a TrainJob failed.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import write_text
from yolo_distill.components.shared.launch import WORKER, job_kind, require_even_shares
from yolo_distill.components.shared.progress import report_progress
from yolo_distill.components.shared.train_job.body import GROUP, PLURAL, VERSION, train_job
from yolo_distill.components.shared.train_job.logs import NodeLogs
from yolo_distill.components.shared.train_job.settings import TrainJobSettings
from yolo_distill.components.shared.train_job.staging import stage
from yolo_distill.components.shared.training import TrainingJob, last_checkpoint, read_epochs
from yolo_distill.components.shared.worker import take_error

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_KEY_LABEL = "yolo-distill.io/training"
# Answers that say nothing about the request: the server is overloaded, being replaced, or broken for a while.
_PASSING = {429, 500, 502, 503, 504}
# Tries of a request, with pauses that double from one look at the TrainJob: five minutes by default.
_TRIES = 6
_REQUEST_SECONDS = 30.0


class TrainJobLauncher:
    """Trains on several nodes; a :class:`~yolo_distill.components.shared.training.Launcher`.

    A TrainJob is named by its training. A step that is started again after it was killed finds the one that it left and
    follows it on. A step that is ended, or fails, deletes it.

    Attributes:
        settings: What the nodes are given.
        work_root: Folder on a volume that the step and all nodes mount at the same path.
    """

    def __init__(
        self,
        settings: TrainJobSettings,
        work_root: Path,
        api: client.ApiClient | None = None,
        namespace: str = "",
    ) -> None:
        """Set up the connection to the API server.

        Args:
            settings: What the nodes are given.
            work_root: Folder on a volume that the step and all nodes mount at the same path.
            api: The connection; that of the pod's service account by default.
            namespace: Where the TrainJob goes; the pod's own by default.

        Raises:
            InputError: There is no API server to ask.
        """
        if not any(work_root.is_relative_to(volume.mount) for volume in settings.volumes):
            raise InputError(
                f"work_root={work_root}", "lies on no volume that the nodes mount", "Name a folder on a shared volume"
            )
        self.settings = settings
        self.work_root = work_root
        self._namespace = namespace or _own_namespace()
        api = api or _own_api()
        self._objects, self._core = client.CustomObjectsApi(api), client.CoreV1Api(api)

    def __call__(self, job: TrainingJob) -> None:
        """Train, and go on from the last checkpoint when a node is lost.

        Raises:
            InputError: The batch cannot be shared evenly, Kubernetes refuses the TrainJob, or a process has refused the
                user's input.
            RuntimeError: The training failed, was deleted by somebody, or the API server does not answer.
        """
        require_even_shares(job.settings.batch, self.settings.nodes * self.settings.processes)
        shared = job.staged(lambda path: stage(path, self.work_root / "inputs"))
        file = job.folder / "job.json"
        write_text(file, shared.model_dump_json())
        name = f"yolo-distill-{job.folder.name}"
        arguments = [WORKER, job_kind(job), str(file)]
        body = train_job(name, {_KEY_LABEL: job.folder.name}, self.settings, arguments)
        for restarts_left in range(self.settings.restarts, -1, -1):
            take_error(job.folder)
            problem = self._run(name, body, job)
            if not problem:
                break
            left = take_error(job.folder)
            if left and left.input:
                raise left.raised()
            if restarts_left == 0:
                raise RuntimeError(f"TrainJob {name} failed: {left.error if left else problem}")
            print(f"TrainJob {name} failed ({problem}) and is started again", flush=True)
        if not last_checkpoint(job.folder).is_file() or len(read_epochs(job.folder)) != job.settings.epochs:
            raise RuntimeError(
                f"TrainJob {name} says that it is complete, but {job.folder} does not hold its last checkpoint: "
                "do the nodes mount the step's volume?"
            )

    def _run(self, name: str, body: dict[str, Any], job: TrainingJob) -> str:
        """Create a TrainJob, follow it to its end and delete it; return why it failed, or nothing."""
        created = False
        try:
            self._create(name, body)
            created = True
            problem = self._follow(name, job)
        except BaseException as error:
            # Nothing may go on without the step that waits for it; what ended the step matters more than this.
            if created or not isinstance(error, InputError):
                with suppress(ApiException, HTTPError):
                    self._delete_once(name)
            raise
        self._delete(name)
        return problem

    def _create(self, name: str, body: dict[str, Any]) -> None:
        created = self._ask(self._objects.create_namespaced_custom_object, *self._place(), body, known={409})
        if created is not None:
            return
        # Left by this step before it was killed, or made by a request whose answer was lost.
        found = self._get(name)
        if found and found["metadata"].get("labels", {}).get(_KEY_LABEL) != body["metadata"]["labels"][_KEY_LABEL]:
            raise InputError(f"TrainJob {name}", "exists and is not this training's", "Delete it")
        if found and not found["metadata"].get("deletionTimestamp") and _ended(found, "Failed") is None:
            return
        self._delete(name)
        self._ask(self._objects.create_namespaced_custom_object, *self._place(), body)

    def _follow(self, name: str, job: TrainingJob) -> str:
        """Wait for a TrainJob's end; return why it failed, or nothing."""
        reported = 0
        logs = NodeLogs(self._core, self._namespace, name)
        try:
            while True:
                found = self._get(name)
                logs.copy()
                reported = _report_epochs(job, reported)
                if found is None:
                    raise RuntimeError(f"TrainJob {name} was deleted while it ran")
                if _ended(found, "Complete") is not None:
                    return ""
                if (problem := _ended(found, "Failed")) is not None:
                    return problem
                time.sleep(self.settings.poll_seconds)
        finally:
            logs.close()

    def _delete(self, name: str) -> None:
        """Delete a TrainJob and wait until its pods are gone, which write to the same folder as their successors."""
        self._ask(self._delete_once, name, known={404})
        while self._get(name) is not None:
            time.sleep(self.settings.poll_seconds)

    def _delete_once(self, name: str, **options: Any) -> None:
        options = {"propagation_policy": "Foreground", "_request_timeout": _REQUEST_SECONDS, **options}
        self._objects.delete_namespaced_custom_object(*self._place(), name, **options)

    def _get(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._ask(
            self._objects.get_namespaced_custom_object, *self._place(), name, known={404}
        )
        return found

    def _place(self) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self._namespace, PLURAL

    def _ask(self, call: Callable[..., Any], *arguments: Any, known: frozenset[int] | set[int] = frozenset()) -> Any:
        """Ask the API server, again when it is out of order; return ``None`` for a refusal that is known."""
        for tried in range(1, _TRIES + 1):
            try:
                return call(*arguments, _request_timeout=_REQUEST_SECONDS)
            except ApiException as error:
                if error.status in known:
                    return None
                if error.status not in _PASSING:
                    raise self._explained(error) from error
                problem = f"status {error.status}"
            except HTTPError as error:
                problem = type(error).__name__
            if tried < _TRIES:
                time.sleep(self.settings.poll_seconds * 2 ** (tried - 1))
        raise RuntimeError(f"Kubernetes does not answer: {problem}, {_TRIES} times")

    def _explained(self, error: ApiException) -> Exception:
        subject = f"TrainJob in namespace {self._namespace}"
        message = _message(error)
        if error.status in {401, 403} and "admission webhook" not in message:
            remedy = "Apply manifests/components/trainer and run the pipeline under its service account"
            return InputError(subject, f"Kubernetes refuses it: {message}", remedy)
        if error.status == 404:
            remedy = "Install Kubeflow Trainer 2, or leave train_job out of the cluster file"
            return InputError(subject, "this cluster does not know TrainJobs", remedy)
        return InputError(subject, f"Kubernetes refuses it: {message}", "Mend train_job in the cluster file")


def _own_api() -> client.ApiClient:
    try:
        config.load_config()
    except config.ConfigException as error:
        raise InputError("train_job", f"there is no cluster to train on: {error}", "Run the pipeline there") from error
    return client.ApiClient()


def _own_namespace() -> str:
    return _NAMESPACE_FILE.read_text(encoding="utf-8").strip() if _NAMESPACE_FILE.is_file() else "default"


def _ended(found: dict[str, Any], how: str) -> str | None:
    """Return the message of a TrainJob's final condition, or ``None`` where it has not come to that end."""
    for condition in found.get("status", {}).get("conditions", []):
        if condition["type"] == how and condition["status"] == "True":
            return f"{condition.get('reason', '')}: {condition.get('message', '')}"
    return None


def _report_epochs(job: TrainingJob, reported: int) -> int:
    """Report the epochs that the nodes have finished since the last time, and return how many there are."""
    with suppress(FileNotFoundError):
        finished = len(read_epochs(job.folder))
        if finished > reported:
            report_progress(finished, job.settings.epochs, "epoch", f"on {job.folder.name}")
        return finished
    return reported


def _message(error: ApiException) -> str:
    """Return what the server says, which is the body's ``message`` where it is a Status."""
    with suppress(ValueError, TypeError, KeyError):
        return str(json.loads(error.body)["message"])
    return str(error.reason)

"""An HTTP server that speaks the part of Kubernetes' API by which TrainJobs are made and followed.

It is strict: what Kubeflow Trainer's own models do not know, it refuses, and so it does with what Trainer's webhook
refuses.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, get_args
from urllib.parse import parse_qs, urlsplit

from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob
from pydantic import BaseModel, ValidationError

NAMESPACE = "team"
_JOBS = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
_RUNTIMES = {("ClusterTrainingRuntime", "torch-distributed"), ("TrainingRuntime", "our-torch")}


class Failure(Enum):
    UNAUTHORIZED = 401
    FORBIDDEN = 403
    NOT_FOUND = 404
    TOO_MANY = 429
    BROKEN = 500
    UNAVAILABLE = 503
    DROP = "closes the connection without carrying the request out"
    DROP_AFTER = "carries the request out, then closes the connection"


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Cluster:
    """The cluster's state, and what a test wants of it.

    Attributes:
        runs: What a TrainJob comes to when it is looked at: called with the TrainJob and how often that was before, it
            returns the type and message of a condition, or nothing as long as it runs.
        log: What the first node prints.
    """

    runs: Callable[[dict[str, Any], int], tuple[str, str] | None] = lambda train_job, looks: None
    log: str = ""
    train_jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    failures: list[tuple[str, Failure]] = field(default_factory=list)
    address: str = ""
    _looks: dict[str, int] = field(default_factory=dict)

    def fail(self, method: str, *failures: Failure) -> None:
        """Have the next requests about TrainJobs fail, in turn."""
        self.failures += [(method, failure) for failure in failures]

    def next_failure(self, method: str, path: str) -> Failure | None:
        for entry in self.failures:
            if entry[0] == method and path.startswith(_JOBS):
                self.failures.remove(entry)
                return entry[1]
        return None

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        if (method, path) == ("POST", _JOBS):
            return self._create(body)
        if match := re.fullmatch(f"{_JOBS}/([a-z0-9-]+)", path):
            return self._get(match[1]) if method == "GET" else self._delete(match[1], query)
        if (method, path) == ("GET", _PODS):
            return self._pods(query)
        if match := re.fullmatch(f"{_PODS}/([a-z0-9-]+)/log", path):
            assert query == {"container": "node", "follow": "True"}
            return self.log
        raise Refusal(404, "the server could not find the requested resource")

    def _create(self, body: Any) -> Any:
        require_known(TrainerV1alpha1TrainJob, body, "TrainJob")
        try:
            TrainerV1alpha1TrainJob.from_dict(body)
        except ValidationError as error:
            raise Refusal(422, str(error)) from error
        name, spec = body["metadata"]["name"], body["spec"]
        if (spec["runtimeRef"]["kind"], spec["runtimeRef"]["name"]) not in _RUNTIMES:
            raise Refusal(403, 'admission webhook "validator.trainjob" denied the request: no such runtime')
        for patch in spec["runtimePatches"]:
            for replicated in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
                for container in replicated["template"]["spec"]["template"]["spec"]["containers"]:
                    if container.get("env"):
                        raise Refusal(403, "admission webhook denied the request: must not have envs for the node")
        if name in self.train_jobs:
            raise Refusal(409, f'trainjobs.trainer.kubeflow.org "{name}" already exists')
        self.created.append(body)
        self.train_jobs[name], self._looks[name] = body, 0
        return body

    def _get(self, name: str) -> Any:
        found = self._one(name)
        if "deletionTimestamp" in found["metadata"]:
            # Its pods are gone by the next time.
            del self.train_jobs[name]
            return found
        if not found.get("status") and (end := self.runs(found, self._looks[name])):
            condition = {"type": end[0], "status": "True", "reason": "JobsEnded", "message": end[1]}
            condition["lastTransitionTime"] = "2026-01-01T00:00:00Z"
            found = self.train_jobs[name] = {**found, "status": {"conditions": [condition]}}
        self._looks[name] += 1
        return found

    def _delete(self, name: str, query: dict[str, str]) -> Any:
        assert query == {"propagationPolicy": "Foreground"}
        found = self._one(name)
        self.deleted.append(name)
        self.train_jobs[name] = {
            **found,
            "metadata": {**found["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"},
        }
        return {"kind": "Status", "status": "Success"}

    def _one(self, name: str) -> dict[str, Any]:
        if name not in self.train_jobs:
            raise Refusal(404, f'trainjobs.trainer.kubeflow.org "{name}" not found')
        return self.train_jobs[name]

    def _pods(self, query: dict[str, str]) -> Any:
        selector = dict(part.split("=") for part in query["labelSelector"].split(","))
        assert selector["jobset.sigs.k8s.io/replicatedjob-name"] == "node"
        assert selector["batch.kubernetes.io/job-completion-index"] == "0"
        name = selector["jobset.sigs.k8s.io/jobset-name"]
        pod = {
            "metadata": {"name": f"{name}-node-0-0", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "node"}]},
            "status": {"phase": "Running"},
        }
        return {"kind": "PodList", "apiVersion": "v1", "items": [pod] if name in self.train_jobs else []}


def require_known(model: type[BaseModel], value: Any, place: str) -> None:
    """Refuse fields that a model does not have, down to the last."""
    if isinstance(value, list):
        for item in value:
            require_known(model, item, f"{place}[]")
    elif isinstance(value, dict) and "actual_instance" not in model.model_fields:
        fields = {known.alias or name: known.annotation for name, known in model.model_fields.items()}
        for name, inner in value.items():
            if name not in fields:
                raise Refusal(400, f'strict decoding error: unknown field "{place}.{name}"')
            if (kind := _model_in(fields[name])) and "Dict" not in str(fields[name]):
                require_known(kind, inner, f"{place}.{name}")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


@contextmanager
def serve_cluster() -> Iterator[Cluster]:
    """Serve the API on this machine."""
    cluster = Cluster()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            failure = cluster.next_failure(self.command, url.path)
            if failure is Failure.DROP:
                self.close_connection = True
                return
            if failure and isinstance(failure.value, int):
                return self._refuse(Refusal(failure.value, f"{failure.name.lower()} by the test"))
            try:
                answer = cluster.answer(self.command, url.path, query, json.loads(text) if text else None)
            except Refusal as refusal:
                return self._refuse(refusal)
            if failure is Failure.DROP_AFTER:
                self.close_connection = True
                return
            self._send(200, answer if isinstance(answer, str) else json.dumps(answer))

        do_POST = do_DELETE = do_GET

        def _refuse(self, refusal: Refusal) -> None:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": refusal.status}
            self._send(refusal.status, json.dumps({**status, "message": str(refusal), "metadata": {}}))

        def _send(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    cluster.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""An HTTP server that speaks Kubeflow Pipelines' v2beta1 API, strictly: what its models do not know, it refuses."""

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.parser import BytesParser
from email.policy import HTTP
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import kfp_server_api.models as models
import yaml
from dateutil.parser import isoparse
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

_PREFIX = "/apis/v2beta1"
_PLAIN: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float), "bool": bool}
# Fields that the server's lists can be filtered by.
_FILTERED = {"display_name", "name", "description", "state", "storage_state"}


class Failure(Enum):
    UNAUTHORIZED = 401
    FORBIDDEN = 403
    NOT_FOUND = 404
    CONFLICT = 409
    BROKEN = 500
    UNAVAILABLE = 503
    BROKEN_AFTER = "carries the request out, then fails"
    DROP = "closes the connection without carrying the request out"
    DROP_AFTER = "carries the request out, then closes the connection"
    LATE = "carries the request out and answers late"
    EMPTY = "answers that there is nothing"
    LOGIN_PAGE = "answers with a page"
    REDIRECT = "sends the client to a login page"


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


@dataclass
class Kubeflow:
    """The server's state, and what a test wants of it."""

    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recurring_runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    failures: list[tuple[str, str, Failure]] = field(default_factory=list)
    multi_user: bool = False
    login: tuple[str, str] | None = None
    late_seconds: float = 3.0
    # The state that a run has from its beginning on.
    run_state: str = "RUNNING"
    address: str = ""

    def fail(self, method: str, path: str, *failures: Failure) -> None:
        """Have the next requests to a path fail, in turn."""
        self.failures += [(method, path, failure) for failure in failures]

    def next_failure(self, method: str, path: str) -> Failure | None:
        for entry in self.failures:
            if (method, _PREFIX + entry[1]) == (entry[0], path):
                self.failures.remove(entry)
                return entry[2]
        return None

    def sent(self, method: str, path: str) -> list[Request]:
        return [request for request in self.requests if (request.method, request.path) == (method, _PREFIX + path)]

    # What the API does.

    def answer(self, request: Request) -> Any:
        for method, pattern, do in self._routes():
            if method == request.method and (match := re.fullmatch(_PREFIX + pattern, request.path)):
                return do(request, **match.groupdict())
        raise Refusal(404, "Not Found")

    def _routes(self) -> list[tuple[str, str, Callable[..., Any]]]:
        one = r"/(?P<key>[^/:]+)"
        return [
            ("GET", "/healthz", lambda _: {"multi_user": self.multi_user}),
            ("GET", "/experiments", lambda r: self._list(r, "experiments", self.experiments)),
            ("POST", "/experiments", self._create_experiment),
            ("POST", "/pipelines", self._create_pipeline),
            ("GET", "/pipelines/names" + one, self._pipeline_by_name),
            ("POST", "/pipelines/upload_version", self._upload_version),
            ("GET", f"/pipelines{one}/versions", self._list_versions),
            ("GET", "/runs", lambda r: self._list(r, "runs", self.runs)),
            ("POST", "/runs", self._create_run),
            ("GET", "/runs" + one, lambda _, key: _one(self.runs, key)),
            ("POST", f"/runs{one}:terminate", self._terminate),
            ("GET", "/recurringruns", lambda r: self._list(r, "recurringRuns", self.recurring_runs)),
            ("POST", "/recurringruns", self._create_recurring_run),
            ("DELETE", "/recurringruns" + one, self._delete_recurring_run),
            ("POST", f"/recurringruns{one}:enable", lambda _, key: self._switch(key, "ENABLED")),
            ("POST", f"/recurringruns{one}:disable", lambda _, key: self._switch(key, "DISABLED")),
        ]

    def _list(self, request: Request, name: str, entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
        query = request.query
        if self.multi_user and not (query.get("namespace") or query.get("experiment_id")):
            raise Refusal(400, "Invalid input error: a namespace is required in multi-user mode")
        chosen = list(entries.values())
        for key in ("namespace", "experiment_id"):
            if query.get(key):
                chosen = [entry for entry in chosen if entry.get(key) == query[key]]
        chosen = [entry for entry in chosen if _passes(entry, query.get("filter"))]
        # Small pages, so that clients have to turn them.
        first = int(query.get("page_token") or 0)
        size = min(int(query.get("page_size") or 10), 2)
        rest = {"next_page_token": str(first + size)} if first + size < len(chosen) else {}
        # Protobuf leaves empty lists out.
        return ({name: chosen[first : first + size]} if chosen else {}) | rest

    def _create_experiment(self, request: Request) -> Any:
        body = checked("V2beta1Experiment", request.body)
        if any(_same(body, other, "display_name", "namespace") for other in self.experiments.values()):
            raise Refusal(409, "Already exist error: experiment already exists")
        return _store(self.experiments, "experiment_id", body)

    def _create_pipeline(self, request: Request) -> Any:
        body = checked("V2beta1Pipeline", request.body)
        if any(_same(body, other, "name", "namespace") for other in self.pipelines.values()):
            raise Refusal(409, "Already exist error: pipeline already exists")
        return _store(self.pipelines, "pipeline_id", body)

    def _pipeline_by_name(self, request: Request, key: str) -> Any:
        for pipeline in self.pipelines.values():
            if pipeline["name"] == key and pipeline.get("namespace", "") == request.query.get("namespace", ""):
                return pipeline
        raise Refusal(404, f"ResourceNotFoundError: Pipeline {key} not found")

    def _upload_version(self, request: Request) -> Any:
        query = request.query
        pipeline = _one(self.pipelines, query.get("pipelineid", ""))
        if any(
            version["pipeline_id"] == pipeline["pipeline_id"] and version["name"] == query["name"]
            for version in self.versions.values()
        ):
            raise Refusal(409, "Failed to create a pipeline version")
        spec, platform = package(request.body)
        version = {
            "pipeline_id": pipeline["pipeline_id"],
            "name": query["name"],
            "display_name": query.get("display_name") or query["name"],
            "description": query.get("description", ""),
        }
        stored = _store(self.versions, "pipeline_version_id", version)
        self.versions[stored["pipeline_version_id"]] |= {"spec": spec, "platform": platform}
        return stored

    def _list_versions(self, request: Request, key: str) -> Any:
        _one(self.pipelines, key)
        own = {
            name: {k: v for k, v in version.items() if k not in {"spec", "platform"}}
            for name, version in self.versions.items()
            if version["pipeline_id"] == key
        }
        found = [version for version in own.values() if _passes(version, request.query.get("filter"))]
        return {"pipeline_versions": found} if found else {}

    def _create_run(self, request: Request) -> Any:
        body = checked("V2beta1Run", request.body)
        self._check_job(body)
        return _store(self.runs, "run_id", {**body, "state": self.run_state})

    def _terminate(self, _: Request, key: str) -> Any:
        _one(self.runs, key)["state"] = "CANCELING"
        return {}

    def _create_recurring_run(self, request: Request) -> Any:
        body = checked("V2beta1RecurringRun", request.body)
        self._check_job(body)
        if not 1 <= int(body["max_concurrency"]) <= 10:
            raise Refusal(400, "Invalid input error: max_concurrency must be between 1 and 10")
        trigger = body["trigger"]
        if len(trigger) != 1:
            raise Refusal(400, "Invalid input error: one trigger is needed")
        if cron := trigger.get("cron_schedule", {}).get("cron"):
            # The server's parser takes five fields as well, for seconds to month.
            assert len(cron.split()) == 6
        mode = body.pop("mode")
        status = {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}[mode]
        return _store(self.recurring_runs, "recurring_run_id", {**body, "mode": mode, "status": status})

    def _delete_recurring_run(self, _: Request, key: str) -> Any:
        _one(self.recurring_runs, key)
        del self.recurring_runs[key]
        return {}

    def _switch(self, key: str, status: str) -> Any:
        _one(self.recurring_runs, key)["status"] = status
        return {}

    def _check_job(self, body: dict[str, Any]) -> None:
        _one(self.experiments, body["experiment_id"])
        reference = body["pipeline_version_reference"]
        version = _one(self.versions, reference["pipeline_version_id"])
        assert version["pipeline_id"] == reference["pipeline_id"]
        inputs = version["spec"].root.input_definitions.parameters
        kinds: dict[str, type | tuple[type, ...]] = {
            "STRING": str,
            "NUMBER_INTEGER": int,
            "NUMBER_DOUBLE": (int, float),
            "BOOLEAN": bool,
            "LIST": list,
        }
        kind = pipeline_spec_pb2.ParameterType.ParameterTypeEnum.Name
        for name, value in body["runtime_config"]["parameters"].items():
            if name not in inputs:
                raise Refusal(400, f"Invalid input error: parameter {name} is not a pipeline input")
            if not isinstance(value, kinds[kind(inputs[name].parameter_type)]):
                raise Refusal(400, f"Invalid input error: input parameter {name} has another type")


def checked(model: str, value: Any, place: str = "") -> Any:
    """Return a request's body if it is one of a model's, down to its last field."""
    if value is None:
        raise Refusal(400, f"{place or model}: null")
    if match := re.fullmatch(r"list\[(.*)\]", model):
        return [checked(match[1], item, f"{place}[]") for item in value]
    if match := re.fullmatch(r"dict\(str, (.*)\)", model):
        return {key: checked(match[1], item, f"{place}.{key}") for key, item in value.items()}
    if model == "object":
        return value
    if model == "datetime":
        return value if isoparse(value).tzinfo else _ill(place, "no time zone")
    if model in _PLAIN:
        return value if isinstance(value, _PLAIN[model]) else _ill(place, f"{value!r} is no {model}")
    kind = getattr(models, model)
    if not kind.openapi_types:
        return value if value in kind.allowable_values else _ill(place, f"{value!r} is no {model}")
    types = {kind.attribute_map[name]: of for name, of in kind.openapi_types.items()}
    for name in value:
        if name not in types:
            raise Refusal(400, f"{place or model}: unknown field {name}")
    return {name: checked(types[name], item, f"{place}.{name}") for name, item in value.items()}


def package(content: bytes) -> tuple[pipeline_spec_pb2.PipelineSpec, pipeline_spec_pb2.PlatformSpec]:
    """Return what an uploaded pipeline holds, read as the server does."""
    documents = list(yaml.safe_load_all(content))
    platform = documents[1] if len(documents) > 1 else {}
    return (
        json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec()),
        json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec()),
    )


@contextmanager
def serve_kubeflow() -> Iterator[Kubeflow]:
    """Serve the API on this machine."""
    kubeflow = Kubeflow()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._handle()

        do_POST = do_DELETE = do_GET

        def _handle(self) -> None:
            request = self._request()
            kubeflow.requests.append(request)
            failure = kubeflow.next_failure(request.method, request.path)
            match failure:
                case None:
                    self._answer(request)
                case Failure.DROP:
                    self.close_connection = True
                case Failure.DROP_AFTER:
                    kubeflow.answer(request)
                    self.close_connection = True
                case Failure.BROKEN_AFTER:
                    kubeflow.answer(request)
                    self._refuse(Refusal(500, "InternalServerError: Failed to store the run"))
                case Failure.LATE:
                    answer = kubeflow.answer(request)
                    time.sleep(kubeflow.late_seconds)
                    self._send(200, json.dumps(answer, default=str))
                case Failure.EMPTY:
                    self._send(200, "{}")
                case Failure.LOGIN_PAGE:
                    self._send(200, "<html><form>Log in to Your Account</form></html>", "text/html; charset=utf-8")
                case Failure.REDIRECT:
                    self._send(302, "", "text/html", {"Location": f"{kubeflow.address}/dex/auth"})
                case _:
                    self._refuse(Refusal(int(failure.value), f"{failure.name.lower()} by the test"))

        def _request(self) -> Request:
            url = urlsplit(self.path)
            body: Any = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kind = self.headers.get("Content-Type", "")
            if kind.startswith("multipart/form-data"):
                message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
                [part] = message.iter_parts()
                assert part.get_param("name", header="Content-Disposition") == "uploadfile"
                body = part.get_payload(decode=True)
            elif body:
                body = json.loads(body)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            headers = {name.title(): value for name, value in self.headers.items()}
            return Request(self.command, unquote(url.path), query, body, headers)

        def _answer(self, request: Request) -> None:
            if kubeflow.login and request.headers.get(kubeflow.login[0]) != kubeflow.login[1]:
                return self._refuse(Refusal(401, "Unauthenticated: the token is expired"))
            try:
                answer = kubeflow.answer(request)
            except Refusal as refusal:
                return self._refuse(refusal)
            return self._send(200, json.dumps(answer, default=str))

        def _refuse(self, refusal: Refusal) -> None:
            self._send(refusal.status, json.dumps({"error": str(refusal), "code": 0, "message": str(refusal)}))

        def _send(
            self, status: int, text: str, kind: str = "application/json", headers: dict[str, str] | None = None
        ) -> None:
            try:
                self.send_response(status)
                for name, value in {**(headers or {}), "Content-Type": kind}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text.encode())))
                # A session begins anew with each answer; nobody may show this.
                self.send_header("Set-Cookie", "authservice_session=server-secret")
                self.end_headers()
                self.wfile.write(text.encode())
            except (BrokenPipeError, ConnectionResetError):
                # The client has not waited.
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    kubeflow.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield kubeflow
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _passes(entry: dict[str, Any], text: str | None) -> bool:
    if not text:
        return True
    for predicate in checked("V2beta1Filter", json.loads(text))["predicates"]:
        key, value = predicate["key"], predicate["string_value"]
        if key not in _FILTERED:
            raise Refusal(400, f"Invalid input error: no such field {key}")
        held = entry.get(key, "")
        if not (value in held if predicate["operation"] == "IS_SUBSTRING" else value == held):
            return False
    return True


def _store(entries: dict[str, dict[str, Any]], key: str, entry: dict[str, Any]) -> dict[str, Any]:
    name = str(uuid.uuid4())
    entries[name] = {**entry, key: name, "created_at": datetime.now(UTC).isoformat()}
    return dict(entries[name])


def _one(entries: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
    if key not in entries:
        raise Refusal(404, f"ResourceNotFoundError: {key} not found")
    return entries[key]


def _same(one: dict[str, Any], other: dict[str, Any], *keys: str) -> bool:
    return all(one.get(key, "") == other.get(key, "") for key in keys)


def _ill(place: str, problem: str) -> Any:
    raise Refusal(400, f"{place}: {problem}")

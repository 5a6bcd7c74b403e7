"""A Kubeflow Pipelines server, through ``kfp.Client``: connecting, asking, and making things once.

``kfp.Client`` finds address and login as its users know it (``KF_PIPELINES_*``, a pod's service account, kubeconfig,
``~/.config/kfp/context.json``). The calls themselves go through the generated API that it carries, because only that
takes a time limit. The generated API has traps that are dealt with here: it follows a redirect to a login page, takes
the page for an empty answer, repeats requests on its own, and loses the reason of an invalid certificate.
"""

import json
import logging
import os
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, Client, ServiceAccountTokenVolumeCredentials
from kfp.client.client import KF_PIPELINES_ENDPOINT_ENV, KF_PIPELINES_UI_ENDPOINT_ENV
from kfp_server_api import ApiException
from kubernetes.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION
from urllib3 import exceptions

from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.lineage import without_credentials
from yolo_distill.pipelines.launch import RunError

# Waits before a request is repeated; there are so many repetitions.
_PAUSES = (0.5, 2.0)
_PAGE_SIZE = 100
# As much of a server's words as fits into a message.
_WORDS = 300
_LOGIN_REMEDY = "Log in again and give what you get: a token by --token-file, or the session's cookie by --cookie-file"


@dataclass(frozen=True)
class Connection:
    """How to reach a server; what is not given is found as ``kfp.Client`` finds it.

    Attributes:
        host: Address of the API, such as ``http://localhost:8888`` of a port-forward.
        namespace: The user's namespace, on a server that has several.
        token_file: File with a bearer token, read again for every request, because tokens are renewed.
        cookie_file: File with the session cookie that a login page has set, as ``name=value``.
        ca_cert: File with the certificates that the server's is checked against.
        proxy: Address of an HTTP proxy.
        timeout: Seconds until an answer must have come.
    """

    host: str | None = None
    namespace: str | None = None
    token_file: Path | None = None
    cookie_file: Path | None = None
    ca_cert: Path | None = None
    proxy: str | None = None
    timeout: float = 30.0


class Trouble(Enum):
    """What can be wrong with a request."""

    LOGIN = "login"
    MISSING = "missing"
    CONFLICT = "conflict"
    REFUSED = "refused"
    BROKEN = "broken"
    DROPPED = "dropped"
    SLOW = "slow"
    UNREACHABLE = "unreachable"


class RequestError(RunError):
    """A request that was not answered as it should be.

    Args:
        trouble: What is wrong.
        subject: The server, or what the request was about.
        problem: What is wrong, for the user.
        remedy: What the user can do.
    """

    def __init__(self, trouble: Trouble, subject: str, problem: str, remedy: str) -> None:
        by_input = trouble in {Trouble.LOGIN, Trouble.MISSING, Trouble.REFUSED}
        super().__init__(f"{subject}: {problem}. {remedy}", by_input=by_input)
        self.trouble = trouble
        self.subject, self.problem, self.remedy = subject, problem, remedy


class Server:
    """A connection to a Kubeflow Pipelines server.

    Args:
        connection: How to reach it.

    Raises:
        InputError: The connection is described wrongly.
        RequestError: The server does not answer, or wants a login.
    """

    def __init__(self, connection: Connection) -> None:
        _check(connection)
        _keep_libraries_quiet()
        self._timeout = connection.timeout
        self.address = connection.host or os.environ.get(KF_PIPELINES_ENDPOINT_ENV) or "the server of this cluster"
        self._page = os.environ.get(KF_PIPELINES_UI_ENDPOINT_ENV) or connection.host
        self.client = _client(connection, self._explained)
        self.namespace = connection.namespace or self.client.get_user_namespace() or None
        if self.client.multi_user and not self.namespace:
            raise InputError(
                "--namespace", f"is missing, and {self.address} serves several", "Name the namespace of your profile"
            )

    def ask(self, method: Callable[..., Any], **arguments: Any) -> Any:
        """Send a request that may be repeated without harm.

        Args:
            method: A method of the generated API, such as ``server.client.runs.run_service_get_run``.
            **arguments: Its arguments.

        Returns:
            The answer.

        Raises:
            RequestError: There is none, or it is a refusal.
        """
        for pause in _PAUSES:
            try:
                return self._send(method, arguments)
            except RequestError as error:
                if error.trouble not in {Trouble.DROPPED, Trouble.UNREACHABLE, Trouble.BROKEN}:
                    raise
            time.sleep(pause)
        return self._send(method, arguments)

    def make(self, method: Callable[..., Any], find: Callable[[], Any], **arguments: Any) -> Any:
        """Send a request that makes something, so that it is made once.

        Where the connection breaks, nobody knows whether the request was carried out: what it makes is looked for
        before it is sent again. It is not sent again when the server is late or fails, because it may still be at work.

        Args:
            method: A method of the generated API.
            find: Looks for what the request makes; returns it, or ``None`` while it is not there.
            **arguments: The method's arguments.

        Returns:
            What was made, or what was there already.

        Raises:
            RequestError: It was not made, or that is unknown.
        """
        for pause in (*_PAUSES, 0.0):
            try:
                return self._send(method, arguments)
            except RequestError as error:
                if error.trouble in {Trouble.LOGIN, Trouble.MISSING, Trouble.REFUSED}:
                    raise
                waits = _PAUSES if error.trouble is Trouble.SLOW else (pause,)
                if error.trouble is not Trouble.UNREACHABLE and (found := _patiently(find, waits)) is not None:
                    return found
                if error.trouble not in {Trouble.DROPPED, Trouble.UNREACHABLE} or not pause:
                    raise
                if error.trouble is Trouble.UNREACHABLE:
                    time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def pages(self, method: Callable[..., Any], items: str, **arguments: Any) -> list[Any]:
        """Return all entries of a list that the server gives in pages.

        Args:
            method: A ``list`` method of the generated API.
            items: The answer's field that holds them.
            **arguments: The method's arguments.

        Raises:
            RequestError: There is no answer, or it is a refusal.
        """
        found: list[Any] = []
        token = ""
        while True:
            answer = self.ask(method, page_token=token, page_size=_PAGE_SIZE, **arguments)
            found += getattr(answer, items) or []
            token = answer.next_page_token
            if not token:
                return found

    def run_address(self, run_id: str) -> str | None:
        """Return the address of a run's page, if the server's is known."""
        return f"{self._page.rstrip('/')}/#/runs/details/{run_id}" if self._page else None

    def _send(self, method: Any, arguments: dict[str, Any]) -> Any:
        return self._explained(lambda limits: method(**arguments, _request_timeout=limits), method.__self__.api_client)

    def _explained(self, send: Callable[[tuple[float, float]], Any], api: Any) -> Any:
        """Send a request; turn whatever comes in place of its answer into words.

        Causes are not chained: they hold headers, and these hold the login.
        """
        try:
            answer = send((self._timeout, self._timeout))
        except ApiException as error:
            raise self._refusal(error) from None
        except (AttributeError, UnicodeDecodeError) as error:
            # The generated client stumbles over its own error where TLS fails or a proxy's page is no UTF-8.
            if not isinstance(cause := error.__context__, ApiException):
                raise
            raise self._refusal(cause) from None
        except OSError as error:
            # The token's file, which kfp reads for every request.
            raise InputError(
                f"--token-file {error.filename}", f"cannot be read ({error.strerror})", _LOGIN_REMEDY
            ) from None
        except exceptions.HTTPError as error:
            raise self._silence(error) from None
        kind = api.last_response.getheader("Content-Type") or ""
        if "json" not in kind:
            raise self._error(
                Trouble.LOGIN,
                "answers with a page in place of data: it wants a login, or is not the API",
                _LOGIN_REMEDY,
            )
        return answer

    def _refusal(self, error: ApiException) -> RequestError:
        status, words = int(error.status or 0), _words(error)
        told = f"{status} {error.reason or ''}".strip() + (f": {words}" if words else "")
        if status == 0:
            return self._error(Trouble.REFUSED, f"its certificate is not trusted ({words})", "Check --ca-cert")
        if status in {401, 403} or 300 <= status < 400:
            return self._error(Trouble.LOGIN, f"does not let you in ({told})", _LOGIN_REMEDY)
        if status == 404:
            return self._error(Trouble.MISSING, f"has no such thing ({told})", "Check what you named, and --host")
        if status == 409:
            return self._error(Trouble.CONFLICT, f"has something of that name ({told})", "Choose another name")
        if status == 504:
            return self._late()
        if status in {502, 503}:
            return self._error(Trouble.DROPPED, f"is not available ({told})", "Try again later")
        if status >= 500:
            return self._error(Trouble.BROKEN, f"fails ({told})", "The log of its ml-pipeline pod tells more")
        return self._error(Trouble.REFUSED, f"refuses the request ({told})", "Change what it objects to")

    def _silence(self, error: exceptions.HTTPError) -> RequestError:
        match error:
            case exceptions.ReadTimeoutError():
                return self._late()
            case exceptions.NewConnectionError() | exceptions.ConnectTimeoutError() | exceptions.ProxyError():
                remedy = "Check --host, the network, and that a port-forward is running"
                return self._error(Trouble.UNREACHABLE, "cannot be reached", remedy)
            case exceptions.LocationValueError():
                return self._error(Trouble.REFUSED, "is not a valid address", "Check --host")
        return self._error(Trouble.DROPPED, "the connection broke off before the answer", "Try again")

    def _late(self) -> RequestError:
        return self._error(
            Trouble.SLOW, f"has not answered within {self._timeout:g} s", "Try again, or allow it more by --timeout"
        )

    def _error(self, trouble: Trouble, problem: str, remedy: str) -> RequestError:
        return RequestError(trouble, without_credentials(self.address), problem, remedy)


def by_field(key: str, value: str, *, part: bool = False) -> str:
    """Return a filter for lists.

    Args:
        key: The field.
        value: What it must be.
        part: Whether it is enough that it contains the value.
    """
    operation = "IS_SUBSTRING" if part else "EQUALS"
    return json.dumps({"predicates": [{"operation": operation, "key": key, "string_value": value}]})


class _Client(Client):  # type: ignore[misc]
    """``kfp.Client`` that asks for the server's health once, within limits, and repeats nothing behind our back."""

    multi_user = False

    def __init__(self, explained: Callable[..., Any], **arguments: Any) -> None:
        self._explained = explained
        super().__init__(**arguments)

    def _load_config(self, *arguments: Any, **rest: Any) -> Any:
        config = super()._load_config(*arguments, **rest)
        config.retries = False
        return config

    def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
        """Return what the server says of itself; whether it has several users' namespaces is kept."""
        health = self._explained(
            lambda limits: self._healthz_api.healthz_service_get_healthz(_request_timeout=limits),
            self._healthz_api.api_client,
        )
        self.multi_user = health.multi_user is True
        return health


def _client(connection: Connection, explained: Callable[..., Any]) -> _Client:
    arguments: dict[str, Any] = {"host": connection.host, "proxy": connection.proxy}
    if connection.token_file:
        # Within a cluster kfp looks for the file by this variable, elsewhere it wants to be told.
        os.environ[KF_PIPELINES_SA_TOKEN_ENV] = str(connection.token_file)
        arguments["credentials"] = ServiceAccountTokenVolumeCredentials()
    if connection.cookie_file:
        arguments["cookies"] = connection.cookie_file.read_text(encoding="utf-8").strip()
    if connection.ca_cert:
        arguments["ssl_ca_cert"] = str(connection.ca_cert)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Client(explained, **arguments)


def _check(connection: Connection) -> None:
    host = connection.host or os.environ.get(KF_PIPELINES_ENDPOINT_ENV)
    if host:
        if not re.match(r"https?://[^/]", host):
            raise InputError(f"--host {host}", "is not an http:// or https:// address", "Give one, such as of the API")
        if urlsplit(host).password:
            shown = without_credentials(host)
            raise InputError(f"--host {shown}", "the address carries a password", "Use --token-file or --cookie-file")
    elif not _has_cluster():
        raise InputError(
            "--host",
            "is missing, and there is neither a pod's service account nor a kubeconfig",
            f"Give the address, or set {KF_PIPELINES_ENDPOINT_ENV}",
        )
    for option in ("token_file", "cookie_file", "ca_cert"):
        file: Path | None = getattr(connection, option)
        if file:
            name = "--" + option.replace("_", "-")
            try:
                content = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not a text"
                raise InputError(f"{name} {file}", f"cannot be read ({reason})", "Give another file") from None
            if not content.strip():
                raise InputError(f"{name} {file}", "is empty", "Give another file")


def _has_cluster() -> bool:
    kubeconfigs = KUBE_CONFIG_DEFAULT_LOCATION.split(os.pathsep)
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(Path(path).expanduser().is_file() for path in kubeconfigs)


def _keep_libraries_quiet() -> None:
    # What they have to say is said in one line here.
    for name in ("urllib3", "kfp_server_api"):
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False


def _patiently(find: Callable[[], Any], waits: tuple[float, ...]) -> Any:
    for wait in waits:
        time.sleep(wait)
        if (found := find()) is not None:
            return found
    return None


def _words(error: ApiException) -> str:
    """Return what the server says about an error, without the trace that it may append."""
    try:
        body = json.loads(error.body or "")
        text = next(body[name] for name in ("message", "error_message", "error") if body.get(name))
    except (ValueError, AttributeError, TypeError, StopIteration):
        # A proxy's page says nothing that the status does not say.
        text = str(error.reason or "") if error.status == 0 else ""
    return " ".join(str(text).split())[:_WORDS]

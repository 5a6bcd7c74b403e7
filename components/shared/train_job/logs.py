"""What the first node of a TrainJob prints, copied into the step's own log."""

import threading
from contextlib import suppress
from typing import Any

from kubernetes.client import CoreV1Api
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from yolo_distill.components.shared.train_job.body import NODE, node_pods

_LAST_LINES_SECONDS = 5.0
_REQUEST_SECONDS = 30.0


class NodeLogs:
    """Follows the log of the first node's pod. It is for people only: where it cannot be read, training goes on."""

    def __init__(self, core: CoreV1Api, namespace: str, train_job: str) -> None:
        """Follow nobody yet.

        Args:
            core: The API.
            namespace: Where the pods are.
            train_job: Name of the TrainJob.
        """
        self._core = core
        self._namespace = namespace
        self._train_job = train_job
        self._pod = ""
        self._lines = 0
        self._copying: threading.Thread | None = None

    def copy(self) -> None:
        """Begin to copy, or go on where a connection has broken, unless that is under way."""
        if self._copying is not None and self._copying.is_alive():
            return
        with suppress(ApiException, HTTPError):
            pods = self._core.list_namespaced_pod(
                self._namespace, label_selector=node_pods(self._train_job), _request_timeout=_REQUEST_SECONDS
            ).items
            started = [pod for pod in pods if pod.status.phase != "Pending"]
            if not started:
                return
            pod = max(started, key=lambda pod: pod.metadata.creation_timestamp).metadata.name
            if pod != self._pod:
                self._pod, self._lines = pod, 0
            self._copying = threading.Thread(target=self._follow, daemon=True)
            self._copying.start()

    def close(self) -> None:
        """Wait a little for the last lines."""
        if self._copying is not None:
            self._copying.join(_LAST_LINES_SECONDS)

    def _follow(self) -> None:
        with suppress(ApiException, HTTPError):
            response: Any = self._core.read_namespaced_pod_log(
                self._pod, self._namespace, container=NODE, follow=True, _preload_content=False
            )
            rest, known = b"", self._lines
            count = 0
            for part in response.stream(amt=None):
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    count += 1
                    if count > known:
                        self._lines = count
                        print(line.decode(errors="replace"), flush=True)

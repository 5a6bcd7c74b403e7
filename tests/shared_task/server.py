"""A real MLflow server for tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve_mlflow(database: Path) -> Iterator[str]:
    """Serve an MLflow database, made when it is missing, and yield the server's address."""
    port = free_port()
    with (database.parent / "server.log").open("w") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"),
                *("--artifacts-destination", str(database.parent / "served"), "--port", str(port), "--workers", "1"),
            ],
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            cwd=database.parent,
            stdout=log,
            stderr=log,
            # The server starts workers of its own, which end with its process group.
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_healthy(address, server, database.parent / "server.log")
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_until_healthy(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if requests.get(f"{address}/health", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.3)
    raise RuntimeError(log.read_text())

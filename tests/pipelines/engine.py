"""A container engine as far as KFP's DockerRunner sees one: Docker's API over HTTP, and a process for a container.

What an engine does about users, mounts and read-only file systems is tried by tests/e2e/docker_runner.sh on a real one.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Container:
    settings: dict[str, Any]
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        given = dict(entry.split("=", 1) for entry in self.settings["Env"])
        inherited = {"PATH": path, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        self.process = subprocess.Popen(
            self.settings["Cmd"],
            env=inherited | given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def kill(self) -> None:
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Engine(ThreadingHTTPServer):
    """The engine.

    Attributes:
        images: Id of each image that it has, by name.
        security: What it says of its security.
        made: What every container was made with, in order.
        containers: Those that have not been removed, by id.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.images: dict[str, str] = {}
        self.security: list[str] = []
        self.made: list[dict[str, Any]] = []
        self.containers: dict[str, Container] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for container in self.containers.values():
            container.kill()


class _Handler(BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        _, kind, name, what = self._place()
        if kind == "version":
            self._answer(200, {"ApiVersion": "1.41", "MinAPIVersion": "1.24"})
        elif kind == "info":
            self._answer(200, {"SecurityOptions": self.server.security})
        elif kind == "images":
            found = self.server.images.get(name)
            self._answer(*((200, {"Id": found}) if found else (404, {"message": f"No such image: {name}"})))
        elif (kind, name) == ("containers", "json"):
            filters = json.loads(parse_qs(urlsplit(self.path).query)["filters"][0])
            [label] = filters["label"]
            wanted = dict([label.split("=", 1)]).items()
            found = [key for key, one in self.server.containers.items() if wanted <= one.settings["Labels"].items()]
            self._answer(200, [{"Id": key} for key in found])
        elif name not in self.server.containers:
            self._answer(404, {"message": f"No such container: {name}"})
        elif what == "logs":
            self._print(self.server.containers[name])
        else:
            self._answer(200, {"Id": name, "Config": {"Tty": False}})

    def do_POST(self) -> None:
        _, _, name, what = self._place()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if name == "create":
            settings = json.loads(body)
            mounted = [bind.split(":")[0] for bind in settings["HostConfig"]["Binds"]]
            mounted += [mount["Source"] for mount in settings["HostConfig"]["Mounts"]]
            if missing := [path for path in mounted if not Path(path).exists()]:
                # A real one makes some of them, which then belong to root.
                self._answer(400, {"message": f"{missing} would be made by the engine"})
                return
            self.server.made.append(settings)
            key = f"{len(self.server.made):064x}"
            self.server.containers[key] = Container(self.server.made[-1])
            self._answer(201, {"Id": key, "Warnings": []})
        elif name not in self.server.containers:
            self._answer(404, {"message": f"No such container: {name}"})
        elif what == "start":
            self.server.containers[name].start()
            self._answer(204)
        else:
            self._answer(200, {"StatusCode": self.server.containers[name].process.wait()})

    def do_DELETE(self) -> None:
        container = self.server.containers.pop(self._place()[2], None)
        if container is None:
            self._answer(404, {"message": "No such container"})
            return
        container.kill()
        self._answer(204)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _place(self) -> tuple[str, str, str, str]:
        """The parts of the path: version of the API, kind of object, its name, and what of it."""
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        version = parts.pop(0) if parts[0].startswith("v1.") else ""
        kind, rest = parts[0], parts[1:]
        what = rest.pop() if len(rest) > 1 else ""
        return version, kind, "/".join(rest), what

    def _answer(self, status: int, content: object = None) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _print(self, container: Container) -> None:
        self.send_response(200)
        self.end_headers()
        # Docker's framing of what a container prints: stream, length, text.
        while printed := container.process.stdout.read1():
            self.wfile.write(struct.pack(">BxxxL", 1, len(printed)) + printed)

"""An HTTP proxy between boto3 and a storage that fails in the ways that networks and storages fail."""

import base64
import hashlib
import http.client
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Request:
    """A request that has come in, and how much of the answer went out."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    sent: int = 0


@dataclass
class Fault:
    """What is done to requests: the first ``skip`` that fit are let through, the next ``times`` are not.

    Kinds: ``status`` answers ``code``; ``reset`` and ``cut`` end the connection rudely or politely after ``after``
    bytes of the answer; ``lose`` passes the request on and ends the connection then; ``break`` ends it before;
    ``hold`` does nothing until the proxy's faults are cleared, and ends it then; ``trickle`` sends 64 KiB every
    ``after`` milliseconds; ``stall`` stops in the middle for that many; ``flip`` changes a byte of the answer,
    ``garble`` one of what was sent; ``whole`` ignores ranges.
    """

    kind: str
    method: str = "GET"
    path: str = ""
    times: float = 1
    skip: int = 0
    code: str = "SlowDown"
    status: int = 503
    after: int = 0

    def fits(self, request: Request) -> bool:
        if request.method != self.method or not re.search(self.path, request.path) or not self.times:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass
class Proxy:
    """The proxy's address, what it is to do and what has come in."""

    address: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def seen(self, method: str, path: str = "") -> list[Request]:
        return [r for r in self.requests if r.method == method and re.search(path, r.path)]

    def sent(self) -> int:
        """Bytes of objects that went out."""
        return sum(request.sent for request in self.seen("GET", r"^/[^/?]+/[^?]+"))

    def received(self) -> int:
        """Bytes of parts that came in."""
        return sum(len(request.body) for request in self.seen("PUT", "partNumber"))

    def clear(self) -> None:
        with self.lock:
            self.faults.clear()
            self.requests.clear()

    def on_request(self, request: Request) -> Fault | None:
        with self.lock:
            self.requests.append(request)
            return next((fault for fault in self.faults if fault.fits(request)), None)


class Broken(Exception):
    """The connection is to end."""


def error_document(code: str, path: str) -> bytes:
    """What S3 answers when it refuses, or STS, which has no paths."""
    error = f"<Error><Code>{code}</Code><Message>No.</Message></Error>"
    document = f"<ErrorResponse>{error}</ErrorResponse>" if path == "/" else error
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{document}'.encode()


def handler(proxy: Proxy, upstream: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = Request(self.command, self.path, dict(self.headers.items()), body)
            fault = proxy.on_request(request)
            try:
                self.answer(request, fault)
            except (Broken, ConnectionError):
                self.close_connection = True

        def answer(self, request: Request, fault: Fault | None) -> None:
            kind = fault.kind if fault else ""
            while kind == "hold" and fault in proxy.faults:
                time.sleep(0.02)
            if kind in {"break", "hold"}:
                self.reset()
            if kind == "status" and fault:
                self.reply(request, fault.status, {}, error_document(fault.code, request.path))
                return
            body = flipped(request.body) if kind == "garble" else request.body
            md5 = request.headers.get("Content-MD5")
            # As S3 does, and moto does not.
            if md5 and base64.b64encode(hashlib.md5(body).digest()).decode() != md5:
                self.reply(request, 400, {}, error_document("BadDigest", request.path))
                return
            connection = http.client.HTTPConnection(upstream, timeout=60)
            headers = {k: v for k, v in request.headers.items() if k.lower() not in {"expect", "connection"}}
            if kind == "whole":
                del headers["Range"]
            connection.request(request.method, request.path, body, headers)
            response = connection.getresponse()
            content = response.read()
            connection.close()
            if kind == "lose":
                self.reset()
            if kind == "flip":
                content = flipped(content)
            self.reply(request, response.status, dict(response.getheaders()), content, fault)

        def reply(
            self, request: Request, status: int, headers: dict[str, str], content: bytes, fault: Fault | None = None
        ) -> None:
            self.send_response_only(status)
            dropped = {"connection", "transfer-encoding", "date", "server"}
            lengths = {"content-length": str(len(content))} | {k.lower(): v for k, v in headers.items()}
            for name, value in lengths.items():
                if name not in dropped:
                    self.send_header(name, value)
            self.end_headers()
            if request.method == "HEAD":
                return
            kind, after = (fault.kind, fault.after) if fault else ("", 0)
            step = len(content) if kind not in {"trickle", "reset", "cut", "stall"} else 1 << 16
            for start in range(0, len(content), step or 1):
                piece = content[start : start + step]
                if kind in {"reset", "cut"} and start >= after:
                    self.reset() if kind == "reset" else self.hang_up()
                if kind == "trickle" or (kind == "stall" and start <= len(content) // 2 < start + step):
                    self.wfile.flush()
                    time.sleep(after / 1000)
                self.wfile.write(piece)
                request.sent += len(piece)

        def reset(self) -> None:
            # Closed without lingering, a socket answers with RST.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.hang_up()

        def hang_up(self) -> None:
            self.wfile.flush()
            self.connection.close()
            self.rfile.close()
            raise Broken

        def log_message(self, format: str, *args: object) -> None:
            pass

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    return Handler


def flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: broken connections are the purpose."""


@contextmanager
def serve_proxy(upstream: str, wrap: Callable[[socket.socket], ssl.SSLSocket] | None = None) -> Iterator[Proxy]:
    """Serve a proxy of ``host:port``, with TLS where ``wrap`` makes such sockets."""
    proxy = Proxy("")
    server = Server(("127.0.0.1", 0), handler(proxy, upstream))
    if wrap:
        server.socket = wrap(server.socket)
    proxy.address = f"{'https' if wrap else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

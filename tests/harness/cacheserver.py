"""A server in Bazel's layout for tests, which can be slow, lie, break off or never answer."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class CacheServer:
    """``held``: what was put, by name.  ``fault``: what is wrong with every answer.  ``asked``: methods and names."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.fault = ""
        self.token = ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            do_HEAD = do_PUT = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """Nothing is said."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/cache"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One request."""
        name = request.path.removeprefix("/cache/")
        self.asked.append((request.command, name))
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return self.send(request, 401, b"")
        if self.fault == "hangs":
            time.sleep(60)
        if self.fault == "read-only" and request.command == "PUT" or self.fault == "forbids":
            return self.send(request, 403, b"")
        if self.fault == "fails" or self.fault == "fails once" and len(self.asked) % 2:
            return self.send(request, 500, b"sorry")
        if request.command == "PUT":
            self.held[name] = body
            return self.send(request, 201, b"")
        data = self.held.get(name)
        if data is None:
            return self.send(request, 404, b"nothing")
        self.send(request, 200, data)
        return None

    def send(self, request: BaseHTTPRequestHandler, status: int, data: bytes) -> None:
        """An answer, with the fault."""
        whole = len(data)
        if request.command == "GET" and status == 200:
            if self.fault == "lies":
                data = bytes(reversed(data))
            elif self.fault == "cuts":
                data = data[: whole // 2]
            elif self.fault == "floods":
                whole = 1 << 40
        if self.fault == "redirects":
            status = 302
        with contextlib.suppress(OSError):
            request.send_response(status)
            request.send_header("Location", "http://192.0.2.1/")
            request.send_header("Content-Length", str(whole))
            request.end_headers()
            if request.command != "HEAD":
                self.write(request, data)
        if self.fault in ("cuts", "floods"):
            request.close_connection = True

    def write(self, request: BaseHTTPRequestHandler, data: bytes) -> None:
        """The body."""
        if self.fault == "drips":
            for byte in data:
                request.wfile.write(bytes([byte]))
                time.sleep(0.2)
        elif self.fault == "floods":
            while True:
                request.wfile.write(bytes(1 << 20))
        else:
            request.wfile.write(data)


@contextlib.contextmanager
def serving() -> Iterator[CacheServer]:
    """A server that runs meanwhile."""
    one = CacheServer()
    thread = threading.Thread(target=one.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield one
    finally:
        one.server.shutdown()
        one.server.server_close()

"""A web server on this machine that serves one folder, with or without parts of files, passwords and faults."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "t0p-s3cr3t"


class Handler(BaseHTTPRequestHandler):
    """`mode`: "parts" honours Range, "whole" does not, "denied" refuses all, "flaky" breaks off each file once."""

    def __init__(self, folder: Path, mode: str, broken: set[str], *rest: Any) -> None:
        self.folder, self.mode, self.broken = folder, mode, broken
        super().__init__(*rest)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.answer(403, b"")

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        file = self.folder / path.lstrip("/")
        wanted = "Authorization" in self.headers or f"token={TOKEN}" in query if "private" in path else True
        if self.mode == "denied" or not wanted:
            self.answer(403, b"")
        elif not file.is_file():
            self.answer(404, b"")
        else:
            self.send(file.read_bytes())

    def send(self, data: bytes) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if self.mode == "whole" or found is None:
            self.answer(200, data)
            return
        start, stop = int(found[1]), int(found[2] or len(data) - 1) + 1
        size = f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"
        self.answer(206, data[start:stop], size)

    def answer(self, status: int, data: bytes, part: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if part:
            self.send_header("Content-Range", part)
        if self.mode in ("parts", "flaky"):
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.mode == "flaky" and len(data) > 1 and self.path not in self.broken:
            self.broken.add(self.path)
            data = data[: len(data) // 2]
            self.close_connection = True
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve_folder(folder: Path, mode: str = "parts") -> Iterator[str]:
    """A server for `folder` until the block ends; its host and port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, folder, mode, set()))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""A local server that stands in for the Hugging Face Hub, for listing and reading data sets.

Like the Hub it lists folders in pages, redirects to the files, serves ranges, and has the Hub's error codes.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_s3cr3t"
# The Hub lists 1,000 entries per page.
PAGE_SIZE = 3


@dataclass
class Hub:
    """A running server.

    Attributes:
        address: Its HOST:PORT.
        files: The contents of files by OWNER/NAME/PATH.
        gated: The OWNER/NAME of gated data sets.
        asked: The path and range of each request so far.
    """

    address: str
    files: dict[str, bytes]
    gated: frozenset[str]
    asked: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that make a command use this server."""
        return {"HF_ENDPOINT": f"http://{self.address}", "HF_HUB_OFFLINE": "0"}


class Handler(BaseHTTPRequestHandler):
    """Answers GET; `hub` is shared by all requests."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *rest: Any) -> None:
        self.hub = hub
        super().__init__(*rest)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.hub.asked.append(f"{url.path} {self.headers.get('Range', '')}".strip())
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        match = re.fullmatch(
            r"/(?:api/)?datasets/([^/]+/[^/]+)(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?", url.path
        )
        if url.path.startswith("/cdn/"):
            self.send_content(self.hub.files[unquote(url.path.removeprefix("/cdn/"))])
        elif token not in ("", TOKEN):
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif match is None or not any(name.startswith(f"{match[1]}/") for name in self.hub.files):
            # Like the Hub: without a token a missing data set looks like one that needs a token.
            self.refuse(*((404, "RepoNotFound", "Repository not found") if token else (401, "", "Invalid username")))
        elif match[3] not in (None, "main"):
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
        elif match[2] == "tree":
            self.send_tree(match[1], unquote(match[4] or ""), parse_qs(url.query))
        elif match[2] == "resolve":
            self.send_file(match[1], unquote(match[4] or ""), allowed=bool(token))
        else:
            self.send_json({"id": match[1], "sha": "0" * 40})

    def send_tree(self, repo: str, folder: str, query: dict[str, list[str]]) -> None:
        """Send one page of the entries of a folder."""
        prefix = f"{repo}/{folder}/" if folder else f"{repo}/"
        names = sorted(name.removeprefix(f"{repo}/") for name in self.hub.files if name.startswith(prefix))
        if not names:
            self.refuse(404, "EntryNotFound", f"{folder} does not exist")
            return
        recursive = query.get("recursive") == ["True"] or query.get("recursive") == ["true"]
        start = len(f"{folder}/") if folder else 0
        entries = {
            name if recursive or "/" not in name[start:] else name[: name.index("/", start)]: name for name in names
        }
        paths = list(entries)
        if recursive:
            folders = {
                name[: slash.start()] for name in names for slash in re.finditer("/", name) if slash.start() >= start
            }
            paths = sorted({*paths, *folders})
        first = int(query.get("cursor", ["0"])[0])
        page = [self.entry(repo, path) for path in paths[first : first + PAGE_SIZE]]
        links = {}
        if first + PAGE_SIZE < len(paths):
            path = urlsplit(self.path).path
            parameters = f"recursive={recursive}&expand=False&cursor={first + PAGE_SIZE}"
            links = {"Link": f'<http://{self.hub.address}{path}?{parameters}>; rel="next"'}
        self.send_json(page, links)

    def entry(self, repo: str, path: str) -> dict[str, Any]:
        data = self.hub.files.get(f"{repo}/{path}")
        name = hashlib.sha1(data or path.encode(), usedforsecurity=False).hexdigest()
        if data is None:
            return {"type": "directory", "oid": name, "size": 0, "path": path}
        return {"type": "file", "oid": name, "size": len(data), "path": path}

    def send_file(self, repo: str, path: str, *, allowed: bool) -> None:
        if repo in self.hub.gated:
            message = f"Access to dataset {repo} is restricted and you are not in the authorized list."
            self.refuse(403 if allowed else 401, "GatedRepo", message)
        elif f"{repo}/{path}" not in self.hub.files:
            self.refuse(404, "EntryNotFound", "Entry not found")
        else:
            self.answer(302, b"", {"Location": f"http://{self.hub.address}/cdn/{repo}/{path}"})

    def send_content(self, data: bytes) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None:
            self.answer(200, data)
            return
        start, stop = int(match[1]), min(int(match[2]) + 1, len(data))
        self.answer(206, data[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    def send_json(self, content: Any, headers: dict[str, str] | None = None) -> None:
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def refuse(self, status: int, code: str, message: str) -> None:
        named = {"X-Error-Code": code} if code else {}
        self.answer(status, json.dumps({"error": message}).encode(), {**named, "X-Error-Message": message})

    def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running(files: dict[str, bytes], gated: frozenset[str] = frozenset()) -> Iterator[Hub]:
    """Run a server until the block ends."""
    hub = Hub("", files, gated)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, hub))
    server.daemon_threads = True
    hub.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

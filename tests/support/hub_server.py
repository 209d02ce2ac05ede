"""A server of this machine that answers what a client of the Hugging Face Hub asks to list and read a data set.

It has what the Hub has: a tree listing in pages, files behind a redirect, ranges, and its words for what it refuses.
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
# The Hub gives 1,000 entries a page.
PAGE = 3


@dataclass
class Hub:
    """The files of data sets as `OWNER/NAME/PATH`, which of the data sets are gated, and what was asked for."""

    address: str
    files: dict[str, bytes]
    gated: frozenset[str]
    asked: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to find it."""
        return {"HF_ENDPOINT": f"http://{self.address}", "HF_HUB_OFFLINE": "0"}


class Handler(BaseHTTPRequestHandler):
    """Answers GET; `hub` is shared by all requests."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *rest: Any) -> None:
        self.hub = hub
        super().__init__(*rest)

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        self.hub.asked.append(f"{split.path} {self.headers.get('Range', '')}".strip())
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        found = re.fullmatch(
            r"/(?:api/)?datasets/([^/]+/[^/]+)(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?", split.path
        )
        if split.path.startswith("/cdn/"):
            self.send_part(self.hub.files[unquote(split.path.removeprefix("/cdn/"))])
        elif token not in ("", TOKEN):
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif found is None or not any(name.startswith(f"{found[1]}/") for name in self.hub.files):
            # Who is not known is not told whether a data set is there.
            self.refuse(*((404, "RepoNotFound", "Repository not found") if token else (401, "", "Invalid username")))
        elif found[3] not in (None, "main"):
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
        elif found[2] == "tree":
            self.send_tree(found[1], unquote(found[4] or ""), parse_qs(split.query))
        elif found[2] == "resolve":
            self.send_file(found[1], unquote(found[4] or ""), allowed=bool(token))
        else:
            self.send_json({"id": found[1], "sha": "0" * 40})

    def send_tree(self, repo: str, folder: str, query: dict[str, list[str]]) -> None:
        """The entries of a folder, a page of them."""
        top = f"{repo}/{folder}/" if folder else f"{repo}/"
        names = sorted(name.removeprefix(f"{repo}/") for name in self.hub.files if name.startswith(top))
        if not names:
            self.refuse(404, "EntryNotFound", f"{folder} does not exist")
            return
        deep = query.get("recursive") == ["True"] or query.get("recursive") == ["true"]
        start = len(f"{folder}/") if folder else 0
        entries = {name if deep or "/" not in name[start:] else name[: name.index("/", start)]: name for name in names}
        paths = list(entries)
        if deep:
            folders = {name[: at.start()] for name in names for at in re.finditer("/", name) if at.start() >= start}
            paths = sorted({*paths, *folders})
        first = int(query.get("cursor", ["0"])[0])
        made = [self.entry(repo, path) for path in paths[first : first + PAGE]]
        links = {}
        if first + PAGE < len(paths):
            here = urlsplit(self.path).path
            asked = f"recursive={deep}&expand=False&cursor={first + PAGE}"
            links = {"Link": f'<http://{self.hub.address}{here}?{asked}>; rel="next"'}
        self.send_json(made, links)

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

    def send_part(self, data: bytes) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if found is None:
            self.answer(200, data)
            return
        start, stop = int(found[1]), min(int(found[2]) + 1, len(data))
        self.answer(206, data[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    def send_json(self, made: Any, headers: dict[str, str] | None = None) -> None:
        self.answer(200, json.dumps(made).encode(), {"Content-Type": "application/json"} | (headers or {}))

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
    """A server until the block ends."""
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

"""A local server that stands in for the Hugging Face Hub, for listing and reading data sets and models.

Like the Hub it lists folders in pages, redirects to the files, serves ranges, and has the Hub's error codes. Models
have commits, to which branches and tags refer; data sets have only their newest state.
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
MODEL_PATH = re.compile(
    r"/(?:api/)?(?:resolve-cache/)?(?:models/)?([^/]+/[^/]+)(?:/(revision|tree|resolve|refs)(?:/([^/]+)(?:/(.*))?)?)?"
)


@dataclass
class ModelRepository:
    """The history of a model.

    Attributes:
        commits: The files of each commit, by path.
        refs: The commits of branches and tags.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], *refs: str) -> str:
        """Add a commit to which the branch main and `refs` refer then. Returns its hash."""
        content = b"".join(name.encode() + b"\0" + files[name] for name in sorted(files))
        name = hashlib.sha1(f"{len(self.commits)} ".encode() + content, usedforsecurity=False).hexdigest()
        self.commits[name] = files
        self.refs |= dict.fromkeys(("main", *refs), name)
        return name


@dataclass
class Hub:
    """A running server.

    Attributes:
        address: Its HOST:PORT.
        files: The contents of files by OWNER/NAME/PATH.
        gated: The OWNER/NAME of gated data sets and models.
        models: The models by OWNER/NAME.
        asked: The path and range of each request so far.
    """

    address: str
    files: dict[str, bytes]
    gated: frozenset[str]
    models: dict[str, ModelRepository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that make a command use this server."""
        return {"HF_ENDPOINT": f"http://{self.address}", "HF_HUB_OFFLINE": "0"}


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD; `hub` is shared by all requests."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *rest: Any) -> None:
        self.hub = hub
        super().__init__(*rest)

    def do_HEAD(self) -> None:
        self.do_GET()

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
        elif not url.path.removeprefix("/api").startswith("/datasets/"):
            self.answer_for_model(url.path, has_token=bool(token))
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

    def answer_for_model(self, path: str, *, has_token: bool) -> None:
        match = MODEL_PATH.fullmatch(path)
        repo, action, revision, file = match.groups() if match else ("", None, None, None)
        model = self.hub.models.get(repo)
        if model is None:
            # Like the Hub: without a token an absent model looks like one that needs a token.
            self.refuse(404 if has_token else 401, "RepoNotFound", "Repository not found")
            return
        name = unquote(revision or "main")
        commit = model.refs.get(name, name)
        if commit not in model.commits:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {name}")
        elif action == "resolve":
            self.send_model_file(repo, commit, unquote(file or ""), is_cache="/resolve-cache/" in path)
        elif action == "refs":
            branches = [{"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": c} for ref, c in model.refs.items()]
            self.send_json({"branches": branches, "tags": [], "converts": []})
        elif action == "tree":
            self.send_json([model_entry(path, data) for path, data in sorted(model.commits[commit].items())])
        else:
            siblings = [{"rfilename": path} for path in sorted(model.commits[commit])]
            self.send_json({"_id": "0" * 24, "id": repo, "modelId": repo, "sha": commit, "siblings": siblings})

    def send_model_file(self, repo: str, commit: str, path: str, *, is_cache: bool) -> None:
        """Send a file. As on the Hub, the first address redirects to a second one, which has the content."""
        data = self.hub.models[repo].commits[commit].get(path)
        headers = {"X-Repo-Commit": commit}
        if repo in self.hub.gated:
            self.refuse(403, "GatedRepo", f"Access to model {repo} is restricted")
        elif data is None:
            self.refuse(404, "EntryNotFound", "Entry not found")
        elif is_cache:
            self.answer(200, data, headers | {"ETag": f'"{git_hash(data)}"'})
        else:
            location = f"/api/resolve-cache/models/{repo}/resolve/{commit}/{path}"
            self.answer(307, b"", headers | {"Location": location, "X-Linked-Size": str(len(data))})

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
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def model_entry(path: str, data: bytes) -> dict[str, Any]:
    """A file in the listing of a model."""
    return {"type": "file", "oid": git_hash(data), "size": len(data), "path": path}


def git_hash(data: bytes) -> str:
    """The name that git gives to the content of a file."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


@contextmanager
def running(
    files: dict[str, bytes],
    gated: frozenset[str] = frozenset(),
    models: dict[str, ModelRepository] | None = None,
) -> Iterator[Hub]:
    """Run a server until the block ends."""
    hub = Hub("", files, gated, models or {})
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

"""The REST interface of Qdrant in front of the engine that its client brings: there is no package of the server.

The routes are ours; the requests are parsed by the models that Qdrant publishes of its interface, and answered by its
own local mode, in memory.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MAX_REQUEST_BYTES = 32 << 20
COLLECTION = r"/collections/(?P<name>[^/]+)"


class QdrantServer:
    """A server on a free port of this machine, which ends with `close`.

    Attributes:
        url: Its address.
        client: The engine: what a test does behind the back of embedcli.
        key: The key that requests must have, or None.
        busy: How many requests are refused with status 503 from now on.
    """

    def __init__(self) -> None:
        from qdrant_client import QdrantClient

        self.client = QdrantClient(":memory:")
        self.key: str | None = None
        self.busy = 0
        self.lock = threading.Lock()
        handler = type("BoundHandler", (Handler,), {"server_state": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.client.close()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return the status and the result, or the text of an error."""
        for expected, pattern, respond in ROUTES:
            found = re.fullmatch(pattern, path)
            if method == expected and found:
                try:
                    with self.lock:
                        return 200, respond(self.client, **found.groupdict(), **({"body": body} if body else {}))
                except ValueError as error:
                    return 404 if "not found" in str(error) else 400, str(error)
        return 404, f"no route for {method} {path}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: QdrantServer

    def respond(self) -> None:
        state = self.server_state
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if len(body) > MAX_REQUEST_BYTES:
            status, result = 413, "payload too large"
        elif state.key is not None and self.headers.get("api-key") != state.key:
            status, result = 401, "Must provide an API key or an Authorization bearer token"
        elif state.busy:
            state.busy -= 1
            status, result = 503, "Service temporarily unavailable"
        else:
            status, result = state.answer(self.command, self.path.partition("?")[0], body)
        answer = {"result": result, "status": "ok"} if status == 200 else {"status": {"error": result}}
        data = json.dumps({**answer, "time": 0.0}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = respond  # noqa: N815  names of http.server

    def log_message(self, *_: object) -> None:
        """Say nothing."""


# What a route answers: the engine, groups of the path, and the body, if there is one.
Respond = Callable[..., Any]


def dump(model: Any) -> Any:
    return json.loads(model.model_dump_json())


def parse(name: str, body: bytes) -> Any:
    """Parse a body as one of the published models."""
    from pydantic import TypeAdapter
    from qdrant_client import models

    return TypeAdapter(getattr(models, name)).validate_json(body)


def create_collection(client: Any, name: str, body: bytes) -> bool:
    request = parse("CreateCollection", body)
    return bool(
        client.create_collection(
            name,
            vectors_config=request.vectors,
            sparse_vectors_config=request.sparse_vectors,
            metadata=request.metadata,
        )
    )


def update_collection(client: Any, name: str, body: bytes) -> bool:
    if name not in {collection.name for collection in client.get_collections().collections}:
        raise ValueError(f"Collection {name} not found")
    request = parse("UpdateCollection", body)
    return bool(client.update_collection(name, metadata=request.metadata))


def update_aliases(client: Any, body: bytes) -> bool:
    return bool(client.update_collection_aliases(parse("ChangeAliasesOperation", body).actions))


def upsert(client: Any, name: str, body: bytes) -> Any:
    request = parse("PointInsertOperations", body)
    return dump(client.upsert(name, request.batch if hasattr(request, "batch") else request.points))


def scroll(client: Any, name: str, body: bytes) -> Any:
    request = parse("ScrollRequest", body)
    points, offset = client.scroll(
        name,
        limit=request.limit,
        offset=request.offset,
        with_payload=request.with_payload,
        with_vectors=request.with_vector,
    )
    return {"points": [dump(point) for point in points], "next_page_offset": offset}


def retrieve(client: Any, name: str, body: bytes) -> Any:
    request = parse("PointRequest", body)
    points = client.retrieve(name, request.ids, with_payload=request.with_payload, with_vectors=request.with_vector)
    return [dump(point) for point in points]


def query(client: Any, name: str, body: bytes) -> Any:
    request = parse("QueryRequest", body)
    asked = getattr(request.query, "nearest", request.query)
    return dump(
        client.query_points(
            name,
            query=asked,
            using=request.using,
            limit=request.limit,
            with_payload=request.with_payload,
            with_vectors=request.with_vector,
        )
    )


ROUTES: list[tuple[str, str, Respond]] = [
    ("GET", "/aliases", lambda client: dump(client.get_aliases())),
    ("GET", "/collections", lambda client: dump(client.get_collections())),
    ("POST", "/collections/aliases", update_aliases),
    ("GET", f"{COLLECTION}/exists", lambda client, name: {"exists": client.collection_exists(name)}),
    ("GET", COLLECTION, lambda client, name: dump(client.get_collection(name))),
    ("PUT", COLLECTION, create_collection),
    ("PATCH", COLLECTION, update_collection),
    ("DELETE", COLLECTION, lambda client, name: client.delete_collection(name)),
    ("PUT", f"{COLLECTION}/points", upsert),
    ("POST", f"{COLLECTION}/points/delete", lambda client, name, body: dump(
        client.delete(name, parse("PointsSelector", body))
    )),
    ("POST", f"{COLLECTION}/points/scroll", scroll),
    ("POST", f"{COLLECTION}/points", retrieve),
    ("POST", f"{COLLECTION}/points/count", lambda client, name, body: dump(client.count(name, exact=True))),
    ("POST", f"{COLLECTION}/points/query", query),
]  # fmt: skip

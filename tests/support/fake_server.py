"""A real HTTP server on loopback that speaks `POST /v1/embeddings`, and misbehaves on demand.

    with FakeServer(dim=8) as server:
        server.faults += [status(429, {"Retry-After": "2"}), cut_body(), shuffled()]
        ... server.base_url ... server.seen ...

Each fault is used up by one request, in the order of arrival; without faults the answers are right. The vector of a
text depends on nothing but the text and the dimension: `expected(texts, dim)`.
"""

from __future__ import annotations

import base64
import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

MODEL = "fake-embedding"


def expected(texts: Sequence[str], dim: int) -> NDArray[np.float32]:
    """float32 [len(texts), dim], norm 1: what the server answers for these texts."""
    made = np.empty((len(texts), dim), np.float32)
    for row, text in enumerate(texts):
        seed = int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
        made[row] = np.random.default_rng(seed).standard_normal(dim)
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


def tokens_of(text: str) -> int:
    """What the server counts: words."""
    return max(1, len(text.split()))


@dataclass
class Seen:
    """One request as it arrived; header names in lower case."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def texts(self) -> list[str]:
        given = self.body.get("input")
        return [given] if isinstance(given, str) else list(given or [])


@dataclass
class Reply:
    """One answer as it leaves; a fault changes it, or takes over the socket."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    raw: bytes | None = None
    deliver: Callable[[BaseHTTPRequestHandler, bytes], None] | None = None

    def content(self) -> bytes:
        return self.raw if self.raw is not None else json.dumps(self.body).encode()


Fault = Callable[[Seen, Reply], None]


def error(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """An error body as OpenAI writes it."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code or str(status)}}


def status(code: int, headers: Mapping[str, str] | None = None, message: str = "made up", kind: str = "") -> Fault:
    """Answer with this status."""

    def fault(seen: Seen, reply: Reply) -> None:
        reply.status, reply.headers = code, dict(headers or {})
        reply.body = error(code, message, kind or None)

    return fault


def raw(content: bytes, code: int = 200) -> Fault:
    """Answer with these bytes."""

    def fault(seen: Seen, reply: Reply) -> None:
        reply.status, reply.raw = code, content

    return fault


def shuffled() -> Fault:
    """The right embeddings with their right indices, in reverse order."""

    def fault(seen: Seen, reply: Reply) -> None:
        reply.body["data"].reverse()

    return fault


def wrong_dimension(by: int = 1) -> Fault:
    """Vectors with `by` numbers more than usual."""

    def fault(seen: Seen, reply: Reply) -> None:
        for item in reply.body["data"]:
            item["embedding"] = [0.5] * (by + width(item["embedding"]))

    return fault


def one_short_vector() -> Fault:
    """The last vector lacks its last number."""

    def fault(seen: Seen, reply: Reply) -> None:
        item = reply.body["data"][-1]
        item["embedding"] = [0.5] * (width(item["embedding"]) - 1)

    return fault


def missing_last() -> Fault:
    """One embedding too few."""

    def fault(seen: Seen, reply: Reply) -> None:
        reply.body["data"].pop()

    return fault


def index(change: Callable[[int], Any]) -> Fault:
    """Indices changed: `index(lambda i: 0)` makes them all the same."""

    def fault(seen: Seen, reply: Reply) -> None:
        for item in reply.body["data"]:
            item["index"] = change(item["index"])

    return fault


def without_index(first_only: bool = False) -> Fault:
    """Leave `index` out, on the first embedding or on all.

    Gemini's OpenAI-compatible endpoint does not write an index of 0: https://github.com/spring-projects/spring-ai/issues/7019
    """

    def fault(seen: Seen, reply: Reply) -> None:
        for item in reply.body["data"][: 1 if first_only else None]:
            del item["index"]

    return fault


def redirect(code: int, location: str) -> Fault:
    """Send the client elsewhere, unless it is there already; `location` may be a path.

    Starlette redirects a path with a final slash to the one without, and the other way round, with 307:
    https://www.starlette.io/routing/
    """

    def fault(seen: Seen, reply: Reply) -> None:
        if seen.path != location:
            reply.status, reply.headers, reply.raw = code, {"Location": location}, b""

    return fault


def requires_field(name: str) -> Fault:
    """400 without this field.

    NVIDIA NIM requires `input_type` for models with two modes: https://github.com/BerriAI/litellm/issues/6001
    """

    def fault(seen: Seen, reply: Reply) -> None:
        if name not in seen.body:
            reply.status, reply.body = 400, error(400, f"'{name}' parameter is required")

    return fault


def forbids_field(name: str) -> Fault:
    """422 with this field, as servers that validate strictly: https://docs.pydantic.dev/latest/api/config/"""

    def fault(seen: Seen, reply: Reply) -> None:
        if name in seen.body:
            reply.status, reply.body = (
                422,
                {"detail": [{"loc": ["body", name], "msg": "Extra inputs are not permitted"}]},
            )

    return fault


def fails_for_field(name: str) -> Fault:
    """500 with this field, as servers do that pass all fields on to a function."""

    def fault(seen: Seen, reply: Reply) -> None:
        if name in seen.body:
            reply.status, reply.body = 500, error(500, f"embed() got an unexpected keyword argument '{name}'")

    return fault


def other_model(name: str) -> Fault:
    """Say that another model answered."""

    def fault(seen: Seen, reply: Reply) -> None:
        reply.body["model"] = name

    return fault


def without_usage() -> Fault:
    """Report no tokens."""

    def fault(seen: Seen, reply: Reply) -> None:
        del reply.body["usage"]

    return fault


def numbers(change: Callable[[list[float]], list[Any]]) -> Fault:
    """Float lists, changed: with NaN or null in them, for example."""

    def fault(seen: Seen, reply: Reply) -> None:
        for item, vector in zip(reply.body["data"], expected(seen.texts, reply.body["dim"]).tolist(), strict=True):
            item["embedding"] = change(vector)

    return fault


def cut_body(keep: float = 0.5) -> Fault:
    """Promise the whole body, send part of it, close."""

    def deliver(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        send_head(handler, 200, {"Content-Length": str(len(content))})
        handler.wfile.write(content[: int(len(content) * keep)])
        handler.wfile.flush()
        handler.close_connection = True

    return lambda seen, reply: setattr(reply, "deliver", deliver)


def reset(after_head: bool = False) -> Fault:
    """Tear the connection down (RST), before or after the head of the answer."""

    def deliver(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        if after_head:
            send_head(handler, 200, {"Content-Length": str(len(content))})
            handler.wfile.flush()
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
        handler.close_connection = True

    return lambda seen, reply: setattr(reply, "deliver", deliver)


def drip(let_go: threading.Event, pause: float = 0.02) -> Fault:
    """One byte of the body every `pause` seconds, until the client leaves or `let_go` is set."""

    def deliver(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        send_head(handler, 200, {"Content-Length": str(len(content))})
        for at in range(len(content)):
            handler.wfile.write(content[at : at + 1])
            handler.wfile.flush()
            if let_go.wait(pause):
                break
        handler.close_connection = True

    return lambda seen, reply: setattr(reply, "deliver", deliver)


def silent(let_go: threading.Event) -> Fault:
    """Say nothing until `let_go` is set, then close."""

    def deliver(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        let_go.wait()
        handler.close_connection = True

    return lambda seen, reply: setattr(reply, "deliver", deliver)


def fails_for(bad: Callable[[str], bool], message: str = "made up", code: int = 500) -> Fault:
    """Answer 500 to every request with a text that is `bad`; right otherwise.

    llama.cpp, a text over the physical batch: "input is too large to process. increase the physical batch size",
    https://github.com/ggml-org/llama.cpp/issues/12295. Ollama, a vector with NaN: "failed to encode response: json:
    unsupported value: NaN", https://github.com/ollama/ollama/issues/12921.
    """

    def fault(seen: Seen, reply: Reply) -> None:
        if any(map(bad, seen.texts)):
            reply.status, reply.body = code, error(code, message)

    return fault


def fails_above(inputs: int, message: str = "batch is too large") -> Fault:
    """Answer 500 to every request with more texts, as servers do that run out of memory."""

    def fault(seen: Seen, reply: Reply) -> None:
        if len(seen.texts) > inputs:
            reply.status, reply.body = 500, error(500, message)

    return fault


def reports_for(bad: Callable[[str], bool], message: str) -> Fault:
    """Answer 200 with an error object to every request with a text that is `bad`.

    OpenRouter reports errors of the servers behind it so: https://openrouter.ai/docs/api-reference/errors
    """

    def fault(seen: Seen, reply: Reply) -> None:
        if any(map(bad, seen.texts)):
            reply.body = {"error": {"message": message}}

    return fault


def hangs_for(bad: Callable[[Seen], bool], let_go: threading.Event) -> Fault:
    """Never answer a request that is `bad`.

    vLLM hangs on some mixtures of lengths: https://github.com/vllm-project/vllm/issues/29496
    """
    hang = silent(let_go)

    def fault(seen: Seen, reply: Reply) -> None:
        if bad(seen):
            hang(seen, reply)

    return fault


def crashes_for(bad: Callable[[str], bool]) -> Fault:
    """Tear the connection down for every request with a text that is `bad`, as a server that crashes and restarts."""
    crash = reset()

    def fault(seen: Seen, reply: Reply) -> None:
        if any(map(bad, seen.texts)):
            crash(seen, reply)

    return fault


def send_head(handler: BaseHTTPRequestHandler, code: int, headers: Mapping[str, str]) -> None:
    handler.send_response(code)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()


def width(embedding: str | list[float]) -> int:
    return len(embedding) if isinstance(embedding, list) else len(base64.b64decode(embedding)) // 4


@dataclass
class FakeServer:
    """Serves until the `with` block ends. `seen` holds every request; the fields may be changed while it runs.

    `key`: 401 without it. `refuses(text)`: 400 for a request that holds such a text. `path`: where the endpoint is.
    `max_inputs`, `max_tokens`: 422 and 400 for larger requests. `base64` False: answers floats whatever was asked;
    None: 400 for `encoding_format`. `dimensions` False: ignored; None: 400. `usual`: a fault for every request that
    finds no other.
    """

    dim: int = 8
    key: str | None = None
    model: str = MODEL
    base64: bool | None = True
    dimensions: bool | None = True
    refuses: Callable[[str], bool] = field(default=lambda text: text == "")
    path: str = "/v1/embeddings"
    max_inputs: int = 2048
    max_tokens: int = 300_000
    usual: Fault | None = None
    faults: deque[Fault] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)

    def __enter__(self) -> FakeServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body leave in one packet: 40 ms less per answer.
            wbufsize = -1

            def do_POST(self) -> None:
                outer.handle(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._lock = threading.Lock()
        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def place(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def base_url(self) -> str:
        return f"http://{self.place}/v1"

    @property
    def sent(self) -> list[str]:
        """All texts that arrived, in order."""
        return [text for seen in self.seen for text in seen.texts]

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        length = int(headers["content-length"])
        seen = Seen(handler.path, headers, json.loads(handler.rfile.read(length)))
        with self._lock:
            self.seen.append(seen)
            fault = self.faults.popleft() if self.faults else self.usual
        reply = self.answer(seen)
        if fault is not None:
            fault(seen, reply)
        if isinstance(reply.body, dict):
            reply.body.pop("dim", None)
        content = reply.content()
        if reply.deliver is not None:
            reply.deliver(handler, content)
            return
        send_head(handler, reply.status, {"Content-Length": str(len(content)), **reply.headers})
        handler.wfile.write(content)
        handler.wfile.flush()

    def answer(self, seen: Seen) -> Reply:
        refusal = self.refusal(seen)
        if refusal is not None:
            return Reply(refusal[0], body=error(*refusal))
        body = seen.body
        dim = body["dimensions"] if self.dimensions and "dimensions" in body else self.dim
        packed = body.get("encoding_format") == "base64" and self.base64
        data = [
            {
                "object": "embedding",
                "index": place,
                "embedding": base64.b64encode(row.tobytes()).decode() if packed else row.tolist(),
            }
            for place, row in enumerate(expected(seen.texts, dim))
        ]
        tokens = sum(map(tokens_of, seen.texts))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return Reply(body={"object": "list", "data": data, "model": self.model, "usage": usage, "dim": dim})

    def refusal(self, seen: Seen) -> tuple[int, str] | None:
        body, texts = seen.body, seen.texts
        given = seen.headers.get("authorization")
        tokens = sum(map(tokens_of, texts))
        poisoned = [text for text in texts if self.refuses(text)]
        rules = (
            (seen.path.partition("?")[0] != self.path, 404, "no such path"),
            (self.key is not None and given != f"Bearer {self.key}", 401, f"Incorrect API key provided: {given}"),
            (body.get("model") != self.model, 404, f"The model `{body.get('model')}` does not exist"),
            (self.base64 is None and "encoding_format" in body, 400, "unknown field: encoding_format"),
            (self.dimensions is None and "dimensions" in body, 400, "no support for specifying dimensions"),
            (len(texts) > self.max_inputs, 422, f"more than {self.max_inputs} inputs"),
            (tokens > self.max_tokens, 400, f"more than {self.max_tokens} tokens"),
            (bool(poisoned), 400, f"invalid input: {poisoned[:1]}"),
        )
        return next(((code, message) for broken, code, message in rules if broken), None)

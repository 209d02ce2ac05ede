"""A server on loopback that answers `POST /v1/embeddings` with vectors of length 1 that are exact in float32."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIM = 16
REFUSED = "heron"


def vector(text: str, dim: int) -> NDArray[np.float32]:
    """Plus or minus `dim` ** -0.5 in every place, by the digest of the text; `dim` is 4 or 16."""
    bits = np.unpackbits(np.frombuffer(blake2b(text.encode(), digest_size=8).digest(), np.uint8))[:dim]
    return (bits.astype(np.float32) * 2 - 1) / np.float32(dim**0.5)


def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Status and body of the answer to one request; a text that is just REFUSED gets an error."""
    asked = body["input"]
    texts = [asked] if isinstance(asked, str) else asked
    if REFUSED in texts:
        return 400, {"error": {"message": "invalid input", "type": "invalid_request_error", "code": "400"}}
    rows = [vector(text, body.get("dimensions", DIM)) for text in texts]
    packed = body.get("encoding_format") == "base64"
    data = [
        {
            "object": "embedding",
            "index": place,
            "embedding": base64.b64encode(row.tobytes()).decode() if packed else row.tolist(),
        }
        for place, row in enumerate(rows)
    ]
    tokens = sum(len(text.split()) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return 200, {"object": "list", "data": data, "model": body["model"], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_POST(self) -> None:
        status, body = answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serve() -> Iterator[str]:
    """Serve until the `with` block ends; the base URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

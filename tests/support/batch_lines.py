"""Lines of OpenAI Batch result files, as the Batch API writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_server as fake
from fake_server import expected

DIM = 6


def answer(request: dict[str, Any], dim: int = DIM, **changed: Any) -> dict[str, Any]:
    """The result line of one request, as the Batch API and `vllm run-batch` write it."""
    text = request["body"]["input"]
    data = [{"object": "embedding", "index": 0, "embedding": expected([text], dim)[0].tolist()}]
    tokens = fake.tokens_of(text)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    body = {"object": "list", "data": data, "model": fake.MODEL, "usage": usage, **changed}
    response = {"status_code": 200, "request_id": "req_1", "body": body}
    return {"id": "batch_req_1", "custom_id": request["custom_id"], "response": response, "error": None}


def refusal(request: dict[str, Any], status: int = 400, message: str = "too long") -> dict[str, Any]:
    """The error line of a request that was sent and not answered."""
    response = {"status_code": status, "request_id": "req_1", "body": fake.error(status, message)}
    return {"id": "batch_req_1", "custom_id": request["custom_id"], "response": response, "error": None}


def expired(request: dict[str, Any]) -> dict[str, Any]:
    """The error line of a request that was never sent."""
    error = {"code": "batch_expired", "message": "This request could not be executed before it expired."}
    return {"id": "batch_req_1", "custom_id": request["custom_id"], "response": None, "error": error}


def read(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return str(path)

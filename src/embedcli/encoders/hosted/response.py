"""Parse responses of the embeddings API, live or from batch files, into vectors in request order."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array


class MalformedResponseError(Exception):
    """The response does not match the request. The message says how."""


@dataclass(frozen=True)
class EmbeddingResponse:
    """A parsed response.

    Attributes:
        vectors: float32 [count, dim] in the order of the request.
        model: Name of the model that the server reports.
        tokens: Number of tokens that the server reports, if any.
    """

    vectors: Float32Array
    model: str | None
    tokens: int | None


def decode_response(content: bytes, count: int) -> EmbeddingResponse:
    """Parse the response to a request of `count` texts, matched by `index`. Raises MalformedResponseError."""
    try:
        body = orjson.loads(content)
    except ValueError:
        body = _parse_lenient_json(content)
    return parse_response(body, count)


def parse_response(body: Any, count: int) -> EmbeddingResponse:
    """Like `decode_response`, from parsed JSON."""
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise MalformedResponseError("holds no list of embeddings")
    places = [item.get("index", 0 if count == 1 else None) for item in data]
    if any(type(place) is not int for place in places) or sorted(places) != list(range(count)):
        raise MalformedResponseError(
            f"has {len(data)} embeddings for {count} texts, or their indices do not cover the texts"
        )
    rows = [parse_embedding(item.get("embedding")) for item in data]
    widths = {row.shape for row in rows}
    if len(widths) != 1 or (0,) in widths:
        raise MalformedResponseError("has embeddings of different lengths, or empty ones")
    vectors = np.empty((count, len(rows[0])), np.float32)
    vectors[places] = rows
    return EmbeddingResponse(vectors, _text_or_none(body.get("model")), _read_token_count(body.get("usage")))


def parse_embedding(embedding: Any) -> Float32Array:
    """Parse base64 little-endian floats or a list of numbers into float32 [dim]; null and NaN stay NaN."""
    try:
        if isinstance(embedding, str):
            return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float32, copy=False)
        made = np.array(embedding, np.float32) if isinstance(embedding, list) else None
    except (binascii.Error, ValueError, TypeError):
        made = None
    if made is None or made.ndim != 1:
        raise MalformedResponseError("has an embedding that is neither base64 floats nor a list of numbers")
    return made


def _parse_lenient_json(content: bytes) -> Any:
    # Python servers write NaN and Infinity, which are not JSON, when a vector is not finite.
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise MalformedResponseError("is not JSON, or was cut off") from None


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _read_token_count(usage: Any) -> int | None:
    if not isinstance(usage, dict):
        return None
    for name in ("total_tokens", "prompt_tokens"):
        if isinstance(usage.get(name), int):
            return int(usage[name])
    return None

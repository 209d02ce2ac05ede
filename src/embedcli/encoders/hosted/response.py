"""Parse responses of the embeddings API, live or from batch files, into vectors in request order."""

from __future__ import annotations

import base64
import html
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array


MAX_ERROR_CHARACTERS = 300
# Fields that hold the message of an error where a server answers 200 all the same.
ERROR_FIELDS = ("error", "errors", "detail", "message")


class MalformedResponseError(Exception):
    """The response does not match the request. The message says how."""


class UnreadableFloatsError(MalformedResponseError):
    """An embedding is a string, and not the base64 of float32 numbers."""


class ReportedError(MalformedResponseError):
    """The server answers 200 and reports an error in the body.

    Attributes:
        text: The server's own words, on one line.
        code: The code of the error, "" if it has none.
    """

    def __init__(self, text: str, code: str) -> None:
        super().__init__(f"reports an error: {text or 'without a message'}")
        self.text = text
        self.code = code


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


def decode_response(content: bytes, count: int, dim: int = 0) -> EmbeddingResponse:
    """Parse the response to a request of `count` texts.

    Args:
        content: The body of a successful response.
        count: The number of texts that were sent.
        dim: The width of the vectors, if it is known: `null` is then a vector of NaN. 0: it is not known.

    Returns:
        The vectors in the order of the request, see `_find_places`.

    Raises:
        ReportedError: The body holds an error of the server instead of embeddings.
        MalformedResponseError: The body is anything else that does not match the request.
    """
    try:
        body = orjson.loads(content)
    except ValueError:
        body = _parse_lenient_json(content)
    if isinstance(body, dict) and "data" not in body and any(body.get(name) for name in ERROR_FIELDS):
        raise ReportedError(*parse_error_body(content))
    return parse_response(body, count, dim)


def parse_response(body: Any, count: int, dim: int = 0) -> EmbeddingResponse:
    """Like `decode_response`, from parsed JSON."""
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise MalformedResponseError("holds no list of embeddings")
    if len(data) != count:
        raise MalformedResponseError(f"has {len(data)} embeddings for {count} texts")
    places = _find_places([item.get("index") for item in data])
    rows = [
        np.full(dim, np.nan, np.float32) if dim and _is_null(item) else parse_embedding(item.get("embedding"))
        for item in data
    ]
    widths = {row.shape for row in rows}
    if len(widths) != 1 or (0,) in widths:
        raise MalformedResponseError("has embeddings of different lengths, or empty ones")
    vectors = np.empty((count, len(rows[0])), np.float32)
    vectors[places] = rows
    return EmbeddingResponse(vectors, _text_or_none(body.get("model")), _read_token_count(body.get("usage")))


def _is_null(item: dict[str, Any]) -> bool:
    """Whether a server sent `null` in place of a vector that it could not compute."""
    return "embedding" in item and item["embedding"] is None


def _find_places(indices: list[Any]) -> list[int]:
    """Find the text of each embedding by its `index`.

    Some servers leave `index` out, on the first embedding or on all, or write null or a string. Complete indices must
    be a permutation of the texts. If some are missing, the order of the embeddings counts, and every index that is
    there must agree with it.

    Args:
        indices: The `index` of each embedding as it was sent; None where it is missing.

    Returns:
        The position in the request, for each embedding.

    Raises:
        MalformedResponseError: The indices contradict each other, the number of texts or the order.
    """
    places = [_parse_index(index) for index in indices]
    if None not in places:
        if sorted(places) != list(range(len(places))):  # type: ignore[type-var]
            raise MalformedResponseError("has indices that do not cover the texts, each once")
        return places  # type: ignore[return-value]
    if any(place not in (None, order) for order, place in enumerate(places)):
        raise MalformedResponseError("has indices on some embeddings only, and they contradict the order")
    return list(range(len(places)))


def _parse_index(index: Any) -> int | None:
    """The index as a number; None if it is missing, null or a string that is not a number."""
    if isinstance(index, str):
        return int(index) if index.isascii() and index.isdigit() and len(index) < 10 else None
    if index is not None and type(index) is not int:
        raise MalformedResponseError("has an index that is neither a number nor a string")
    return index


def parse_embedding(embedding: Any) -> Float32Array:
    """Parse base64 little-endian floats or a list of numbers into float32 [dim]; null and NaN stay NaN."""
    if isinstance(embedding, str):
        try:
            return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float32, copy=False)
        except ValueError:
            raise UnreadableFloatsError(
                "has an embedding that is neither base64 floats nor a list of numbers"
            ) from None
    try:
        made = np.array(embedding, np.float32) if isinstance(embedding, list) else None
    except (ValueError, TypeError):
        made = None
    if made is None or made.ndim != 1:
        raise MalformedResponseError("has an embedding that is neither base64 floats nor a list of numbers")
    return made


def _parse_lenient_json(content: bytes) -> Any:
    # Python servers write NaN and Infinity, which are not JSON, when a vector is not finite.
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise MalformedResponseError(_describe_unreadable(content)) from None


def _describe_unreadable(content: bytes) -> str:
    """Describe a body that is not JSON, with its first words."""
    start = content.lstrip()[:1]
    if not start:
        return "is empty"
    if start in b"{[":
        return "is JSON that was cut off or damaged"
    text = parse_error_body(content)[0]
    return f"is {'a web page' if start == b'<' else 'text'}, not JSON: {text}"


def parse_error_body(content: bytes) -> tuple[str, str]:
    """Parse an error body into message and code: OpenAI's `{"error": {...}}`, and the forms of other servers."""
    try:
        body = orjson.loads(content)
    except ValueError:
        return _shorten(_strip_tags(content[:4096].decode("utf-8", "replace"))), ""
    if isinstance(body, list) and len(body) == 1 and isinstance(body[0], dict):
        body = body[0]
    if not isinstance(body, dict):
        return _shorten(str(body)), ""
    inner: Any = body.get("error", body)
    if not isinstance(inner, dict):
        return _shorten(str(inner)), ""
    text = inner.get("message") or inner.get("detail") or inner.get("error") or ""
    text = text if isinstance(text, str) else _join_validation_errors(text) or orjson.dumps(text).decode()
    return _shorten(text), str(inner.get("code") or inner.get("type") or "")


def _join_validation_errors(errors: Any) -> str:
    """The messages of a list of validation errors, each with its field, as FastAPI sends them; "" for anything else.

    Each holds the text it is about as `input`, before or after `msg`: the message would be lost in a long text.
    """
    if not isinstance(errors, list) or not all(isinstance(error, dict) for error in errors):
        return ""
    messages = [(error.get("loc"), error.get("msg") or error.get("message")) for error in errors]
    if not all(isinstance(message, str) for _, message in messages):
        return ""
    places = [".".join(map(str, place)) if isinstance(place, list) else "" for place, _ in messages]
    return "; ".join(
        f"{place}: {message}" if place else message for place, (_, message) in zip(places, messages, strict=True)
    )


def _strip_tags(page: str) -> str:
    """The words of a web page, without styles and scripts."""
    page = re.sub(r"<(style|script)\b.*?(</\1>|$)", " ", page, flags=re.DOTALL | re.IGNORECASE)
    return html.unescape(re.sub(r"<[^>]*>", " ", page))


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_ERROR_CHARACTERS else f"{text[:MAX_ERROR_CHARACTERS]}..."


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _read_token_count(usage: Any) -> int | None:
    if not isinstance(usage, dict):
        return None
    for name in ("total_tokens", "prompt_tokens"):
        if isinstance(usage.get(name), int):
            return int(usage[name])
    return None

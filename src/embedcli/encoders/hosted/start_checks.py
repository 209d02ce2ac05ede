"""What is asked of a server before the first row: five fixed texts, twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embedcli.core.errors import ModelError
from embedcli.encoders.hosted.canaries import CANARY_TEXTS, Canaries, build_canaries
from embedcli.encoders.hosted.client import RequestRefusedError
from embedcli.encoders.hosted.float_encoding import check_float_encoding
from embedcli.encoders.hosted.retry import BlamesTexts, FailingTextsError, RetryableError

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array
    from embedcli.encoders.hosted.response import EmbeddingResponse

FAILURES_BEFORE_NEXT_FORMAT = 3
SendTexts = Callable[[list[str], bool], "EmbeddingResponse"]


@dataclass(frozen=True)
class RequestFormat:
    """Request fields that a server accepts: `encoding_format`, and the value of `dimensions`."""

    uses_base64: bool = True
    dimensions: int | None = None


@dataclass(frozen=True)
class StartChecks:
    """What the first answers of a server show.

    Attributes:
        uses_base64: Whether base64 is understood as it is meant.
        dim: Dimensions of the vectors; None if the server refuses the fixed texts.
        canaries: The canaries of the server; None if it has none.
        note: What the user should know; "" for nothing.
    """

    uses_base64: bool
    dim: int | None
    canaries: Canaries | None
    note: str


def find_request_format(
    send: Callable[[RequestFormat, BlamesTexts | None], EmbeddingResponse],
    *,
    dimensions: int | None,
    may_ask_base64: bool,
    where: str,
) -> tuple[RequestFormat, EmbeddingResponse]:
    """Find the first request format that a server accepts.

    Args:
        send: Sends one short text, with the judge of its failures. Raises RequestRefusedError or FailingTextsError.
        dimensions: The value of `dimensions` to try first; None for no such field.
        may_ask_base64: Whether `encoding_format` may be sent.
        where: The server and what it refuses, for the message.

    Returns:
        The format, and the response of the server.

    Raises:
        ModelError: The server accepts none.
    """
    encodings = (True, False) if may_ask_base64 else (False,)
    refusals = []
    styles = dict.fromkeys(RequestFormat(base64, dims) for dims in (dimensions, None) for base64 in encodings)
    failing: RequestFormat | None = None
    for style in styles:
        try:
            return style, send(style, _judge_format() if len(styles) > 1 else None)
        except RequestRefusedError as refusal:
            refusals.append(str(refusal))
        except FailingTextsError:
            # Some servers answer 500 for a field that they do not know.
            failing = failing or style
    if failing is not None:
        return failing, send(failing, None)
    raise ModelError(
        f"{where}: {refusals[0]}",
        "check --model, --truncate-dim and --base-url; change fields by --request-field NAME=VALUE, --omit-field",
    )


def _judge_format() -> BlamesTexts:
    """Blame the format of a request after three failures without a Retry-After."""
    failures = 0

    def judge(failure: RetryableError, started: float) -> bool:
        nonlocal failures
        failures += failure.suspicion == "failure"
        return failures >= FAILURES_BEFORE_NEXT_FORMAT

    return judge


def run_start_checks(send: SendTexts, uses_base64: bool, host: str, request: str, max_inputs: int = 5) -> StartChecks:
    """Ask the fixed texts twice, in both encodings if the server accepts both.

    Args:
        send: Sends texts, with `encoding_format` base64 or without the field. Raises RequestRefusedError or
            FailingTextsError.
        uses_base64: Whether the server accepts the field.
        host: The server's name, for the note.
        request: Digest of the other fields of the request.
        max_inputs: The most texts that a request may have.

    Raises:
        ModelError: All retries failed.
    """

    def ask(texts: Sequence[str], in_base64: bool) -> Float32Array | None:
        if len(texts) > max_inputs:
            return _ask_one_by_one(send, texts, in_base64)
        try:
            return send(list(texts), in_base64).vectors
        except (RequestRefusedError, FailingTextsError):
            return _ask_one_by_one(send, texts, in_base64)

    check = check_float_encoding(ask, CANARY_TEXTS, uses_base64, host)
    if check.first is None:
        return StartChecks(check.uses_base64, None, None, check.note)
    is_complete = check.second is not None and check.first.shape == check.second.shape
    canaries = build_canaries(check.first, check.second, request) if is_complete and check.second is not None else None
    return StartChecks(check.uses_base64, check.first.shape[1], canaries, check.note)


def _ask_one_by_one(send: SendTexts, texts: Sequence[str], in_base64: bool) -> Float32Array | None:
    try:
        rows = [send([text], in_base64).vectors for text in texts]
    except (RequestRefusedError, FailingTextsError):
        return None
    return np.concatenate(rows) if len({row.shape for row in rows}) == 1 else None


def check_dim(dim: int, wanted: int | None, requested: int | None, name: str, field: str | None = "dimensions") -> str:
    """Compare the dimensions of a server's vectors with --truncate-dim.

    Args:
        dim: Dimensions of the vectors.
        wanted: The value of --truncate-dim.
        requested: The value of the field; None if the server refused it.
        name: The model's name.
        field: The request field of the dimensions; None if the server has none.

    Returns:
        What the user should know; "" for nothing.

    Raises:
        ModelError: The model has fewer dimensions.
    """
    if wanted is None or dim == wanted:
        return ""
    if dim < wanted:
        raise ModelError(f"{name} gives {dim} dimensions, and --truncate-dim asks for {wanted}", f"give at most {dim}")
    if field is None:
        return f"the {dim} dimensions of the server are cut to {wanted} here"
    why = "refuses" if requested is None else "ignores"
    return f"the server {why} `{field}`: its {dim} are cut to {wanted} here"

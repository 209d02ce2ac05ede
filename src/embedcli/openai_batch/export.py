"""Write rows as request files of the OpenAI Batch API, each text once per file, all files or none."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import orjson

from embedcli import readers, storage
from embedcli.core.constants import HOSTED_PREFIX
from embedcli.core.errors import OutputError, UsageError
from embedcli.core.job import Job
from embedcli.core.types import Chunk
from embedcli.encoders.hosted.client import parse_server_address
from embedcli.encoders.hosted.request_fields import resolve_request_fields
from embedcli.encoders.hosted.token_counting import (
    TokenCounter,
    choose_token_counter,
    count_and_truncate,
    max_tokens_per_text,
)
from embedcli.models.config import resolve_prompt
from embedcli.openai_batch import job_file as job_files
from embedcli.openai_batch.results import CUSTOM_ID_PATTERN, BatchResults
from embedcli.pipeline.preparation import hash_texts

# OpenAI's limits for one batch file; for embeddings the first counts inputs, and each request here has one.
MAX_REQUESTS = 50_000
MAX_FILE_BYTES = 200_000_000
EMBEDDINGS_URL = "/v1/embeddings"


@dataclass
class ExportSummary:
    """Counts of an export. `rows` = `requests` + `duplicate_rows` + `answered_rows` + `empty_rows`.

    `rejects` are unreadable rows; `tokens` is the number that will be billed, as counted by `counting_method`;
    `truncated` is a number of texts.
    """

    files: tuple[str, ...] = ()
    job_file: str = ""
    rows: int = 0
    requests: int = 0
    duplicate_rows: int = 0
    answered_rows: int = 0
    empty_rows: int = 0
    rejects: int = 0
    tokens: int = 0
    truncated: int = 0
    counting_method: str = ""


def export_requests(
    job: Job,
    output: str,
    notify: Callable[[str], None],
    *,
    results: Sequence[str] = (),
    max_requests: int = MAX_REQUESTS,
    max_bytes: int = MAX_FILE_BYTES,
) -> ExportSummary:
    """Write one request for each text of the job's inputs that `results` do not answer yet.

    The files are `output`, `STEM-00002.jsonl` and so on, each with at most `max_requests` lines and `max_bytes` bytes;
    either all of them appear at the end, or none. Memory depends on the number of `results`, not of rows.
    """
    _check_exportable(job)
    old = _old(job, output, {*storage.expand_inputs(job.inputs), *results})
    summary = ExportSummary()
    count = choose_token_counter(job, notify)
    summary.counting_method = count.name
    plan = readers.plan_inputs(job)
    with ExitStack() as stack:
        known = stack.enter_context(closing(BatchResults(results))) if results else None
        files = _RequestFiles(stack, output, old, max_requests, max_bytes)
        for chunk in readers.read_chunks(job, plan, plan.splits):
            summary.rejects += len(chunk.rejects)
            for request in _build_requests(job, chunk, count, known, summary):
                if files.add(request.key, request.line):
                    summary.requests += 1
                    summary.tokens += request.tokens
                    summary.truncated += request.cut
                else:
                    summary.duplicate_rows += 1
        files.end()
        summary.job_file = job_files.save_job(job, output)
    summary.files = tuple(files.paths)
    for path in old - {os.path.abspath(path) for path in files.paths}:
        os.unlink(path)
    return summary


def _check_exportable(job: Job) -> None:
    """Raise UsageError for a job that cannot be a batch."""
    if not job.model.startswith(HOSTED_PREFIX):
        raise UsageError("batch export needs a hosted model", f"give --model {HOSTED_PREFIX}NAME")
    if job.overflow != "truncate":
        raise UsageError(f"--overflow {job.overflow} does not apply to batch files", "leave --overflow out")


def _old(job: Job, output: str, read: set[str]) -> set[str]:
    """List the request files of an earlier export under this name, which this one replaces or removes.

    Raises:
        OutputError: There are some, and --overwrite was not given.
        UsageError: The output or one of them is among the files that are `read`.
    """
    first = Path(os.path.abspath(output))
    numbered = re.compile(re.escape(first.stem) + r"-\d{5,}\.jsonl")
    beside = first.parent.iterdir() if first.parent.is_dir() else ()
    old = {str(path) for path in beside if path == first or (numbered.fullmatch(path.name) and _is_request_file(path))}
    places = {os.path.realpath(path) for path in (*old, str(first))}
    for path in sorted(read):
        if os.path.realpath(path) in places:
            raise UsageError(
                f"{storage.format_location(path)}: is read, and would be replaced", "choose another output"
            )
    if old and not job.overwrite:
        raise OutputError(f"{storage.format_location(min(old))}: is there already", "remove it, or add --overwrite")
    return old


def _is_request_file(path: Path) -> bool:
    """Whether a file starts with a request that embedcli wrote."""
    try:
        with path.open("rb") as file:
            line = orjson.loads(file.readline(MAX_FILE_BYTES))
        return line["url"] == EMBEDDINGS_URL and CUSTOM_ID_PATTERN.fullmatch(line["custom_id"]) is not None
    except (OSError, ValueError, LookupError, TypeError):
        return False


class _Request(NamedTuple):
    key: bytes
    line: bytes
    tokens: int
    cut: bool


def _build_requests(
    job: Job, chunk: Chunk, count: TokenCounter, known: BatchResults | None, summary: ExportSummary
) -> Iterator[_Request]:
    """The requests of the rows of a chunk that need an answer; the others are counted in `summary`."""
    prompt, _ = resolve_prompt(job, {}, None)
    tokens = count_and_truncate(chunk.texts, prompt, count, max_tokens_per_text(job, count.is_exact))
    hashes = hash_texts(chunk.texts, prompt)
    places = known.find_lines(hashes) if known is not None else np.full(len(chunk.texts), -1)
    summary.rows += len(chunk.texts)
    for row, text in enumerate(tokens.payload.texts):
        if not text:
            summary.empty_rows += 1
        elif places[row] >= 0:
            summary.answered_rows += 1
        else:
            key, read, full = hashes[row].tobytes(), int(tokens.lengths[row]), int(tokens.untruncated_lengths[row])
            name = f"{chunk.input_split.index}-{chunk.index_in_split}-{row}-{key.hex()}" + (
                f"-{full}" if full > read else ""
            )
            yield _Request(key, _encode_request(job, name, text), read, full > read)


def _encode_request(job: Job, custom_id: str, text: str) -> bytes:
    fields = resolve_request_fields(job, parse_server_address(job).dialect)
    body: dict[str, Any] = {"model": job.model.removeprefix(HOSTED_PREFIX), "input": text}
    if job.truncate_dim is not None and fields.dimensions_field:
        body[fields.dimensions_field] = job.truncate_dim
    body |= fields.extra
    return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": EMBEDDINGS_URL, "body": body}) + b"\n"


class _RequestFiles:
    """Request files that are published together when the stack closes without an error; each text once per file."""

    def __init__(self, stack: ExitStack, first: str, old: set[str], max_requests: int, max_bytes: int) -> None:
        self.paths: list[str] = []
        self._old = old
        self._stack = stack
        self._first = first
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._keys: set[bytes] = set()
        self._bytes = 0
        self._out: IO[bytes] | None = None

    def add(self, key: bytes, line: bytes) -> bool:
        """Write a line, to the next file if this one is full. Returns False if the file has the text already."""
        if key in self._keys:
            return False
        if self._out is None or len(self._keys) >= self._max_requests or self._bytes + len(line) > self._max_bytes:
            self._next()
        assert self._out is not None
        with storage.translate_output_errors(self.paths[-1]):
            self._out.write(line)
        self._keys.add(key)
        self._bytes += len(line)
        return True

    def end(self) -> None:
        """Close the last file; without any request, one empty file is written."""
        if not self.paths:
            self._next()
        self._close()

    def _next(self) -> None:
        self._close()
        number = len(self.paths) + 1
        path = self._first if number == 1 else f"{Path(self._first).with_suffix('')}-{number:05d}.jsonl"
        if os.path.lexists(path) and os.path.abspath(path) not in self._old:
            there = f"{storage.format_location(path)}: is there already, and holds no requests"
            raise OutputError(there, "choose another output")
        self.paths.append(path)
        temporary = self._stack.enter_context(storage.replace_file_atomically(path))
        self._out = open(temporary, "wb")  # noqa: SIM115 - closed before the stack publishes it
        self._stack.callback(self._out.close)
        self._keys.clear()
        self._bytes = 0

    def _close(self) -> None:
        if self._out is not None:
            with storage.translate_output_errors(self.paths[-1]):
                self._out.close()

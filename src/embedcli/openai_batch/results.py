"""An encoder that reads result files of the OpenAI Batch API.

Memory: 38 bytes per result for the index, twice that while it is built, and the vectors of one batch. Every byte of the
results is read twice. Compressed or streamed results are unpacked into a temporary file first.
"""

from __future__ import annotations

import os
import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import orjson

from embedcli import readers, storage
from embedcli.core.constants import HOSTED_PREFIX
from embedcli.core.encoder import BaseEncoder, Tokens
from embedcli.core.errors import InputError, UsageError
from embedcli.core.job import Job
from embedcli.core.vectors import normalize_rows
from embedcli.encoders.hosted import identity
from embedcli.encoders.hosted.response import (
    EmbeddingResponse,
    MalformedResponseError,
    parse_error_body,
    parse_response,
)
from embedcli.pipeline.preparation import hash_texts

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array, Int64Array

CUSTOM_ID_PATTERN = re.compile(r"\d+-\d+-\d+-([0-9a-f]{32})(?:-(\d{1,9}))?")
REFUSED_MARK = -1
# Statuses of texts that will never be accepted; all others are worth another request.
REFUSAL_STATUSES = (400, 413, 422)


@dataclass
class ResultLine:
    """One line of a result file: a response, a rejection of the text, or neither (`retry_reason` says why).

    `total_tokens` is the token count of the whole text if it was truncated before it was sent, else 0.
    """

    key: bytes
    total_tokens: int = 0
    response: EmbeddingResponse | None = None
    refusal_reason: str = ""
    retry_reason: str = ""


class BatchResults:
    """Random access to the results in some files. Raises InputError for a file that is not a result file.

    `dim` and `model` are the same in all results; `retry_reasons` counts lines without a result that may be requested
    again, by reason; `foreign_lines` counts lines of other programs.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.dim = 0
        self.model: str | None = None
        self.answers = self.refusals = self.foreign_lines = self.tokens_billed = 0
        self.retry_reasons: Counter[str] = Counter()
        self._stack = ExitStack()
        self._files: list[IO[bytes]] = []
        self._paths = tuple(paths)
        self._keys = bytearray()
        self._file, self._offset, self._size = array("H"), array("Q"), array("I")
        self._count, self._full = array("i"), array("i")
        try:
            for number, path in enumerate(paths):
                self._files.append(self._stack.enter_context(_open_uncompressed(path)))
                self._read(number, path)
        except BaseException:
            self._stack.close()
            raise
        self._sort_index()

    def find_lines(self, hashes: Any) -> Int64Array:
        """Find the line of each text: int64 [n] for hashes uint8 [n, 16], -1 if there is none."""
        if not len(self._sorted) or not len(hashes):
            return np.full(len(hashes), -1, np.int64)
        wanted = np.ascontiguousarray(hashes).view("S16").ravel()
        places = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        return np.where(self._sorted[places] == wanted, places, -1).astype(np.int64)

    def token_counts(self, places: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Token counts of found lines, int64 [n]: as the server counted (at least 1), and of the whole text."""
        read = np.maximum(1, self._tokens[places]).astype(np.int64)
        return read, np.maximum(read, self._fulls[places])

    def read_line(self, place: int) -> ResultLine:
        """Read a result or rejection from its file."""
        number = int(self._numbers[place])
        raw = os.pread(self._files[number].fileno(), int(self._sizes[place]), int(self._offsets[place]))
        line = parse_result_line(raw)
        if line is None:
            raise InputError(
                f"{storage.format_location(self._paths[number])}: changed while it was read",
                "run the same command again when nothing writes to it",
            )
        return line

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def _read(self, number: int, path: str) -> None:
        offset = 0
        for place, raw in enumerate(self._files[number], start=1):
            if raw.strip():
                self._add(number, offset, raw, storage.format_location(path, place))
            offset += len(raw)

    def _add(self, number: int, offset: int, raw: bytes, where: str) -> None:
        try:
            line = parse_result_line(raw)
        except ValueError:
            raise InputError(
                f"{where}: is not a line of a batch result file",
                "get the complete file again; give results, not requests",
            ) from None
        if line is None:
            self.foreign_lines += 1
        elif line.retry_reason:
            self.retry_reasons[line.retry_reason] += 1
        else:
            self._append_to_index(number, offset, len(raw), line, where)

    def _append_to_index(self, number: int, offset: int, size: int, line: ResultLine, where: str) -> None:
        if line.response is not None:
            self._check_dim_and_model(line.response, where)
            self.answers += 1
            self.tokens_billed += line.response.tokens or 0
        else:
            self.refusals += 1
        self._keys += line.key
        self._file.append(number)
        self._offset.append(offset)
        self._size.append(size)
        self._count.append(REFUSED_MARK if line.response is None else max(1, line.response.tokens or 1))
        self._full.append(line.total_tokens)

    def _check_dim_and_model(self, answer: EmbeddingResponse, where: str) -> None:
        dim = answer.vectors.shape[1]
        if self.dim not in (0, dim):
            raise InputError(
                f"{where}: a vector of {dim} dimensions, after some of {self.dim}",
                "import the results of one export at a time",
            )
        if self.model is not None and answer.model not in (None, self.model):
            raise InputError(
                f"{where}: an answer of model {answer.model}, after some of {self.model}",
                "import the results of one export at a time",
            )
        self.dim = dim
        self.model = self.model or answer.model

    def _sort_index(self) -> None:
        # A result wins over a rejection of the same text, so that a second try counts.
        keys = np.frombuffer(bytes(self._keys), "S16")
        tokens = np.array(self._count, np.int32)
        order = np.lexsort((tokens == REFUSED_MARK, keys))
        self._sorted, self._tokens = keys[order], tokens[order]
        self._numbers, self._offsets = np.array(self._file)[order], np.array(self._offset)[order]
        self._sizes, self._fulls = np.array(self._size)[order], np.array(self._full)[order]
        del self._keys, self._file, self._offset, self._size, self._count, self._full


def parse_result_line(raw: bytes) -> ResultLine | None:
    """Parse a result line; None if another program made it. Raises ValueError if it is not a result line."""
    made = orjson.loads(raw)
    if not isinstance(made, dict) or "custom_id" not in made or not {"response", "error"} & set(made):
        raise ValueError
    found = CUSTOM_ID_PATTERN.fullmatch(str(made["custom_id"]))
    if found is None:
        return None
    line = ResultLine(bytes.fromhex(found[1]), int(found[2] or 0))
    response = made.get("response") or {}
    if not isinstance(response, dict):
        raise ValueError
    status, body, error = response.get("status_code"), response.get("body"), made.get("error")
    if status == 200 and not error:
        try:
            line.response = parse_response(body, 1)
        except MalformedResponseError as malformed:
            line.retry_reason = f"the answer {malformed}"
        return line
    said, code = parse_error_body(orjson.dumps(body or error or {}))
    if status in REFUSAL_STATUSES:
        line.refusal_reason = f"the server refused the text: {status}: {said}"
    else:
        line.retry_reason = f"{status or code or 'no answer'}: {said}".rstrip(": ")
    return line


def _open_uncompressed(path: str) -> IO[bytes]:
    """Open a result file for random access to its uncompressed bytes."""
    with storage.open_input(path) as source:
        if source.codec is None and os.path.isfile(path):
            return open(path, "rb")
        made = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        with storage.translate_output_errors(tempfile.gettempdir()):
            for block in source:
                made.write(block)
            made.seek(0)
        return made


@dataclass
class FoundResults:
    """The payload of `Tokens`: the line of each text (-1: none), and reject reasons by row."""

    line_indices: Int64Array
    refusal_reasons: dict[int, str] = field(default_factory=dict)


class BatchResultEncoder(BaseEncoder):
    """Encoder whose vectors are in result files, looked up by text hash."""

    max_in_flight = 1
    pad_to_multiple_of = 1
    batch_tokens = 1 << 20
    empty_reason = "the text is empty"

    def __init__(self, results: BatchResults, job: Job) -> None:
        self.dim = results.dim
        self.results = results
        self._job = job
        self._prompt = str(identity.hosted_model_identity(job)["prompt"])

    def vector_space(self) -> dict[str, Any]:
        """The vector space of the same model when it is requested directly."""
        return {
            **identity.hosted_model_identity(self._job),
            "engine": "batch",
            "dim": self.dim,
            "dimensions": self._job.truncate_dim,
            "reported_model": self.results.model,
            "token_counting": "server",
        }

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Token counts of the server; 1 for a text without a result, 0 for an empty one."""
        places = self.results.find_lines(hash_texts(texts, self._prompt))
        lengths = np.array([1 if self._prompt or text else 0 for text in texts], np.int64)
        full = lengths.copy()
        found = places >= 0
        lengths[found], full[found] = self.results.token_counts(places[found])
        offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
        return Tokens(np.zeros(int(offsets[-1]), np.int32), offsets, full.astype(np.int32), FoundResults(places))

    def forward(self, tokens: Tokens, rows: Int64Array) -> tuple[Tokens, Int64Array]:
        """Return the rows; the vectors are read in `collect`."""
        return tokens, rows

    def collect(self, output: tuple[Tokens, Int64Array]) -> Float32Array:
        """Read the vectors: float32 [len(rows), dim], NaN for rows without a result (see `reject_reason`)."""
        tokens, rows = output
        found: FoundResults = tokens.payload
        made = np.full((len(rows), self.dim), np.nan, np.float32)
        for i in np.argsort(found.line_indices[rows], kind="stable").tolist():
            row = int(rows[i])
            answer, reason = self._read_result(int(found.line_indices[row]))
            if answer is not None:
                made[i] = answer.vectors[0]
            else:
                found.refusal_reasons[row] = reason
        return normalize_rows(made) if self._job.normalize else made

    def encode_float32(self, tokens: Tokens, rows: Int64Array) -> Float32Array:
        """Read the same vectors again; a file gives the same result."""
        return self.collect((tokens, rows))

    def reject_reason(self, tokens: Tokens, row: int) -> str | None:
        """Why a row has no vector; None if it has one."""
        found: FoundResults = tokens.payload
        return found.refusal_reasons.get(row)

    def usage(self) -> dict[str, Any]:
        """Numbers of results and rejections in the files, and tokens counted by the server."""
        return {"requests": self.results.answers + self.results.refusals, "tokens": self.results.tokens_billed}

    def close(self) -> None:
        """Close the result files."""
        self.results.close()

    def _read_result(self, place: int) -> tuple[EmbeddingResponse | None, str]:
        if place < 0:
            return None, "no answer in the results"
        line = self.results.read_line(place)
        return line.response, line.refusal_reason


def load_batch_encoder(
    paths: Sequence[str], job: Job, notify: Callable[[str], None], *, allow_missing: bool = False
) -> BatchResultEncoder:
    """Load the encoder of a job from result and error files of its batches.

    The job's inputs are read once to check that every text has a result or a rejection.

    Raises:
        InputError: Some texts have neither, and `allow_missing`, which rejects them, is not set.
    """
    if not job.model.startswith(HOSTED_PREFIX):
        raise UsageError("batch import needs the hosted model of its export", f"give --model {HOSTED_PREFIX}NAME")
    if "-" in job.inputs:
        raise UsageError(
            "batch import reads the rows twice, and standard input only once", "give the file with --input"
        )
    results = BatchResults(paths)
    try:
        for line in _describe_results(results):
            notify(line)
        if not results.answers:
            raise InputError(f"there is no answer in {', '.join(paths)}", "give the result files of the batch")
        missing, rows = count_missing(results, job)
        if missing and not allow_missing:
            raise InputError(
                f"{missing} of {rows} rows have no answer in these results",
                "export them (batch export with the results given), send them, and import all results together",
            )
    except BaseException:
        results.close()
        raise
    return BatchResultEncoder(results, job)


def count_missing(results: BatchResults, job: Job) -> tuple[int, int]:
    """Count the rows without a result or rejection. Returns (missing rows, rows of the job's inputs)."""
    prompt = str(identity.hosted_model_identity(job)["prompt"])
    missing = rows = 0
    plan = readers.plan_inputs(job)
    for chunk in readers.read_chunks(job, plan, plan.splits):
        places = results.find_lines(hash_texts(chunk.texts, prompt))
        missing += int(sum(places[row] < 0 and bool(prompt or text) for row, text in enumerate(chunk.texts)))
        rows += len(chunk.texts)
    return missing, rows


def _describe_results(results: BatchResults) -> Iterator[str]:
    yield f"{results.answers} answers of model {results.model}, {results.dim} dimensions; {results.refusals} refusals"
    for reason, lines in results.retry_reasons.most_common(5):
        yield f"{lines} requests failed and can be sent again: {reason}"
    if results.foreign_lines:
        yield f"{results.foreign_lines} lines are of another program and were left out"

"""Fake encoders: a deterministic one with the methods of BaseEncoder and no more, and one per fault."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from embedcli.core.encoder import BaseEncoder, Tokens
from embedcli.core.errors import DeviceOutOfMemoryError
from embedcli.core.types import Chunk, InputColumns, InputSplit, Reject


class FakeEncoder(BaseEncoder):
    """Tokens are words; a vector is a hash of the row's words, the same in every batch."""

    def __init__(self, dim: int = 8, limit: int = 16, max_in_flight: int = 1, batch_tokens: int = 64) -> None:
        self.dim = dim
        self.limit = limit
        self.max_in_flight = max_in_flight
        self.batch_tokens = batch_tokens
        self.pad_to_multiple_of = 1
        self.empty_reason = "no known word"
        self.forwards: list[list[int]] = []
        self.widths: list[int] = []
        self.tokenized: list[str] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.closed = False

    def vector_space(self) -> dict[str, Any]:
        return {"model": "fake", "engine": "fake", "device": "cpu", "dtype": "float32", "prompt": ""}

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        self.tokenized += texts
        rows = [[_word(word) for word in text.split()] for text in texts]
        full = np.array([len(row) for row in rows], np.int32)
        cut = [row[: self.limit] for row in rows]
        offsets = np.cumsum([0, *[len(row) for row in cut]]).astype(np.int64)
        ids = np.array([token for row in cut for token in row], np.int32)
        return Tokens(ids, offsets, full)

    def forward(self, tokens: Tokens, rows: Any) -> Any:
        self.forwards.append([int(row) for row in rows])
        self.widths.append(int(tokens.lengths[rows].max()) * len(rows))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return tokens, rows

    def collect(self, output: Any) -> Any:
        self.in_flight -= 1
        tokens, rows = output
        return np.stack([self._vector(tokens, int(row)) for row in rows])

    def _vector(self, tokens: Tokens, row: int) -> Any:
        """The row's vector [dim], computed from its token ids alone."""
        ids = tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]]
        seed = int.from_bytes(blake2b(ids.tobytes(), digest_size=8).digest(), "little")
        return np.random.default_rng(seed).standard_normal(self.dim).astype(np.float32)

    def encode_float32(self, tokens: Tokens, rows: Any) -> Any:
        return np.stack([self._vector(tokens, int(row)) for row in rows])

    def close(self) -> None:
        self.closed = True


class TightEncoder(FakeEncoder):
    """Runs out of memory above `room` padded tokens, in forward or, with `late`, in collect."""

    def __init__(self, room: int, late: bool = False, **values: Any) -> None:
        super().__init__(**values)
        self.room = room
        self.late = late

    def forward(self, tokens: Tokens, rows: Any) -> Any:
        if not self.late:
            self._check(tokens, rows)
        return super().forward(tokens, rows)

    def collect(self, output: Any) -> Any:
        if self.late:
            try:
                self._check(*output)
            except DeviceOutOfMemoryError:
                self.in_flight -= 1
                raise
        return super().collect(output)

    def _check(self, tokens: Tokens, rows: Any) -> None:
        if int(tokens.lengths[rows].max()) * len(rows) > self.room:
            raise DeviceOutOfMemoryError


class NanEncoder(FakeEncoder):
    """Returns NaN for texts with the word `nan`, and from `encode_float32` too for the word `always`."""

    def collect(self, output: Any) -> Any:
        vectors = super().collect(output)
        tokens, rows = output
        for i, row in enumerate(rows):
            if {_word("nan"), _word("always")} & set(_ids(tokens, int(row))):
                vectors[i, 0] = np.nan
        return vectors

    def encode_float32(self, tokens: Tokens, rows: Any) -> Any:
        vectors = super().encode_float32(tokens, rows)
        for i, row in enumerate(rows):
            if _word("always") in _ids(tokens, int(row)):
                vectors[i, 0] = np.inf
        return vectors


class FailingEncoder(FakeEncoder):
    """Fails at call number `at` of one method."""

    def __init__(self, method: str, at: int = 1, **values: Any) -> None:
        super().__init__(**values)
        self.method, self.at, self.calls = method, at, 0

    def _fail_if_due(self, method: str) -> None:
        if method == self.method:
            self.calls += 1
            if self.calls == self.at:
                raise ZeroDivisionError(f"{method} failed")

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        self._fail_if_due("tokenize")
        return super().tokenize(texts)

    def forward(self, tokens: Tokens, rows: Any) -> Any:
        self._fail_if_due("forward")
        return super().forward(tokens, rows)

    def collect(self, output: Any) -> Any:
        self._fail_if_due("collect")
        return super().collect(output)


COLUMNS = InputColumns("text", None, "id", pa.string(), {})


def chunk(
    texts: Sequence[str], seq: int = 0, input_split: int = 0, rejects: tuple[Reject, ...] = (), last: bool = True
) -> Chunk:
    """A chunk of `texts` whose ids are SPLIT-CHUNK-ROW."""
    ids = pa.array([f"{input_split}-{seq}-{i}" for i in range(len(texts))], pa.string())
    kept = pa.table({"id": ids}).select([])
    kept = pa.Table.from_arrays([], names=[]) if not len(texts) else kept
    return Chunk(
        InputSplit(input_split, "in.jsonl"), seq, ids, list(texts), kept, list(range(1, len(texts) + 1)), rejects,
        rows_read=len(texts) + len(rejects), is_last=last,
    )  # fmt: skip


def _word(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=3).digest(), "little")


def _ids(tokens: Tokens, row: int) -> list[int]:
    return [int(token) for token in tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]]]

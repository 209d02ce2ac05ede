"""The base class of encoders, and the tokens they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]
    Rows = NDArray[np.int64]
    Bools = NDArray[np.bool_]


@dataclass
class Tokens:
    """A ragged array: row i is `ids[offsets[i]:offsets[i + 1]]`, already cut to the encoder's limit.

    `full` holds the token count of each whole text, special tokens and prompt included. A row whose
    length is 0 has nothing the encoder knows and is rejected.
    """

    ids: Ints
    offsets: Rows
    full: Ints
    payload: Any = None

    @property
    def lengths(self) -> Rows:
        return self.offsets[1:] - self.offsets[:-1]


class Encoder(Protocol):
    """One model on one device. Every encoder passes tests/test_encoder_contract.py.

    `lanes` is how many batches may be in flight; `batch_tokens` the padded-token budget it likes best;
    `multiple` what sequence lengths are padded up to (0: rows are not padded); `dim` the width of `collect`'s rows.
    With `portion`, a number of characters, a chunk's texts come in such portions: a fast device need not wait for all.
    """

    dim: int
    lanes: int
    batch_tokens: int
    multiple: int
    empty_reason: str

    def space(self) -> dict[str, Any]:
        """What decides the vectors, and the facts recorded with them (JSON values only)."""

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenize each text once, prompt included."""

    def forward(self, tokens: Tokens, rows: Rows) -> Any:
        """Start one batch. Raises OutOfMemory if it does not fit."""

    def collect(self, output: Any) -> Floats:
        """Wait for a batch: float32 [len(rows), dim], in the order of `rows`."""

    def exact(self, tokens: Tokens, rows: Rows) -> Floats:
        """The same rows again in float32, one by one: the second chance of rows that came out non-finite."""

    def close(self) -> None: ...

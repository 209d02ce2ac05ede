"""The base class of encoders: texts to tokens, tokens to vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from embedcli.core.types import VectorKind

if TYPE_CHECKING:
    from embedcli.core.row_vectors import EncodedVectors
    from embedcli.core.types import Int32Array, Int64Array


NOT_FINITE_REASON = "the encoder's vector is not finite, in float32 too"
ZERO_REASON = "the encoder's vector is zero, in float32 too"
NO_TERMS_REASON = "the model weighs no term of the text"
NO_TOKEN_VECTORS_REASON = "the encoder gave none of its tokens a vector"


@dataclass
class Tokens:
    """The tokens of n texts, one after the other.

    Attributes:
        ids: int32: token ids. Row i is `ids[offsets[i]:offsets[i + 1]]`, truncated to the encoder's limit. A row
            without tokens is rejected.
        offsets: int64 [n + 1].
        untruncated_lengths: int32 [n]: tokens of each whole text, special tokens and prompt included.
        payload: Further data for the encoder that made the tokens.
        cut_lengths: How many tokens were read of rows that turned out to be cut while they were computed, by row.
        token_types: int32: the type (segment) of each token, in the order of `ids`; None if all are 0.
        is_estimated: Whether the lengths are estimates, because the tokenizer of the model is not here.
    """

    ids: Int32Array
    offsets: Int64Array
    untruncated_lengths: Int32Array
    payload: Any = None
    token_types: Int32Array | None = None
    cut_lengths: dict[int, int] = field(default_factory=dict)
    is_estimated: bool = False

    @cached_property
    def lengths(self) -> Int64Array:
        """int64 [n]: tokens of each row."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def read_lengths(self) -> Int64Array:
        """int64 [n]: tokens of each row that were read: `lengths`, or less of rows that were cut later."""
        read = self.lengths.copy()
        for row, length in self.cut_lengths.items():
            read[row] = min(int(read[row]), length)
        return read


class TextTokenizer(ABC):
    """Turns texts into tokens. Enough to count tokens and cut texts into windows; a `BaseEncoder` computes vectors too.

    Attributes:
        empty_reason: The reject reason of a row without any token.
    """

    empty_reason: str

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenize each text once, prompt included, truncated to the encoder's limit.

        Args:
            texts: The texts as read from the input, without the prompt.

        Returns:
            One row of tokens per text, in the order of `texts`.
        """

    def split_into_windows(self, text: str, overlap: int = 0) -> Sequence[tuple[int, int]] | None:
        """Split a text into windows that are each read without truncation, for --overflow split and pool.

        Args:
            text: One text, without the prompt.
            overlap: How many tokens successive windows share.

        Returns:
            (start, stop) of each window in characters, in order; together they cover the text. None, the default, if
            the tokenizer cannot split texts.

        Raises:
            UsageError: `overlap` leaves no room for new tokens in a window.
        """
        return None

    def close(self) -> None:  # noqa: B027 - most tokenizers hold nothing
        """Release threads, memory and connections. Does nothing by default."""


class BaseEncoder(TextTokenizer):
    """One model on one device. Every encoder derives from it and passes tests/encoders/test_encoder_contract.py.

    Members with a default are optional abilities; the engine calls them all without asking whether they are overridden.

    Attributes:
        dim: The width of the vectors, before --truncate-dim.
        max_in_flight: How many batches may be started by `forward` and not yet collected.
        batch_tokens: The preferred size of a batch, in padded tokens.
        pad_to_multiple_of: Row lengths are padded up to a multiple of this many tokens; 0 if rows are not padded.
        kind: The kind of the vectors: "dense", the default, or "sparse", a number for each word of a vocabulary, most
            of them zero; `collect` returns both as float32 [batch, dim], or `SparseVectors`. Of "multi_vector", a dense
            vector for each token, `collect` and `encode_float32` return `MultiVectors` of the batch's rows and `dim`
            dimensions.
        heads: Of an encoder that computes several vectors for each row, by head what the vector space metadata say of
            them, at least `dim`; `kind` and `dim` of the encoder are those of the first. `collect` and `encode_float32`
            then return `HeadVectors`. Empty by default.
        equal_lengths: Whether all rows of a batch must have the same number of tokens, because padding would change
            their vectors. False by default.
        portion_characters: Tokenize a chunk in portions of about this many characters, so that a fast device can start
            on the first while the next is tokenized. None, the default, to tokenize each chunk at once.
    """

    dim: int
    max_in_flight: int
    batch_tokens: int
    pad_to_multiple_of: int
    kind: VectorKind = "dense"
    heads: Mapping[VectorKind, Mapping[str, Any]] = MappingProxyType({})
    equal_lengths: bool = False
    portion_characters: int | None = None

    @abstractmethod
    def vector_space(self) -> dict[str, Any]:
        """The vector space metadata, as JSON values: everything that decides the vectors. It is stored with them."""

    @abstractmethod
    def forward(self, tokens: Tokens, rows: Int64Array) -> Any:
        """Start one batch without waiting for it.

        Args:
            tokens: The result of `tokenize`.
            rows: int64 [batch]: the rows to encode.

        Returns:
            A handle for `collect`.

        Raises:
            DeviceOutOfMemoryError: The batch does not fit on the device.
        """

    @abstractmethod
    def collect(self, output: Any) -> EncodedVectors:
        """Wait for a batch.

        Args:
            output: The result of `forward`.

        Returns:
            float32 [batch, dim] or SparseVectors, in the order of the batch's rows; of the kind "multi_vector"
            MultiVectors, and of several heads HeadVectors. Rows that could not be encoded are NaN.

        Raises:
            DeviceOutOfMemoryError: The batch did not fit on the device.
            ModelError: The device or the server failed for good.
        """

    @abstractmethod
    def encode_float32(self, tokens: Tokens, rows: Int64Array) -> EncodedVectors:
        """Encode rows one by one in float32, for a second attempt where a vector was not usable.

        Args:
            tokens: The result of `tokenize`.
            rows: int64 [n]: the rows to encode.

        Returns:
            As from `collect`, in the order of `rows`.
        """

    def has_verified_vectors(self, output: Any) -> bool:
        """Whether the device has already verified that every vector of a collected batch is finite and not zero.

        Args:
            output: The result of `forward`, after `collect`.

        Returns:
            False, the default, if the engine must check the vectors itself.
        """
        return False

    def reject_reason(self, tokens: Tokens, row: int) -> str | None:
        """Why a row has no vector although it has tokens, for example because a server refused its text.

        Args:
            tokens: The result of `tokenize`.
            row: A row whose collected vector is not usable.

        Returns:
            The reason, to reject the row without a second attempt. None, the default, to try `encode_float32`.
        """
        return None

    def unusable_reason(self, vector: EncodedVectors) -> str:
        """Why a row is rejected whose vector was not usable in the second attempt either.

        Args:
            vector: The vector of the second attempt, as a batch of one row.
        """
        import numpy as np

        from embedcli.core.row_vectors import as_dense

        values = as_dense(vector)
        if not np.isfinite(values).all():
            return NOT_FINITE_REASON
        if self.kind == "dense":
            return ZERO_REASON
        return NO_TERMS_REASON if self.kind == "sparse" else NO_TOKEN_VECTORS_REASON

    def usage(self) -> dict[str, Any] | None:
        """The requests and tokens that the encoder has used since it was loaded.

        Returns:
            Counts by name, at least `requests` and `tokens`. None, the default, if nothing is billed.
        """
        return None

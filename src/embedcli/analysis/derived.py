"""Views of an output in another precision or with fewer dimensions, without encoding its rows again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from embedcli import storage
from embedcli.core import quantization
from embedcli.core.errors import UsageError
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.row_vectors import as_dense
from embedcli.core.types import KIND_ADJECTIVES
from embedcli.models.kind_options import MULTI_VECTOR_PRECISIONS, SPARSE_PRECISIONS
from embedcli.outputs.dataset import VectorBlock, VectorDataset

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array, Precision


class DerivedDataset(VectorDataset):
    """The rows of an output with vectors truncated to `dim`, normalized again and quantized.

    The ranges of int8 and uint8 are computed over all rows.

    Args:
        source: The output.
        stored_as: Precision of the vectors; None keeps that of the source.
        dim: Number of dimensions; None keeps all.

    Raises:
        UsageError: The source has fewer dimensions than `dim`, or its vectors are of a kind that has no such view.
    """

    def __init__(self, source: VectorDataset, stored_as: Precision | None = None, dim: int | None = None) -> None:
        check_view(source, stored_as, dim)
        if dim is not None and not 1 <= dim <= source.dim:
            raise UsageError(
                f"{source.path} has {source.dim} dimensions and cannot be truncated to {dim}",
                "give a smaller number",
            )
        self._source = source
        precision: Precision = stored_as or source.precision
        vector_space = {**source.vector_space, "precision": precision, "dim": dim or source.dim, "truncate_dim": dim}
        super().__init__(derived_name(source.path, stored_as, dim), source.vector_files, {"embedcli": vector_space})
        self.stored_width = quantization.stored_width(int(vector_space["dim"]), precision)
        self.dtype = np.dtype(quantization.STORAGE_DTYPES[precision])
        # Ranges of exactly the rows that are stored, so that no value is clipped.
        self.vector_space = (
            {**vector_space, "ranges": self._compute_ranges().tolist()}
            if precision in ("int8", "uint8")
            else vector_space
        )

    def read_blocks(
        self, columns: Sequence[str] = (), *, verify: bool = False, keep_damaged: bool = False
    ) -> Iterator[VectorBlock]:
        """Yield all rows with their derived vectors."""
        for block in self._source.read_blocks(columns, verify=verify):
            stored = quantization.quantize(self._truncate(block), self.precision, self.ranges)
            rows = block.vectors
            vectors = MultiVectors(rows.offsets, stored) if isinstance(rows, MultiVectors) else stored
            yield VectorBlock(block.first_row, vectors, block.columns)

    def _truncate(self, block: VectorBlock) -> Float32Array:
        """The vectors of a block, of rows or of tokens, with `dim` dimensions: float32 [vectors, dim]."""
        return quantization.truncate_and_normalize(
            as_dense(self._source.block_vectors(block)), self.dim, self.vector_space.get("normalize") is not False
        )

    def _compute_ranges(self) -> Float32Array:
        low, high = np.full(self.dim, np.inf, np.float32), np.full(self.dim, -np.inf, np.float32)
        for block in self._source.read_blocks():
            vectors = self._truncate(block)
            low = np.minimum(low, vectors.min(axis=0, initial=np.inf))
            high = np.maximum(high, vectors.max(axis=0, initial=-np.inf))
        return np.stack([low, high])


def check_view(source: VectorDataset, stored_as: Precision | None, dim: int | None) -> None:
    """Raise UsageError if vectors of this kind have no view in this precision or with fewer dimensions."""
    place = f"{storage.format_location(source.path)}: has {KIND_ADJECTIVES[source.kind]} vectors"
    if source.kind != "dense" and dim is not None:
        hint = "leave --truncate-dim out, or use a smaller model"
        if source.kind == "sparse":
            hint = "encode the rows again with --top-k-terms, and compare both outputs"
        raise UsageError(f"{place}, which cannot be cut to fewer dimensions", hint)
    allowed = {"sparse": SPARSE_PRECISIONS, "multi_vector": MULTI_VECTOR_PRECISIONS}.get(source.kind)
    if stored_as is not None and allowed is not None and stored_as not in allowed:
        raise UsageError(f"{place}, which are not stored as {stored_as}", f"choose one of {', '.join(allowed)}")
    if source.kind == "sparse":
        raise UsageError(
            f"{place}, whose weights are not converted here",
            f"encode the rows again with --precision {stored_as}, and compare both outputs",
        )


def derived_name(path: str, stored_as: str | None, dim: int | None) -> str:
    changes = [f"cut to {dim}"] * (dim is not None) + [f"as {stored_as}"] * (stored_as is not None)
    return f"{path} {' '.join(changes)}"

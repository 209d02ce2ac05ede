"""Describe an output in one pass: norms, non-finite values, truncated rows, duplicate ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli import storage
from embedcli.analysis.quantiles import StreamingQuantiles
from embedcli.analysis.sparse_terms import TermCounter, load_words
from embedcli.analysis.token_vectors import TokenVectorCounter
from embedcli.core.arrow_values import column_to_python, scalar_to_python
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.row_vectors import as_dense
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.outputs.dataset import VectorBlock, VectorDataset
from embedcli.outputs.duplicate_ids import find_repeated

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import BoolArray, Float32Array

MAX_EXAMPLES = 10
SAMPLE_ROWS = 3


class DuplicateIdCounter:
    """Counts duplicate ids with eight bytes of memory per row."""

    def __init__(self, output: VectorDataset) -> None:
        self.output = output
        self.columns = [name for name in (output.id_name, "window") if name and name in output.schema.names]
        self._hashes: list[NDArray[np.int64]] = []

    def add(self, block: VectorBlock) -> None:
        keys = self._keys(block)
        self._hashes.append(np.fromiter(map(hash, keys), np.int64, len(block)))

    def find_duplicates(self) -> list[tuple[Any, int]]:
        """Return duplicate ids and how often each occurs, in the order of their first row."""
        if self.output.id_name is None or not self._hashes:
            return []
        repeated = set(find_repeated(np.sort(np.concatenate(self._hashes))).tolist())
        if not repeated:
            return []
        return [(key, count) for key, count in self._count_ids(repeated).items() if count > 1]

    def _count_ids(self, hashes: set[int]) -> Counter[Any]:
        """Count the ids that have these hashes; different ids may have the same hash."""
        counts: Counter[Any] = Counter()
        for block in self.output.read_blocks(self.columns, keep_damaged=True):
            counts.update(key for key in self._keys(block) if hash(key) in hashes)
        return counts

    def _keys(self, block: VectorBlock) -> Iterator[Any]:
        columns = [column_to_python(block.columns.column(name)) for name in self.columns]
        return iter(columns[0]) if len(columns) == 1 else zip(*columns, strict=True)


class DamageCounter:
    """Counts sparse vectors that cannot be read, and keeps the first ones as examples."""

    def __init__(self) -> None:
        self.count = 0
        self.examples: list[dict[str, Any]] = []

    def add(self, output: VectorDataset, block: VectorBlock) -> BoolArray:
        """Count the damaged rows of a block that was read with its ids. Returns which rows can be read: bool [n]."""
        damage = block.vectors.damage if isinstance(block.vectors, SparseVectors) else {}
        self.count += len(damage)
        for row in sorted(damage)[: MAX_EXAMPLES - len(self.examples)]:
            id = to_json_value(scalar_to_python(output.block_ids(block)[row]))
            self.examples.append({"row": block.first_row + row + 1, "id": id, "problem": damage[row]})
        is_readable = np.ones(len(block), bool)
        is_readable[list(damage)] = False
        return is_readable


class LengthCounter:
    """Collects the lengths of vectors, and counts the rows whose vectors are not finite or all zero.

    Attributes:
        norms: The finite lengths.
        non_finite: The rows with a number that is not finite.
        zero: The rows of zeros.
    """

    def __init__(self) -> None:
        self.norms = StreamingQuantiles()
        self.non_finite = self.zero = 0

    def add(self, output: VectorDataset, block: VectorBlock, is_readable: BoolArray) -> None:
        """Add the rows of a block of an output but for unreadable ones, and for sparse ones that may lack terms."""
        lengths = compute_vector_norms(vectors_for_norms(output, block))
        is_damaged, is_zero = find_damaged_rows(block, lengths)
        if output.may_lack_terms and isinstance(block.vectors, SparseVectors):
            is_readable = is_readable & (block.vectors.lengths > 0)  # such a row has the vectors of other heads
        self.non_finite += int((is_damaged & is_readable).sum())
        self.zero += int((is_zero & is_readable).sum())
        lengths = lengths if is_readable.all() else lengths[is_readable]
        self.norms.add(lengths[np.isfinite(lengths)])


def describe_output(output: VectorDataset) -> dict[str, Any]:
    """Describe an output for `embedcli inspect`, as JSON values. Reads it once.

    Raises:
        InputError: A checksum does not match.
    """
    tokens, ids = StreamingQuantiles(), DuplicateIdCounter(output)
    names = [name for name in ("n_tokens", "truncated") if name in output.schema.names]
    terms, token_vectors, damage = TermCounter(), TokenVectorCounter(), DamageCounter()
    # Queries are filled up with tokens that their texts do not have.
    has_counts = "n_tokens" in names and output.vector_space.get("task") == "document"
    lengths = LengthCounter()
    truncated = rows = total_tokens = 0
    for block in output.read_blocks([*ids.columns, *names], verify=True, keep_damaged=True):
        lengths.add(output, block, damage.add(output, block))
        rows += len(block)
        if "truncated" in names:
            truncated += int(block.columns["truncated"].to_numpy().sum())
        if "n_tokens" in names:
            counts = block.columns["n_tokens"].to_numpy()
            tokens.add(counts)
            total_tokens += int(counts.sum())
        if output.id_name is not None:
            ids.add(block)
        if isinstance(block.vectors, SparseVectors):
            terms.add(block.vectors, SAMPLE_ROWS)
        if isinstance(block.vectors, MultiVectors):
            token_vectors.add(block.vectors, block.columns["n_tokens"].to_numpy() if has_counts else None)
    return {
        "path": output.path,
        "kind": "output",
        "bytes": sum(size_on_disk(file.path) for file in output.vector_files),
        "files": len(output.vector_files),
        "rows": rows,
        "rejected": output.job_manifest.get("rejects"),
        "dim": output.dim,
        "vector_kind": output.kind,
        "vector_column": output.vector_files[0].column.name if output.vector_files else None,
        "vector_columns": list(output.vector_columns),
        "precision": output.precision,
        "norms": None if "binary" in output.precision else lengths.norms.summary(median=0.5),
        "terms": terms.describe(load_words(output.vector_space, output.dim)) if output.kind == "sparse" else None,
        "token_vectors": token_vectors.describe() if output.kind == "multi_vector" else None,
        "non_finite_rows": lengths.non_finite,
        "zero_rows": lengths.zero,
        "damaged_rows": damage.count,
        "damage_examples": damage.examples,
        "truncated_rows": truncated if "truncated" in names else None,
        "truncated_share": truncated / rows if rows and "truncated" in names else None,
        "tokens": {"total": total_tokens, **(tokens.summary(median=0.5, p95=0.95) or {})} if tokens.count else None,
        "ids": describe_ids(output, ids.find_duplicates()),
        "columns": {field.name: str(field.type) for field in output.schema},
        "space": dict(output.vector_space),
        "samples": read_samples(output, min(rows, SAMPLE_ROWS)),
    }


def read_samples(output: VectorDataset, count: int) -> list[dict[str, Any]]:
    """Return the id and the kept columns of the first rows."""
    rows = output.take_rows(range(count), output.kept_columns)
    return [{name: to_json_value(value) for name, value in row.items()} for row in rows]


def describe_ids(output: VectorDataset, duplicates: list[tuple[Any, int]]) -> dict[str, Any]:
    """Describe the id column: name, type, number of duplicate ids and some examples."""
    name = output.id_name
    return {
        "column": name,
        "type": str(output.schema.field(name).type) if name else None,
        "duplicates": len(duplicates),
        "examples": [{"id": to_json_value(key), "rows": count} for key, count in duplicates[:MAX_EXAMPLES]],
    }


def to_json_value(value: Any) -> Any:
    """Convert a value to one that JSON has: lists and scalars stay, anything else becomes a string."""
    if isinstance(value, tuple | list):
        return [to_json_value(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def vectors_for_norms(output: VectorDataset, block: VectorBlock) -> RowVectors:
    """Return the vectors of a block as float32, dequantized if their ranges are known."""
    stored = block.vectors
    if output.precision in ("int8", "uint8") and output.ranges is None:
        if isinstance(stored, MultiVectors):
            return replace(stored, values=stored.values.astype(np.float32))
        return stored if isinstance(stored, SparseVectors) else stored.astype(np.float32)
    return output.block_vectors(block)


def find_damaged_rows(block: VectorBlock, lengths: NDArray[Any]) -> tuple[BoolArray, BoolArray]:
    """Find rows with a vector that is not finite, and rows whose vectors are all zeros: bool [n] each.

    Args:
        block: The n rows.
        lengths: The length of each of their vectors.
    """
    is_damaged, is_zero = ~np.isfinite(lengths), lengths == 0
    if isinstance(block.vectors, MultiVectors):
        rows = block.vectors
        return rows.find_rows_with(is_damaged), rows.find_rows_with(is_zero) & ~rows.find_rows_with(~is_zero)
    return is_damaged, is_zero


def compute_vector_norms(vectors: RowVectors) -> NDArray[Any]:
    """Compute the length of each vector of any kind: [n], not finite if a value of the vector is not.

    Of vectors of tokens, the lengths are those of the tokens: [tokens].
    """
    if isinstance(vectors, MultiVectors):
        return compute_row_norms(vectors.values)
    if isinstance(vectors, SparseVectors):
        squares = vectors.values.astype(np.float64) ** 2
        return np.asarray(np.sqrt(np.bincount(vectors.entry_rows, squares, minlength=len(vectors))))
    return compute_row_norms(as_dense(vectors))


def compute_row_norms(vectors: Float32Array) -> NDArray[Any]:
    """Compute the length of each vector: float32 [n], not finite if a value of the vector is not."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    overflowed = ~np.isfinite(lengths)
    if overflowed.any():  # squares of large finite values overflow in float32
        lengths[overflowed] = np.linalg.norm(vectors[overflowed].astype(np.float64), axis=1)
    return np.asarray(lengths)


def size_on_disk(path: str) -> int:
    """Return the bytes of a file, or of all files in a local folder (a Lance dataset)."""
    if storage.is_folder(path):
        return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
    return int(storage.file_identity(path)["size"])

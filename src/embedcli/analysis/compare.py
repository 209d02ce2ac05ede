"""Compare two outputs of the same rows: cosines between their vectors and overlap of nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.analysis.quantiles import StreamingQuantiles
from embedcli.analysis.similarities import check_same_kind, row_cosines
from embedcli.analysis.topk import TopK, block_as_float32, search_vectors
from embedcli.analysis.vector_collector import VectorCollector
from embedcli.core.arrow_values import column_to_python
from embedcli.core.errors import UsageError
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.outputs.dataset import VectorDataset

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import Float32Array, VectorKind

    RowPositions = NDArray[np.int64]

# From the most to the least precise.
PRECISION_ORDER = ("float32", "float16", "int8", "uint8", "binary", "ubinary")
# A row of a multi-vector model is a query of many vectors.
SAMPLED_ROWS: Mapping[VectorKind, int] = {"dense": 1000, "sparse": 1000, "multi_vector": 100}
COSINE_QUANTILES = {"p01": 0.01, "p05": 0.05, "median": 0.5}
HISTOGRAM_BINS = 20
# Cosines of equal rows differ by rounding errors, which a narrower histogram would show as differences.
MIN_HISTOGRAM_RANGE = 1e-3


@dataclass(frozen=True)
class SharedRows:
    """Rows that two outputs have in common: `first[i]` and `second[i]` are the positions of shared row i."""

    first: RowPositions
    second: RowPositions
    has_same_order: bool

    def __len__(self) -> int:
        return len(self.first)


@dataclass
class Comparison:
    """Result of `compare_outputs`.

    Attributes:
        overlaps: For each sampled row, the fraction of its neighbours that both outputs agree on.
        cosines: Cosines between the vectors of the same row; None if the dimensions, or their words, differ.
        most_moved: Shared rows and their cosine (or overlap, if there are no cosines), the least similar first.
    """

    first: VectorDataset
    second: VectorDataset
    shared: SharedRows
    neighbour_count: int
    sampled_rows: RowPositions
    overlaps: Float32Array
    cosines: StreamingQuantiles | None = None
    most_moved: list[tuple[int, float]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON values; the rows that moved most come with their ids and kept columns."""
        overlaps, cosines = self.overlaps, self.cosines
        return {
            "first": describe_side(self.first),
            "second": describe_side(self.second),
            "shared_rows": len(self.shared),
            "same_vocabulary": has_same_vocabulary(self.first, self.second),
            "cosine": cosines.summary(**COSINE_QUANTILES) if cosines is not None else None,
            "cosine_rows": cosines.count if cosines is not None else 0,
            "cosine_histogram": build_histogram(cosines.held_values()) if cosines is not None else None,
            "k": self.neighbour_count,
            "sampled_rows": len(self.sampled_rows),
            "overlap": {"mean": float(overlaps.mean()), "min": float(overlaps.min())} if len(overlaps) else None,
            "overlap_histogram": np.bincount(
                np.rint(overlaps * self.neighbour_count).astype(int), minlength=self.neighbour_count + 1
            ).tolist(),
            "moved_by": "cosine" if cosines is not None else "overlap",
            "moved": self.most_moved_rows(),
        }

    def most_moved_rows(self) -> list[dict[str, Any]]:
        positions = [int(self.shared.first[row]) for row, _ in self.most_moved]
        rows = self.first.take_rows(positions, self.first.kept_columns)
        return [{"similarity": value, **row} for (_, value), row in zip(self.most_moved, rows, strict=True)]


def build_histogram(values: Float32Array) -> dict[str, Any] | None:
    """Count values in HISTOGRAM_BINS equal bins over a range of at least MIN_HISTOGRAM_RANGE; None without values."""
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    counts, edges = np.histogram(values, HISTOGRAM_BINS, (min(low, high - MIN_HISTOGRAM_RANGE), high))
    return {"from": float(edges[0]), "to": float(edges[-1]), "counts": counts.tolist()}


def describe_side(output: VectorDataset) -> dict[str, Any]:
    return {
        "path": output.path,
        "rows": output.rows,
        "model": output.vector_space.get("model"),
        "dim": output.dim,
        **({} if output.kind == "dense" else {"kind": output.kind}),
        "precision": output.precision,
        "bytes": output.vector_bytes,
    }


def compare_outputs(
    first: VectorDataset, second: VectorDataset, *, k: int, rows: int | None, moved: int, seed: int
) -> Comparison:
    """Compare two outputs on the rows that have the same ids.

    Cosines are computed for every shared row if both outputs have the same order, else for the sample. Neighbours
    are searched among all shared rows.

    Args:
        first: One output.
        second: The other output.
        k: Neighbours per sampled row.
        rows: Number of rows to sample; None for SAMPLED_ROWS of the outputs' kind.
        moved: Number of least similar rows to list.
        seed: Seed of the sample.

    Raises:
        UsageError: The outputs cannot be compared or have no row in common.
    """
    check_same_kind(first, second)
    rows = rows or SAMPLED_ROWS[first.kind]
    shared = match_rows(first, second)
    sample = np.sort(np.random.default_rng(seed).choice(len(shared), min(rows, len(shared)), replace=False))
    k = min(k, max(1, len(shared) - 1))
    neighbours = find_neighbours(first, second, shared, sample, k)
    overlaps = np.array([measure_overlap(a, b) for a, b in zip(*neighbours, strict=True)], np.float32)
    comparison = Comparison(first, second, shared, k, sample, overlaps)
    if first.dim == second.dim and has_same_vocabulary(first, second) is not False:
        measure_cosines(comparison, moved)
    else:
        order = np.argsort(overlaps, kind="stable")[:moved]
        comparison.most_moved = [(int(sample[i]), float(overlaps[i])) for i in order]
    return comparison


# Matching rows


def match_rows(first: VectorDataset, second: VectorDataset) -> SharedRows:
    """Match rows by id, or by position if neither output has ids.

    Raises:
        UsageError: The outputs have no row in common, or repeated ids in a different order.
    """
    windows = ["window" in output.schema.names for output in (first, second)]
    if windows[0] != windows[1]:
        raise UsageError(
            f"one of {first.path} and {second.path} has windows of rows, the other whole rows",
            "compare outputs of the same --overflow",
        )
    keys = [hash_row_keys(output) for output in (first, second)]
    if len(keys[0]) == len(keys[1]) and np.array_equal(keys[0], keys[1]):
        positions = np.arange(len(keys[0]))
        return SharedRows(positions, positions, has_same_order=True)
    for output, hashes in zip((first, second), keys, strict=True):
        if len(np.unique(hashes)) != len(hashes):
            raise UsageError(
                f"{output.path} has repeated ids, and its rows are not those of the other output in the same order",
                "compare outputs of the same input",
            )
    _, in_first, in_second = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
    if not len(in_first):
        raise UsageError(f"{first.path} and {second.path} have no row in common", "compare outputs of the same input")
    order = np.argsort(in_first)
    return SharedRows(in_first[order], in_second[order], has_same_order=False)


def hash_row_keys(output: VectorDataset) -> RowPositions:
    """Return for each row the hash of its id (and window), or its position if there are no ids: int64 [rows]."""
    if output.id_name is None:
        return np.arange(output.rows)
    names = [name for name in (output.id_name, "window") if name in output.schema.names]
    hashes = [np.empty(0, np.int64)]
    for block in output.read_blocks(names):
        columns = [column_to_python(block.columns.column(name)) for name in names]
        keys = columns[0] if len(columns) == 1 else zip(*columns, strict=True)
        hashes.append(np.fromiter(map(hash, keys), np.int64, len(block)))
    return np.concatenate(hashes)


# Neighbours


def find_neighbours(
    first: VectorDataset, second: VectorDataset, shared: SharedRows, sample: RowPositions, k: int
) -> list[list[list[int]]]:
    """Find the `k` nearest shared rows of each sampled row, in both outputs, without the row itself.

    A sparse row has fewer neighbours if fewer rows share a term with it.

    If model and prompt are the same, both outputs are searched with the vectors of the more precise one, as a search
    uses a float32 query on stored vectors. Otherwise each output is searched with its own vectors.

    Returns:
        For each output and each sampled row, the indices of shared rows.
    """
    queries = [
        read_vectors(output, positions[sample])
        for output, positions in ((first, shared.first), (second, shared.second))
    ]
    if have_same_space(first, second):
        more_precise = min((first, second), key=rank_by_precision)
        queries = [queries[0 if more_precise is first else 1]] * 2
    return [
        nearest_without_self(output, positions, vectors, sample, k)
        for output, positions, vectors in ((first, shared.first, queries[0]), (second, shared.second, queries[1]))
    ]


def have_same_space(first: VectorDataset, second: VectorDataset) -> bool:
    names = ("model", "fingerprint", "prompt", "task", "pooling", "max_seq_length")
    known = bool(first.vector_space) and bool(second.vector_space) and first.dim == second.dim
    return known and all(first.vector_space.get(name) == second.vector_space.get(name) for name in names)


def has_same_vocabulary(first: VectorDataset, second: VectorDataset) -> bool | None:
    """Whether the dimensions of two sparse outputs stand for the same words; None if that is not known."""
    if first.vocabulary is None or second.vocabulary is None:
        return None
    return first.vocabulary == second.vocabulary


def rank_by_precision(output: VectorDataset) -> tuple[int, int]:
    """Sort key: the more precise number format first, then the one that keeps more terms, or vectors, of a row."""
    return PRECISION_ORDER.index(output.precision), -output.vector_bytes


def nearest_without_self(
    output: VectorDataset, positions: RowPositions, queries: RowVectors, sample: RowPositions, k: int
) -> list[list[int]]:
    """Find the `k` best shared rows for each query, as indices of shared rows, without the sampled row itself."""
    index = np.full(output.rows, -1, np.int64)
    index[positions] = np.arange(len(positions))
    only = None if len(positions) == output.rows else index >= 0
    hits = search_vectors(output, queries, k + 1, only=only)
    neighbours = []
    for row, hit in zip(sample.tolist(), hits, strict=True):
        others = [i for i in index[hit.rows].tolist() if i != row]
        neighbours.append(others[:k])
    return neighbours


def measure_overlap(first: list[int], second: list[int]) -> float:
    """Compute the fraction of a row's neighbours that two outputs agree on.

    A sparse row may have fewer neighbours than others: those that share a term with it, or none.
    """
    most = max(len(first), len(second))
    return len(set(first) & set(second)) / most if most else 1.0


def read_vectors(output: VectorDataset, positions: RowPositions) -> RowVectors:
    """Read the vectors of some rows, in the order of `positions`: float32 [len(positions), dim], or another kind."""
    order = np.argsort(positions, kind="stable")
    ascending = positions[order]
    found = VectorCollector(len(positions), output.dim, output.kind)
    for block in output.read_blocks():
        low, high = np.searchsorted(ascending, [block.first_row, block.first_row + len(block)])
        if low < high:
            found.add(block_as_float32(output, block)[ascending[low:high] - block.first_row])
    return found.finish()[np.argsort(order, kind="stable")]


# Cosines


def measure_cosines(comparison: Comparison, moved: int) -> None:
    """Compute the cosine between both vectors of each row, and list the `moved` rows where it is lowest."""
    comparison.cosines = StreamingQuantiles()
    lowest = TopK(1, max(1, moved))
    if comparison.shared.has_same_order:
        rows = np.arange(len(comparison.shared))
        pairs = iterate_vector_pairs(comparison.first, comparison.second)
    else:
        rows = comparison.sampled_rows
        pairs = iterate_sampled_pairs(comparison)
    start = 0
    for first, second in pairs:
        cosines = measure_row_cosines(first, second)
        comparison.cosines.add(cosines[np.isfinite(cosines)])
        lowest.add(-cosines[None], start)
        start += len(cosines)
    hits = lowest.to_hits()[0]
    rows_and_cosines = zip(rows[hits.rows].tolist(), (-hits.scores).tolist(), strict=True)
    comparison.most_moved = list(rows_and_cosines)[:moved]


def measure_row_cosines(first: RowVectors, second: RowVectors) -> NDArray[Any]:
    """Compute the cosine between both vectors of each row; 1 for a row that has no term in either output."""
    cosines = row_cosines(first, second)
    if isinstance(first, SparseVectors) and isinstance(second, SparseVectors):
        cosines[(first.lengths == 0) & (second.lengths == 0)] = 1
    return cosines


def iterate_vector_pairs(first: VectorDataset, second: VectorDataset) -> Iterator[tuple[RowVectors, RowVectors]]:
    """Yield vectors of the same rows of two outputs that have the same order, in blocks."""
    first_blocks, second_blocks = iterate_float_blocks(first), iterate_float_blocks(second)
    left: RowVectors = np.empty((0, first.dim), np.float32)
    right = left
    while True:
        left = left if len(left) else next(first_blocks, left)
        right = right if len(right) else next(second_blocks, right)
        count = min(len(left), len(right))
        if not count:
            return
        yield left[:count], right[:count]
        left, right = left[count:], right[count:]


def iterate_sampled_pairs(comparison: Comparison) -> Iterator[tuple[RowVectors, RowVectors]]:
    shared, sample = comparison.shared, comparison.sampled_rows
    yield (
        read_vectors(comparison.first, shared.first[sample]),
        read_vectors(comparison.second, shared.second[sample]),
    )


def iterate_float_blocks(output: VectorDataset) -> Iterator[RowVectors]:
    return (block_as_float32(output, block) for block in output.read_blocks())

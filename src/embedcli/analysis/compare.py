"""The same rows in two spaces, or under two settings: how far vectors moved, and which neighbours they kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.analysis.inspect_output import StreamingQuantiles
from embedcli.analysis.topk import TopK, block_as_float32, normalize, search_vectors
from embedcli.core.arrow_values import column_to_python
from embedcli.core.errors import UsageError
from embedcli.outputs.dataset import VectorDataset

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import Float32Array

    Places = NDArray[np.int64]

# From the least to the most that a stored number loses.
PRECISION_ORDER = ("float32", "float16", "int8", "uint8", "binary", "ubinary")
COSINE_QUANTILES = {"p01": 0.01, "p05": 0.05, "median": 0.5}
HISTOGRAM_BINS = 20
# Cosines of equal rows differ by rounding: a histogram of that would say nothing.
MIN_HISTOGRAM_RANGE = 1e-3


@dataclass(frozen=True)
class SharedRows:
    """The rows two outputs have in common: `first[i]` and `second[i]` are the positions of shared row i."""

    first: Places
    second: Places
    has_same_order: bool

    def __len__(self) -> int:
        return len(self.first)


@dataclass
class Comparison:
    """What `compare` found. `overlaps` has one share per sampled row; `cosines` is None where dimensions differ.

    `moved` are shared rows and their cosine (or overlap, where there are no cosines), the least similar first.
    """

    first: VectorDataset
    second: VectorDataset
    shared: SharedRows
    neighbour_count: int
    sampled_rows: Places
    overlaps: Float32Array
    cosines: StreamingQuantiles | None = None
    most_moved: list[tuple[int, float]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values; the rows that moved most with their ids and kept columns."""
        overlaps, cosines = self.overlaps, self.cosines
        return {
            "first": describe_side(self.first),
            "second": describe_side(self.second),
            "shared_rows": len(self.shared),
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
        places = [int(self.shared.first[row]) for row, _ in self.most_moved]
        taken = self.first.take_rows(places, self.first.kept_columns)
        return [{"similarity": value, **row} for (_, value), row in zip(self.most_moved, taken, strict=True)]


def build_histogram(values: Float32Array) -> dict[str, Any] | None:
    """Counts in BINS equal steps from the smallest value, or a little below the largest, to the largest."""
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
        "precision": output.precision,
        "bytes": output.vector_bytes,
    }


def compare_outputs(
    first: VectorDataset, second: VectorDataset, *, k: int, rows: int, moved: int, seed: int
) -> Comparison:
    """Compare two outputs on the rows they share by id.

    Cosines are taken of every shared row where both files have them in one order, else of the sample; neighbours of
    a random sample of `rows` rows, among all shared ones.
    """
    shared = match_rows(first, second)
    sample = np.sort(np.random.default_rng(seed).choice(len(shared), min(rows, len(shared)), replace=False))
    k = min(k, max(1, len(shared) - 1))
    near = find_neighbours(first, second, shared, sample, k)
    overlaps = np.array([len(set(a) & set(b)) / k for a, b in zip(*near, strict=True)], np.float32)
    made = Comparison(first, second, shared, k, sample, overlaps)
    if first.dim == second.dim:
        measure_cosines(made, moved)
    else:
        order = np.argsort(overlaps, kind="stable")[:moved]
        made.most_moved = [(int(sample[i]), float(overlaps[i])) for i in order]
    return made


# Which rows are the same


def match_rows(first: VectorDataset, second: VectorDataset) -> SharedRows:
    """Match rows by id, or by position where neither file has ids. UsageError if they share none."""
    windows = ["window" in output.schema.names for output in (first, second)]
    if windows[0] != windows[1]:
        raise UsageError(
            f"one of {first.path} and {second.path} holds windows of rows, the other whole rows",
            "compare outputs of the same --overflow",
        )
    keys = [hash_row_keys(output) for output in (first, second)]
    if len(keys[0]) == len(keys[1]) and np.array_equal(keys[0], keys[1]):
        every = np.arange(len(keys[0]))
        return SharedRows(every, every, has_same_order=True)
    for output, hashes in zip((first, second), keys, strict=True):
        if len(np.unique(hashes)) != len(hashes):
            raise UsageError(
                f"{output.path} has ids that come more than once, and not the same rows in the same order as the other",
                "compare outputs of the same input",
            )
    _, one, two = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
    if not len(one):
        raise UsageError(f"{first.path} and {second.path} have no row in common", "compare outputs of the same input")
    order = np.argsort(one)
    return SharedRows(one[order], two[order], has_same_order=False)


def hash_row_keys(output: VectorDataset) -> Places:
    """int64 [rows]: a hash of each row's id (and window), or its position where there are no ids."""
    if output.id_name is None:
        return np.arange(output.rows)
    names = [name for name in (output.id_name, "window") if name in output.schema.names]
    made = [np.empty(0, np.int64)]
    for block in output.read_blocks(names):
        columns = [column_to_python(block.columns.column(name)) for name in names]
        keys = columns[0] if len(columns) == 1 else zip(*columns, strict=True)
        made.append(np.fromiter(map(hash, keys), np.int64, len(block)))
    return np.concatenate(made)


# Neighbours


def find_neighbours(
    first: VectorDataset, second: VectorDataset, shared: SharedRows, sample: Places, k: int
) -> list[list[list[int]]]:
    """For each output the `k` nearest shared rows of each sampled row, itself left out.

    Both are asked with the same queries where model and prompt are the same: those of the finer file, as a search
    asks stored vectors with a fresh one. Else each is asked with its own vectors.
    """
    queries = [
        read_vectors(output, places[sample]) for output, places in ((first, shared.first), (second, shared.second))
    ]
    if have_same_space(first, second):
        finer = min((first, second), key=lambda output: PRECISION_ORDER.index(output.precision))
        queries = [queries[0 if finer is first else 1]] * 2
    return [
        nearest_without_self(output, places, asked, sample, k)
        for output, places, asked in ((first, shared.first, queries[0]), (second, shared.second, queries[1]))
    ]


def have_same_space(first: VectorDataset, second: VectorDataset) -> bool:
    names = ("model", "fingerprint", "prompt", "task", "pooling", "max_seq_length")
    known = bool(first.vector_space) and bool(second.vector_space) and first.dim == second.dim
    return known and all(first.vector_space.get(name) == second.vector_space.get(name) for name in names)


def nearest_without_self(
    output: VectorDataset, places: Places, queries: Float32Array, sample: Places, k: int
) -> list[list[int]]:
    """The `k` best shared rows for each query, as indices of shared rows, without the sampled row itself."""
    index = np.full(output.rows, -1, np.int64)
    index[places] = np.arange(len(places))
    only = None if len(places) == output.rows else index >= 0
    hits = search_vectors(output, queries, k + 1, only=only)
    found = []
    for row, hit in zip(sample.tolist(), hits, strict=True):
        others = [i for i in index[hit.rows].tolist() if i != row]
        found.append(others[:k])
    return found


def read_vectors(output: VectorDataset, positions: Places) -> Float32Array:
    """float32 [len(positions), dim]: the vectors of some rows, in the order given."""
    order = np.argsort(positions, kind="stable")
    wanted = positions[order]
    made = np.empty((len(positions), output.dim), np.float32)
    for block in output.read_blocks():
        low, high = np.searchsorted(wanted, [block.first_row, block.first_row + len(block)])
        if low < high:
            made[order[low:high]] = block_as_float32(output, block)[wanted[low:high] - block.first_row]
    return made


# Cosines


def measure_cosines(made: Comparison, moved: int) -> None:
    """Cosine of each row with itself in the other file, and the `moved` rows where it is lowest."""
    made.cosines = StreamingQuantiles()
    lowest = TopK(1, max(1, moved))
    rows = np.arange(len(made.shared)) if made.shared.has_same_order else made.sampled_rows
    start = 0
    for one, two in (
        iterate_vector_pairs(made.first, made.second) if made.shared.has_same_order else iterate_sampled_pairs(made)
    ):
        cosines = np.einsum("ij,ij->i", normalize(one), normalize(two))
        made.cosines.add(cosines[np.isfinite(cosines)])
        lowest.add(-cosines[None], start)
        start += len(cosines)
    best = lowest.to_hits()[0]
    found = zip(rows[best.rows].tolist(), (-best.scores).tolist(), strict=True)
    made.most_moved = list(found)[:moved]


def iterate_vector_pairs(first: VectorDataset, second: VectorDataset) -> Iterator[tuple[Float32Array, Float32Array]]:
    """Vectors of the same rows of two files in one order, in blocks."""
    ours, theirs = iterate_float_blocks(first), iterate_float_blocks(second)
    one = two = np.empty((0, first.dim), np.float32)
    while True:
        one = one if len(one) else next(ours, one)
        two = two if len(two) else next(theirs, two)
        count = min(len(one), len(two))
        if not count:
            return
        yield one[:count], two[:count]
        one, two = one[count:], two[count:]


def iterate_sampled_pairs(made: Comparison) -> Iterator[tuple[Float32Array, Float32Array]]:
    shared, sample = made.shared, made.sampled_rows
    yield read_vectors(made.first, shared.first[sample]), read_vectors(made.second, shared.second[sample])


def iterate_float_blocks(output: VectorDataset) -> Iterator[Float32Array]:
    return (block_as_float32(output, block) for block in output.read_blocks())

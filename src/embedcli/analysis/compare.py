"""The same rows in two spaces, or under two settings: how far vectors moved, and which neighbours they kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.analysis.inspect_output import Spread
from embedcli.analysis.topk import Best, comparable, search, unit
from embedcli.core.arrow_values import values_of
from embedcli.core.errors import UsageError
from embedcli.outputs.dataset import Output

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import Floats

    Places = NDArray[np.int64]

# From the least to the most that a stored number loses.
FINENESS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")
QUANTILES = {"p01": 0.01, "p05": 0.05, "median": 0.5}
BINS = 20
# Cosines of equal rows differ by rounding: a histogram of that would say nothing.
NARROWEST = 1e-3


@dataclass(frozen=True)
class Shared:
    """The rows two outputs have in common: `first[i]` and `second[i]` are the positions of shared row i."""

    first: Places
    second: Places
    same_order: bool

    def __len__(self) -> int:
        return len(self.first)


@dataclass
class Comparison:
    """What `compare` found. `overlaps` has one share per sampled row; `cosines` is None where dimensions differ.

    `moved` are shared rows and their cosine (or overlap, where there are no cosines), the least similar first.
    """

    first: Output
    second: Output
    shared: Shared
    k: int
    sample: Places
    overlaps: Floats
    cosines: Spread | None = None
    moved: list[tuple[int, float]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values; the rows that moved most with their ids and kept columns."""
        overlaps, cosines = self.overlaps, self.cosines
        return {
            "first": side(self.first),
            "second": side(self.second),
            "shared_rows": len(self.shared),
            "cosine": cosines.summary(**QUANTILES) if cosines is not None else None,
            "cosine_rows": cosines.count if cosines is not None else 0,
            "cosine_histogram": histogram(cosines.values()) if cosines is not None else None,
            "k": self.k,
            "sampled_rows": len(self.sample),
            "overlap": {"mean": float(overlaps.mean()), "min": float(overlaps.min())} if len(overlaps) else None,
            "overlap_histogram": np.bincount(np.rint(overlaps * self.k).astype(int), minlength=self.k + 1).tolist(),
            "moved_by": "cosine" if cosines is not None else "overlap",
            "moved": self.moved_rows(),
        }

    def moved_rows(self) -> list[dict[str, Any]]:
        places = [int(self.shared.first[row]) for row, _ in self.moved]
        taken = self.first.take(places, self.first.kept)
        return [{"similarity": value, **row} for (_, value), row in zip(self.moved, taken, strict=True)]


def histogram(values: Floats) -> dict[str, Any] | None:
    """Counts in BINS equal steps from the smallest value, or a little below the largest, to the largest."""
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    counts, edges = np.histogram(values, BINS, (min(low, high - NARROWEST), high))
    return {"from": float(edges[0]), "to": float(edges[-1]), "counts": counts.tolist()}


def side(output: Output) -> dict[str, Any]:
    return {
        "path": output.path,
        "rows": output.rows,
        "model": output.space.get("model"),
        "dim": output.dim,
        "precision": output.precision,
        "bytes": output.vector_bytes,
    }


def compare(first: Output, second: Output, *, k: int, rows: int, moved: int, seed: int) -> Comparison:
    """Compare two outputs on the rows they share by id.

    Cosines are taken of every shared row where both files have them in one order, else of the sample; neighbours of
    a random sample of `rows` rows, among all shared ones.
    """
    shared = shared_rows(first, second)
    sample = np.sort(np.random.default_rng(seed).choice(len(shared), min(rows, len(shared)), replace=False))
    k = min(k, max(1, len(shared) - 1))
    near = neighbours(first, second, shared, sample, k)
    overlaps = np.array([len(set(a) & set(b)) / k for a, b in zip(*near, strict=True)], np.float32)
    made = Comparison(first, second, shared, k, sample, overlaps)
    if first.dim == second.dim:
        measure_cosines(made, moved)
    else:
        order = np.argsort(overlaps, kind="stable")[:moved]
        made.moved = [(int(sample[i]), float(overlaps[i])) for i in order]
    return made


# Which rows are the same


def shared_rows(first: Output, second: Output) -> Shared:
    """Match rows by id, or by position where neither file has ids. UsageError if they share none."""
    windows = ["window" in output.schema.names for output in (first, second)]
    if windows[0] != windows[1]:
        raise UsageError(
            f"one of {first.path} and {second.path} holds windows of rows, the other whole rows",
            "compare outputs of the same --overflow",
        )
    keys = [row_keys(output) for output in (first, second)]
    if len(keys[0]) == len(keys[1]) and np.array_equal(keys[0], keys[1]):
        every = np.arange(len(keys[0]))
        return Shared(every, every, same_order=True)
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
    return Shared(one[order], two[order], same_order=False)


def row_keys(output: Output) -> Places:
    """int64 [rows]: a hash of each row's id (and window), or its position where there are no ids."""
    if output.id_name is None:
        return np.arange(output.rows)
    names = [name for name in (output.id_name, "window") if name in output.schema.names]
    made = [np.empty(0, np.int64)]
    for block in output.blocks(names):
        columns = [values_of(block.table.column(name)) for name in names]
        keys = columns[0] if len(columns) == 1 else zip(*columns, strict=True)
        made.append(np.fromiter(map(hash, keys), np.int64, len(block)))
    return np.concatenate(made)


# Neighbours


def neighbours(first: Output, second: Output, shared: Shared, sample: Places, k: int) -> list[list[list[int]]]:
    """For each output the `k` nearest shared rows of each sampled row, itself left out.

    Both are asked with the same queries where model and prompt are the same: those of the finer file, as a search
    asks stored vectors with a fresh one. Else each is asked with its own vectors.
    """
    queries = [
        vectors_at(output, places[sample]) for output, places in ((first, shared.first), (second, shared.second))
    ]
    if same_space(first, second):
        finer = min((first, second), key=lambda output: FINENESS.index(output.precision))
        queries = [queries[0 if finer is first else 1]] * 2
    return [
        nearest(output, places, asked, sample, k)
        for output, places, asked in ((first, shared.first, queries[0]), (second, shared.second, queries[1]))
    ]


def same_space(first: Output, second: Output) -> bool:
    names = ("model", "fingerprint", "prompt", "task", "pooling", "max_seq_length")
    known = bool(first.space) and bool(second.space) and first.dim == second.dim
    return known and all(first.space.get(name) == second.space.get(name) for name in names)


def nearest(output: Output, places: Places, queries: Floats, sample: Places, k: int) -> list[list[int]]:
    """The `k` best shared rows for each query, as indices of shared rows, without the sampled row itself."""
    index = np.full(output.rows, -1, np.int64)
    index[places] = np.arange(len(places))
    only = None if len(places) == output.rows else index >= 0
    hits = search(output, queries, k + 1, only=only)
    found = []
    for row, hit in zip(sample.tolist(), hits, strict=True):
        others = [i for i in index[hit.rows].tolist() if i != row]
        found.append(others[:k])
    return found


def vectors_at(output: Output, positions: Places) -> Floats:
    """float32 [len(positions), dim]: the vectors of some rows, in the order given."""
    order = np.argsort(positions, kind="stable")
    wanted = positions[order]
    made = np.empty((len(positions), output.dim), np.float32)
    for block in output.blocks():
        low, high = np.searchsorted(wanted, [block.start, block.start + len(block)])
        if low < high:
            made[order[low:high]] = comparable(output, block)[wanted[low:high] - block.start]
    return made


# Cosines


def measure_cosines(made: Comparison, moved: int) -> None:
    """Cosine of each row with itself in the other file, and the `moved` rows where it is lowest."""
    made.cosines = Spread()
    lowest = Best(1, max(1, moved))
    rows = np.arange(len(made.shared)) if made.shared.same_order else made.sample
    start = 0
    for one, two in in_lockstep(made.first, made.second) if made.shared.same_order else sampled_pairs(made):
        cosines = np.einsum("ij,ij->i", unit(one), unit(two))
        made.cosines.add(cosines[np.isfinite(cosines)])
        lowest.add(-cosines[None], start)
        start += len(cosines)
    best = lowest.hits()[0]
    found = zip(rows[best.rows].tolist(), (-best.scores).tolist(), strict=True)
    made.moved = list(found)[:moved]


def in_lockstep(first: Output, second: Output) -> Iterator[tuple[Floats, Floats]]:
    """Vectors of the same rows of two files in one order, in blocks."""
    ours, theirs = floats(first), floats(second)
    one = two = np.empty((0, first.dim), np.float32)
    while True:
        one = one if len(one) else next(ours, one)
        two = two if len(two) else next(theirs, two)
        count = min(len(one), len(two))
        if not count:
            return
        yield one[:count], two[:count]
        one, two = one[count:], two[count:]


def sampled_pairs(made: Comparison) -> Iterator[tuple[Floats, Floats]]:
    shared, sample = made.shared, made.sample
    yield vectors_at(made.first, shared.first[sample]), vectors_at(made.second, shared.second[sample])


def floats(output: Output) -> Iterator[Floats]:
    return (comparable(output, block) for block in output.blocks())

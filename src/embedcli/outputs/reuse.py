"""Vectors of finished outputs by text hash, for --update and --reuse: only what changed is encoded again.

In memory stay 34 bytes per old row: hash 16, position 4, counts 5, id hash 8, seen 1; never more while it is made.
The vectors lie in a file in `folder` and are read at random by memory map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core import quantization
from embedcli.core.arrow_values import column_to_python
from embedcli.core.errors import ResumeError, UsageError
from embedcli.core.types import Chunk, ReusedVectors
from embedcli.outputs.dataset import VectorBlock, open_dataset
from embedcli.outputs.schema import OutputLayout
from embedcli.outputs.target import FinishedOutput, OutputTarget, find_existing_target, read_finished_output

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import BoolArray, Float32Array, Int64Array

# What two outputs must have in common for a vector of one to stand in the other.
COMPARED_SPACE_KEYS = (
    "fingerprint", "pooling", "prompt", "task", "max_seq_length", "normalize", "truncate_dim", "dtype", "precision",
    "overflow",
)  # fmt: skip
STORE_COLUMNS = ("high", "low", "ids", "tokens", "truncated")


def load_store(paths: Sequence[str], job: Mapping[str, Any], layout: OutputLayout, folder: str) -> ReuseStore:
    """The rows of the finished outputs `paths`, the first one being what --update replaces.

    Raises ResumeError if one of them is in another vector space, UsageError if it is not a finished output.
    """
    found: list[tuple[OutputTarget, FinishedOutput]] = []
    for path in paths:
        old = find_existing_target(path)
        done = read_finished_output(old)
        if done is None:
            raise UsageError(f"{path} is not a finished output", "name a finished output of embedcli")
        check_same_vector_space(path, done.job_manifest.get("job", {}), job)
        if layout.ranges is not None:
            check_same_ranges(path, done, layout.ranges)
        found.append((old, done))
    return ReuseStore([old for old, _ in found], layout, folder, job.get("max_seq_length"))


def check_same_vector_space(path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """ResumeError naming the first key by which two outputs' vectors are not comparable."""
    for key in COMPARED_SPACE_KEYS:
        if old.get(key) != new.get(key):
            raise ResumeError(
                f"the vectors in {path} are in another space: {key} was {old.get(key)!r}, now {new.get(key)!r}",
                "give the settings that made it, or encode all rows again: --overwrite, not --update, or no --reuse",
            )
    # Windows are averaged by pool alone: with the others the overlap has no part in a vector.
    was, now = old.get("split_overlap") or 0, new.get("split_overlap") or 0
    if new.get("overflow") == "pool" and was != now:
        raise ResumeError(
            f"the vectors in {path} are pooled from other windows: --split-overlap was {was}, now {now}",
            f"use --split-overlap {was}, or encode all rows again: --overwrite, not --update, or no --reuse",
        )
    if new.get("overflow") == "split":
        raise ResumeError(
            f"{path} holds windows, which --update cannot take over", "use --overwrite to encode all rows again"
        )


def check_same_ranges(path: str, done: FinishedOutput, ranges: Float32Array) -> None:
    """ResumeError unless the levels of int8 or uint8 vectors mean the same in both outputs.

    Levels of other ranges could only be rounded a second time, to vectors that no full run gives.
    """
    if not np.array_equal(np.array(done.vector_space.get("ranges") or [], np.float32), ranges):
        raise ResumeError(
            f"the vectors in {path} were stored with other ranges than those of the new output",
            f"use --ranges-from {path} to store all rows with its ranges, or leave out --reuse {path}",
        )


class ReuseStore:
    """Old rows by text hash and by id. `lookup` serves the engine, `see` counts what the new input still has.

    `counts` holds, per chunk that was looked up, how many of its rows are added, changed and reused. `limit` is the
    number of tokens that were read of a truncated row.
    """

    def __init__(
        self, olds: Sequence[OutputTarget], layout: OutputLayout, folder: str, limit: int | None = None
    ) -> None:
        self.layout = layout
        self._limit = limit
        self.change_counts: dict[tuple[int, int], dict[str, int]] = {}
        self.vectors_file = Path(folder) / "reuse.bin"
        self._copy(olds)
        # One column at a time, so that sorting never needs more than the finished store: 32 bytes per old row.
        high, low = self._column("high", np.uint64), self._column("low", np.uint64)
        order = np.argsort(high, kind="stable")
        self._high = high[order]
        del high
        self._low = low[order]
        del low
        self._order = order.astype(np.uint32)
        del order
        self._tokens, self._truncated = self._column("tokens", np.int32), self._column("truncated", np.bool_)
        self._ids = self._column("ids", np.uint64)
        self._ids.sort()
        self._seen = np.zeros(len(self._ids), bool)
        dtype = quantization.STORAGE_DTYPES[layout.precision]
        shape = (len(self._order), layout.stored_width)
        self._vectors: Any = (
            np.memmap(self.vectors_file, dtype, "r", shape=shape) if shape[0] else np.zeros(shape, dtype)
        )

    def _copy(self, olds: Sequence[OutputTarget]) -> None:
        """Vectors and columns of the old rows into files, a block at a time."""
        with ExitStack() as stack:
            out = stack.enter_context(open(self.vectors_file, "wb"))
            columns = {name: stack.enter_context(open(self._path(name), "wb")) for name in STORE_COLUMNS}
            for i, old in enumerate(olds):
                for block in read_reusable_blocks(old):
                    table = block.columns
                    np.ascontiguousarray(block.vectors).tofile(out)
                    hashes = hashes_as_uint64(b"".join(table.column("text_hash").to_pylist()))
                    hashes[:, 0].tofile(columns["high"])
                    hashes[:, 1].tofile(columns["low"])
                    if i == 0:  # only the replaced output's ids count as added, changed or removed
                        hash_ids(table.column(0)).tofile(columns["ids"])
                    table.column("n_tokens").to_numpy().astype(np.int32).tofile(columns["tokens"])
                    table.column("truncated").to_numpy(zero_copy_only=False).astype(bool).tofile(columns["truncated"])

    def _path(self, name: str) -> Path:
        return self.vectors_file.with_name(f"reuse.{name}")

    def _column(self, name: str, kind: Any) -> Any:
        """One column of the old rows, whose file is then gone."""
        made = np.fromfile(self._path(name), kind)
        self._path(name).unlink()
        return made

    def lookup(self, chunk: Chunk, hashes: NDArray[np.uint8]) -> ReusedVectors:
        """The rows of a chunk whose text is in the store, with their vectors."""
        where = self._find(hashes_as_uint64(hashes.tobytes()))
        rows = np.flatnonzero(where >= 0)
        old = self._order[where[rows]]
        stored = np.asarray(self._vectors[old])
        vectors = quantization.dequantize(stored, self.layout.precision, self.layout.dim, self.layout.ranges)
        fresh = self._known_ids(hash_ids(chunk.ids))[where < 0]
        changed = int(fresh.sum())
        self.change_counts[chunk.key] = {"added": len(fresh) - changed, "changed": changed, "reused": len(rows)}
        tokens, truncated = self._tokens[old], self._truncated[old]
        lost = np.where(truncated, tokens - (tokens if self._limit is None else self._limit), 0).astype(np.int32)
        return ReusedVectors(rows, vectors, tokens, truncated, lost)

    def _find(self, wanted: NDArray[np.uint64]) -> Int64Array:
        """int64 [n]: the place of each hash in the sorted arrays, -1 where it is not."""
        at = np.searchsorted(self._high, wanted[:, 0])
        found = np.full(len(wanted), -1, np.int64)
        open_ = np.arange(len(wanted))
        while len(open_):
            open_ = open_[(at[open_] < len(self._high))]
            open_ = open_[self._high[at[open_]] == wanted[open_, 0]]
            same = self._low[at[open_]] == wanted[open_, 1]
            found[open_[same]] = at[open_[same]]
            open_ = open_[~same]
            at[open_] += 1
        return found

    def _known_ids(self, ids: NDArray[np.uint64]) -> BoolArray:
        at = np.minimum(np.searchsorted(self._ids, ids), max(0, len(self._ids) - 1))
        return np.asarray(self._ids[at] == ids) if len(self._ids) else np.zeros(len(ids), bool)

    def mark_seen(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Pass chunks on, noting which old ids the new input still has."""
        for chunk in chunks:
            ids = hash_ids(chunk.ids)
            known = ids[self._known_ids(ids)]
            for side in ("left", "right"):
                at = np.searchsorted(self._ids, known, side=side) - (side == "right")
                self._seen[at] = True
            yield chunk

    def count_removed(self) -> int:
        """How many old rows' ids none of the chunks seen so far has."""
        firsts = np.searchsorted(self._ids, self._ids)
        return int((~self._seen[firsts]).sum())

    def close(self) -> None:
        """Drop the vectors' file."""
        self._vectors = None
        self.vectors_file.unlink(missing_ok=True)


def hashes_as_uint64(digests: bytes) -> NDArray[np.uint64]:
    """uint64 [n, 2] of n 16-byte hashes."""
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


def hash_ids(ids: Any) -> NDArray[np.uint64]:
    """uint64 [n]: BLAKE2b-64 of each id's text form."""
    digests = b"".join(blake2b(repr(value).encode(), digest_size=8).digest() for value in column_to_python(ids))
    return np.frombuffer(digests, np.uint64)


def read_reusable_blocks(old: OutputTarget) -> Iterator[VectorBlock]:
    """Yield the rows of a finished output in order, with page checksums verified.

    Yields:
        Blocks whose columns are the id (or row number), `n_tokens`, `truncated` and `text_hash`, in this order.

    Raises:
        UsageError: The output is JSONL, which does not hold the stored numbers exactly.
    """
    if old.format == "jsonl":
        raise UsageError(
            f"{old.output}: the vectors of a JSONL output cannot be reused", "Use --overwrite to encode all rows again."
        )
    dataset = open_dataset(old.output)
    if dataset.rows:
        yield from dataset.read_blocks([dataset.schema.names[0], "n_tokens", "truncated", "text_hash"], verify=True)

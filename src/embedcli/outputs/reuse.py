"""Reuse the vectors of finished outputs by text hash, for --update and --reuse.

Memory per old row: 34 bytes (text hash 16, position 4, counts 5, id hash 8, seen 1), also while the store is built;
8 more where rows have different numbers of entries or vectors. The vectors are in memory-mapped files, in a temporary
folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa

from embedcli import storage
from embedcli.core.arrow_values import column_to_python
from embedcli.core.constants import VECTOR_COLUMN
from embedcli.core.errors import OutputError, ResumeError, UsageError
from embedcli.core.head_vectors import join_heads
from embedcli.core.quantization import are_equal_ranges
from embedcli.core.types import Chunk, EncodedChunk, ReusedVectors
from embedcli.outputs.dataset import VectorBlock, open_dataset
from embedcli.outputs.integrity import check_output_digests
from embedcli.outputs.job_changes import check_same_vector_space
from embedcli.outputs.reuse_vectors import create_vector_store, write_array
from embedcli.outputs.schema import OutputLayout
from embedcli.outputs.target import FinishedOutput, OutputTarget, find_existing_target, read_finished_output
from embedcli.outputs.vector_columns import read_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import BoolArray, Int64Array

STORE_COLUMNS = ("high", "low", "ids", "tokens", "truncated")


ReusedOutput = tuple[OutputTarget, FinishedOutput]


def find_reusable_outputs(paths: Sequence[str], job: Mapping[str, Any]) -> list[ReusedOutput]:
    """Find finished outputs whose vectors a job can take over, without its encoder.

    Args:
        paths: Finished outputs; with --update the first is the one that will be replaced.
        job: The new job as recorded in manifests.

    Raises:
        ResumeError: The vectors of an output are in another vector space.
        UsageError: A path is not a finished output, or is JSONL.
    """
    found: list[ReusedOutput] = []
    for path in paths:
        old = find_existing_target(path)
        done = read_finished_output(old)
        if done is None:
            raise UsageError(f"{path} is not a finished output", "name a finished output of `embedcli encode`")
        check_same_vector_space(path, done.job_manifest.get("job", {}), job)
        if old.format == "jsonl":  # it does not hold the stored numbers exactly
            raise UsageError(
                f"{old.output}: the vectors of a JSONL output cannot be reused",
                "use --overwrite to encode all rows again",
            )
        found.append((old, done))
    return found


def load_store(found: Sequence[ReusedOutput], layout: OutputLayout, folder: str, limit: int | None) -> ReuseStore:
    """Build a store of the rows of finished outputs.

    Args:
        found: The outputs, from `find_reusable_outputs`.
        layout: Columns and number format of the new output.
        folder: Where the store keeps its files of vectors.
        limit: Number of tokens that are read of a row; None if unknown.

    Raises:
        ResumeError: The vectors of an output were stored with other ranges.
        InputError: A file of an output is damaged.
        OutputError: The disk has too little space for the copy of their vectors.
    """
    for old, done in found:
        check_same_ranges(old.output, done, layout)
        check_output_digests(open_dataset(old.output))
    return ReuseStore([old for old, _ in found], layout, folder, limit)


def check_same_ranges(path: str, done: FinishedOutput, layout: OutputLayout) -> None:
    """Raise ResumeError unless int8 or uint8 vectors have the same ranges in both outputs.

    Converting from other ranges would round a second time and give other vectors than a full run.
    """
    ranges = tuple(field.ranges for field in layout.vector_fields if field.ranges is not None)
    if not are_equal_ranges(read_ranges(done.vector_space, path), ranges):
        raise ResumeError(
            f"the vectors in {path} were stored with other ranges than those of the new output",
            f"use --ranges-from {path} to store all rows with its ranges, or leave out --reuse {path}",
        )


class ReuseStore:
    """Old rows by text hash and by id.

    Args:
        olds: Finished outputs; ids of the first one count as added, changed or removed.
        layout: Columns and number format of the new output.
        folder: Where the files of vectors are kept.
        limit: Number of tokens that were read of a truncated row; None if unknown.
    """

    def __init__(
        self, olds: Sequence[OutputTarget], layout: OutputLayout, folder: str, limit: int | None = None
    ) -> None:
        self.layout = layout
        self._limit = limit
        self._reused_rows: dict[tuple[int, int], Int64Array] = {}
        self._folder = Path(folder)
        self._vectors = {field.kind: create_vector_store(self._folder, field) for field in layout.vector_fields}
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

    def _copy(self, olds: Sequence[OutputTarget]) -> None:
        """Copy vectors and columns of the old rows into files, block by block."""
        with self._translate_disk_errors(), ExitStack() as stack:
            for store in self._vectors.values():
                stack.enter_context(store.open_for_writing())
            columns = {name: stack.enter_context(open(self._path(name), "wb")) for name in STORE_COLUMNS}
            for i, old in enumerate(olds):
                for store in self._vectors.values():
                    for block in read_reusable_blocks(old, store.field.name):
                        store.append(block.vectors)
                        if store.field.name == VECTOR_COLUMN:
                            # Only the replaced output's ids count as added, changed or removed.
                            self._append(block.columns, columns, has_ids=i == 0)

    def _append(self, table: pa.Table, columns: Mapping[str, BinaryIO], *, has_ids: bool) -> None:
        """Add rows to the files of `columns`, one for each name in STORE_COLUMNS."""
        hashes = hashes_as_uint64(b"".join(table.column("text_hash").to_pylist()))
        write_array(columns["high"], hashes[:, 0])
        write_array(columns["low"], hashes[:, 1])
        if has_ids:
            write_array(columns["ids"], digest_ids(table.column(0)))
        write_array(columns["tokens"], table.column("n_tokens").to_numpy().astype(np.int32))
        write_array(columns["truncated"], table.column("truncated").to_numpy(zero_copy_only=False).astype(bool))

    @contextmanager
    def _translate_disk_errors(self) -> Iterator[None]:
        """Raise OutputError if the copy of the old vectors cannot be written."""
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{storage.format_path(str(self._folder))}: the vectors of the old output cannot be copied there: "
                f"{error.strerror or error}",
                "set TMPDIR to a folder on a disk that has room for them",
            ) from error

    def _path(self, name: str) -> Path:
        return self._folder / f"reuse.{name}"

    def _column(self, name: str, kind: Any) -> Any:
        """Load one column of the old rows and delete its file."""
        column = np.fromfile(self._path(name), kind)
        self._path(name).unlink()
        return column

    def lookup(self, chunk: Chunk, hashes: NDArray[np.uint8]) -> ReusedVectors:
        """Find the rows of a chunk whose text is in the store, with their vectors.

        Args:
            chunk: Rows of the new input.
            hashes: uint8 [n, 16], the text hash of each row.
        """
        where = self._find(hashes_as_uint64(hashes.tobytes()))
        rows = np.flatnonzero(where >= 0)
        old = self._order[where[rows]].astype(np.int64)
        vectors = join_heads({head: store.take(old) for head, store in self._vectors.items()})
        self._reused_rows[chunk.key] = rows
        tokens, truncated = self._tokens[old], self._truncated[old]
        lost = np.where(truncated, tokens - (tokens if self._limit is None else self._limit), 0).astype(np.int32)
        return ReusedVectors(rows, vectors, tokens, truncated, lost)

    def count_changes(self, encoded: EncodedChunk) -> dict[str, int]:
        """Count the rows of a chunk that was looked up, by name.

        Returns:
            Rows with a vector that are added, changed and reused; and old rows that are removed because the encoder
            has rejected the row that has their id now.
        """
        ids = encoded.chunk.ids
        is_known = self._known_ids(digest_ids(ids))
        is_embedded, is_reused = np.zeros(len(ids), bool), np.zeros(len(ids), bool)
        is_embedded[encoded.rows] = True
        is_reused[self._reused_rows.pop(encoded.chunk.key)] = True
        is_fresh = is_embedded & ~is_reused
        return {
            "added": int((is_fresh & ~is_known).sum()),
            "changed": int((is_fresh & is_known).sum()),
            "reused": int((is_embedded & is_reused).sum()),
            "removed": int((is_known & ~is_embedded).sum()),
        }

    def _find(self, wanted: NDArray[np.uint64]) -> Int64Array:
        """Return int64 [n]: the position of each hash in the sorted arrays, -1 if it is not there."""
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
        """Yield the chunks, and record which ids of the old output they contain."""
        for chunk in chunks:
            ids = digest_ids(chunk.ids)
            known = ids[self._known_ids(ids)]
            for side in ("left", "right"):
                at = np.searchsorted(self._ids, known, side=side) - (side == "right")
                self._seen[at] = True
            yield chunk

    def count_removed(self) -> int:
        """Count the old rows whose ids are in none of the chunks that `mark_seen` passed on."""
        firsts = np.searchsorted(self._ids, self._ids)
        return int((~self._seen[firsts]).sum())

    def close(self) -> None:
        """Delete the files of vectors."""
        for store in self._vectors.values():
            store.close()


def hashes_as_uint64(digests: bytes) -> NDArray[np.uint64]:
    """View n 16-byte hashes as uint64 [n, 2]."""
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


def digest_ids(ids: Any) -> NDArray[np.uint64]:
    """Hash each id: uint64 [n], BLAKE2b-64 of the `repr` of its Python value."""
    digests = b"".join(blake2b(repr(value).encode(), digest_size=8).digest() for value in column_to_python(ids))
    return np.frombuffer(digests, np.uint64)


def read_reusable_blocks(old: OutputTarget, column: str) -> Iterator[VectorBlock]:
    """Yield the rows of a finished output in order, with page checksums verified.

    Args:
        old: The output.
        column: Which of its columns of vectors to read.

    Yields:
        Blocks whose columns are the id (or row number), `n_tokens`, `truncated` and `text_hash`, in this order.
    """
    # The first column is found without its name, which .npy files do not have.
    dataset = open_dataset(old.output, None if column == VECTOR_COLUMN else column)
    if dataset.rows:
        yield from dataset.read_blocks([dataset.schema.names[0], "n_tokens", "truncated", "text_hash"], verify=True)

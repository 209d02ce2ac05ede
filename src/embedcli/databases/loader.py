"""Load an output into a table: create it, send what differs, check the count, build the index, switch.

A run needs no state of its own. Each row of the table has a digest of what is stored; a run reads the digests and
sends the rows of the output whose digest is not there, so it goes on wherever an earlier run was killed, and notices a
table that was emptied or restored. The record of the table says which output was loaded completely: while its files
and the count of the table have not changed since, there is nothing to do, or only the new files are read.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli import storage
from embedcli.checkpoint.rejects import count_rejects_file
from embedcli.core.counts import format_count
from embedcli.core.errors import OutputError, UsageError
from embedcli.databases.columns import adapt_source_column, describe_conversion, plan_layout
from embedcli.databases.disk_space import explain_full_disk, require_disk_space
from embedcli.databases.known_rows import KnownRows, SeenKeys
from embedcli.databases.load_result import LoadOptions, LoadResult
from embedcli.databases.record import (
    TableRecord,
    check_same_columns,
    check_same_space,
    file_name,
    identify_output,
    parse_record,
)
from embedcli.databases.rejects import DUPLICATE_REASON, LoadRejects, find_bad_rows
from embedcli.databases.rows import RowBatch, hash_keys, read_rows
from embedcli.databases.sending import BatchBuilder, Shipment, send_batches
from embedcli.databases.target import SOURCE_COLUMN, SWAP_SUFFIX
from embedcli.pipeline.prefetch import prefetch

if TYPE_CHECKING:
    from embedcli.core.types import BoolArray, Int64Array
    from embedcli.databases.target import DatabaseTarget, TableLayout
    from embedcli.outputs.dataset import VectorDataset

Notify = Callable[[str], None]
# Keys per request that deletes rows.
DELETE_ROWS = 5_000


class KeyOfSkippedFileError(Exception):
    """A new file of an output has a key that the table has: only reading all files tells which row counts."""


def load_output(
    dataset: VectorDataset,
    target: DatabaseTarget,
    table: str,
    options: LoadOptions | None = None,
    *,
    notify: Notify = lambda line: None,
    on_progress: Callable[[LoadResult], None] = lambda counts: None,
    on_phase: Notify = lambda text: None,
) -> LoadResult:
    """Bring the rows of an output into a table; see `Loader`.

    Args:
        dataset: A finished output.
        target: The database.
        table: The table.
        options: What to do beside.
        notify: Receives notes.
        on_progress: Receives the counts so far.
        on_phase: Receives what happens while no rows are sent.

    Raises:
        UsageError: The database cannot hold the output, or the table holds another vector space or other columns.
        OutputError: The database refuses rows, or another program changed the table meanwhile.
    """
    start = time.monotonic()
    dataset.require_vector_space("load")
    with LoadRejects(dataset.path, replace(target.address, table=table)) as rejects:
        loader = Loader(dataset, target, table, options or LoadOptions(), rejects)
        loader.notify, loader.on_progress, loader.on_phase = notify, on_progress, on_phase
        for note in [*target.notes, *describe_conversion(dataset)]:
            notify(note)
        with explain_full_disk(target):
            return replace(loader.run(), seconds=time.monotonic() - start)


@dataclass
class Loader:
    """One load of an output into a table.

    Attributes:
        rejects: Where rows go that the database cannot hold.
        notify: Receives notes.
        on_progress: Receives the counts so far.
        on_phase: Receives what happens while no rows are sent.
    """

    dataset: VectorDataset
    target: DatabaseTarget
    name: str
    options: LoadOptions
    rejects: LoadRejects
    notify: Notify = field(default=lambda line: None)
    on_progress: Callable[[LoadResult], None] = field(default=lambda counts: None)
    on_phase: Notify = field(default=lambda text: None)

    def __post_init__(self) -> None:
        self.layout: TableLayout = plan_layout(self.dataset, self.target)
        self.identity = identify_output(self.dataset)
        self.token = secrets.token_hex(8)
        self.repeats = 0
        self.start_again()

    def start_again(self) -> None:
        """Forget what was counted."""
        self.sent = self.inserted = self.unchanged = 0
        # The keys of the accepted rows; and their ids, where a text has several windows.
        self.seen, self.seen_ids = SeenKeys(), SeenKeys()
        self.rejects.clear()

    def run(self) -> LoadResult:
        """Load, and return the counts without the duration."""
        if self.options.index and not self.target.has_index:
            self.target.build_index(self.name, self.layout)  # raises the error that says why
        if self.options.swap and not self.target.can_swap:
            raise UsageError(
                f"{self.target.title}: cannot replace a table in one step",
                "leave out --swap, and load into another --table if all rows must be replaced at once",
            )
        if self.options.swap and self.options.sync:
            self.notify("--swap replaces all rows, so that --sync has nothing more to delete")
        record = self.read_record(self.name)
        if self.options.swap:
            return self.load_and_swap()
        if record is not None:
            layout, self.layout = self.layout, adapt_source_column(self.layout, record.layout)
            if len(self.layout.schema) < len(layout.schema):
                self.notify(f"the table has no column {SOURCE_COLUMN!r}: the names of the inputs are left out")
            self.check_record(record)
        return self.load_into(self.name, record)

    @property
    def has_windows(self) -> bool:
        """Whether a text may have several rows."""
        return len(self.layout.key) > 1

    # Tables

    def read_record(self, name: str) -> TableRecord | None:
        record = self.target.read_record(name)
        return None if record is None else parse_record(record, self.describe(name))

    def describe(self, name: str) -> str:
        return f"{self.target.title} table {name}"

    def check_record(self, record: TableRecord) -> None:
        where = self.describe(self.name)
        check_same_space(record.vector_space, self.dataset.vector_space, where, self.target.replacement_hint)
        check_same_columns(record.layout, self.layout, where, self.target.replacement_hint)

    def fits(self, record: TableRecord) -> bool:
        try:
            self.check_record(record)
        except UsageError:
            return False
        return True

    def load_and_swap(self) -> LoadResult:
        """Fill a table beside the one of the given name, going on with one that was begun, and switch."""
        name = self.name + SWAP_SUFFIX
        record = self.read_record(name)
        if record is not None and not self.fits(record):
            self.target.drop_table(name)
            record = None
        # Rows of a version of the output that an earlier run had begun to load must not stay.
        moves_index = self.options.index and self.target.index_moves_with_table
        filler = replace(self, name=name, options=LoadOptions(sync=True, index=moves_index))
        result = filler.load_into(name, record)
        self.on_phase("replacing the table")
        self.target.replace_table(name, self.name, self.layout)
        if self.options.index and not self.target.index_moves_with_table:
            return replace(result, index=self.target.build_index(self.name, self.layout))
        return result

    # Loading

    def load_into(self, name: str, record: TableRecord | None) -> LoadResult:
        if record is not None and self.is_up_to_date(record, name):
            return self.nothing_to_do(record, name)
        begun = TableRecord(self.dataset.vector_space, self.layout, run=self.token).to_json()
        skipped: frozenset[str] = frozenset()
        require_disk_space(self.target)
        if record is None:
            self.create_table(name, begun)
        else:
            skipped = self.find_finished_files(record, name)
            self.target.write_record(name, begun)
            self.on_phase("reading which rows are there")
        known = self.read_known_rows(name) if record else KnownRows((), self.layout.key)
        skipped = frozenset() if self.repeats else skipped
        try:
            self.send_rows(name, known, skipped)
        except OutputError:
            self.check_alone(name, begun)
            raise
        except KeyOfSkippedFileError:
            # What was sent is in the table: it is found unchanged, or replaced by the row that counts.
            known = self.read_known_rows(name)
            self.start_again()
            self.send_rows(name, known, frozenset())
        self.check_alone(name, begun)
        return self.finish(name, known)

    def create_table(self, name: str, record: Mapping[str, Any]) -> None:
        try:
            self.target.create_table(name, self.layout, record)
        except OutputError:
            if self.target.read_record(name) is None:
                raise
            raise self.not_alone_error(name) from None

    def check_alone(self, name: str, begun: Mapping[str, Any]) -> None:
        """Raise OutputError if another load of the table has begun since this one did, or has replaced the table.

        The rows of both may then be there. Neither is recorded as finished: the next load compares all rows again.
        """
        record = self.target.read_record(name)
        if record is None:
            raise self.not_alone_error(name)
        if parse_record(record, self.describe(name)).run != self.token:
            self.target.write_record(name, begun)
            raise self.not_alone_error(name)

    def not_alone_error(self, name: str) -> OutputError:
        return OutputError(
            f"{self.describe(name)}: another load of this table has begun meanwhile",
            "run the same command again when no other load is running",
        )

    def is_up_to_date(self, record: TableRecord, name: str) -> bool:
        """Whether this output was loaded last and completely, and the table has kept its rows, each once."""
        return (
            bool(record.output.get("files"))
            and dict(record.output) == self.identity
            and (not self.options.sync or record.table_rows == record.rows)
            and record.agrees_with(self.target.count_rows(name))
            and (self.target.keeps_keys_unique or not self.read_table(name).repeats)
            and (not record.rejects or storage.exists(self.rejects.path))
        )

    def read_table(self, name: str) -> KnownRows:
        return KnownRows(self.target.read_digests(name, self.layout), self.layout.key)

    def read_known_rows(self, name: str) -> KnownRows:
        """Return the rows of a table, after deleting those whose key another row has.

        Raises:
            OutputError: There are such rows in a database where a load cannot have written them.
        """
        known = self.read_table(name)
        if not known.repeats:
            return known
        problem = f"{format_count(known.repeats, 'row')} with the id of another row"
        if self.target.keeps_keys_unique:
            hint = self.target.replacement_hint
            raise OutputError(f"{self.describe(name)}: has {problem}: another program has added them", hint)
        self.target.delete_repeats(name, self.layout)
        self.repeats += known.repeats
        self.notify(f"{self.describe(name)}: deleted {problem}")
        return self.read_table(name)

    def nothing_to_do(self, record: TableRecord, name: str) -> LoadResult:
        index = self.target.build_index(name, self.layout) if self.options.index else None
        result = LoadResult(
            rows=self.dataset.rows,
            unchanged=record.rows,
            rejects=record.rejects,
            table_rows=record.table_rows,
            index=index,
            reject_summary=count_rejects_file(self.rejects.path) if record.rejects else None,
            was_up_to_date=True,
        )
        self.on_progress(result)
        return result

    def find_finished_files(self, record: TableRecord, name: str) -> frozenset[str]:
        """Return the paths of the files that were loaded completely and have not changed since; often none.

        All files are read where rows may have to be deleted or rejected again, or where the table has changed.
        """
        files: Mapping[str, Any] = record.output.get("files") or {}
        known = self.identity["files"]
        parts = {file_name(self.dataset, part.path): part.path for part in self.dataset.vector_files}
        is_grown = bool(files) and all(known.get(file) == identity for file, identity in files.items())
        needs_all_keys = self.options.sync or self.has_windows or self.dataset.id_name is None
        if needs_all_keys or record.rejects or not is_grown or not record.agrees_with(self.target.count_rows(name)):
            return frozenset()
        return frozenset(parts[file] for file in files)

    def send_rows(self, name: str, known: KnownRows, skipped: frozenset[str]) -> None:
        batches = read_rows(self.dataset, self.layout, skipped)
        self.unchanged = sum(part.row_count for part in self.dataset.vector_files if part.path in skipped)

        def choose(batches: Iterator[RowBatch]) -> Iterator[Shipment]:
            return self.choose_rows(batches, known, bool(skipped))

        send_batches(self.target, name, self.layout, prefetch(choose, batches), self.count_sent)

    def count_sent(self, rows: int) -> None:
        self.sent += rows
        self.on_progress(self.count_so_far())

    def count_so_far(self) -> LoadResult:
        return LoadResult(self.dataset.rows, self.sent, self.unchanged, rejects=self.rejects.count)

    def choose_rows(self, batches: Iterator[RowBatch], known: KnownRows, has_skipped: bool) -> Iterator[Shipment]:
        """Yield the rows that the table lacks or has differently; runs in the thread that reads the output."""
        builder = BatchBuilder(self.target.batch_bytes)
        for batch in batches:
            keys = hash_keys(batch.table, self.layout.key)
            is_good, is_known = self.reject_rows(batch, keys), known.have_keys(keys)
            if has_skipped and is_known.any():
                raise KeyOfSkippedFileError
            is_unchanged = is_good & known.have_digests(batch.digests)
            self.unchanged += int(is_unchanged.sum())
            if is_unchanged.any():
                self.on_progress(self.count_so_far())
            to_send = is_good & ~is_unchanged
            self.inserted += int((to_send & ~is_known).sum())
            yield from builder.add(batch.filter(to_send & ~is_known).table, are_new=True)
            yield from builder.add(batch.filter(to_send & is_known).table, are_new=False)
        yield from builder.finish()

    def reject_rows(self, batch: RowBatch, keys: Int64Array) -> BoolArray:
        """Reject rows that the database cannot hold and repeated ids. Returns the mask of the others, bool [n]."""
        bad = find_bad_rows(batch, self.layout, self.target)
        is_good: BoolArray = np.ones(len(batch), bool)
        is_good[list(bad)] = False
        for row in np.flatnonzero(is_good)[self.seen.add(keys[is_good])]:
            bad[int(row)] = DUPLICATE_REASON
            is_good[row] = False
        if self.has_windows:
            self.seen_ids.add(self.hash_ids(batch.table)[is_good])
        for row in sorted(bad):
            self.rejects.add(batch, row, bad[row], self.layout.key[0])
        return is_good

    # The end

    def finish(self, name: str, known: KnownRows) -> LoadResult:
        """Delete what is to be deleted, check the count, build the index and record the load as finished."""
        self.on_phase("finishing the table")
        deleted = self.delete_others(name) if self.options.sync or self.has_windows else 0
        self.target.finish_load(name, self.layout)
        count, expected = self.target.count_rows(name), known.count + self.inserted - deleted
        rows = self.sent + self.unchanged
        if count != expected or count < rows or (self.options.sync and count != rows):
            raise OutputError(
                f"{self.describe(name)}: has {count:,} rows instead of {expected:,}: "
                "another program has changed it while it was loaded",
                "run the same command again",
            )
        index = self.target.build_index(name, self.layout) if self.options.index else None
        summary = self.rejects.publish()
        record = TableRecord(
            self.dataset.vector_space, self.layout, self.identity, rows, self.rejects.count, count, self.token
        )
        self.target.write_record(name, record.to_json())
        deleted += self.repeats
        return replace(self.count_so_far(), deleted=deleted, table_rows=count, index=index, reject_summary=summary)

    def delete_others(self, name: str) -> int:
        """Delete the rows whose keys are not among the accepted rows of the output.

        Without --sync only windows of texts that are in the output with other windows: those of an earlier version.
        """
        key = list(self.layout.key)
        others = []
        for table in self.target.read_digests(name, self.layout):
            if not table.num_rows:
                continue
            is_other = ~self.seen.include(hash_keys(table, key))
            if not self.options.sync:
                is_other &= self.seen_ids.include(self.hash_ids(table))
            if is_other.any():
                others.append(table.select(key).filter(pa.array(is_other)))
        if not others:
            return 0
        keys = pa.concat_tables(others)
        for start in range(0, keys.num_rows, DELETE_ROWS):
            self.target.delete_rows(name, self.layout, keys.slice(start, DELETE_ROWS))
        return int(keys.num_rows)

    def hash_ids(self, table: pa.Table) -> Int64Array:
        return hash_keys(table, self.layout.key[:1])

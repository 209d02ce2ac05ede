"""Verify a table against the output that was loaded into it: the count, the keys of all rows, a sample of vectors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli.analysis.verification_checks import MAX_EXAMPLE_IDS, VerificationCheck
from embedcli.core.arrow_values import table_to_rows
from embedcli.core.counts import format_count
from embedcli.core.errors import UsageError
from embedcli.databases.columns import adapt_source_column, plan_layout
from embedcli.databases.known_rows import KnownRows, SeenKeys
from embedcli.databases.record import check_same_columns, check_same_space, parse_record
from embedcli.databases.rejects import find_bad_rows
from embedcli.databases.rows import RowBatch, hash_keys, read_rows
from embedcli.databases.target import DIGEST_COLUMN, JSON_FIELD, VECTOR_COLUMN

if TYPE_CHECKING:
    from embedcli.core.types import BoolArray
    from embedcli.databases.target import DatabaseTarget, TableLayout
    from embedcli.outputs.dataset import VectorDataset

# Rows whose values are fetched in one request.
FETCHED_ROWS = 1_000
# By how much two neighbouring float64 differ at most, relatively.
LAST_BIT = 2.0**-52
# By how much a number of a vector may differ, relatively to the largest one, where the database scales vectors.
VECTOR_ROUNDING = 1e-6


class TableVerifier:
    """Compares a table with an output.

    Args:
        dataset: The output.
        target: The database.
        table: The table.
        rows: How many random rows are fetched and compared value by value; None for all.
        seed: Seed of the sample.

    Raises:
        UsageError: There is no such table, or it has another vector space or other columns.
    """

    def __init__(self, dataset: VectorDataset, target: DatabaseTarget, table: str, rows: int | None, seed: int) -> None:
        self.dataset, self.target, self.table = dataset, target, table
        layout = plan_layout(dataset, target)
        where = f"{target.title} table {table}"
        record = target.read_record(table)
        if record is None:
            raise UsageError(f"{where}: there is no such table", "load the output first, or name another with --table")
        self.record = parse_record(record, where)
        self.layout: TableLayout = adapt_source_column(layout, self.record.layout)
        check_same_space(self.record.vector_space, dataset.vector_space, where, target.replacement_hint)
        check_same_columns(self.record.layout, self.layout, where, target.replacement_hint)
        self._sample = choose_sample(dataset.rows, rows, seed)
        self._json_columns = {field.name for field in self.layout.schema if field.metadata == JSON_FIELD}
        self._tolerance = 0.0 if target.has_exact_floats else LAST_BIT
        self._vector_tolerance = 0.0 if target.has_exact_vectors else VECTOR_ROUNDING
        self._seen = SeenKeys()
        self.accepted = self.repeated = self.sampled = 0
        self.missing: list[Any] = []
        self.outdated: list[Any] = []
        self.wrong: list[Any] = []
        self.counts = {"missing": 0, "outdated": 0, "wrong": 0}

    def run(self) -> list[VerificationCheck]:
        """Read the output once and return the checks."""
        known = KnownRows(self.target.read_digests(self.table, self.layout), self.layout.key)
        for batch in read_rows(self.dataset, self.layout):
            self._check_batch(self._accept(batch), known)
        return [self._check_count(known), self._check_rows(), self._check_values()]

    def _accept(self, batch: RowBatch) -> RowBatch:
        """Leave out the rows that a load rejects."""
        is_good: BoolArray = np.ones(len(batch), bool)
        is_good[list(find_bad_rows(batch, self.layout, self.target))] = False
        keys = hash_keys(batch.table, self.layout.key)
        repeated = np.flatnonzero(is_good)[self._seen.add(keys[is_good])]
        self.repeated += len(repeated)
        is_good[repeated] = False
        return batch.filter(is_good)

    def _check_batch(self, batch: RowBatch, known: KnownRows) -> None:
        self.accepted += len(batch)
        is_there = known.have_keys(hash_keys(batch.table, self.layout.key))
        is_current = known.have_digests(batch.digests)
        self._note("missing", self.missing, batch.filter(~is_there))
        self._note("outdated", self.outdated, batch.filter(is_there & ~is_current))
        if self._sample is not None:
            batch = batch.filter(np.isin(batch.positions, self._sample))
        for start in range(0, len(batch), FETCHED_ROWS):
            self._compare(batch.table.slice(start, FETCHED_ROWS))

    def _note(self, name: str, examples: list[Any], batch: RowBatch) -> None:
        self.counts[name] += len(batch)
        room = MAX_EXAMPLE_IDS - len(examples)
        if room > 0:
            examples.extend(batch.table.column(self.layout.key[0]).slice(0, room).to_pylist())

    def _compare(self, rows: pa.Table) -> None:
        """Fetch rows and compare all their values with those of the output."""
        self.sampled += rows.num_rows
        found = self.target.read_rows(self.table, self.layout, rows.select(list(self.layout.key)))
        stored = {self._key(row): row for row in iterate_rows(found)}
        for row in iterate_rows(rows):
            other = stored.get(self._key(row))
            if other is not None and not self._is_same(row, other):
                self.counts["wrong"] += 1
                if len(self.wrong) < MAX_EXAMPLE_IDS:
                    self.wrong.append(row[self.layout.key[0]])

    def _is_same(self, row: dict[str, Any], other: dict[str, Any]) -> bool:
        if self._vector_tolerance:
            vectors = row.pop(VECTOR_COLUMN), other.pop(VECTOR_COLUMN)
            if not np.allclose(*vectors, rtol=0, atol=self._vector_tolerance * max(map(abs, vectors[0]))):
                return False
        return is_same_row(self._parse(row), self._parse(other), self._tolerance)

    def _key(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in self.layout.key)

    def _parse(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Parse columns of JSON: a database may write it with other spaces and keys in another order."""
        return {
            name: json.loads(value) if value is not None and name in self._json_columns else value
            for name, value in row.items()
        }

    def _check_count(self, known: KnownRows) -> VerificationCheck:
        count = self.target.count_rows(self.table)
        detail = f"{format_count(count, 'row')} in the table, {self.accepted:,} in the output"
        rejected = self.dataset.rows - self.accepted - self.repeated
        if rejected:
            detail += f", and {rejected:,} that the database cannot hold"
        if self.repeated:
            detail += f", and {self.repeated:,} whose id appears twice"
        others = known.count - known.repeats - self.accepted + self.counts["missing"]
        if others > 0:
            detail += f"; {format_count(others, 'row')} of the table not in the output, which load --sync deletes"
        if known.repeats:
            detail += f"; {format_count(known.repeats, 'row')} of the table with the id of another row"
        remedy = ""
        if known.repeats:
            remedy = self._name_remedy() if self.target.keeps_keys_unique else "load deletes the rows with repeated ids"
        return VerificationCheck("count", count == self.accepted == known.count, detail, remedy=remedy)

    def _check_rows(self) -> VerificationCheck:
        missing, outdated = self.counts["missing"], self.counts["outdated"]
        if missing or outdated:
            detail = f"{format_count(missing, 'row')} missing, {outdated:,} of another version of the output"
            return VerificationCheck("rows", False, detail, [*self.missing, *self.outdated])
        return VerificationCheck("rows", True, "every row of the output is there, in its current version")

    def _check_values(self) -> VerificationCheck:
        wrong = self.counts["wrong"]
        detail = f"{format_count(self.sampled, 'row')} fetched, {wrong:,} with other values than the output"
        return VerificationCheck("values", not wrong, detail, self.wrong, self._name_remedy() if wrong else "")

    def _name_remedy(self) -> str:
        """Say how to replace rows that a load would leave as they are."""
        if self.target.can_swap:
            return "load --swap replaces all rows"
        return "delete these rows in the database, and load sends them again"


def choose_sample(rows: int, count: int | None, seed: int) -> Any:
    """Choose positions of rows at random, int64 [count]; None means every row."""
    if count is None or count >= rows:
        return None
    return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))


def iterate_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    names = [name for name in table.column_names if name != DIGEST_COLUMN]
    yield from table_to_rows(table.select(names))


def is_same_row(first: Mapping[str, Any], second: Mapping[str, Any], tolerance: float) -> bool:
    """Whether all values are equal; NaN equals null, as some databases have no NaN.

    Args:
        first: A row.
        second: Another one, with the same columns.
        tolerance: The relative difference that numbers may have.
    """
    return all(is_same_value(without_nan(first[name]), without_nan(second[name]), tolerance) for name in first)


def is_same_value(first: Any, second: Any, tolerance: float) -> bool:
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=tolerance)
    return bool(first == second)


def without_nan(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    return value

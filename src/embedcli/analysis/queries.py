"""Queries of a search or an evaluation, from the command line or a file, and those that cannot be searched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from embedcli import storage
from embedcli.analysis.inspect_output import to_json_value
from embedcli.core.arrow_values import column_to_python
from embedcli.core.job import Job
from embedcli.core.types import Reject

# Queries per pass over the rows: enough for large matrix products, few enough to hold their scores.
QUERY_BATCH_ROWS = 512
# Characters of a query that a message quotes.
SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class SearchQuery:
    """A query text, and if it came from a file its id, the file as shown to people, and its line there, from 1."""

    text: str
    id: Any = None
    source: str = ""
    line: int = 0

    def __str__(self) -> str:
        """The query in a message: its place in a file, or its first words."""
        if self.source:
            return format_row(self.source, self.line, self.id)
        return repr(self.text if len(self.text) <= SHOWN_CHARACTERS else self.text[:SHOWN_CHARACTERS] + "...")

    def reject(self, reason: str) -> Reject:
        """Return this query as a row of its file that got no vector."""
        return Reject(self.source, self.line, reason, self.id)


def read_queries(job: Job, on_reject: Callable[[Reject], None]) -> Iterator[SearchQuery]:
    """Yield the queries of a file, which is read with the same options as the input of `encode`.

    Args:
        job: The job that names the file.
        on_reject: Called for each row without a text to search for.
    """
    from embedcli import readers  # not needed for queries on the command line, which must start fast

    plan = readers.plan_inputs(job)
    for chunk in readers.read_chunks(job, plan, plan.splits):
        for reject in chunk.rejects:
            on_reject(reject)
        source = storage.format_path(chunk.input_split.path)
        for text, id, line in zip(chunk.texts, column_to_python(chunk.ids), chunk.lines, strict=True):
            yield SearchQuery(text, to_json_value(id), source, line)


def batch_queries(queries: Iterator[SearchQuery]) -> Iterator[list[SearchQuery]]:
    while batch := list(islice(queries, QUERY_BATCH_ROWS)):
        yield batch


def format_row(source: str, line: int, id: Any) -> str:
    """Format the place of a row in a message: its file, line and, if it has one, its id."""
    location = storage.format_location(source, line)
    return location if id is None else f"{location} (id {id})"


class RejectedRows:
    """Counts rows that have no vector, and keeps the first.

    Attributes:
        count: How many rows.
        first: The first of them; None without any.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first: Reject | None = None

    def add(self, reject: Reject) -> None:
        self.count += 1
        self.first = self.first or reject

    def format_first(self) -> str:
        """Format the first one: "q.jsonl:3 (id q7): text is empty"."""
        return format_reject(self.first) if self.first is not None else ""

    def as_json(self) -> dict[str, Any]:
        """Return the count, and the place, id and reason of the first, as JSON values."""
        first = self.first
        return {
            "count": self.count,
            "first": None
            if first is None
            else {
                "place": storage.format_location(first.source, first.line),
                "id": to_json_value(first.id),
                "reason": first.reason,
            },
        }


def format_reject(reject: Reject) -> str:
    """Format where a row is and why it has no vector."""
    return f"{format_row(reject.source, reject.line, reject.id)}: {reject.reason}"

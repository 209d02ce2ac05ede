"""Search with all queries of a file, batch by batch; queries that cannot be searched are named and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from embedcli import storage
from embedcli.analysis.queries import RejectedRows, SearchQuery, batch_queries, format_reject, read_queries
from embedcli.core.counts import format_count
from embedcli.core.errors import InputError
from embedcli.core.job import Job
from embedcli.core.types import Reject


class FileSearch:
    """Searches with the queries of a file.

    Args:
        searcher: A `Searcher` or `FusedSearcher`.
        job: The job that names the file.
        options: The arguments of `Searcher.search` after the queries.
        notify: Gets a line for each query that cannot be searched.

    Attributes:
        rejects: The queries that could not be searched.
    """

    def __init__(self, searcher: Any, job: Job, options: tuple[Any, ...], notify: Callable[[str], None]) -> None:
        self.rejects = RejectedRows()
        self._searcher, self._job, self._options, self._notify = searcher, job, options, notify
        self._searched = self._without_matches = self._with_few_matches = 0
        self._first_with_few: SearchQuery | None = None

    def run(self) -> Iterator[dict[str, Any]]:
        """Yield the hits of all queries in order.

        Raises:
            InputError: The file has queries, and none can be searched.
        """
        for batch in batch_queries(read_queries(self._job, self._reject)):
            result = self._searcher.search(batch, *self._options)
            for position, reason in sorted(result.rejects.items()):
                self._reject(batch[position].reject(reason))
            for position, count in sorted(result.few_matches.items()):
                self._with_few_matches += 1
                self._without_matches += not count
                self._first_with_few = self._first_with_few or batch[position]
            self._searched += len(batch) - len(result.rejects)
            yield from result.hits
        if self.rejects.count and not self._searched:
            raise InputError(
                f"{storage.format_location(self._job.inputs[0])}: no query can be searched; "
                f"first: {self.rejects.format_first()}",
                "fix the queries",
            )

    def _reject(self, reject: Reject) -> None:
        self.rejects.add(reject)
        self._notify(f"not searched: {format_reject(reject)}")

    def notes(self) -> Iterator[str]:
        """Yield what people should know of the queries once all were searched."""
        if self._first_with_few is not None:
            few = format_count(self._with_few_matches, "query shares", "queries share")
            yield (
                f"{few} a term with fewer rows than asked for, {self._without_matches:,} of them with none; "
                f"first: {self._first_with_few}"
            )
        if self.rejects.count:
            count = self.rejects.count
            yield f"{format_count(count, 'query was', 'queries were')} not searched, {self._searched:,} were"

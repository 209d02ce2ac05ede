"""Search an output with text queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from embedcli.analysis.inspect_output import to_json_value
from embedcli.analysis.similarities import Metric
from embedcli.analysis.text_encoder import (
    Notify,
    RejectedTextError,
    TextEncoder,
    build_query_job,
    check_same_canaries,
    ignore_message,
    missing_prompt_warning,
    without_role_note,
)
from embedcli.analysis.topk import Hits, hit_positions, search_vectors
from embedcli.core.arrow_values import column_to_python
from embedcli.core.errors import InputError
from embedcli.core.job import Job
from embedcli.core.types import KIND_ADJECTIVES
from embedcli.outputs.dataset import VectorDataset

if TYPE_CHECKING:
    from embedcli.core.row_vectors import RowVectors

# Queries per pass over the rows: enough for large matrix products, few enough to hold their scores.
QUERY_BATCH_ROWS = 512
# Characters of a query that an error quotes.
SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class SearchQuery:
    """A query text, and its id if it came from a file."""

    text: str
    id: Any = None


class Searcher:
    """Searches an output with the model that encoded it. Loads the model; use it as a context manager.

    Args:
        output: The output.
        notify: Receives notes about the model and its prompt.
        flags: Job options that override the recorded ones, such as `model` or `prompt`.

    Raises:
        UsageError: The model on this machine or of the server is not the one that encoded the output.
        InputError: The model gives vectors of another dimension.
    """

    def __init__(self, output: VectorDataset, *, notify: Notify = ignore_message, **flags: Any) -> None:
        self.output = output
        next(output.read_blocks(), None)  # a damaged file is an error before the model is loaded
        job = build_query_job(output, "search", **flags)
        self._encoder = TextEncoder(job, without_empty_prompt(notify), few_texts=True)
        try:
            self._check_model(notify)
        except BaseException:
            self._encoder.close()
            raise

    def _check_model(self, notify: Notify) -> None:
        if self._encoder.kind != self.output.kind:
            raise InputError(
                f"{self.output.path} has {KIND_ADJECTIVES[self.output.kind]} vectors, its model now gives "
                f"{KIND_ADJECTIVES[self._encoder.kind]} ones",
                "encode the rows again",
            )
        if self._encoder.dim != self.output.dim:
            raise InputError(
                f"{self.output.path} has vectors of {self.output.dim} dimensions, its model now gives "
                f"{self._encoder.dim}",
                "encode the rows again",
            )
        check_same_canaries(self.output, self._encoder.vector_space)
        note = missing_prompt_warning(self.output.vector_space, self._encoder.vector_space)
        if note:
            notify(note)

    def search(
        self, queries: Sequence[SearchQuery], k: int, columns: Sequence[str], metric: Metric | None = None
    ) -> list[dict[str, Any]]:
        """Find the `k` best rows for each query, by the usual metric of the output's kind if none is given.

        Returns:
            One dict per hit, in the order of the queries and best first: query_id, query, rank, score, id and the
            given columns.
        """
        return describe_hits(self.output, queries, self.find(queries, k, metric), columns)

    def find(self, queries: Sequence[SearchQuery], k: int, metric: Metric | None = None) -> list[Hits]:
        """Find the positions and scores of the `k` best rows for each query.

        Raises:
            InputError: A query gets no vector.
        """
        return search_vectors(self.output, self._encode(queries), k, metric)

    def _encode(self, queries: Sequence[SearchQuery]) -> RowVectors:
        try:
            return self._encoder.encode_vectors([query.text for query in queries])
        except RejectedTextError as error:
            query = error.text if len(error.text) <= SHOWN_CHARACTERS else error.text[:SHOWN_CHARACTERS] + "..."
            raise InputError(f"the query {query!r} has no vector: {error.reason}", "use other words") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._encoder.close()


def describe_hits(
    output: VectorDataset, queries: Sequence[SearchQuery], hits: list[Hits], columns: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one dict per hit with the values of its row, as `Searcher.search` does."""
    positions = hit_positions(hits)
    rows = dict(zip(positions, output.take_rows(positions, columns), strict=True))
    return [
        {"query_id": query.id, "query": query.text, "rank": rank, "score": float(score), **rows[int(position)]}
        for query, hit in zip(queries, hits, strict=True)
        for rank, (position, score) in enumerate(zip(hit.rows, hit.scores, strict=True), 1)
    ]


def without_empty_prompt(notify: Notify) -> Notify:
    """Return `notify` without the notes that queries have no prompt or no role: the user asked for none."""
    from embedcli.models.config import PromptNote

    pass_on = without_role_note(notify)
    return lambda note: None if isinstance(note, PromptNote) and not note.prompt else pass_on(note)


def read_search_queries(job: Job) -> Iterator[SearchQuery]:
    """Yield the queries of a file, which is read with the same options as the input of `encode`.

    Raises:
        InputError: A query is rejected.
    """
    from embedcli import readers  # not needed for queries on the command line, which must start fast

    plan = readers.plan_inputs(job)
    for chunk in readers.read_chunks(job, plan, plan.splits):
        for reject in chunk.rejects:
            raise InputError(f"{reject.source}:{reject.line}: {reject.reason}", "fix the query")
        yield from (
            SearchQuery(text, to_json_value(id))
            for text, id in zip(chunk.texts, column_to_python(chunk.ids), strict=True)
        )


def batch_queries(queries: Iterator[SearchQuery], size: int = QUERY_BATCH_ROWS) -> Iterator[list[SearchQuery]]:
    while batch := list(islice(queries, size)):
        yield batch


def choose_shown_columns(output: VectorDataset, requested: Sequence[str]) -> list[str]:
    """Return the columns to show: the requested ones, else all kept columns of strings."""
    if requested:
        output.check_columns(requested)
        return list(requested)
    types = {name: output.schema.field(name).type for name in output.kept_columns}
    return [name for name, type_ in types.items() if pa.types.is_string(type_) or pa.types.is_large_string(type_)]

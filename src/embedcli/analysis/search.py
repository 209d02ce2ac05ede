"""Search an output with text queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from embedcli.analysis.queries import SearchQuery
from embedcli.analysis.similarities import Metric
from embedcli.analysis.text_encoder import (
    Notify,
    TextEncoder,
    build_query_job,
    check_same_canaries,
    ignore_message,
    missing_prompt_warning,
    with_prompt_source,
    without_role_note,
)
from embedcli.analysis.topk import Hits, hit_positions, search_vectors, spread_hits
from embedcli.core.errors import InputError
from embedcli.core.types import KIND_ADJECTIVES
from embedcli.outputs.dataset import VectorDataset

if TYPE_CHECKING:
    from embedcli.analysis.encoded_texts import EncodedTexts


@dataclass(frozen=True)
class SearchResult:
    """What was found for some queries.

    Attributes:
        hits: One dict per hit, in the order of the queries and best first: query_id, query, rank, score, id and the
            columns that were asked for.
        rejects: Why queries could not be searched, by their position.
        few_matches: Of sparse vectors, with how many rows a query shares a term, by its position, if these are fewer
            than were asked for.
    """

    hits: list[dict[str, Any]]
    rejects: Mapping[int, str]
    few_matches: Mapping[int, int]


@dataclass(frozen=True)
class Rankings:
    """The best rows of some queries.

    Attributes:
        hits: Of each query; none of one that has no vector.
        rejects: Why queries have no vector, by their position.
    """

    hits: list[Hits]
    rejects: Mapping[int, str]

    def describe(
        self, output: VectorDataset, queries: Sequence[SearchQuery], columns: Sequence[str], wanted: int
    ) -> SearchResult:
        """Return the result of a search with the values of the rows.

        Args:
            output: The output of the rows.
            queries: The queries.
            columns: The columns to read.
            wanted: A query with fewer hits has few matches.
        """
        counts = {i: len(hit.rows) for i, hit in enumerate(self.hits) if i not in self.rejects}
        few = {i: count for i, count in counts.items() if count < wanted}
        return SearchResult(describe_hits(output, queries, self.hits, columns), self.rejects, few)


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
        note = without_empty_prompt(notify)
        if job.prompt is not None and flags.get("prompt") is None:
            note = with_prompt_source(note, f"the known query prompt of {job.model}")
        self._encoder = TextEncoder(job, note, few_texts=True)
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
    ) -> SearchResult:
        """Find the `k` best rows for each query, by the usual metric of the output's kind if none is given.

        Of sparse vectors only rows that share a term with the query are found.
        """
        wanted = min(k, self.output.rows) if self.output.kind == "sparse" else 0
        return self.find(queries, k, metric).describe(self.output, queries, columns, wanted)

    def find(self, queries: Sequence[SearchQuery], k: int, metric: Metric | None = None) -> Rankings:
        """Find the positions and scores of the `k` best rows for each query."""
        encoded = self._encode(queries)
        hits = search_vectors(self.output, encoded.vectors, k, metric)
        return Rankings(spread_hits(hits, encoded.positions, len(queries)), encoded.rejects)

    def _encode(self, queries: Sequence[SearchQuery]) -> EncodedTexts:
        return self._encoder.encode_accepted([query.text for query in queries])

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


def choose_shown_columns(output: VectorDataset, requested: Sequence[str]) -> list[str]:
    """Return the columns to show: the requested ones, else all kept columns of strings."""
    if requested:
        output.check_columns(requested)
        return list(requested)
    types = {name: output.schema.field(name).type for name in output.kept_columns}
    return [name for name, type_ in types.items() if pa.types.is_string(type_) or pa.types.is_large_string(type_)]

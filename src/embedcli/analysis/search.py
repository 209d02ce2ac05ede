"""Queries in words against an output: encode them in its space, find the rows, tell what was kept of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from embedcli.analysis.inspect_output import to_json_value
from embedcli.analysis.text_encoder import Notify, TextEncoder, build_query_job, ignore_message, missing_prompt_warning
from embedcli.analysis.topk import Metric, hit_positions, search_vectors
from embedcli.core.arrow_values import column_to_python
from embedcli.core.errors import InputError
from embedcli.core.job import Job
from embedcli.outputs.dataset import VectorDataset

# Queries that go through the rows together: enough for large matrix products, few enough for their scores.
QUERY_BATCH_ROWS = 512


@dataclass(frozen=True)
class SearchQuery:
    """A text to look for, and its id where it came from a file."""

    text: str
    id: Any = None


class Searcher:
    """An output and the encoder of its queries. Loads the model; use as a context manager."""

    def __init__(self, output: VectorDataset, *, notify: Notify = ignore_message, **flags: Any) -> None:
        self.output = output
        self._texts = TextEncoder(build_query_job(output, "search", **flags), without_empty_prompt(notify))
        if self._texts.dim != output.dim:
            raise InputError(
                f"{output.path} holds vectors of {output.dim} dimensions, its model now makes {self._texts.dim}",
                "encode the rows again",
            )
        note = missing_prompt_warning(output.vector_space, self._texts.vector_space)
        if note:
            notify(note)

    def search(
        self, queries: Sequence[SearchQuery], k: int, columns: Sequence[str], metric: Metric
    ) -> list[dict[str, Any]]:
        """One row per hit, queries in order, best first: query, rank, score, id, and the named columns."""
        hits = search_vectors(self.output, self._texts.encode([query.text for query in queries]), k, metric)
        rows = hit_positions(hits)
        values = dict(zip(rows, self.output.take_rows(rows, columns), strict=True))
        return [
            {"query_id": query.id, "query": query.text, "rank": rank, "score": float(score), **values[int(row)]}
            for query, hit in zip(queries, hits, strict=True)
            for rank, (row, score) in enumerate(zip(hit.rows, hit.scores, strict=True), 1)
        ]

    def __enter__(self) -> Searcher:
        return self

    def __exit__(self, *error: object) -> None:
        self._texts.close()


def without_empty_prompt(notify: Notify) -> Notify:
    """The same, but silent where all there is to say is that queries have no prompt."""
    from embedcli.models.config import PromptNote

    return lambda note: None if isinstance(note, PromptNote) and not note.prompt else notify(note)


def read_search_queries(job: Job) -> Iterator[SearchQuery]:
    """The queries of a file, by the same flags as the rows of `encode`. InputError at the first that is none."""
    from embedcli import readers  # a search for words reads no file of rows, and must start fast

    plan = readers.plan_inputs(job)
    for chunk in readers.read_chunks(job, plan, plan.splits):
        for reject in chunk.rejects:
            raise InputError(f"{reject.source}:{reject.line}: {reject.reason}", "mend the queries; none may be lost")
        yield from (
            SearchQuery(text, to_json_value(id))
            for text, id in zip(chunk.texts, column_to_python(chunk.ids), strict=True)
        )


def batch_queries(queries: Iterator[SearchQuery], size: int = QUERY_BATCH_ROWS) -> Iterator[list[SearchQuery]]:
    while batch := list(islice(queries, size)):
        yield batch


def choose_shown_columns(output: VectorDataset, asked: Sequence[str]) -> list[str]:
    """The columns to show: those asked for, else every kept one that holds text."""
    if asked:
        output.check_columns(asked)
        return list(asked)
    kept = {name: output.schema.field(name).type for name in output.kept_columns}
    return [name for name, kind in kept.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)]

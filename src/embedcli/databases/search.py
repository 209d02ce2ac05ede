"""Search a table with text queries: encoded in its recorded vector space, answered by the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli.analysis.queries import SearchQuery
from embedcli.analysis.search import Searcher, SearchResult
from embedcli.analysis.similarities import USUAL_METRICS, normalize, score_rows
from embedcli.analysis.text_encoder import Notify, ignore_message
from embedcli.core import quantization
from embedcli.core.arrow_values import table_to_rows
from embedcli.core.errors import UsageError
from embedcli.databases.columns import combine_chunks
from embedcli.databases.record import TableRecord, parse_record
from embedcli.databases.target import VECTOR_COLUMN
from embedcli.outputs import writers
from embedcli.outputs.dataset import VectorDataset
from embedcli.outputs.vector_columns import DenseColumn, MultiVectorColumn, SparseColumn

if TYPE_CHECKING:
    from embedcli.analysis.similarities import Metric
    from embedcli.core.row_vectors import RowVectors
    from embedcli.databases.target import DatabaseTarget, TableLayout

# Of vectors of bits the database returns this many times the wanted rows, which are scored again with the query in
# float32, as sentence-transformers does (`rescore_multiplier` of its semantic search over quantized embeddings).
RESCORE_MULTIPLIER = 4


class RecordedOutput(VectorDataset):
    """The output that a table was loaded from, as far as the record of the table describes it: it has no rows."""

    def __init__(self, name: str, record: TableRecord) -> None:
        super().__init__(name, [], {writers.SPACE_METADATA_KEY: dict(record.vector_space)})
        self.kind = record.layout.kind
        self._dim = record.layout.dim

    @property
    def dim(self) -> int:
        return self._dim


class TableSearcher(Searcher):
    """Searches a table with the model that encoded its rows. Loads the model; use it as a context manager.

    Args:
        target: The database.
        table: The table.
        show: Columns to show; by default all kept columns of strings.
        notify: Receives notes about the model and its prompt.
        flags: Job options that override the recorded ones.

    Raises:
        UsageError: There is no such table or column, or the model is not the one that encoded its rows.
    """

    def __init__(
        self,
        target: DatabaseTarget,
        table: str,
        show: Sequence[str] = (),
        *,
        notify: Notify = ignore_message,
        **flags: Any,
    ) -> None:
        self.target, self.table = target, table
        where = f"{target.title} table {table}"
        record = target.read_record(table)
        if record is None:
            raise UsageError(f"{where}: there is no such table", "name another with --table")
        self.layout: TableLayout = parse_record(record, where).layout
        self.columns = choose_columns(self.layout, show, where)
        super().__init__(RecordedOutput(where, parse_record(record, where)), notify=notify, **flags)

    def search(
        self, queries: Sequence[SearchQuery], k: int, columns: Sequence[str], metric: Metric | None = None
    ) -> SearchResult:
        """Find the `k` best rows for each query; see `Searcher.search`. Scores are those of a search in the output."""
        expected = USUAL_METRICS[self.layout.kind]
        if metric not in (None, expected):
            raise UsageError(
                f"{self.target.title}: the table is searched by {expected}", f"leave out --metric {metric}"
            )
        encoded, hits, few_matches = self._encode(queries), [], {}
        for i, position in enumerate(encoded.positions.tolist()):
            found = self._find_rows(encoded.vectors[i : i + 1], k, columns, expected)
            if self.layout.kind == "sparse" and len(found) < k:
                few_matches[position] = len(found)
            query = {"query_id": queries[position].id, "query": queries[position].text}
            hits += [{**query, "rank": rank, **hit} for rank, hit in enumerate(found, 1)]
        return SearchResult(hits, encoded.rejects, few_matches)

    def _find_rows(self, query: RowVectors, k: int, columns: Sequence[str], metric: Metric) -> list[dict[str, Any]]:
        layout, is_bits = self.layout, self.layout.precision == "ubinary"
        key = layout.key[0]
        names = list(dict.fromkeys([key, VECTOR_COLUMN, *columns]))
        sent: Any = quantization.quantize(np.asarray(query), "ubinary") if is_bits else query
        count = k * RESCORE_MULTIPLIER if is_bits else k
        found = self.target.find_nearest(self.table, layout, sent, count, names)
        if not found.num_rows:
            return []
        scores = self._score(query, found, metric)
        order = np.argsort(-scores, kind="stable")[: min(k, int(np.sum(~np.isnan(scores))))]
        rows = table_to_rows(found.select([name for name in names if name != VECTOR_COLUMN]).take(pa.array(order)))
        return [
            {"score": float(score), "id": row[key], **{name: row[name] for name in columns}}
            for score, row in zip(scores[order], rows, strict=True)
        ]

    def _score(self, query: RowVectors, found: pa.Table, metric: Metric) -> Any:
        """Score rows as a search in the output does: float32 [n]."""
        column = pa.chunked_array([combine_chunks(found.column(VECTOR_COLUMN))])
        layout = self.layout
        rows: RowVectors
        if layout.kind == "sparse":
            rows = SparseColumn(VECTOR_COLUMN, np.dtype("float32"), layout.dim, "").to_vectors(column)
        elif layout.kind == "multi_vector":
            number = np.dtype(column.type.value_type.value_type.to_pandas_dtype())
            tokens = MultiVectorColumn(VECTOR_COLUMN, number, layout.dim, "").to_vectors(column)
            rows = replace(tokens, values=np.asarray(tokens.values, np.float32))
        else:
            kind = column.type
            dense = DenseColumn(VECTOR_COLUMN, np.dtype(kind.value_type.to_pandas_dtype()), kind.list_size, "")
            rows = quantization.dequantize(dense.to_vectors(column), layout.precision, layout.dim, None)
        normalized = normalize(query) if metric == "cosine" else query
        return score_rows(normalized, rows, metric)[0]


def choose_columns(layout: TableLayout, requested: Sequence[str], where: str) -> list[str]:
    """Return the columns to show: the requested ones, else all kept columns of strings.

    Raises:
        UsageError: There is no such column.
    """
    known = [*layout.key, *layout.kept_columns]
    for name in requested:
        if name not in known:
            raise UsageError(f"{where}: has no column {name!r}; it has {', '.join(known)}", "use one of these")
    if requested:
        return list(requested)
    return [name for name in layout.kept_columns if pa.types.is_string(layout.schema.field(name).type)]

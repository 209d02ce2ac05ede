"""Retrieve documents for the queries of an evaluation, by each head of a model, and measure the rankings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from embedcli import storage
from embedcli.analysis import metrics
from embedcli.analysis.eval_data import RetrievalTask, read_documents, read_judged_queries
from embedcli.analysis.queries import RejectedRows, format_reject
from embedcli.analysis.similarities import USUAL_METRICS, normalize, score_rows
from embedcli.analysis.topk import Hits, TopK, spread_hits
from embedcli.core.arrow_values import column_to_python
from embedcli.core.errors import InputError
from embedcli.core.types import Reject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embedcli.analysis.encoded_texts import EncodedTexts
    from embedcli.analysis.evaluate import EncodersByPrompt
    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import Chunk, VectorKind

# Documents retrieved per query, as in trec_eval.
RETRIEVAL_DEPTH = 1000


@dataclass(frozen=True)
class RetrievedDocuments:
    """What was retrieved for the queries of a task, by vectors of one kind.

    Attributes:
        query_ids: The ids of all judged queries.
        document_ids: The ids of all documents that have a text.
        hits: Of each query the best documents; none of a query without a vector.
        rejected_queries: The queries without a vector, by id.
        rejected_documents: The documents without a vector.
    """

    query_ids: list[str]
    document_ids: list[str]
    hits: list[Hits]
    rejected_queries: dict[str, Reject]
    rejected_documents: RejectedRows = field(default_factory=RejectedRows)


class HeadRanking:
    """Ranks documents by the vectors of one head, chunk by chunk; only queries and hits are kept in memory."""

    def __init__(self, kind: VectorKind, queries: EncodedTexts) -> None:
        self.queries = queries
        self.rejected_documents = RejectedRows()
        self._metric = USUAL_METRICS[kind]
        self._query_vectors = self._scale(queries)
        self._best = TopK(len(queries.positions), RETRIEVAL_DEPTH)

    def _scale(self, texts: EncodedTexts) -> RowVectors:
        scaled: RowVectors = normalize(texts.vectors) if self._metric == "cosine" else texts.vectors
        return scaled

    def add(self, chunk: Chunk, documents: EncodedTexts, start: int) -> None:
        """Add the documents of a chunk, the first of which has the number `start`."""
        rejects = [to_reject(chunk, position, reason) for position, reason in documents.rejects.items()]
        for reject in sorted([*chunk.rejects, *rejects], key=lambda reject: reject.line):
            self.rejected_documents.add(reject)
        scores = np.full((len(self.queries.positions), len(chunk.texts)), np.nan, np.float32)
        found = score_rows(self._query_vectors, self._scale(documents), self._metric, are_unit_rows=True)
        scores[:, documents.positions] = found
        self._best.add(scores, start)

    def to_hits(self, count: int) -> list[Hits]:
        """Return the hits of all queries, `count` with those that have no vector."""
        return spread_hits(self._best.to_hits(), self.queries.positions, count)


def retrieve_documents(task: RetrievalTask, model_encoders: EncodersByPrompt) -> dict[VectorKind, RetrievedDocuments]:
    """Rank the documents for each query, by each head of the model.

    Raises:
        InputError: A row is bad and its id is not known, or no query has a vector.
    """
    queries = read_judged_queries(task)
    query_job = task.make_query_job(model_encoders.job)
    encoded = model_encoders.encode([query.text for query in queries.accepted], query_job)
    rejects = [queries.accepted[i].reject(reason) for i, reason in sorted(encoded.rejects.items())]
    check_has_query(len(encoded.positions), [*queries.rejects, *rejects])
    rankings = {kind: HeadRanking(kind, texts) for kind, texts in encoded.split_heads().items()}
    document_ids: list[str] = []
    for chunk in read_documents(task):
        documents = model_encoders.encode(chunk.texts, task.make_document_job(model_encoders.job))
        for kind, texts in documents.split_heads().items():
            rankings[kind].add(chunk, texts, len(document_ids))
        document_ids += map(str, column_to_python(chunk.ids))
    # Rows of the file without a text come last: they have no hits.
    query_ids = [str(query.id) for query in queries.accepted] + [str(reject.id) for reject in queries.rejects]
    retrieved = {}
    for kind, ranking in rankings.items():
        lacking = [queries.accepted[i].reject(reason) for i, reason in ranking.queries.rejects.items()]
        rejected = sorted([*queries.rejects, *lacking], key=lambda reject: (reject.source, reject.line))
        retrieved[kind] = RetrievedDocuments(
            query_ids,
            document_ids,
            ranking.to_hits(len(query_ids)),
            {str(reject.id): reject for reject in rejected},
            ranking.rejected_documents,
        )
    return retrieved


def check_has_query(accepted: int, rejects: Sequence[Reject]) -> None:
    """Raise InputError if no query has a vector."""
    if not accepted:
        raise InputError(
            f"{format_reject(rejects[0])}; no other query with a relevant document has a vector", "fix the queries"
        )


def to_reject(chunk: Chunk, position: int, reason: str) -> Reject:
    """Return a row of a chunk as one that the encoder rejected."""
    id = column_to_python(chunk.ids.slice(position, 1))[0]
    return Reject(storage.format_path(chunk.input_split.path), chunk.lines[position], reason, id)


def measure_retrieval(task: RetrievalTask, found: RetrievedDocuments, k: int) -> dict[str, float]:
    """Average the measures over all queries; a query without hits scores 0 in each."""
    measures = []
    for id, hits in zip(found.query_ids, found.hits, strict=True):
        relevance, retrieved = task.grades[id], [found.document_ids[row] for row in hits.rows.tolist()]
        ndcg, recall = metrics.ndcg(retrieved, relevance, k), metrics.recall(retrieved, relevance, k)
        measures.append((ndcg, recall, metrics.average_precision(retrieved, relevance)))
    means = np.mean(measures, axis=0).tolist()
    return dict(zip((f"ndcg@{k}", f"recall@{k}", "map"), means, strict=True))

"""Evaluate models on labelled data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli import encoders
from embedcli.analysis import metrics
from embedcli.analysis.eval_data import (
    EvaluationTask,
    LabelledTexts,
    RetrievalTask,
    ScoredPairs,
    read_queries,
    read_valid_chunks,
)
from embedcli.analysis.fusion import fuse_rankings, ranked_rows
from embedcli.analysis.similarities import USUAL_METRICS, normalize, row_cosines, score_rows
from embedcli.analysis.text_encoder import Notify, TextEncoder, ignore_message, without_role_note
from embedcli.analysis.topk import Hits, TopK
from embedcli.core.arrow_values import column_to_python
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.row_vectors import kind_of
from embedcli.core.types import KIND_ADJECTIVES

if TYPE_CHECKING:
    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import VectorKind

# Documents retrieved per query, as in trec_eval.
RETRIEVAL_DEPTH = 1000
NDCG_DEPTH = 10


@dataclass(frozen=True)
class RetrievedDocuments:
    """What was retrieved for the queries of a task, by vectors of one kind: of each query the best documents."""

    query_ids: list[str]
    document_ids: list[str]
    hits: list[Hits]
    kind: VectorKind


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one model, as JSON values, and what it retrieved for each task that retrieves documents."""

    result: dict[str, Any]
    retrieved: list[RetrievedDocuments]


class EncodersByPrompt:
    """The encoders of one model, one per prompt and task, with counts of texts and seconds (without loading)."""

    def __init__(self, job: Job, notify: Notify) -> None:
        self.job = job
        self.encoded_texts = 0
        self.encode_seconds = 0.0
        self._notify = notify if job.as_ is not None else without_role_note(notify)
        self._loaded: dict[tuple[str, str | None], TextEncoder] = {}

    def encode(self, texts: Sequence[str], job: Job | None = None) -> RowVectors:
        """Encode texts with the prompt and task of `job` (by default those of the model)."""
        encoder = self._encoder(job or self.job)
        start = time.perf_counter()
        vectors = encoder.encode_vectors(texts)
        self.encode_seconds += time.perf_counter() - start
        self.encoded_texts += len(texts)
        return vectors

    def _encoder(self, job: Job) -> TextEncoder:
        identity = encoders.encoder_identity(job)
        key = str(identity["prompt"]), identity.get("task")
        if key not in self._loaded:
            self._loaded[key] = TextEncoder(job, self._notify)
        return self._loaded[key]

    def close(self) -> None:
        for encoder in self._loaded.values():
            encoder.close()


def evaluate_model(
    job: Job, tasks: Sequence[EvaluationTask], k: int = NDCG_DEPTH, notify: Notify = ignore_message
) -> Evaluation:
    """Evaluate one model on all tasks.

    Args:
        job: The job that names the model.
        tasks: The tasks.
        k: Depth of nDCG and recall.
        notify: Receives notes about the model.

    Returns:
        The measures of each task, the average of their first measures, rows and rows per second.
    """
    model_encoders = EncodersByPrompt(job, notify)
    measured: list[dict[str, float]] = []
    retrieved: list[RetrievedDocuments] = []
    try:
        for task in tasks:
            if isinstance(task, RetrievalTask):
                retrieved.append(retrieve_documents(task, model_encoders))
                measured.append(measure_retrieval(task, retrieved[-1], k))
            elif isinstance(task, ScoredPairs):
                measured.append(evaluate_pairs(task, model_encoders))
            else:
                measured.append(evaluate_clustering(task, model_encoders))
    finally:
        model_encoders.close()
    speed = (
        round(model_encoders.encoded_texts / model_encoders.encode_seconds, 1)
        if model_encoders.encode_seconds
        else None
    )
    result = {
        "model": job.model,
        **summarize_measures(tasks, measured),
        "rows": model_encoders.encoded_texts,
        "rows_per_second": speed,
    }
    return Evaluation(result, retrieved)


def summarize_measures(tasks: Sequence[EvaluationTask], measured: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return the measures of each task, and the average of their first measures, as JSON values."""
    return {
        "tasks": [{"name": task.name, "measures": values} for task, values in zip(tasks, measured, strict=True)],
        "average": float(np.mean([next(iter(values.values())) for values in measured])),
    }


def evaluate_fusion(
    tasks: Sequence[RetrievalTask], evaluations: Sequence[Evaluation], k: int = NDCG_DEPTH
) -> dict[str, Any]:
    """Fuse by reciprocal rank what several models retrieved, and measure it as `evaluate_model` does.

    Args:
        tasks: The tasks.
        evaluations: Of two models or more on these tasks.
        k: Depth of nDCG and recall.
    """
    measured = []
    for number, task in enumerate(tasks):
        found = [evaluation.retrieved[number] for evaluation in evaluations]
        rankings = [[ranked_rows(hits, documents.kind) for hits in documents.hits] for documents in found]
        fused = [fuse_rankings(of_query, RETRIEVAL_DEPTH) for of_query in zip(*rankings, strict=True)]
        measured.append(measure_retrieval(task, replace(found[0], hits=fused), k))
    return {
        "model": "rrf",
        "fused": [evaluation.result["model"] for evaluation in evaluations],
        **summarize_measures(tasks, measured),
        "rows": 0,
        "rows_per_second": None,
    }


def evaluate_pairs(task: ScoredPairs, model_encoders: EncodersByPrompt) -> dict[str, float]:
    first = model_encoders.encode(task.first)
    if isinstance(first, MultiVectors):
        raise UsageError(
            f"{model_encoders.job.model} computes per-token vectors, whose MaxSim compares a query with a document, "
            "and pairs have neither",
            "use --queries and --relevance to evaluate it",
        )
    cosines = row_cosines(first, model_encoders.encode(task.second))
    return {
        "spearman": metrics.spearman(cosines, task.scores),
        "pearson": metrics.pearson(cosines, task.scores),
    }


def evaluate_clustering(task: LabelledTexts, model_encoders: EncodersByPrompt) -> dict[str, float]:
    vectors = model_encoders.encode(task.texts)
    if not isinstance(vectors, np.ndarray):
        raise UsageError(
            f"{model_encoders.job.model} computes {KIND_ADJECTIVES[kind_of(vectors)]} vectors, and k-means needs "
            "dense ones",
            "use --queries and --relevance to evaluate it",
        )
    clusters = metrics.k_means(vectors, len(set(task.labels)))
    return {"v_measure": metrics.v_measure(task.labels, clusters)}


def retrieve_documents(task: RetrievalTask, model_encoders: EncodersByPrompt) -> RetrievedDocuments:
    """Rank the documents for each query. They are streamed: only queries and hits are kept in memory."""
    ids, queries = read_queries(task)
    best = TopK(len(ids), RETRIEVAL_DEPTH)
    document_ids: list[str] = []
    query_vectors = model_encoders.encode(queries, task.make_query_job(model_encoders.job))
    kind = kind_of(query_vectors)
    metric = USUAL_METRICS[kind]
    query_vectors = normalize(query_vectors) if metric == "cosine" else query_vectors
    for chunk in read_valid_chunks(task.documents):
        vectors = model_encoders.encode(list(chunk.texts), task.make_document_job(model_encoders.job))
        vectors = normalize(vectors) if metric == "cosine" else vectors
        best.add(score_rows(query_vectors, vectors, metric, are_unit_rows=True), len(document_ids))
        document_ids += map(str, column_to_python(chunk.ids))
    return RetrievedDocuments(ids, document_ids, best.to_hits(), kind)


def measure_retrieval(task: RetrievalTask, found: RetrievedDocuments, k: int) -> dict[str, float]:
    """Average the measures over all queries."""
    measures = []
    for id, hits in zip(found.query_ids, found.hits, strict=True):
        relevance, retrieved = task.grades[id], [found.document_ids[row] for row in hits.rows.tolist()]
        ndcg, recall = metrics.ndcg(retrieved, relevance, k), metrics.recall(retrieved, relevance, k)
        measures.append((ndcg, recall, metrics.average_precision(retrieved, relevance)))
    means = np.mean(measures, axis=0).tolist()
    return dict(zip((f"ndcg@{k}", f"recall@{k}", "map"), means, strict=True))

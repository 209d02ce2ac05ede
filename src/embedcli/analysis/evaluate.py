"""Evaluate models on labelled data."""

from __future__ import annotations

import time
from collections.abc import Sequence
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
from embedcli.analysis.similarities import USUAL_METRICS, normalize, row_cosines, score_rows
from embedcli.analysis.text_encoder import Notify, TextEncoder, ignore_message, without_role_note
from embedcli.analysis.topk import TopK
from embedcli.core.arrow_values import column_to_python
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.row_vectors import kind_of
from embedcli.core.types import KIND_ADJECTIVES

if TYPE_CHECKING:
    from embedcli.core.row_vectors import RowVectors

# Documents retrieved per query, as in trec_eval.
RETRIEVAL_DEPTH = 1000
NDCG_DEPTH = 10


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
) -> dict[str, Any]:
    """Evaluate one model on all tasks.

    Args:
        job: The job that names the model.
        tasks: The tasks.
        k: Depth of nDCG and recall.
        notify: Receives notes about the model.

    Returns:
        JSON values: the measures of each task, the average of their first measures, rows and rows per second.
    """
    model_encoders = EncodersByPrompt(job, notify)
    try:
        results: list[dict[str, Any]] = [
            {"name": task.name, "measures": evaluate_task(task, model_encoders, k)} for task in tasks
        ]
    finally:
        model_encoders.close()
    main_measures = [next(iter(result["measures"].values())) for result in results]
    speed = (
        round(model_encoders.encoded_texts / model_encoders.encode_seconds, 1)
        if model_encoders.encode_seconds
        else None
    )
    return {
        "model": job.model,
        "tasks": results,
        "average": float(np.mean(main_measures)),
        "rows": model_encoders.encoded_texts,
        "rows_per_second": speed,
    }


def evaluate_task(task: EvaluationTask, model_encoders: EncodersByPrompt, k: int) -> dict[str, float]:
    if isinstance(task, ScoredPairs):
        return evaluate_pairs(task, model_encoders)
    if isinstance(task, LabelledTexts):
        return evaluate_clustering(task, model_encoders)
    return evaluate_retrieval(task, model_encoders, k)


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


def evaluate_retrieval(task: RetrievalTask, model_encoders: EncodersByPrompt, k: int) -> dict[str, float]:
    """Average the measures over all queries. Documents are streamed: only queries and hits are kept in memory."""
    ids, queries = read_queries(task)
    best = TopK(len(ids), RETRIEVAL_DEPTH)
    document_ids: list[str] = []
    query_vectors = model_encoders.encode(queries, task.make_query_job(model_encoders.job))
    metric = USUAL_METRICS[kind_of(query_vectors)]
    query_vectors = normalize(query_vectors) if metric == "cosine" else query_vectors
    for chunk in read_valid_chunks(task.documents):
        vectors = model_encoders.encode(list(chunk.texts), task.make_document_job(model_encoders.job))
        vectors = normalize(vectors) if metric == "cosine" else vectors
        best.add(score_rows(query_vectors, vectors, metric, are_unit_rows=True), len(document_ids))
        document_ids += map(str, column_to_python(chunk.ids))
    measures = []
    for id, hits in zip(ids, best.to_hits(), strict=True):
        relevance, retrieved = task.grades[id], [document_ids[row] for row in hits.rows.tolist()]
        ndcg, recall = metrics.ndcg(retrieved, relevance, k), metrics.recall(retrieved, relevance, k)
        measures.append((ndcg, recall, metrics.average_precision(retrieved, relevance)))
    means = np.mean(measures, axis=0).tolist()
    return dict(zip((f"ndcg@{k}", f"recall@{k}", "map"), means, strict=True))

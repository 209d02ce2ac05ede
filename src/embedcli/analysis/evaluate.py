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
from embedcli.analysis.text_encoder import Notify, TextEncoder, ignore_message, without_role_note
from embedcli.analysis.topk import TopK, normalize
from embedcli.core.arrow_values import column_to_python
from embedcli.core.job import Job

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array

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

    def encode(self, texts: Sequence[str], job: Job | None = None) -> Float32Array:
        """Encode texts with the prompt and task of `job` (by default those of the model): float32 [len(texts), dim]."""
        encoder = self._encoder(job or self.job)
        start = time.perf_counter()
        vectors = encoder.encode(texts)
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
    first, second = normalize(model_encoders.encode(task.first)), normalize(model_encoders.encode(task.second))
    cosines = np.einsum("ij,ij->i", first, second)
    return {
        "spearman": metrics.spearman(cosines, task.scores),
        "pearson": metrics.pearson(cosines, task.scores),
    }


def evaluate_clustering(task: LabelledTexts, model_encoders: EncodersByPrompt) -> dict[str, float]:
    clusters = metrics.k_means(model_encoders.encode(task.texts), len(set(task.labels)))
    return {"v_measure": metrics.v_measure(task.labels, clusters)}


def evaluate_retrieval(task: RetrievalTask, model_encoders: EncodersByPrompt, k: int) -> dict[str, float]:
    """Average the measures over all queries. Documents are streamed: only queries and hits are kept in memory."""
    ids, queries = read_queries(task)
    best = TopK(len(ids), RETRIEVAL_DEPTH)
    document_ids: list[str] = []
    query_vectors = normalize(model_encoders.encode(queries, task.make_query_job(model_encoders.job)))
    for chunk in read_valid_chunks(task.documents):
        vectors = normalize(model_encoders.encode(list(chunk.texts), task.make_document_job(model_encoders.job)))
        best.add(query_vectors @ vectors.T, len(document_ids))
        document_ids += map(str, column_to_python(chunk.ids))
    measures = []
    for id, hits in zip(ids, best.to_hits(), strict=True):
        relevance, retrieved = task.grades[id], [document_ids[row] for row in hits.rows.tolist()]
        ndcg, recall = metrics.ndcg(retrieved, relevance, k), metrics.recall(retrieved, relevance, k)
        measures.append((ndcg, recall, metrics.average_precision(retrieved, relevance)))
    means = np.mean(measures, axis=0).tolist()
    return dict(zip((f"ndcg@{k}", f"recall@{k}", "map"), means, strict=True))

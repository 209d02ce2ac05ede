"""Encoders measured on labelled data, several of them side by side."""

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
from embedcli.analysis.text_encoder import Notify, TextEncoder, ignore_message
from embedcli.analysis.topk import TopK, normalize
from embedcli.core.arrow_values import column_to_python
from embedcli.core.job import Job

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array

# Rows found per query for MAP, as trec_eval cuts it.
RETRIEVAL_DEPTH = 1000
NDCG_DEPTH = 10


class EncodersByPrompt:
    """The encoders of one model, one for each prompt and task; the texts and seconds they took, without loading."""

    def __init__(self, job: Job, notify: Notify) -> None:
        self.job = job
        self.encoded_texts = 0
        self.encode_seconds = 0.0
        self._notify = notify
        self._loaded: dict[tuple[str, str | None], TextEncoder] = {}

    def encode(self, texts: Sequence[str], job: Job | None = None) -> Float32Array:
        """float32 [len(texts), dim] by the encoder of `job`, which may differ from the model's own in its prompt."""
        encoder = self._encoder(job or self.job)
        begun = time.perf_counter()
        vectors = encoder.encode(texts)
        self.encode_seconds += time.perf_counter() - begun
        self.encoded_texts += len(texts)
        return vectors

    def _encoder(self, job: Job) -> TextEncoder:
        made = encoders.encoder_identity(job)
        key = str(made["prompt"]), made.get("task")
        if key not in self._loaded:
            self._loaded[key] = TextEncoder(job, self._notify)
        return self._loaded[key]

    def close(self) -> None:
        for encoder in self._loaded.values():
            encoder.close()


def evaluate_model(
    job: Job, tasks: Sequence[EvaluationTask], k: int = NDCG_DEPTH, notify: Notify = ignore_message
) -> dict[str, Any]:
    """One model on all tasks: the measures of each, the average of their main (first) ones, rows per second."""
    own = EncodersByPrompt(job, notify)
    try:
        results: list[dict[str, Any]] = [{"name": task.name, "measures": evaluate_task(task, own, k)} for task in tasks]
    finally:
        own.close()
    main = [next(iter(result["measures"].values())) for result in results]
    speed = round(own.encoded_texts / own.encode_seconds, 1) if own.encode_seconds else None
    return {
        "model": job.model,
        "tasks": results,
        "average": float(np.mean(main)),
        "rows": own.encoded_texts,
        "rows_per_second": speed,
    }


def evaluate_task(task: EvaluationTask, own: EncodersByPrompt, k: int) -> dict[str, float]:
    if isinstance(task, ScoredPairs):
        return evaluate_pairs(task, own)
    if isinstance(task, LabelledTexts):
        return evaluate_clustering(task, own)
    return evaluate_retrieval(task, own, k)


def evaluate_pairs(task: ScoredPairs, own: EncodersByPrompt) -> dict[str, float]:
    one, two = normalize(own.encode(task.first)), normalize(own.encode(task.second))
    cosines = np.einsum("ij,ij->i", one, two)
    return {
        "spearman": metrics.spearman(cosines, task.scores),
        "pearson": metrics.pearson(cosines, task.scores),
    }


def evaluate_clustering(task: LabelledTexts, own: EncodersByPrompt) -> dict[str, float]:
    clusters = metrics.k_means(own.encode(task.texts), len(set(task.labels)))
    return {"v_measure": metrics.v_measure(task.labels, clusters)}


def evaluate_retrieval(task: RetrievalTask, own: EncodersByPrompt, k: int) -> dict[str, float]:
    """Means over the queries that have a relevant document. Documents stream: only queries and hits are held."""
    ids, queries = read_queries(task)
    best = TopK(len(ids), RETRIEVAL_DEPTH)
    found_ids: list[str] = []
    asked = normalize(own.encode(queries, task.make_query_job(own.job)))
    for chunk in read_valid_chunks(task.documents):
        vectors = normalize(own.encode(list(chunk.texts), task.make_document_job(own.job)))
        best.add(asked @ vectors.T, len(found_ids))
        found_ids += map(str, column_to_python(chunk.ids))
    each = []
    for id, hit in zip(ids, best.to_hits(), strict=True):
        relevance, found = task.grades[id], [found_ids[row] for row in hit.rows.tolist()]
        each.append(
            (
                metrics.ndcg(found, relevance, k),
                metrics.recall(found, relevance, k),
                metrics.average_precision(found, relevance),
            )
        )
    means = np.mean(each, axis=0).tolist()
    return dict(zip((f"ndcg@{k}", f"recall@{k}", "map"), means, strict=True))

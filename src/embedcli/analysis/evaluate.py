"""Encoders measured on labelled data, several of them side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli import encoders
from embedcli.analysis import metrics
from embedcli.analysis.eval_data import Labelled, Pairs, Retrieval, Task, read_queries, rows_of
from embedcli.analysis.text_encoder import Notify, Texts, quiet
from embedcli.analysis.topk import Best, unit
from embedcli.core.arrow_values import values_of
from embedcli.core.job import Job

if TYPE_CHECKING:
    from embedcli.core.types import Floats

# Rows found per query for MAP, as trec_eval cuts it.
DEPTH = 1000
NDCG_AT = 10


class Encoders:
    """The encoders of one model, one for each prompt and task; the texts and seconds they took, without loading."""

    def __init__(self, job: Job, notify: Notify) -> None:
        self.job = job
        self.count = 0
        self.seconds = 0.0
        self._notify = notify
        self._loaded: dict[tuple[str, str | None], Texts] = {}

    def encode(self, texts: Sequence[str], job: Job | None = None) -> Floats:
        """float32 [len(texts), dim] by the encoder of `job`, which may differ from the model's own in its prompt."""
        encoder = self._encoder(job or self.job)
        begun = time.perf_counter()
        vectors = encoder.encode(texts)
        self.seconds += time.perf_counter() - begun
        self.count += len(texts)
        return vectors

    def _encoder(self, job: Job) -> Texts:
        made = encoders.identity(job)
        key = str(made["prompt"]), made.get("task")
        if key not in self._loaded:
            self._loaded[key] = Texts(job, self._notify)
        return self._loaded[key]

    def close(self) -> None:
        for encoder in self._loaded.values():
            encoder.close()


def evaluate(job: Job, tasks: Sequence[Task], k: int = NDCG_AT, notify: Notify = quiet) -> dict[str, Any]:
    """One model on all tasks: the measures of each, the average of their main (first) ones, rows per second."""
    own = Encoders(job, notify)
    try:
        results: list[dict[str, Any]] = [{"name": task.name, "measures": measured(task, own, k)} for task in tasks]
    finally:
        own.close()
    main = [next(iter(result["measures"].values())) for result in results]
    speed = round(own.count / own.seconds, 1) if own.seconds else None
    return {
        "model": job.model,
        "tasks": results,
        "average": float(np.mean(main)),
        "rows": own.count,
        "rows_per_second": speed,
    }


def measured(task: Task, own: Encoders, k: int) -> dict[str, float]:
    if isinstance(task, Pairs):
        return measured_pairs(task, own)
    if isinstance(task, Labelled):
        return measured_clusters(task, own)
    return measured_retrieval(task, own, k)


def measured_pairs(task: Pairs, own: Encoders) -> dict[str, float]:
    one, two = unit(own.encode(task.first)), unit(own.encode(task.second))
    cosines = np.einsum("ij,ij->i", one, two)
    return {
        "spearman": metrics.spearman(cosines, task.scores),
        "pearson": metrics.pearson(cosines, task.scores),
    }


def measured_clusters(task: Labelled, own: Encoders) -> dict[str, float]:
    clusters = metrics.k_means(own.encode(task.texts), len(set(task.labels)))
    return {"v_measure": metrics.v_measure(task.labels, clusters)}


def measured_retrieval(task: Retrieval, own: Encoders, k: int) -> dict[str, float]:
    """Means over the queries that have a relevant document. Documents stream: only queries and hits are held."""
    ids, queries = read_queries(task)
    best = Best(len(ids), DEPTH)
    found_ids: list[str] = []
    asked = unit(own.encode(queries, task.query_job(own.job)))
    for chunk in rows_of(task.documents):
        vectors = unit(own.encode(list(chunk.texts), task.document_job(own.job)))
        best.add(asked @ vectors.T, len(found_ids))
        found_ids += map(str, values_of(chunk.ids))
    each = []
    for id, hit in zip(ids, best.hits(), strict=True):
        relevance, found = task.relevance[id], [found_ids[row] for row in hit.rows.tolist()]
        each.append(
            (
                metrics.ndcg(found, relevance, k),
                metrics.recall(found, relevance, k),
                metrics.average_precision(found, relevance),
            )
        )
    means = np.mean(each, axis=0).tolist()
    return dict(zip((f"ndcg@{k}", f"recall@{k}", "map"), means, strict=True))

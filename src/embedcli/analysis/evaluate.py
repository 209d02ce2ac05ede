"""Evaluate models on labelled data."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli import encoders, storage
from embedcli.analysis import metrics
from embedcli.analysis.eval_data import EvaluationTask, LabelledTexts, RetrievalTask, ScoredPairs
from embedcli.analysis.fusion import fuse_rankings
from embedcli.analysis.queries import RejectedRows
from embedcli.analysis.retrieval import RETRIEVAL_DEPTH, RetrievedDocuments, measure_retrieval, retrieve_documents
from embedcli.analysis.similarities import row_cosines
from embedcli.analysis.text_encoder import Notify, TextEncoder, ignore_message, without_role_note
from embedcli.core.counts import format_count
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.row_vectors import as_dense
from embedcli.core.types import KIND_ADJECTIVES, Reject

if TYPE_CHECKING:
    from embedcli.analysis.encoded_texts import EncodedTexts
    from embedcli.core.types import VectorKind

NDCG_DEPTH = 10
# What it means that one row of a task, or several, have no vector, by what the rows are.
REJECT_EFFECTS = {
    "queries": ("query without a vector scores 0", "queries without a vector score 0"),
    "documents": ("document without a vector is never found", "documents without a vector are never found"),
    "pairs": ("pair without both vectors has the similarity 0", "pairs without both vectors have the similarity 0"),
}


@dataclass(frozen=True)
class TaskResult:
    """What was measured in one task by vectors of one kind.

    Attributes:
        measures: The measures, the main one first.
        rejects: The queries, documents or pairs without a vector, where there are any.
        retrieved: What was retrieved, in a task that retrieves documents.
    """

    measures: dict[str, float]
    rejects: dict[str, RejectedRows]
    retrieved: RetrievedDocuments | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one model, or of one of its heads, as JSON values, and the result of each task."""

    result: dict[str, Any]
    tasks: list[TaskResult]

    @property
    def name(self) -> str:
        """The model, and its head if several were evaluated."""
        return name_result(self.result)


class EncodersByPrompt:
    """The encoders of one model, one per prompt and task, with counts of texts and seconds (without loading)."""

    def __init__(self, job: Job, notify: Notify) -> None:
        self.job = job
        self.encoded_texts = 0
        self.encode_seconds = 0.0
        self._notify = notify if job.as_ is not None else without_role_note(notify)
        self._loaded: dict[tuple[str, str | None], TextEncoder] = {}

    def encode(self, texts: Sequence[str], job: Job | None = None) -> EncodedTexts:
        """Encode texts with the prompt and task of `job` (by default those of the model)."""
        encoder = self._encoder(job or self.job)
        start = time.perf_counter()
        encoded = encoder.encode_accepted(texts)
        self.encode_seconds += time.perf_counter() - start
        self.encoded_texts += len(texts)
        return encoded

    def _encoder(self, job: Job) -> TextEncoder:
        identity = encoders.encoder_identity(job)
        key = str(identity["prompt"]), identity.get("task")
        if key not in self._loaded:
            self._loaded[key] = TextEncoder(job, self._notify, takes_heads=True)
        return self._loaded[key]

    def close(self) -> None:
        for encoder in self._loaded.values():
            encoder.close()


def evaluate_model(
    job: Job, tasks: Sequence[EvaluationTask], k: int = NDCG_DEPTH, notify: Notify = ignore_message
) -> list[Evaluation]:
    """Evaluate one model on all tasks. The texts are encoded once for all heads of the model that the job names.

    Args:
        job: The job that names the model.
        tasks: The tasks.
        k: Depth of nDCG and recall.
        notify: Receives notes about the model, and about rows that have no vector.

    Returns:
        For each head, or for the model's only kind of vectors: the measures of each task, the average of their first
        measures, rows and rows per second.
    """
    model_encoders = EncodersByPrompt(job, notify)
    try:
        measured = [evaluate_task(task, model_encoders, k) for task in tasks]
    finally:
        model_encoders.close()
    speed = (
        round(model_encoders.encoded_texts / model_encoders.encode_seconds, 1)
        if model_encoders.encode_seconds
        else None
    )
    heads = list(measured[0])
    evaluations = []
    for head in heads:
        results = [by_head[head] for by_head in measured]
        facts = {
            "model": job.model,
            "head": head if len(heads) > 1 else None,
            **summarize_measures(tasks, results),
            "rows": model_encoders.encoded_texts,
            "rows_per_second": speed,
        }
        evaluations.append(Evaluation(facts, results))
        for task, result in zip(tasks, results, strict=True):
            for rows, counter in result.rejects.items():
                notify(describe_rejects(f"{task.name}, {evaluations[-1].name}", rows, counter))
    return evaluations


def evaluate_task(task: EvaluationTask, model_encoders: EncodersByPrompt, k: int) -> dict[VectorKind, TaskResult]:
    """Evaluate a model on one task, by each of its heads."""
    if isinstance(task, RetrievalTask):
        retrieved = retrieve_documents(task, model_encoders)
        return {kind: summarize_retrieval(task, documents, k) for kind, documents in retrieved.items()}
    if isinstance(task, ScoredPairs):
        return evaluate_pairs(task, model_encoders)
    return {"dense": TaskResult(evaluate_clustering(task, model_encoders), {})}


def summarize_retrieval(task: RetrievalTask, found: RetrievedDocuments, k: int) -> TaskResult:
    queries = RejectedRows()
    for reject in found.rejected_queries.values():
        queries.add(reject)
    rejects = {"queries": queries, "documents": found.rejected_documents}
    counted = {rows: counter for rows, counter in rejects.items() if counter.count}
    return TaskResult(measure_retrieval(task, found, k), counted, found)


def describe_rejects(where: str, rows: str, counter: RejectedRows) -> str:
    """Return a note on rows of a task that have no vector."""
    return f"{where}: {format_count(counter.count, *REJECT_EFFECTS[rows])}; first: {counter.format_first()}"


def name_result(result: Mapping[str, Any]) -> str:
    """Return the name of an evaluation's result: the model, and its head if several were evaluated."""
    return f"{result['model']} {result['head']}" if result["head"] else str(result["model"])


def summarize_measures(tasks: Sequence[EvaluationTask], results: Sequence[TaskResult]) -> dict[str, Any]:
    """Return the measures and rejects of each task, and the average of their first measures, as JSON values."""
    return {
        "tasks": [
            {
                "name": task.name,
                "measures": result.measures,
                "without_vectors": {rows: counter.as_json() for rows, counter in result.rejects.items()},
            }
            for task, result in zip(tasks, results, strict=True)
        ],
        "average": float(np.mean([next(iter(result.measures.values())) for result in results])),
    }


def evaluate_fusion(
    tasks: Sequence[RetrievalTask], evaluations: Sequence[Evaluation], k: int = NDCG_DEPTH
) -> dict[str, Any]:
    """Fuse by reciprocal rank what several models or heads retrieved, and measure it as `evaluate_model` does.

    Args:
        tasks: The tasks.
        evaluations: Two or more on these tasks.
        k: Depth of nDCG and recall.
    """
    results = []
    for number, task in enumerate(tasks):
        found = [evaluation.tasks[number].retrieved for evaluation in evaluations]
        results.append(summarize_retrieval(task, fuse_retrieved([each for each in found if each is not None]), k))
    return {
        "model": "rrf",
        "head": None,
        "fused": [evaluation.name for evaluation in evaluations],
        **summarize_measures(tasks, results),
        "rows": 0,
        "rows_per_second": None,
    }


def fuse_retrieved(found: Sequence[RetrievedDocuments]) -> RetrievedDocuments:
    """Fuse what was retrieved for the same queries from the same documents; a query needs a vector of one of them."""
    rankings = zip(*([hits.rows for hits in each.hits] for each in found), strict=True)
    fused = [fuse_rankings(of_query, RETRIEVAL_DEPTH) for of_query in rankings]
    rejected = {
        id: reject
        for id, reject in found[0].rejected_queries.items()
        if all(id in each.rejected_queries for each in found)
    }
    return RetrievedDocuments(found[0].query_ids, found[0].document_ids, fused, rejected)


def evaluate_pairs(task: ScoredPairs, model_encoders: EncodersByPrompt) -> dict[VectorKind, TaskResult]:
    """Compare the cosines of pairs with their scores, by each head; a pair has the cosine 0 if a text has no vector."""
    first, second = (model_encoders.encode(texts).split_heads() for texts in (task.first, task.second))
    if "multi_vector" in first:
        raise UsageError(
            f"{model_encoders.job.model} computes {KIND_ADJECTIVES['multi_vector']} vectors, whose MaxSim compares a "
            "query with a document, and pairs have neither",
            "use --queries and --relevance to evaluate it",
        )
    return {kind: measure_pairs(task, first[kind], second[kind]) for kind in first}


def measure_pairs(task: ScoredPairs, first: EncodedTexts, second: EncodedTexts) -> TaskResult:
    """Measure the correlation of the cosines of pairs with their scores."""
    cosines = np.zeros(len(task.scores))
    both, at_first, at_second = np.intersect1d(first.positions, second.positions, return_indices=True)
    cosines[both] = row_cosines(first.vectors[at_first], second.vectors[at_second])
    rejects = RejectedRows()
    for position, reason in sorted({**second.rejects, **first.rejects}.items()):
        rejects.add(Reject(storage.format_path(task.path), task.lines[position], reason))
    measures = {
        "spearman": metrics.spearman(cosines, task.scores),
        "pearson": metrics.pearson(cosines, task.scores),
    }
    return TaskResult(measures, {"pairs": rejects} if rejects.count else {})


def evaluate_clustering(task: LabelledTexts, model_encoders: EncodersByPrompt) -> dict[str, float]:
    encoded = model_encoders.encode(task.texts)
    kind = next((kind for kind in encoded.split_heads() if kind != "dense"), None)
    if kind is not None:
        raise UsageError(
            f"{model_encoders.job.model} computes {KIND_ADJECTIVES[kind]} vectors, and k-means needs dense ones",
            "use --queries and --relevance to evaluate it",
        )
    clusters = metrics.k_means(as_dense(encoded.require_all()), len(set(task.labels)))
    return {"v_measure": metrics.v_measure(task.labels, clusters)}

"""Labelled data for `eval`: pairs with scores, queries with relevant documents, rows with labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedcli import readers, storage
from embedcli.core.arrow_values import column_to_python
from embedcli.core.errors import InputError, UsageError
from embedcli.core.job import Job
from embedcli.core.types import Chunk
from embedcli.readers.preview import preview_input

# Column names that are taken without asking, in this order.
PAIR_COLUMNS = (
    ("text_a", "sentence1", "sentence_1", "sentence_a", "text1", "text_1", "anchor"),
    ("text_b", "sentence2", "sentence_2", "sentence_b", "text2", "text_2", "positive"),
    ("score", "label", "similarity", "similarity_score", "relatedness_score"),
)
RELEVANCE_COLUMNS = (
    ("query_id", "query-id", "qid", "query"),
    ("document_id", "doc_id", "corpus_id", "corpus-id", "docid", "document", "id"),
    ("relevance", "score", "label", "rel", "grade"),
)
LABEL_COLUMNS = ("label", "labels", "cluster", "category", "topic", "class")
PREVIEW_ROWS = 100


@dataclass(frozen=True)
class ScoredPairs:
    """Two texts and how similar people find them, row by row."""

    name: str
    first: list[str]
    second: list[str]
    scores: list[float]


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, documents, and which documents count for a query. Rows are read when they are encoded."""

    name: str
    queries: Job
    documents: Job
    grades: dict[str, dict[str, float]]
    query_prompt: str | None = None
    document_prompt: str | None = None

    def make_query_job(self, job: Job) -> Job:
        return replace(job, as_="query", prompt=self.query_prompt, prompt_name=None)

    def make_document_job(self, job: Job) -> Job:
        return replace(job, as_="document", prompt=self.document_prompt, prompt_name=None)


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and the group each belongs to."""

    name: str
    texts: list[str]
    labels: list[str]


EvaluationTask = ScoredPairs | RetrievalTask | LabelledTexts


# Reading


def read_pairs(job: Job, path: str, columns: Sequence[str] | None = None) -> ScoredPairs:
    """The pairs of a file. `columns` names both texts and the score; InputError, with its line, for a bad row."""
    first, second, score = columns or guess_columns(job, path, PAIR_COLUMNS, "--columns TEXT_A,TEXT_B,SCORE")
    made = ScoredPairs(dataset_name(path), [], [], [])
    for chunk in read_valid_chunks(replace(job, inputs=(path,), text_column=first, keep=(second, score)), "--columns"):
        others, scores = (
            column_to_python(chunk.kept_columns.column(second)),
            column_to_python(chunk.kept_columns.column(score)),
        )
        for line, one, two, value in zip(chunk.lines, chunk.texts, others, scores, strict=True):
            if not isinstance(two, str) or not two.strip():
                raise InputError(f"{storage.format_location(path, line)}: {second} is empty or no text", "mend the row")
            made.first.append(one)
            made.second.append(two)
            made.scores.append(parse_number(value, score, path, line))
    if len(made.scores) < 2:
        raise InputError(
            f"{storage.format_location(path)}: a correlation needs two pairs, and it has {len(made.scores)}",
            "give more pairs",
        )
    return made


def read_labelled_texts(job: Job, path: str, label: str | None = None) -> LabelledTexts:
    """The texts of a file and their labels."""
    name = label or guess_columns(job, path, (LABEL_COLUMNS,), "--label COLUMN")[0]
    made = LabelledTexts(dataset_name(path), [], [])
    for chunk in read_valid_chunks(replace(job, inputs=(path,), keep=(name,)), "--label"):
        for line, text, value in zip(
            chunk.lines, chunk.texts, column_to_python(chunk.kept_columns.column(name)), strict=True
        ):
            if value is None:
                raise InputError(f"{storage.format_location(path, line)}: {name} is missing", "mend the row")
            made.texts.append(text)
            made.labels.append(str(value))
    return made


def read_retrieval(job: Job, documents: str, queries: str, relevance: str) -> RetrievalTask:
    """A retrieval task: documents are only named here, and read when they are encoded."""
    made = read_relevance(job, relevance)
    reading = replace(job, inputs=(documents,))
    return RetrievalTask(dataset_name(documents), replace(job, inputs=(queries,)), reading, made)


def read_relevance(job: Job, path: str) -> dict[str, dict[str, float]]:
    """{query id: {document id: relevance}} from a table with a header, or from TREC's four columns without one."""
    trec = list(_trec_lines(path))
    if trec:
        rows: Iterator[tuple[str, str, float]] = iter(trec)
    else:
        rows = _relevance_rows(job, path)
    made: dict[str, dict[str, float]] = {}
    for query, document, value in rows:
        made.setdefault(query, {})[document] = value
    return made


def _relevance_rows(job: Job, path: str) -> Iterator[tuple[str, str, float]]:
    query, document, grade = guess_columns(
        job, path, RELEVANCE_COLUMNS, "columns named query_id, document_id, relevance"
    )
    # A template takes whole numbers as text too.
    reading = replace(job, inputs=(path,), text_column=None, template=f"{{{document}}}", keep=(query, grade))
    for chunk in read_valid_chunks(reading):
        kept = (column_to_python(chunk.kept_columns.column(query)), column_to_python(chunk.kept_columns.column(grade)))
        for line, id, asked, value in zip(chunk.lines, chunk.texts, *kept, strict=True):
            yield str(asked), id, parse_number(value, grade, path, line)


def _trec_lines(path: str) -> Iterator[tuple[str, str, float]]:
    """`query iteration document relevance`, separated by white space; nothing for a file of another kind."""
    with storage.open_input(path, preview=True) as source:
        first = source.read().split(b"\n", 1)[0].split()
    if len(first) != 4 or not first[3].lstrip(b"-").isdigit():
        return
    with open(path, encoding="utf-8") as lines:
        for number_, line in enumerate(lines, 1):
            fields = line.split()
            if len(fields) != 4:
                raise InputError(
                    f"{storage.format_location(path, number_)}: has {len(fields)} fields, not four",
                    "write TREC qrels: query_id iteration document_id relevance",
                )
            yield fields[0], fields[2], parse_number(fields[3], "relevance", path, number_)


def read_queries(task: RetrievalTask) -> tuple[list[str], list[str]]:
    """Ids and texts of the queries that have a relevant document. InputError if there are none."""
    ids, texts = [], []
    for chunk in read_valid_chunks(task.queries):
        for id, text in zip(map(str, column_to_python(chunk.ids)), chunk.texts, strict=True):
            if any(grade > 0 for grade in task.grades.get(id, {}).values()):
                ids.append(id)
                texts.append(text)
    if not ids:
        raise InputError(
            f"{task.queries.inputs[0]}: no query has a relevant document",
            "check that the ids in the files are the same",
        )
    return ids, texts


def read_valid_chunks(job: Job, keep_option: str = "--keep") -> Iterator[Chunk]:
    """The rows of a file, all of them good: InputError, with its line, at the first that is not.

    `keep_option` is the option of `eval` that names the columns in `job.keep`, for error messages.
    """
    plan = readers.plan_inputs(job, keep_option)
    for chunk in readers.read_chunks(job, plan, plan.splits):
        for reject in chunk.rejects:
            raise InputError(f"{storage.format_location(reject.source, reject.line)}: {reject.reason}", "mend the row")
        yield chunk


def guess_columns(job: Job, path: str, names: Sequence[Sequence[str]], remedy: str) -> list[str]:
    """For each group of names the first that is a column of the file. UsageError if one has none."""
    there = {name.lower(): name for name in preview_input(path, job.format, job.encoding, PREVIEW_ROWS).column_types}
    found = [next((there[name] for name in group if name in there), None) for group in names]
    for group, name in zip(names, found, strict=True):
        if name is None:
            raise UsageError(
                f"{storage.format_location(path)}: has none of the columns {', '.join(group)}; "
                f"its columns are {', '.join(there.values()) or 'none'}",
                f"give {remedy}",
            )
    return [name for name in found if name is not None]


def parse_number(value: Any, column: str, path: str, line: int) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(
            f"{storage.format_location(path, line)}: {column} is {value!r}, not a number", "mend the row"
        ) from None


def dataset_name(path: str) -> str:
    """A file's name without folder and endings."""
    return Path(path).name.split(".")[0] or path

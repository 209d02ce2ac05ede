"""Read labelled data for `embedcli eval`: scored pairs, queries with relevant documents, labelled texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedcli import readers, storage
from embedcli.analysis.metrics import require_scikit_learn
from embedcli.analysis.queries import SearchQuery, read_queries
from embedcli.core.arrow_values import column_to_python
from embedcli.core.errors import InputError, UsageError
from embedcli.core.job import Job
from embedcli.core.types import Chunk, Reject
from embedcli.readers.csv_dialect import CsvOptions
from embedcli.readers.preview import preview_input

# Column names that are recognised, in order of preference.
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
    """Pairs of texts with the similarity that people gave them."""

    name: str
    first: list[str]
    second: list[str]
    scores: list[float]
    path: str
    lines: list[int]


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, documents, and the relevance of documents to queries. Rows are read when they are encoded."""

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
    """Texts and the label of each."""

    name: str
    texts: list[str]
    labels: list[str]


EvaluationTask = ScoredPairs | RetrievalTask | LabelledTexts


# Reading


def read_pairs(job: Job, path: str, columns: Sequence[str] | None = None) -> ScoredPairs:
    """Read scored pairs.

    Args:
        job: Input options, such as format and encoding.
        path: The file.
        columns: Names of both text columns and the score column; guessed by default.

    Raises:
        InputError: A row is bad, or there are fewer than two pairs.
        UsageError: A column does not exist or cannot be guessed.
    """
    if columns is not None:
        check_columns(job, path, columns, "--columns")
    first, second, score = columns or guess_columns(job, path, PAIR_COLUMNS, "--columns TEXT_A,TEXT_B,SCORE")
    pairs = ScoredPairs(dataset_name(path), [], [], [], path, [])
    for chunk in read_valid_chunks(replace(job, inputs=(path,), text_column=first, keep=(second, score)), "--columns"):
        second_texts = column_to_python(chunk.kept_columns.column(second))
        scores = column_to_python(chunk.kept_columns.column(score))
        for line, first_text, second_text, value in zip(chunk.lines, chunk.texts, second_texts, scores, strict=True):
            if not isinstance(second_text, str) or not second_text.strip():
                location = storage.format_location(path, line)
                raise InputError(f"{location}: {second} is empty or not a string", "fix the row")
            pairs.first.append(first_text)
            pairs.second.append(second_text)
            pairs.scores.append(parse_number(value, score, path, line))
            pairs.lines.append(line)
    if len(pairs.scores) < 2:
        raise InputError(
            f"{storage.format_location(path)}: a correlation needs two pairs, the file has {len(pairs.scores)}",
            "add more pairs",
        )
    return pairs


def read_labelled_texts(job: Job, path: str, label: str | None = None) -> LabelledTexts:
    """Read texts and their labels.

    Args:
        job: Input options, such as format and encoding.
        path: The file.
        label: Name of the label column; guessed by default.

    Raises:
        InputError: A row is bad or has no label.
        UsageError: A column does not exist or cannot be guessed, or scikit-learn is not installed.
    """
    require_scikit_learn()
    name = label or guess_columns(job, path, (LABEL_COLUMNS,), "--label COLUMN")[0]
    labelled = LabelledTexts(dataset_name(path), [], [])
    for chunk in read_valid_chunks(replace(job, inputs=(path,), keep=(name,)), "--label"):
        for line, text, value in zip(
            chunk.lines, chunk.texts, column_to_python(chunk.kept_columns.column(name)), strict=True
        ):
            if value is None:
                raise InputError(f"{storage.format_location(path, line)}: {name} is missing", "fix the row")
            labelled.texts.append(text)
            labelled.labels.append(str(value))
    return labelled


def read_retrieval(job: Job, documents: str, queries: str, relevance: str) -> RetrievalTask:
    """Read the relevance of a retrieval task; queries and documents are read when they are encoded."""
    return RetrievalTask(
        name=dataset_name(documents),
        queries=replace(job, inputs=(queries,)),
        documents=replace(job, inputs=(documents,)),
        grades=read_relevance(job, relevance),
    )


def read_relevance(job: Job, path: str) -> dict[str, dict[str, float]]:
    """Read {query id: {document id: relevance}} from a table with named columns or from TREC qrels."""
    grades: dict[str, dict[str, float]] = {}
    for query, document, grade in list(_read_trec_qrels(path)) or _read_relevance_table(job, path):
        grades.setdefault(query, {})[document] = grade
    return grades


def _read_relevance_table(job: Job, path: str) -> Iterator[tuple[str, str, float]]:
    query, document, grade = guess_columns(
        job, path, RELEVANCE_COLUMNS, "columns named query_id, document_id, relevance"
    )
    # A template accepts integer ids, a text column only strings.
    relevance_job = replace(job, inputs=(path,), text_column=None, template=f"{{{document}}}", keep=(query, grade))
    for chunk in read_valid_chunks(relevance_job):
        kept = (column_to_python(chunk.kept_columns.column(query)), column_to_python(chunk.kept_columns.column(grade)))
        for line, document_id, query_id, value in zip(chunk.lines, chunk.texts, *kept, strict=True):
            yield str(query_id), document_id, parse_number(value, grade, path, line)


def _read_trec_qrels(path: str) -> Iterator[tuple[str, str, float]]:
    """Yield the rows of `query iteration document relevance` separated by white space; nothing for other formats."""
    with storage.open_input(path, preview=True) as source:
        first = source.read().split(b"\n", 1)[0].split()
    if len(first) != 4 or not first[3].lstrip(b"-").isdigit():
        return
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if len(fields) != 4:
                raise InputError(
                    f"{storage.format_location(path, number)}: has {len(fields)} fields instead of four",
                    "write TREC qrels: query_id iteration document_id relevance",
                )
            yield fields[0], fields[2], parse_number(fields[3], "relevance", path, number)


@dataclass(frozen=True)
class JudgedQueries:
    """The queries of a task that have a relevant document.

    Attributes:
        accepted: Those with a text.
        rejects: Rows of the file that have no text to encode.
    """

    accepted: list[SearchQuery]
    rejects: list[Reject]


def read_judged_queries(task: RetrievalTask) -> JudgedQueries:
    """Read the queries that have a relevant document.

    Raises:
        InputError: A row is bad and its id is not known, or no query has a relevant document.
    """

    def is_judged(id: Any) -> bool:
        return any(grade > 0 for grade in task.grades.get(str(id), {}).values())

    rejects: list[Reject] = []
    queries = read_queries(task.queries, lambda reject: rejects.append(require_id(reject)))
    judged = JudgedQueries([query for query in queries if is_judged(query.id)], [])
    judged.rejects.extend(reject for reject in rejects if is_judged(reject.id))
    if not judged.accepted and not judged.rejects:
        raise InputError(
            f"{task.queries.inputs[0]}: no query has a relevant document",
            "check that all files use the same ids",
        )
    return judged


def read_documents(task: RetrievalTask) -> Iterator[Chunk]:
    """Yield the chunks of the documents. Raises InputError for a bad row whose id is not known."""
    plan = readers.plan_inputs(task.documents)
    for chunk in readers.read_chunks(task.documents, plan, plan.splits):
        for reject in chunk.rejects:
            require_id(reject)
        yield chunk


def require_id(reject: Reject) -> Reject:
    """Return a row that has no text to encode. Raises InputError if its id, by which rows are judged, is not known."""
    if reject.id is None:
        raise InputError(f"{storage.format_location(reject.source, reject.line)}: {reject.reason}", "fix the row")
    return reject


def read_valid_chunks(job: Job, keep_option: str = "--keep") -> Iterator[Chunk]:
    """Yield the chunks of a file in which every row must be valid.

    Args:
        job: The job that names the file.
        keep_option: Option of `eval` that names the columns in `job.keep`, for error messages.

    Raises:
        InputError: A row is rejected.
    """
    plan = readers.plan_inputs(job, keep_option)
    for chunk in readers.read_chunks(job, plan, plan.splits):
        for reject in chunk.rejects:
            raise InputError(f"{storage.format_location(reject.source, reject.line)}: {reject.reason}", "fix the row")
        yield chunk


def guess_columns(job: Job, path: str, names: Sequence[Sequence[str]], remedy: str) -> list[str]:
    """Find for each group of names the first that is a column of the file.

    Raises:
        UsageError: The file has no column of a group; the hint is `remedy`.
    """
    preview = preview_input(path, job.format, job.encoding, PREVIEW_ROWS, csv_options=CsvOptions.from_job(job))
    columns = {name.lower(): name for name in preview.column_types}
    matches = [next((columns[name] for name in group if name in columns), None) for group in names]
    for group, name in zip(names, matches, strict=True):
        if name is None:
            raise UsageError(
                f"{storage.format_location(path)}: has none of the columns {', '.join(group)}; "
                f"its columns are {', '.join(columns.values()) or 'none'}",
                f"give {remedy}",
            )
    return [name for name in matches if name is not None]


def check_columns(job: Job, path: str, names: Sequence[str], option: str) -> None:
    """Raise UsageError, which names the option, for a column that a file does not have."""
    preview = preview_input(path, job.format, job.encoding, PREVIEW_ROWS, csv_options=CsvOptions.from_job(job))
    columns = [*preview.flat_column_types, *preview.partition_types]
    for name in names:
        if name not in columns and preview.shows_all_rows:
            raise UsageError(
                f"{storage.format_location(path)}: {option}: there is no column {name!r}; "
                f"its columns are {', '.join(map(repr, columns)) or 'none'}",
                f"use three of these with {option}",
            )


def parse_number(value: Any, column: str, path: str, line: int) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(
            f"{storage.format_location(path, line)}: {column} is {value!r}, not a number", "fix the row"
        ) from None


def dataset_name(path: str) -> str:
    """Return a file's name without folder and extensions."""
    return Path(path).name.split(".")[0] or path

"""Embed files from Python, as `embedcli encode` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from embedcli import runners
from embedcli.api.observers import Notify, log, log_note, watch_progress
from embedcli.api.options import FileOptions, PathLike, build_job, with_options
from embedcli.api.texts import list_columns
from embedcli.core.constants import DEFAULT_MODEL
from embedcli.core.counts import format_count
from embedcli.core.errors import UsageError
from embedcli.core.types import RunResult
from embedcli.outputs.target import resolve_target
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector

if TYPE_CHECKING:
    from typing import Unpack

    from embedcli.core.job import Job


@dataclass(frozen=True, repr=False)
class FileResult(RunResult):
    """The result of `encode_file`.

    Attributes:
        output: The output.
        exit_code: 0 if all rows were embedded, 3 if some were rejected, 75 if a limit stopped the run early.
        reason: Why the run ended.
        totals: Counts of the whole job by name, earlier runs of it included.
        vector_space: The vector space metadata of the output.
        files: The files that this run has published.
        rejects_file: The JSONL file with the rejected rows and their reasons; None if there are none.
    """

    output: str = ""
    rejects_file: str | None = None

    @property
    def rows(self) -> int:
        """Rows that have a vector."""
        return self.totals["rows"]

    @property
    def rejects(self) -> int:
        """Rows that have none."""
        return self.totals["rejects"]

    @property
    def is_complete(self) -> bool:
        """Whether the output is published: no limit has stopped the run early."""
        return self.exit_code in (0, 3)

    def __repr__(self) -> str:
        dim = self.vector_space.get("truncate_dim") or self.vector_space.get("dim")
        parts = [f"{format_count(self.rows, 'row')} in {self.output}" + (f", {dim} dimensions" if dim else "")]
        if not self.is_complete:
            parts = [f"{format_count(self.rows, 'row')} of {self.output} so far: {self.reason}"]
        if self.rejects:
            parts.append(f"{self.rejects:,} rejected" + (f", see {self.rejects_file}" if self.rejects_file else ""))
        return f"<embedcli.FileResult {'; '.join(parts)}; exit code {self.exit_code}>"


@with_options(FileOptions)
def encode_file(
    inputs: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    model: PathLike = DEFAULT_MODEL,
    notify: Notify | None = None,
    show_progress_bar: bool | None = None,
    **options: Unpack[FileOptions],
) -> FileResult:
    """Embed the rows of files into an output, as `embedcli encode INPUTS OUTPUT` does.

    Args:
        inputs: A file, folder, glob or address, or several.
        output: The output. It appears complete or not at all; an interrupted job is continued.
        model: As for `load`.
        notify: Is called with each note that the command line would print; by default they are logged at INFO, with
            the logger "embedcli". Rejected rows are logged at WARNING in any case.
        show_progress_bar: As for `Model.encode`.
        options: The options of `embedcli encode`, with underscores: `keep=["title"]`, `precision="int8"`,
            `overwrite=True`...

    Returns:
        The counts, the files and the exit code of the command.

    Raises:
        EmbedcliError: Where the command would end with exit code 1 or 2.
    """
    if list_columns(inputs) is not None:
        raise UsageError(
            f"encode_file takes the paths of files, and got a {type(inputs).__name__}",
            "use embedcli.embed_table, which adds a column of vectors to a table in memory",
        )
    several = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    job = build_job(several, output, model, dict(options), "encode_file")
    with watch_progress(show_progress_bar, notify or log_note) as observer:
        result = runners.execute_job(job, observer, RunControl(job.stop_after, job.max_seconds), MetricsCollector())
    described = describe_result(job, result)
    if described.rejects:
        log.warning("%r", described)
    return described


def describe_result(job: Job, result: RunResult) -> FileResult:
    """The result of a job as Python programs get it."""
    known: dict[str, Any] = {each.name: getattr(result, each.name) for each in fields(result)}
    described = FileResult(**known, output=job.output)
    if not described.rejects or not described.is_complete or job.output == "-":
        return described
    return replace(described, rejects_file=resolve_target(job.output, job.to).rejects_path)

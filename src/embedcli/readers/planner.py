"""Plan what a job will read before a model is loaded: splits, formats and columns."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from embedcli import storage
from embedcli.core.constants import PART_FILE_PATTERN, STAGING_FOLDER
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.types import InputPlan, InputSplit, Partition
from embedcli.outputs import lance as lance_output
from embedcli.outputs import target as output_target
from embedcli.readers.columns import resolve_columns
from embedcli.readers.csv_dialect import CsvOptions
from embedcli.readers.decoding import normalize_encoding_name
from embedcli.readers.preview import InputPreview, preview_input

# Types of JSONL columns are inferred from this many rows of all inputs together.
PREVIEW_ROWS = 1000
# At least this many rows of each input are previewed to see whether it has the columns.
MIN_PREVIEW_ROWS = 100


def plan_inputs(job: Job, keep_option: str = "--keep") -> InputPlan:
    """List the inputs, preview each, resolve the columns, and split the inputs.

    Of Parquet only the footer is read, of other files the first rows.

    Args:
        job: The job whose inputs are read.
        keep_option: The option that named the columns in `job.keep`, for error messages.

    Returns:
        The plan.

    Raises:
        UsageError: The inputs, the columns or the template are wrong.
        InputError: An input cannot be read.
    """
    encoding = normalize_encoding_name(job.encoding)
    csv_options = CsvOptions.from_job(job)
    previews: list[InputPreview] = []
    rows: list[dict[str, Any]] = []
    paths = list_inputs(job)
    # Before anything is read: a file that grows during planning must look changed afterwards.
    file_stats = storage.file_identities([path for path in paths if storage.is_local(path)])
    prefetched = storage.PrefetchedFiles()
    for path in prefetched.iterate(paths, lambda path: path):
        max_rows = max(MIN_PREVIEW_ROWS, PREVIEW_ROWS - len(rows))
        preview = preview_input(path, job.format, encoding, max_rows, prefetched, csv_options)
        rows += preview.rows[: PREVIEW_ROWS - len(rows)]
        previews.append(replace(preview, rows=()))
    ranges = [(preview, start, stop) for preview in previews for start, stop in preview.ranges]
    return InputPlan(
        splits=tuple(
            InputSplit(i, preview.path, start, stop, preview.unit) for i, (preview, start, stop) in enumerate(ranges)
        ),
        columns=resolve_columns(job, previews, rows, keep_option),
        formats={preview.path: preview.format for preview in previews},
        total_bytes=sum_if_known([preview.size_bytes for preview in previews]),
        total_rows=sum_if_known([preview.total_rows for preview in previews]),
        rows_per_split=array("q", (estimate_rows(preview, start, stop) for preview, start, stop in ranges)),
        file_stats=file_stats,
    )


def estimate_rows(preview: InputPreview, start: int, stop: int | None) -> int:
    """Estimate the rows of a split from the size of the first rows; exact for Parquet."""
    if preview.unit == "rows":
        return (stop or 0) - start
    size = (stop if stop is not None else preview.size_bytes or 0) - start
    return max(1, int(size / preview.bytes_per_row))


def group_into_partitions(plan: InputPlan, rows: int) -> list[Partition]:
    """Group the splits of a plan into partitions of about `rows` rows; the same on every machine.

    Splits are never cut: a split with more rows is a partition alone.
    """
    partitions: list[Partition] = []
    splits: list[InputSplit] = []
    row_count = 0
    for input_split, split_rows in zip(plan.splits, plan.rows_per_split, strict=True):
        if splits and row_count + split_rows > rows:
            partitions.append(Partition(len(partitions), tuple(splits)))
            splits, row_count = [], 0
        splits.append(input_split)
        row_count += split_rows
    return [*partitions, Partition(len(partitions), tuple(splits))] if splits else partitions


def sum_if_known(numbers: list[int | None]) -> int | None:
    """The sum, or None if one is not known."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def list_inputs(job: Job) -> tuple[str, ...]:
    """List the input files, without files that the job itself writes.

    Raises:
        UsageError: An input is the output, or the output would overwrite it, or no input is left.
    """
    paths = storage.expand_inputs(job.inputs)
    if job.output == "-":
        return paths
    is_own = own_output_matcher(job.output)
    conflict = next(
        (
            path
            for path in job.inputs
            if is_own(canonical_path(path)) or canonical_path(path) == canonical_path(job.output)
        ),
        None,
    )
    if conflict is not None:
        raise UsageError(f"{storage.format_location(conflict)}: is the input and the output", "choose another output")
    remaining = tuple(path for path in paths if not is_own(canonical_path(path)))
    if not remaining:
        raise UsageError(
            f"{storage.format_location(job.output)}: every input is part of the output", "choose another output"
        )
    check_inputs_survive(job, remaining)
    return remaining


def canonical_path(path: str) -> str:
    """The same name for every spelling of a path, with links resolved; URLs without secrets."""
    return os.path.realpath(path) if storage.is_local(path) else storage.mask_secrets(path.rstrip("/"))


def own_output_matcher(output: str) -> Callable[[str], bool]:
    """Return a function that tells whether a canonical path is a file that a job with this output writes.

    In a folder output these are the staging folder, names that begin with `_`, and published files. Other files there
    are input like any other.
    """
    real = canonical_path(output)
    if lance_output.is_lance(output):
        folders = (f"{real}.parts/", f"{real}/")
        return lambda path: path in (real, f"{real}.rejects.jsonl") or path.startswith(folders)
    if output.endswith("/") or storage.is_folder(output):
        return _folder_matcher(real, output_target.own_file_matcher(output))
    names = {real, f"{real}.rejects.jsonl", f"{real}.space.json", f"{real.removesuffix('.npy')}.ids.parquet"}
    return lambda path: path in names or path.startswith(f"{real}.parts/")


def _folder_matcher(real: str, is_published: Callable[[str], bool]) -> Callable[[str], bool]:
    def is_own(path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if folder == real and (name.startswith("_") or is_published(name)):
            return True
        return path.startswith(f"{real}/{STAGING_FOLDER}/")

    return is_own


def check_inputs_survive(job: Job, paths: Sequence[str]) -> None:
    """UsageError if an input in the output folder has a name that the output may need for its own files."""
    folder = canonical_path(job.output)
    for path in paths if not lance_output.is_lance(job.output) else ():
        parent, _, name = canonical_path(path).rpartition("/")
        if parent == folder and re.match(PART_FILE_PATTERN, name):
            raise UsageError(
                f"{storage.format_location(path)}: is an input, and the output may need its name",
                "choose another output folder",
            )

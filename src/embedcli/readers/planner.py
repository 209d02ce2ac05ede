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
from embedcli.readers import own_files
from embedcli.readers.columns import resolve_columns
from embedcli.readers.csv_dialect import CsvOptions
from embedcli.readers.decoding import normalize_encoding_name
from embedcli.readers.partition_columns import add_partition_types
from embedcli.readers.preview import InputPreview, preview_input
from embedcli.readers.row_limit import limit_plan

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
    listing = list_inputs(job)
    # Before anything is read: a file that grows during planning must look changed afterwards.
    file_stats = storage.file_states([path for path in listing.paths if storage.is_local(path)])
    previews, rows, notes = preview_inputs(job, listing)
    previews = add_partition_types(previews)
    columns = resolve_columns(job, previews, rows, keep_option)
    ranges = [(preview, start, stop) for preview in previews for start, stop in preview.ranges]
    plan = InputPlan(
        splits=tuple(
            InputSplit(i, preview.path, start, stop, preview.unit) for i, (preview, start, stop) in enumerate(ranges)
        ),
        columns=replace(columns, notes=(*notes, *columns.notes)),
        formats={preview.path: preview.format for preview in previews},
        total_bytes=sum_if_known([preview.size_bytes for preview in previews]),
        total_rows=sum_if_known([preview.total_rows for preview in previews]),
        rows_per_split=array("q", (estimate_rows(preview, start, stop) for preview, start, stop in ranges)),
        encodings={preview.path: preview.marked_encoding for preview in previews if preview.marked_encoding},
        file_stats={path: file_stats[path] for preview in previews if (path := preview.path) in file_stats},
    )
    return plan if job.limit is None else limit_plan(job, plan, job.limit)


def preview_inputs(
    job: Job, listing: storage.InputListing
) -> tuple[list[InputPreview], list[dict[str, Any]], list[str]]:
    """Preview the inputs, and leave out files of folders and globs that embedcli wrote.

    Returns:
        The previews, the first JSONL rows of all inputs together, and notes about what was left out.

    Raises:
        UsageError: No input is left, or the format of one cannot be detected.
        InputError: An input cannot be read.
    """
    encoding, csv_options = normalize_encoding_name(job.encoding), CsvOptions.from_job(job)
    kinds = {path: kind for path in listing.origins if (kind := own_files.recognize_by_name(path)) is not None}
    previews: list[InputPreview] = []
    rows: list[dict[str, Any]] = []
    prefetched = storage.PrefetchedFiles()
    for path in prefetched.iterate([path for path in listing.paths if path not in kinds], lambda path: path):
        max_rows = max(MIN_PREVIEW_ROWS, PREVIEW_ROWS - len(rows))
        preview = preview_input(path, job.format, encoding, max_rows, prefetched, csv_options)
        kind = own_files.recognize_by_content(preview) if path in listing.origins else None
        if kind is not None:
            kinds[path] = kind
        else:
            rows += preview.rows[: PREVIEW_ROWS - len(rows)]
            preview = replace(preview, rows=())
        previews.append(preview)
    left_out = own_files.select_left_out(kinds, listing.origins, listing.paths)
    previews = [preview for preview in previews if preview.path not in left_out]
    if not previews:
        raise UsageError(
            f"{storage.format_location(next(iter(left_out)))}: was written by embedcli, and there is no other input",
            "name the file to read it",
        )
    for preview in previews:
        rows += preview.rows[: PREVIEW_ROWS - len(rows)]
    return (
        [replace(preview, rows=()) for preview in previews],
        rows,
        [*listing.notes, *own_files.describe_left_out(left_out)],
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


def list_inputs(job: Job) -> storage.InputListing:
    """List the input files, without files that the job itself writes.

    Raises:
        UsageError: An input is the output, or the output would overwrite it, or no input is left.
    """
    listing = storage.list_input_files(job.inputs)
    if job.output == "-":
        return listing
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
    remaining = [path for path in listing.paths if not is_own(canonical_path(path))]
    if not remaining:
        raise UsageError(
            f"{storage.format_location(job.output)}: every input is part of the output", "choose another output"
        )
    check_inputs_survive(job, remaining)
    origins = {path: listing.origins[path] for path in remaining if path in listing.origins}
    return replace(listing, paths=remaining, origins=origins)


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

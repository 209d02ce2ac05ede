"""What a job will read, found out before any model is loaded: pieces, formats, columns."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from embedcli import storage
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.types import PART_FILE_PATTERN, STAGING_FOLDER, InputPlan, InputSplit, Partition
from embedcli.outputs import lance as lance_output
from embedcli.outputs import target as output_target
from embedcli.readers.columns import resolve_columns
from embedcli.readers.decoding import normalize_encoding_name
from embedcli.readers.preview import InputPreview, preview_input

# Types of JSONL columns are told from this many rows of the inputs together,
PREVIEW_ROWS = 1000
# and this many rows of every input show whether it has the columns.
MIN_PREVIEW_ROWS = 100


def plan_inputs(job: Job, keep_option: str = "--keep") -> InputPlan:
    """List the inputs, look at the beginning of each, choose the columns, cut the inputs into pieces.

    Parquet is read as far as its footer, other files as far as their first rows.

    Args:
        job: The job whose inputs are read.
        keep_option: The option that named the columns in `job.keep`, for error messages.

    Returns:
        The plan: every piece of the inputs, their formats, and the columns to read.

    Raises:
        UsageError: The inputs, the columns or the template cannot be right.
        InputError: An input cannot be read.
    """
    encoding = normalize_encoding_name(job.encoding)
    looks: list[InputPreview] = []
    rows: list[dict[str, Any]] = []
    paths = list_inputs(job)
    # What is appended to a file from here on is not part of the plan, so the file must look changed afterwards.
    seen = storage.file_identities([path for path in paths if storage.is_local(path)])
    prefetched = storage.PrefetchedFiles()
    for path in prefetched.iterate(paths, lambda path: path):
        look = preview_input(path, job.format, encoding, max(MIN_PREVIEW_ROWS, PREVIEW_ROWS - len(rows)), prefetched)
        rows += look.rows[: PREVIEW_ROWS - len(rows)]
        looks.append(replace(look, rows=()))
    addresses = [(look, start, stop) for look in looks for start, stop in look.ranges]
    return InputPlan(
        splits=tuple(
            InputSplit(i, look.path, start, stop, look.unit) for i, (look, start, stop) in enumerate(addresses)
        ),
        columns=resolve_columns(job, looks, rows, keep_option),
        formats={look.path: look.format for look in looks},
        total_bytes=sum_if_known([look.size_bytes for look in looks]),
        total_rows=sum_if_known([look.total_rows for look in looks]),
        rows_per_split=array("q", (estimate_rows(look, start, stop) for look, start, stop in addresses)),
        file_stats=seen,
    )


def estimate_rows(look: InputPreview, start: int, stop: int | None) -> int:
    """About how many rows a piece has: exact for Parquet, else by the size of the first rows."""
    if look.unit == "rows":
        return (stop or 0) - start
    size = (stop if stop is not None else look.size_bytes or 0) - start
    return max(1, int(size / look.bytes_per_row))


def group_into_partitions(plan: InputPlan, rows: int) -> list[Partition]:
    """The pieces of a plan in successive shares of about `rows` rows, the same however often and wherever it is asked.

    A piece is never cut: one that has more rows is a share of its own.
    """
    found: list[Partition] = []
    taken: list[InputSplit] = []
    held = 0
    for piece, about in zip(plan.splits, plan.rows_per_split, strict=True):
        if taken and held + about > rows:
            found.append(Partition(len(found), tuple(taken)))
            taken, held = [], 0
        taken.append(piece)
        held += about
    return [*found, Partition(len(found), tuple(taken))] if taken else found


def sum_if_known(numbers: list[int | None]) -> int | None:
    """The sum, or None if one is not known."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def list_inputs(job: Job) -> tuple[str, ...]:
    """The input files; what the job itself writes beside them is none of them. UsageError if none are left."""
    paths = storage.expand_inputs(job.inputs)
    if job.output == "-":
        return paths
    own = is_own_output(job.output)
    named = next(
        (
            path
            for path in job.inputs
            if own(canonical_path(path)) or canonical_path(path) == canonical_path(job.output)
        ),
        None,
    )
    if named is not None:
        raise UsageError(f"{storage.format_location(named)}: is the input and the output", "choose another output")
    left = tuple(path for path in paths if not own(canonical_path(path)))
    if not left:
        raise UsageError(
            f"{storage.format_location(job.output)}: every input is part of the output", "choose another output"
        )
    check_inputs_survive(job, left)
    return left


def canonical_path(path: str) -> str:
    """One name for a path, however it is written: links are followed; an address has but one."""
    return os.path.realpath(path) if storage.is_local(path) else storage.mask_secrets(path.rstrip("/"))


def is_own_output(output: str) -> Callable[[str], bool]:
    """Whether a place is that of a file which a job with this output writes, under a name that may look like data.

    In a folder output these are the stage, what begins with `_`, and the parts that it has made: what else lies there
    is input like any other.
    """
    real = canonical_path(output)
    if lance_output.is_lance(output):
        beside = (f"{real}.parts/", f"{real}/")
        return lambda place: place in (real, f"{real}.rejects.jsonl") or place.startswith(beside)
    if output.endswith("/") or storage.is_folder(output):
        return _in_folder(real, output_target.own_file_matcher(output))
    names = {real, f"{real}.rejects.jsonl", f"{real}.space.json", f"{real.removesuffix('.npy')}.ids.parquet"}
    return lambda place: place in names or place.startswith(f"{real}.parts/")


def _in_folder(real: str, made: Callable[[str], bool]) -> Callable[[str], bool]:
    def own(place: str) -> bool:
        folder, _, name = place.rpartition("/")
        return (folder == real and (name.startswith("_") or made(name))) or place.startswith(
            f"{real}/{STAGING_FOLDER}/"
        )

    return own


def check_inputs_survive(job: Job, paths: Sequence[str]) -> None:
    """UsageError if an input in the output folder has a name that the output may give to one of its own files."""
    folder = canonical_path(job.output)
    for path in paths if not lance_output.is_lance(job.output) else ():
        # Only in a folder can an input lie, so the output is one.
        parent, _, name = canonical_path(path).rpartition("/")
        if parent == folder and re.match(PART_FILE_PATTERN, name):
            raise UsageError(
                f"{storage.format_location(path)}: is an input, and the output may need its name",
                "choose another output folder",
            )

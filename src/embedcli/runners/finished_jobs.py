"""Recognise a finished job by the sizes and times of its files, without opening an input or an output.

What is remembered is a shortcut, in embedcli's cache folder: where it does not match, or is missing, the run plans its
input and compares it with the output.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedcli import __version__, encoders, storage
from embedcli.core.cache_dir import user_cache_folder
from embedcli.core.errors import EmbedcliError
from embedcli.core.types import RejectSummary, RunResult

if TYPE_CHECKING:
    from embedcli.core.job import Job
    from embedcli.core.types import InputPlan, RunObserver
    from embedcli.models.files import ModelFiles
    from embedcli.outputs.target import OutputTarget

FINGERPRINT_KEY, REPEAT_KEY = "files", "repeat"
# Jobs of more files are not remembered: reading the record would take longer than it saves.
MAX_FILES = 10_000
Record = dict[str, Any]
FileStates = list[list[Any]]


def find_finished_result(job: Job, observer: RunObserver) -> RunResult | None:
    """Return the result of a job that has nothing to do; None if that takes a closer look.

    It takes none if the same command was found finished before, by the same version, its inputs and its output have the
    same inodes, sizes and times, and its model has the same content.

    Args:
        job: The job.
        observer: Gets the notes about the input.

    Raises:
        ModelError: The model cannot be found.
    """
    if job.output == "-" or job.overwrite or not storage.is_local(job.output):
        return None
    repeat = read_record(job.output).get(REPEAT_KEY)
    if not isinstance(repeat, dict) or repeat.get("command") != describe_command(job, repeat.get("chunk_rows")):
        return None
    if os.path.lexists(repeat["staging"]) or repeat["inputs"] != describe_inputs(job):
        return None
    if repeat["outputs"] != list_states(path for path, _ in repeat["outputs"]):
        return None
    files = encoders.resolve_model_files(job, observer)
    if files is None or repeat["model"] != files.fingerprint:
        return None
    for note in repeat["notes"]:
        observer.notify(note)
    rejects = repeat["rejects"]
    return RunResult(**repeat["result"], reject_summary=RejectSummary(**rejects) if rejects else None)


def remember_finished_job(
    job: Job, plan: InputPlan, files: ModelFiles | None, target: OutputTarget, result: RunResult
) -> None:
    """Remember the files of a finished job and, where the next run can recognise them, its result.

    Of the inputs, sizes and times are those from before they were read: rows that were added later are not in the
    output.

    Args:
        job: The job, with its runner and rows per chunk resolved.
        plan: Its input.
        files: The files of its model.
        target: The output, still locked.
        result: The result of a run that finds it finished.
    """
    from embedcli.outputs.target import fingerprint_files
    from embedcli.runners.job_identity import input_paths

    fingerprint = fingerprint_files(target, input_paths(plan), plan.file_stats)
    if fingerprint is None:
        return
    path = record_path(target.output)
    record = {FINGERPRINT_KEY: fingerprint, REPEAT_KEY: describe_repeat(job, plan, files, target, result)}
    with suppress(OSError):  # an incomplete file does not match, and costs reading the inputs once
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record), "utf-8")


def describe_repeat(
    job: Job, plan: InputPlan, files: ModelFiles | None, target: OutputTarget, result: RunResult
) -> Record | None:
    """Return what `find_finished_result` compares and returns; None for a job that it cannot recognise."""
    others = (job.output, *job.reuse, *([job.ranges_from] if job.ranges_from else []))
    if files is None or job.runner != "local" or job.shard is not None or not all(map(storage.is_local, others)):
        return None
    inputs = describe_inputs(job)
    # Not so where an input was left out, because embedcli wrote it or by --limit, or has changed or come since.
    if inputs is None or inputs != [[path, dict(state)] for path, state in plan.file_stats.items()]:
        return None
    paths = [*target.list_published_files(), *([target.rejects_path] if result.reject_summary else [])]
    outputs = list_states(paths)
    if len(inputs) + len(outputs) > MAX_FILES or not all(state for _, state in outputs):
        return None
    return {
        "command": describe_command(job, job.chunk_rows),
        "chunk_rows": job.chunk_rows,
        "inputs": inputs,
        "outputs": outputs,
        "staging": target.staging_folder,
        "model": files.fingerprint,
        "notes": list(plan.columns.notes),
        "result": {
            name: getattr(result, name) for name in ("exit_code", "reason", "totals", "vector_space", "resumed_rows")
        },
        "rejects": asdict(result.reject_summary) if result.reject_summary else None,
    }


def describe_command(job: Job, chunk_rows: int | None) -> Record:
    """Return everything that was asked for, as JSON values: the job, with rows per chunk if it leaves them open."""
    asked = asdict(job) | {"chunk_rows": job.chunk_rows or chunk_rows}
    return dict(json.loads(json.dumps({"version": __version__, "job": asked})))


def describe_inputs(job: Job) -> FileStates | None:
    """Return the states of all inputs, in order; None if one is no file on this machine."""
    if not all(path != "-" and storage.is_local(path) for path in job.inputs):
        return None
    try:
        states = list_states(storage.list_input_files(job.inputs).paths)
    except (EmbedcliError, OSError):
        return None
    return states if all(state for _, state in states) else None


def list_states(paths: Iterable[str]) -> FileStates:
    """Return path and `storage.file_state` of files, as JSON gives them back; the state of a missing file is empty."""
    return [[path, state] for path, state in storage.file_states(list(paths)).items()]


def matches_finished_fingerprint(target: OutputTarget, plan: InputPlan) -> bool:
    """Whether inputs and output have the size and modification time of when the output was last found finished."""
    from embedcli.outputs.target import fingerprint_files
    from embedcli.runners.job_identity import input_paths

    stored = read_record(target.output).get(FINGERPRINT_KEY)
    return stored is not None and stored == fingerprint_files(target, input_paths(plan), plan.file_stats)


def read_record(output: str) -> Record:
    """Read what is remembered of an output; {} if nothing is, or if it is damaged."""
    try:
        record = json.loads(record_path(output).read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def record_path(output: str) -> Path:
    """Return the file in which an output is remembered."""
    name = os.path.realpath(output) if storage.is_local(output) else output
    return user_cache_folder() / "finished" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"

"""What decides a job, and what follows for its output: identity, vector space, columns, shares."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli import __version__, checkpoint, encoders, readers, storage
from embedcli.core import quantization
from embedcli.core.encoder import BaseEncoder
from embedcli.core.errors import OutputError, UsageError
from embedcli.core.job import Job
from embedcli.core.types import InputColumns, InputPlan, Partition
from embedcli.outputs import target as output_target
from embedcli.outputs import writers
from embedcli.outputs.schema import OutputLayout
from embedcli.pipeline import calibration
from embedcli.runners.context import RunContext, apply_saved_truncation

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array
    from embedcli.models.files import ModelFiles

VECTOR_SPACE_FILE = "_space.json"
# What may change between the runs and the workers of one job: the vectors stay the same but for the last digits.
UNCONSTRAINED_KEYS = {"versions", "threads", "engine", "device"}
STARTS_FILE = "_starts.json"
# A share of a single-file output: a worker that dies costs at most so many chunks.
CHUNKS_PER_PARTITION = 8
# and an input of a few chunks is still shared out, where it has pieces enough.
MIN_PARTITIONS = 32
# Vectors of this width are assumed when a folder output is shared out, before any model is loaded.
ASSUMED_DIM = 384


def resolve_chunk_rows(run: RunContext, ledger: checkpoint.Ledger, done: output_target.FinishedOutput | None) -> int:
    """The user's choice, else that of the interrupted or finished run, else what suits the encoder."""
    job = run.job
    adopted = ledger.recorded_value("chunk_rows") or (
        done.job_manifest.get("job", {}).get("chunk_rows") if done else None
    )
    return job.chunk_rows or (None if job.overwrite else adopted) or encoders.default_chunk_rows(job, run.model_files)


def build_job_identity(
    job: Job, plan: InputPlan, files: ModelFiles | None, target: output_target.OutputTarget
) -> dict[str, Any]:
    """Everything that decides the output's rows and vectors, as the manifest records it."""
    columns = plan.columns
    mine: dict[str, Any] = {
        "text_column": columns.text_column,
        "id_column": columns.id_column,
        "id_type": str(columns.id_type),
        "keep": {name: str(kind) for name, kind in columns.kept_types.items()},
        # Names without folders: the content is compared by hash, and a moved folder is no other job.
        "inputs": [Path(path).name for path in input_paths(plan)],
    }
    if target.is_folder:
        mine |= {"part_size": job.part_size, "to": target.format}
    return {**job.identity(), **mine, **encoders.encoder_identity(job, files)}


def input_paths(plan: InputPlan) -> list[str]:
    return list(dict.fromkeys(piece.path for piece in plan.splits))


def resolve_ranges(
    run: RunContext, encoder: BaseEncoder, stage: str | None, done: output_target.FinishedOutput | None
) -> Float32Array | None:
    """float32 [2, dim] for int8 and uint8: those that are settled, else a sample's; None for other precisions.

    `done` is the output that --update replaces. ResumeError where its ranges are not those asked for or begun with.
    """
    job = apply_saved_truncation(run.job, encoder)
    if not calibration.needs_ranges(job):
        return None
    recorded = done.vector_space.get("ranges") if done is not None else None
    kept = np.array(recorded, np.float32) if recorded else None
    found = calibration.choose_known_ranges(job, stage, kept)
    if found is None:
        chunks = readers.read_chunks(job, run.plan, run.plan.splits)
        return calibration.compute_ranges_from_sample(job, chunks, encoder, run.encoding_settings(encoder), stage)
    width = encoders.stored_dim(job, encoder.dim)
    if kept is None and found.shape[1] != width:
        raise UsageError(
            f"{job.ranges_from} has ranges for {found.shape[1]} dimensions, the vectors have {width}",
            "name an output of the same model and --truncate-dim",
        )
    return found


def build_vector_space(job: Job, encoder: BaseEncoder, ranges: Float32Array | None = None) -> dict[str, Any]:
    """The vector space as outputs record it: the encoder's facts and what was done to its vectors."""
    space = encoder.vector_space()
    return {
        **space,
        "dim": encoders.stored_dim(job, encoder.dim),
        "truncate_dim": job.truncate_dim,
        "precision": job.precision,
        **({} if ranges is None else {"ranges": ranges.tolist()}),
        "overflow": job.overflow,
        "versions": {"embedcli": __version__, **space.get("versions", {})},
    }


def build_layout(job: Job, plan: InputPlan, encoder: BaseEncoder, ranges: Float32Array | None = None) -> OutputLayout:
    return OutputLayout(
        plan.columns, encoders.stored_dim(job, encoder.dim), job.precision, job.overflow == "split", ranges
    )


# Shares


def plan_partitions(job: Job, plan: InputPlan, *, folder: bool) -> list[Partition]:
    """The shares of a job: in a folder output each about one file of --part-size, else a few chunks each."""
    if folder:
        width = (
            quantization.stored_width(ASSUMED_DIM, job.precision)
            * np.dtype(quantization.STORAGE_DTYPES[job.precision]).itemsize
        )
        return readers.group_into_partitions(plan, max(1, job.part_size // width))
    rows = min(CHUNKS_PER_PARTITION * (job.chunk_rows or 1), sum(plan.rows_per_split) // MIN_PARTITIONS)
    return readers.group_into_partitions(plan, max(1, rows))


def warn_idle_workers(run: RunContext, mine: list[Partition], every: list[Partition]) -> None:
    """Say it if there are fewer shares than hands."""
    number = "this shard" if run.job.shard is not None and not mine else None
    if number is None and len(every) < (run.job.workers or 1):
        number = "some workers"
    if number is not None:
        how = (
            "a smaller --part-size gives more"
            if output_target.resolve_target(run.job.output, run.job.to).is_folder
            else ("JSONL is cut every 16 MiB, Parquet by row groups, other files not at all")
        )
        run.observer.notify(f"{number} will have nothing to do: the input is cut into {len(every)} shares; {how}")


def load_split_starts(run: RunContext, stage: str) -> dict[int, readers.SplitStart] | None:
    """Where each piece starts, counted once for all runs and noted in the stage; None if ids need no counting."""
    if run.plan.columns.id_column is not None:
        return None
    note = storage.join(stage, STARTS_FILE)
    looks = storage.file_identities(input_paths(run.plan))
    if storage.exists(note):
        made = json.loads(storage.read_bytes(note))
        if made["inputs"] == looks and all(looks.values()):
            return {i: readers.SplitStart(*start) for i, start in enumerate(made["starts"])}
    starts = readers.count_split_starts(run.job, run.plan)
    storage.write_bytes(note, json.dumps({"inputs": looks, "starts": starts}).encode())
    return dict(enumerate(starts))


# What workers and a later merge need to know of the output


def write_vector_space(stage: str, layout: OutputLayout, space: dict[str, Any]) -> None:
    """Write down what the output will be; OutputError if another worker's vectors are in another space."""
    schema = base64.b64encode(layout.schema().serialize()).decode()
    note, text = storage.join(stage, VECTOR_SPACE_FILE), {"space": space, "schema": schema}
    if not storage.exists(note):
        storage.write_bytes(note, writers.to_readable_json(text).encode())
    old = json.loads(storage.read_bytes(note))
    for key in sorted({*old["space"], *space} - UNCONSTRAINED_KEYS):
        if old["space"].get(key) != space.get(key):
            raise OutputError(
                f"{storage.format_location(note)}: other workers of this job made vectors of another kind: {key} "
                f"is {old['space'].get(key)!r} there, {space.get(key)!r} here",
                "use the same settings on all machines, or start again with --overwrite",
            )


def read_vector_space(stage: str) -> tuple[OutputLayout, dict[str, Any]]:
    """What `note_space` wrote: layout and space. OutputError if nothing did."""
    note = storage.join(stage, VECTOR_SPACE_FILE)
    try:
        made = json.loads(storage.read_bytes(note))
    except (OSError, ValueError):
        raise OutputError(
            f"{storage.format_location(stage)} holds no finished shares", "run encode with --shard first"
        ) from None
    schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(made["schema"])))
    return layout_from_schema(schema, made["space"]), made["space"]


def layout_from_schema(schema: pa.Schema, space: dict[str, Any]) -> OutputLayout:
    """The layout whose schema this is."""
    fixed = OutputLayout(
        InputColumns(None, None, None, pa.int64(), {}), space["dim"], space["precision"], "window" in schema.names
    )
    known = {*fixed.schema().names[1:], schema.names[0]}
    kept = {field.name: field.type for field in schema if field.name not in known}
    columns = InputColumns(None, None, None if schema.names[0] == "row" else "id", schema.field(0).type, kept)
    ranges = np.array(space["ranges"], np.float32) if space.get("ranges") else None
    return replace(fixed, input_columns=columns, ranges=ranges)

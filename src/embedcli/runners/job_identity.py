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
from embedcli.core.types import Columns, Plan, Share
from embedcli.outputs import target as output_target
from embedcli.outputs import writers
from embedcli.outputs.schema import Layout
from embedcli.pipeline import calibration
from embedcli.runners.context import Run

if TYPE_CHECKING:
    from embedcli.core.types import Floats
    from embedcli.models.files import ModelFiles

SPACE_FILE = "_space.json"
# What may change between the runs and the workers of one job: the vectors stay the same but for the last digits.
FREE = {"versions", "threads", "engine", "device"}
STARTS_FILE = "_starts.json"
# A share of a single-file output: a worker that dies costs at most so many chunks.
SHARE_CHUNKS = 8
# and an input of a few chunks is still shared out, where it has pieces enough.
FEWEST_SHARES = 32
# Vectors of this width are assumed when a folder output is shared out, before any model is loaded.
USUAL_DIM = 384


def chunk_rows(this: Run, ledger: checkpoint.Ledger, done: output_target.Finished | None) -> int:
    """The user's choice, else that of the interrupted or finished run, else what suits the encoder."""
    job = this.job
    adopted = ledger.adopted("chunk_rows") or (done.job.get("job", {}).get("chunk_rows") if done else None)
    return job.chunk_rows or (None if job.overwrite else adopted) or encoders.chunk_rows(job, this.files)


def job_identity(job: Job, plan: Plan, files: ModelFiles | None, target: output_target.Target) -> dict[str, Any]:
    """Everything that decides the output's rows and vectors, as the manifest records it."""
    columns = plan.columns
    mine: dict[str, Any] = {
        "text_column": columns.text_column,
        "id_column": columns.id_column,
        "id_type": str(columns.id_type),
        "keep": {name: str(kind) for name, kind in columns.keep_types.items()},
        # Names without folders: the content is compared by hash, and a moved folder is no other job.
        "inputs": [Path(path).name for path in inputs_of(plan)],
    }
    if target.folder:
        mine |= {"part_size": job.part_size, "to": target.kind}
    return {**job.identity(), **mine, **encoders.identity(job, files)}


def inputs_of(plan: Plan) -> list[str]:
    return list(dict.fromkeys(piece.path for piece in plan.pieces))


def ranges_of(this: Run, encoder: BaseEncoder, stage: str | None, done: output_target.Finished | None) -> Floats | None:
    """float32 [2, dim] for int8 and uint8: those that are settled, else a sample's; None for other precisions.

    `done` is the output that --update replaces. ResumeError where its ranges are not those asked for or begun with.
    """
    job = with_saved_dim(this.job, encoder)
    if not calibration.needed(job):
        return None
    recorded = done.space.get("ranges") if done is not None else None
    kept = np.array(recorded, np.float32) if recorded else None
    found = calibration.settled(job, stage, kept)
    if found is None:
        chunks = readers.read(job, this.plan, this.plan.pieces)
        return calibration.sampled(job, chunks, encoder, replace(this, job=job).settings(encoder), stage)
    width = encoders.output_dim(job, encoder.dim)
    if kept is None and found.shape[1] != width:
        raise UsageError(
            f"{job.ranges_from} has ranges for {found.shape[1]} dimensions, the vectors have {width}",
            "name an output of the same model and --truncate-dim",
        )
    return found


def space_of(job: Job, encoder: BaseEncoder, ranges: Floats | None = None) -> dict[str, Any]:
    """The vector space as outputs record it: the encoder's facts and what was done to its vectors."""
    space = encoder.space()
    return {
        **space,
        "dim": encoders.output_dim(job, encoder.dim),
        "truncate_dim": job.truncate_dim,
        "precision": job.precision,
        **({} if ranges is None else {"ranges": ranges.tolist()}),
        "overflow": job.overflow,
        "versions": {"embedcli": __version__, **space.get("versions", {})},
    }


def with_saved_dim(job: Job, encoder: BaseEncoder) -> Job:
    """The job with the truncation that the model's own files ask for, unless the user named one."""
    return job if job.truncate_dim is not None else replace(job, truncate_dim=encoder.space().get("truncate_dim"))


def layout_of(job: Job, plan: Plan, encoder: BaseEncoder, ranges: Floats | None = None) -> Layout:
    return Layout(plan.columns, encoders.output_dim(job, encoder.dim), job.precision, job.overflow == "split", ranges)


# Shares


def shares_of(job: Job, plan: Plan, *, folder: bool) -> list[Share]:
    """The shares of a job: in a folder output each about one file of --part-size, else a few chunks each."""
    if folder:
        width = quantization.width(USUAL_DIM, job.precision) * np.dtype(quantization.DTYPES[job.precision]).itemsize
        return readers.shares(plan, max(1, job.part_size // width))
    rows = min(SHARE_CHUNKS * (job.chunk_rows or 1), sum(plan.piece_rows) // FEWEST_SHARES)
    return readers.shares(plan, max(1, rows))


def tell_idle(this: Run, mine: list[Share], every: list[Share]) -> None:
    """Say it if there are fewer shares than hands."""
    number = "this shard" if this.job.shard is not None and not mine else None
    if number is None and len(every) < (this.job.workers or 1):
        number = "some workers"
    if number is not None:
        how = (
            "a smaller --part-size gives more"
            if output_target.target(this.job.output, this.job.to).folder
            else ("JSONL is cut every 16 MiB, Parquet by row groups, other files not at all")
        )
        this.watch.line(f"{number} will have nothing to do: the input is cut into {len(every)} shares; {how}")


def starts_of(this: Run, stage: str) -> dict[int, readers.Start] | None:
    """Where each piece starts, counted once for all runs and noted in the stage; None if ids need no counting."""
    if this.plan.columns.id_column is not None:
        return None
    note = storage.join(stage, STARTS_FILE)
    looks = storage.identities(inputs_of(this.plan))
    if storage.exists(note):
        made = json.loads(storage.read_bytes(note))
        if made["inputs"] == looks and all(looks.values()):
            return {i: readers.Start(*start) for i, start in enumerate(made["starts"])}
    starts = readers.row_starts(this.job, this.plan)
    storage.write_bytes(note, json.dumps({"inputs": looks, "starts": starts}).encode())
    return dict(enumerate(starts))


# What workers and a later merge need to know of the output


def note_space(stage: str, layout: Layout, space: dict[str, Any]) -> None:
    """Write down what the output will be; OutputError if another worker's vectors are in another space."""
    schema = base64.b64encode(layout.schema().serialize()).decode()
    note, text = storage.join(stage, SPACE_FILE), {"space": space, "schema": schema}
    if not storage.exists(note):
        storage.write_bytes(note, writers.json_text(text).encode())
    old = json.loads(storage.read_bytes(note))
    for key in sorted({*old["space"], *space} - FREE):
        if old["space"].get(key) != space.get(key):
            raise OutputError(
                f"{storage.where(note)}: other workers of this job made vectors of another kind: {key} "
                f"is {old['space'].get(key)!r} there, {space.get(key)!r} here",
                "use the same settings on all machines, or start again with --overwrite",
            )


def noted_space(stage: str) -> tuple[Layout, dict[str, Any]]:
    """What `note_space` wrote: layout and space. OutputError if nothing did."""
    note = storage.join(stage, SPACE_FILE)
    try:
        made = json.loads(storage.read_bytes(note))
    except (OSError, ValueError):
        raise OutputError(f"{storage.where(stage)} holds no finished shares", "run encode with --shard first") from None
    schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(made["schema"])))
    return layout_from(schema, made["space"]), made["space"]


def layout_from(schema: pa.Schema, space: dict[str, Any]) -> Layout:
    """The layout whose schema this is."""
    fixed = Layout(
        Columns(None, None, None, pa.int64(), {}), space["dim"], space["precision"], "window" in schema.names
    )
    known = {*fixed.schema().names[1:], schema.names[0]}
    kept = {field.name: field.type for field in schema if field.name not in known}
    columns = Columns(None, None, None if schema.names[0] == "row" else "id", schema.field(0).type, kept)
    ranges = np.array(space["ranges"], np.float32) if space.get("ranges") else None
    return replace(fixed, columns=columns, ranges=ranges)

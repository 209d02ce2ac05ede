"""The vector space metadata and the columns of an output, and the note of both that workers and merges read."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from embedcli import __version__, encoders, storage
from embedcli.core.constants import VECTOR_COLUMN, VOCABULARY_KEY
from embedcli.core.encoder import BaseEncoder
from embedcli.core.errors import OutputError, UsageError
from embedcli.core.job import Job
from embedcli.core.types import InputColumns, InputPlan
from embedcli.models.files import ModelFiles
from embedcli.models.vocabulary import fingerprint_vocabulary, load_vocabulary
from embedcli.outputs import writers
from embedcli.outputs.multi_vector_npy import PLACE_COLUMNS
from embedcli.outputs.schema import OutputLayout, VectorField, create_vector_fields, head_column_name
from embedcli.outputs.vector_columns import describe_column, read_ranges

if TYPE_CHECKING:
    from embedcli.core.quantization import Ranges
    from embedcli.core.types import VectorKind

VECTOR_SPACE_FILE = "_space.json"
# These may differ between the runs and the workers of one job: the vectors are the same up to rounding. Canaries are
# compared with the first ones of the job, and the vocabulary, which an earlier version has not recorded, follows from
# the fingerprint of the model.
UNCONSTRAINED_KEYS = {"versions", "threads", "engine", "device", "canaries", VOCABULARY_KEY}


def apply_saved_truncation(job: Job, encoder: BaseEncoder) -> Job:
    """Return the job with the dimension that the model's own files truncate to, unless the user chose one."""
    if job.truncate_dim is not None:
        return job
    return replace(job, truncate_dim=encoder.vector_space().get("truncate_dim"))


def build_vector_space(
    job: Job, encoder: BaseEncoder, ranges: Ranges = (), files: ModelFiles | None = None
) -> dict[str, Any]:
    """Return the vector space metadata of an output.

    Args:
        job: The job, with the truncation that applies.
        encoder: The job's encoder.
        ranges: The quantization ranges of int8 and uint8, for each column of vectors.
        files: The files of the model, which have the vocabulary of a sparse one.
    """
    space = encoder.vector_space()
    columns = describe_head_columns(job, encoder, ranges, files)
    if columns:
        # As without further columns, what is not in `columns` describes the vectors of `embedding`.
        space |= columns[VECTOR_COLUMN] | {"columns": columns, "heads": list(encoder.heads)}
    return {
        **space,
        "dim": encoders.stored_dim(job, encoder.dim),
        "truncate_dim": job.truncate_dim,
        "precision": job.precision,
        **({} if encoder.kind == "dense" else {"kind": encoder.kind}),
        **({} if columns else describe_vocabulary(encoder.kind, encoder.dim, files)),
        **({} if columns else list_kind_settings(job, encoder.kind)),
        **({"ranges": ranges[0].tolist()} if ranges else {}),
        "overflow": job.overflow,
        "versions": {"embedcli": __version__, **space.get("versions", {})},
    }


def describe_head_columns(
    job: Job, encoder: BaseEncoder, ranges: Ranges, files: ModelFiles | None
) -> dict[str, dict[str, Any]]:
    """What the metadata say of each column of vectors, by name, if the encoder has several heads; else nothing."""
    return {
        head_column_name(position, head): {
            **space,
            **describe_vocabulary(head, space.get("dim", encoder.dim), files),
            **list_kind_settings(job, head),
            **({"ranges": ranges[position].tolist()} if ranges else {}),
        }
        for position, (head, space) in enumerate(encoder.heads.items())
    }


def describe_vocabulary(kind: VectorKind, dim: int, files: ModelFiles | None) -> dict[str, str]:
    """Return the fingerprint of the words that the dimensions of sparse vectors stand for, if the files have them."""
    words = load_vocabulary(files.path, dim) if files is not None and kind == "sparse" else {}
    return {VOCABULARY_KEY: fingerprint_vocabulary(words)} if words else {}


def list_kind_settings(job: Job, kind: VectorKind) -> dict[str, Any]:
    """Which entries of sparse vectors are kept, and how many vectors of tokens are merged into one, if so chosen."""
    names = {"sparse": ("top_k_terms", "min_weight"), "multi_vector": ("pool_factor",)}.get(kind, ())
    values = {name: getattr(job, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def build_layout(job: Job, plan: InputPlan, encoder: BaseEncoder, ranges: Ranges = ()) -> OutputLayout:
    """Return the columns of an output; the arguments are those of `build_vector_space`.

    Raises:
        UsageError: A kept column has a name that the output needs itself.
    """
    if encoder.kind == "multi_vector" and writers.resolve_output_format(job.output, job.to) == "npy":
        check_kept_names(plan.columns.kept_types)
    fields = create_vector_fields(encoders.stored_dims(job, encoder), job.precision, ranges)
    check_kept_columns_of_heads(plan.columns.kept_types, fields)
    return OutputLayout(plan.columns, fields, job.overflow == "split")


def check_kept_columns_of_heads(names: Iterable[str], fields: Sequence[VectorField]) -> None:
    """Raise UsageError for kept columns with the name of a column of vectors."""
    taken = [name for name in names if any(field.name == name for field in fields)]
    if taken:
        raise UsageError(
            f"a column named {taken[0]!r} cannot be kept: the vectors of a head get that name",
            "rename the column, or leave it out of --keep",
        )


def check_kept_names(names: Iterable[str]) -> None:
    """Raise UsageError for kept columns with names that the ids file of an .npy matrix of token vectors has itself."""
    taken = [name for name in names if name in PLACE_COLUMNS]
    if taken:
        raise UsageError(
            f"a column named {taken[0]!r} cannot be kept beside an .npy file of token vectors, which has its own",
            "rename the column, leave it out of --keep, or use --to parquet",
        )


def write_vector_space(staging_folder: str, layout: OutputLayout, vector_space: dict[str, Any]) -> None:
    """Write the vector space and the columns to the staging folder, or compare them with those that are there.

    Raises:
        OutputError: Other workers of the job write vectors of another vector space.
    """
    path = storage.join(staging_folder, VECTOR_SPACE_FILE)
    if not storage.exists(path):
        schema = base64.b64encode(layout.schema().serialize()).decode()
        storage.write_bytes(path, writers.to_readable_json({"space": vector_space, "schema": schema}).encode())
    written = json.loads(storage.read_bytes(path))["space"]
    for key in sorted({*written, *vector_space} - UNCONSTRAINED_KEYS):
        if written.get(key) != vector_space.get(key):
            raise OutputError(
                f"{storage.format_location(path)}: other workers of this job write vectors of another vector space: "
                f"{key} is {written.get(key)!r} there, {vector_space.get(key)!r} here",
                "use the same settings on all machines, or start again with --overwrite",
            )


def read_vector_space(staging_folder: str) -> tuple[OutputLayout, dict[str, Any]]:
    """Read the columns and the vector space that `write_vector_space` wrote.

    Raises:
        OutputError: No worker or shard has written them.
    """
    try:
        note = json.loads(storage.read_bytes(storage.join(staging_folder, VECTOR_SPACE_FILE)))
    except (OSError, ValueError):
        raise OutputError(
            f"{storage.format_location(staging_folder)} has no completed partitions", "run encode with --shard first"
        ) from None
    schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(note["schema"])))
    return layout_from_schema(schema, note["space"], staging_folder), note["space"]


def layout_from_schema(schema: pa.Schema, vector_space: dict[str, Any], path: str) -> OutputLayout:
    """Restore the layout of an output from its Arrow schema and its vector space; `path` is for messages."""
    no_columns = InputColumns(None, None, None, pa.int64(), {})
    names = vector_space.get("columns") or {VECTOR_COLUMN}
    described = [describe_column(vector_space, name) for name in schema.names if name in names]
    dims = {space.get("kind", "dense"): space["dim"] for space in described}
    ranges = read_ranges(vector_space, path)
    fields = create_vector_fields(dims, vector_space["precision"], ranges)
    base = OutputLayout(no_columns, fields, "window" in schema.names)
    id_name = schema.names[0]
    own_names = {*base.schema().names[1:], id_name}
    kept_types = {field.name: field.type for field in schema if field.name not in own_names}
    columns = InputColumns(None, None, None if id_name == "row" else "id", schema.field(0).type, kept_types)
    return replace(base, input_columns=columns)

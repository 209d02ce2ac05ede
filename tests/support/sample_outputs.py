"""Outputs made for tests through the program's own tables and sinks, with vectors that the test chose."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from embedcli.core import quantization
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import offsets_of
from embedcli.core.row_vectors import kind_of
from embedcli.core.sparse_vectors import SparseVectors, sparsify
from embedcli.core.types import Chunk, EncodedChunk, InputColumns, InputSplit, OutputFormat, Precision
from embedcli.outputs import writers
from embedcli.outputs.multi_vector_npy import write_multi_vector_npy
from embedcli.outputs.schema import OutputLayout, create_vector_fields

if TYPE_CHECKING:
    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import Float32Array

SPACE = {"model": "tests/made-up", "revision": None, "fingerprint": "f" * 64, "pooling": "mean", "prompt": ""}


def unit_vectors(rows: int, dim: int, seed: int = 0) -> Float32Array:
    """float32 [rows, dim]: random directions of length 1, the same for the same seed."""
    made = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return cast("Float32Array", made / np.linalg.norm(made, axis=1, keepdims=True))


def sparse_vectors(rows: int, dim: int, terms: int = 5, seed: int = 0) -> SparseVectors:
    """Random weights above zero for `terms` of `dim` terms in each row, the same for the same seed."""
    random = np.random.default_rng(seed)
    weights = random.uniform(0.1, 3, (rows, dim)).astype(np.float32)
    return sparsify(weights, top_k=terms)


def token_vectors(rows: int, dim: int, *, most: int = 9, seed: int = 0) -> MultiVectors:
    """1 to `most` random directions of length 1 for each row, the same for the same seed."""
    lengths = np.random.default_rng(seed).integers(1, most + 1, rows)
    return MultiVectors(offsets_of(lengths), unit_vectors(int(lengths.sum()), dim, seed))


def make_output(
    path: Path,
    vectors: RowVectors,
    *,
    ids: Sequence[Any] | None = None,
    kept: Mapping[str, Sequence[Any]] | None = None,
    stored_as: Precision = "float32",
    space: Mapping[str, Any] | None = None,
    truncated: Sequence[int] = (),
    n_tokens: int = 5,
) -> Path:
    """Write `vectors` as an output. A path that ends in .folder becomes a folder of three parts."""
    rows, dim = vectors.shape
    kind = kind_of(vectors)
    ranges = quantization.compute_ranges_of(vectors) if stored_as in ("int8", "uint8") else ()
    table = pa.table({name: pa.array(values) for name, values in (kept or {}).items()})
    columns = InputColumns(
        text_column="text",
        template=None,
        id_column=None if ids is None else "id",
        id_type=pa.array(ids).type if ids is not None else pa.int64(),
        kept_types={field.name: field.type for field in table.schema},
    )
    layout = OutputLayout(columns, create_vector_fields({kind: dim}, stored_as, ranges))
    whole = layout.build_table(encoded(vectors, ids, table, truncated, n_tokens))
    said = {**SPACE, "dim": dim, "precision": stored_as, "normalize": kind != "sparse", **(space or {})}
    if kind != "dense":
        said["kind"] = kind
    if ranges:
        said.setdefault("ranges", ranges[0].tolist())
    metadata = {
        writers.SPACE_METADATA_KEY: said,
        writers.JOB_METADATA_KEY: {"job": {}, "source_hash": "0", "read": rows, "rows": rows},
    }
    if path.suffix == ".folder":
        write_folder(path, whole, layout, metadata)
    elif path.suffix == ".npy" and isinstance(vectors, MultiVectors):
        write_multi_vector_npy([whole], str(path), layout, metadata, rows, len(vectors.values))
    else:
        form = writers.resolve_output_format(str(path), None)
        writers.OUTPUT_WRITERS[form]([whole], str(path), layout, metadata, rows)
    return path


def encoded(
    vectors: RowVectors, ids: Sequence[Any] | None, kept: pa.Table, truncated: Sequence[int], n: int
) -> EncodedChunk:
    rows = len(vectors)
    chunk = Chunk(
        input_split=InputSplit(0, "made.jsonl"),
        index_in_split=0,
        ids=pa.array(range(rows), pa.int64()) if ids is None else pa.array(ids),
        texts=[""] * rows,
        kept_columns=kept if kept.num_columns else pa.table({"_": pa.nulls(rows)}).select([]),
        lines=range(1, rows + 1),
        rows_read=rows,
        is_last=True,
    )
    hashes = np.arange(rows * 16, dtype=np.int64).astype(np.uint8).reshape(rows, 16)
    cut = np.isin(np.arange(rows), truncated)
    return EncodedChunk(chunk, np.arange(rows), vectors, np.full(rows, n, np.int32), cut, hashes)


def write_folder(path: Path, table: pa.Table, layout: OutputLayout, metadata: dict[str, Any]) -> None:
    path.mkdir()
    third = -(-table.num_rows // 3) or 1
    names = []
    for i, start in enumerate(range(0, table.num_rows, third)):
        piece = table.slice(start, third)
        names.append(f"part-{i:05d}.parquet")
        space = {writers.SPACE_METADATA_KEY: metadata[writers.SPACE_METADATA_KEY]}
        writers.write_parquet([piece], str(path / names[-1]), layout, space, piece.num_rows)
    (path / "_manifest.json").write_text(json.dumps({**metadata, "parts": names}), "utf-8")


FORMATS: tuple[str, ...] = ("out.parquet", "out.npy", "out.arrow", "out.jsonl", "out.folder")
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "uint8", "binary", "ubinary")

__all__ = [
    "FORMATS",
    "PRECISIONS",
    "SPACE",
    "OutputFormat",
    "make_output",
    "sparse_vectors",
    "token_vectors",
    "unit_vectors",
]

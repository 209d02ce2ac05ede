"""Write tables in every output format: Parquet, .npy with ids, JSONL, Arrow, Lance, and streams on stdout."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedcli import storage
from embedcli.core.arrow_values import table_to_rows
from embedcli.core.constants import VECTOR_COLUMN
from embedcli.core.errors import OutputError, UsageError
from embedcli.core.terminal import escape_json_line
from embedcli.core.types import OutputFormat
from embedcli.outputs import digests
from embedcli.outputs import lance as lance_output
from embedcli.outputs.schema import (
    ROW_GROUP_BYTES,
    OutputLayout,
    regroup_by_bytes,
    regroup_tables,
    token_vectors_from_table,
    vectors_from_table,
)
from embedcli.outputs.vector_types import is_multi_vector_type, is_sparse_type

if TYPE_CHECKING:
    from embedcli.core.types import EncodedChunk

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
SPACE_METADATA_KEY = "embedcli"
JOB_METADATA_KEY = "embedcli.job"
Metadata = dict[str, Any]

FORMATS_BY_ENDING: dict[str, OutputFormat] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".npy": "npy",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".arrow": "arrow",
    ".feather": "arrow",
    lance_output.LANCE_ENDING: "lance",
}


def resolve_output_format(output: str, to: OutputFormat | None) -> OutputFormat:
    """Choose the output format: `to` if given, else by the file extension; JSONL for stdout, Parquet for folders.

    Raises:
        UsageError: The extension is unknown, or `to` is lance and the name does not end in .lance.
    """
    if to == "lance" and not lance_output.is_lance(output) and output != "-":
        raise UsageError(
            f"{output}: the name of a Lance dataset must end in .lance", "rename the output, or choose another --to"
        )
    if to is not None:
        return to
    if lance_output.is_lance(output):
        return "lance"
    if output == "-":
        return "jsonl"
    if output.endswith("/") or storage.is_folder(output):
        return "parquet"
    ending = Path(output).suffix.lower()
    if ending not in FORMATS_BY_ENDING:
        raise UsageError(
            f"cannot tell the output format of {output!r} from its name",
            "use --to parquet|npy|jsonl|arrow|lance, or a name that ends in "
            f"{', '.join(FORMATS_BY_ENDING)} or, for a folder, /",
        )
    return FORMATS_BY_ENDING[ending]


def encode_metadata(metadata: Metadata) -> dict[str, str]:
    """Encode metadata for an Arrow schema: each value as canonical JSON, so that equal jobs give equal bytes."""
    return {key: to_readable_json(value, sort_keys=True) for key, value in metadata.items()}


def to_readable_json(value: Any, **how: Any) -> str:
    """Format a value as JSON without escapes, unless it holds a lone surrogate (a file name that is not Unicode)."""
    text = json.dumps(value, ensure_ascii=False, **how)
    return json.dumps(value, **how) if LONE_SURROGATE.search(text) else text


@contextmanager
def open_parquet_writer(target: Any, schema: pa.Schema, metadata: Metadata) -> Iterator[pq.ParquetWriter]:
    """Open a Parquet writer with page checksums.

    Vectors and hashes are stored plain, other columns with zstd, strings with dictionaries as well.
    """
    plain = (VECTOR_COLUMN, "text_hash")
    names = [field.name for field in schema if field.name not in plain and not pa.types.is_nested(field.type)]
    full = schema.with_metadata(encode_metadata(metadata))
    vectors = [schema.field(name) for name in list_vector_columns(schema)]
    codecs = dict.fromkeys([*names, *(path for field in vectors for path in list_compressed_paths(field))], "ZSTD")
    with pq.ParquetWriter(
        target,
        full,
        compression=codecs or "NONE",
        use_dictionary=[field.name for field in schema if field.name in names and pa.types.is_string(field.type)],
        write_statistics=names,
        write_page_checksum=True,
    ) as writer:
        yield writer


def list_compressed_paths(field: pa.Field, path: str = "") -> list[str]:
    """The leaves of a column of vectors that are stored with zstd: all integers, and no floats.

    Parquet stores 8-bit integers in 32 bits; zstd removes the padding at 1 GB/s.

    Args:
        field: The column, or a part of it.
        path: The path of its parent in the file.
    """
    path, kind = f"{path}.{field.name}".lstrip("."), field.type
    if is_sparse_type(kind):
        return [leaf for part in kind for leaf in list_compressed_paths(part, path)]
    if pa.types.is_nested(kind):
        return list_compressed_paths(kind.value_field, f"{path}.list")
    return [path] if pa.types.is_integer(kind) else []


def table_to_parquet(table: pa.Table, metadata: Metadata) -> pa.Buffer:
    """Serialize a table as a Parquet file."""
    sink = pa.BufferOutputStream()
    with open_parquet_writer(sink, table.schema, metadata) as writer:
        writer.write_table(table)
    return sink.getvalue()


def table_to_arrow(table: pa.Table, metadata: Metadata) -> pa.Buffer:
    """Serialize a table as an Arrow IPC file with lz4 compression: takes a tenth of the time of Parquet."""
    schema = table.schema.with_metadata(encode_metadata(metadata))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table.replace_schema_metadata(schema.metadata))
    return sink.getvalue()


def regroup_rows(tables: Iterable[pa.Table], layout: OutputLayout) -> Iterator[pa.Table]:
    """Yield the same rows in tables of about ROW_GROUP_BYTES of stored vectors."""
    if layout.has_equal_rows:
        return regroup_tables(tables, rows_per_row_group(layout))
    return regroup_by_bytes(tables, ROW_GROUP_BYTES)


def rows_per_row_group(layout: OutputLayout) -> int:
    """Number of rows in a row group of ROW_GROUP_BYTES of stored vectors."""
    return max(1, ROW_GROUP_BYTES // layout.bytes_per_row)


def write_parquet(
    tables: Iterable[pa.Table], target: str, layout: OutputLayout, metadata: Metadata, rows: int
) -> list[str]:
    written = 0
    with storage.write_atomically(target) as file:
        out = digests.DigestWriter(file)
        with open_parquet_writer(out, layout.schema(), metadata) as writer:
            for group in regroup_rows(tables, layout):
                writer.write_table(group, row_group_size=group.num_rows)
                written += group.num_rows
                del group
            digests.hold_parquet_footer(writer, out)
        out.seal()
        check_row_count(written, rows, target)
    return [target]


def write_arrow(
    tables: Iterable[pa.Table], target: str, layout: OutputLayout, metadata: Metadata, rows: int
) -> list[str]:
    written = 0
    schema = layout.schema().with_metadata(encode_metadata(metadata))
    with storage.write_atomically(target) as file:
        out = digests.DigestWriter(file)
        with pa.ipc.new_file(out, schema, metadata=digests.arrow_footer_metadata()) as writer:
            for table in tables:
                writer.write_table(table.replace_schema_metadata(schema.metadata))
                written += table.num_rows
            out.hold()
        out.seal()
        check_row_count(written, rows, target)
    return [target]


def write_npy(
    tables: Iterable[pa.Table], target: str, layout: OutputLayout, metadata: Metadata, rows: int
) -> list[str]:
    """Write `NAME.npy` [rows, width], memory-mappable, then `NAME.ids.parquet` with all else."""
    ids = ids_path(target)
    schema = pa.schema([field for field in layout.schema() if field.name != VECTOR_COLUMN])
    header = {
        "descr": layout.first.dtype.str, "fortran_order": False, "shape": (rows, layout.first.stored_width),
    }  # fmt: skip
    written = 0
    with storage.write_pair_atomically(target, ids) as files:
        vectors, others = map(digests.DigestWriter, files)
        np.lib.format.write_array_header_1_0(vectors, header)
        with open_parquet_writer(others, schema, metadata) as writer:
            for table in regroup_tables(tables, rows_per_row_group(layout)):
                vectors.write(np.ascontiguousarray(vectors_from_table(table)).data)
                writer.write_table(table.drop_columns([VECTOR_COLUMN]))
                written += table.num_rows
                del table
            digests.hold_parquet_footer(writer, others, vectors.hexdigest())
        others.seal()
        check_row_count(written, rows, target)
    return [target, ids]


def write_jsonl(
    tables: Iterable[pa.Table], target: str, layout: OutputLayout, metadata: Metadata, rows: int
) -> list[str]:
    """Write one JSON object per line, and the metadata to `NAME.space.json`."""
    written = 0
    sidecar = space_path(target)
    with storage.write_pair_atomically(target, sidecar) as (file, note):
        out = digests.DigestWriter(file)
        for table in tables:
            out.writelines(table_to_json_lines(table))
            written += table.num_rows
        described = metadata | {digests.DIGEST_KEY: digests.digest_record(out.hexdigest())}
        note.write(digests.seal_text(to_readable_json(described, sort_keys=True, indent=1) + "\n"))
        check_row_count(written, rows, target)
    return [target, sidecar]


def write_lance(
    tables: Iterable[pa.Table], target: str, layout: OutputLayout, metadata: Metadata, rows: int
) -> list[str]:
    """Write a Lance dataset to a temporary folder and rename it.

    Its library writes the files, so that they are read once for their digests.
    """
    schema = layout.schema().with_metadata(encode_metadata(metadata))
    with storage.replace_folder_atomically(target) as folder:
        check_row_count(lance_output.write_lance_dataset(tables, folder, schema), rows, target)
        digests.write_folder_digests(folder)
    return [target]


class OutputWriter(Protocol):
    """Writes tables as one output and returns the paths of its files.

    Args of a call:
        tables: Tables with the columns of `layout.schema()`, in output order.
        target: Path of the output.
        layout: Columns and number format of the vectors.
        metadata: Stored in the output: the vector space and the job.
        rows: Number of rows in `tables`; another number is a defect and raises AssertionError.
    """

    def __call__(
        self, tables: Iterable[pa.Table], target: str, layout: OutputLayout, metadata: Metadata, rows: int
    ) -> list[str]: ...


OUTPUT_WRITERS: dict[OutputFormat, OutputWriter] = {
    "parquet": write_parquet,
    "npy": write_npy,
    "jsonl": write_jsonl,
    "arrow": write_arrow,
    "lance": write_lance,
}


def list_output_files(output: str, kind: OutputFormat) -> list[str]:
    """List the files that make up an output, the named one first."""
    return list(dict.fromkeys((output, metadata_path(output, kind))))


def metadata_path(output: str, kind: OutputFormat) -> str:
    """Path of the file that holds the metadata of an output; if it is a separate file, it is published last."""
    return ids_path(output) if kind == "npy" else space_path(output) if kind == "jsonl" else output


def ids_path(output: str) -> str:
    return output.removesuffix(".npy") + ".ids.parquet"


def space_path(output: str) -> str:
    return output + ".space.json"


def check_row_count(written: int, rows: int, target: str) -> None:
    """Raise AssertionError unless all rows of the part files were written."""
    if written != rows:
        raise AssertionError(f"{target}: {written} rows were merged where the parts hold {rows}")


def table_to_json_lines(table: pa.Table) -> Iterator[bytes]:
    """Yield each row as a line of JSON, with hashes in hex, bytes in base64 and times in ISO 8601."""
    import orjson

    names = list_vector_columns(table.schema)
    others = table_to_rows(table.drop_columns(names))
    at = table.schema.get_field_index(VECTOR_COLUMN)
    columns = zip(*(list_stored_vectors(table, name) for name in names), strict=True)
    for row, vectors in zip(others, columns, strict=True):
        row["text_hash"] = row["text_hash"].hex()
        items = list(row.items())
        complete = dict([*items[:at], *zip(names, vectors, strict=True), *items[at:]])
        yield orjson.dumps(
            complete, default=_to_json_type, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        )


def list_vector_columns(schema: pa.Schema) -> list[str]:
    """The columns of vectors of an output, in their order: they stand together, behind the id."""
    if VECTOR_COLUMN not in schema.names:
        return []
    names = schema.names[schema.get_field_index(VECTOR_COLUMN) :]
    return names[: names.index("n_tokens")] if "n_tokens" in names else [VECTOR_COLUMN]


def list_stored_vectors(table: pa.Table, name: str = VECTOR_COLUMN) -> Any:
    """The stored vectors of each row, in order, as values that orjson can write."""
    kind = table.schema.field(name).type
    if is_sparse_type(kind):
        return table.column(name).to_pylist()
    if is_multi_vector_type(kind):
        offsets, vectors = token_vectors_from_table(table, name)
        return [vectors[start:stop] for start, stop in pairwise(offsets.tolist())]
    return vectors_from_table(table, name)


def to_json_values(values: Sequence[Any]) -> list[Any]:
    """Convert values to what parsing the lines of `table_to_json_lines` gives."""
    import orjson

    converted: list[Any] = orjson.loads(orjson.dumps(list(values), default=_to_json_type))
    return converted


def _to_json_type(value: object) -> object:
    if isinstance(value, bytes):
        import base64

        return base64.b64encode(value).decode()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)


class StdoutWriter:
    """Writes chunks to stdout in order, as JSONL or as one Arrow IPC stream."""

    def __init__(
        self, kind: OutputFormat, layout: OutputLayout, metadata: Metadata, out: BinaryIO | None = None
    ) -> None:
        if kind not in ("jsonl", "arrow"):
            raise UsageError(f"{kind} cannot be streamed to stdout", "use --to jsonl or --to arrow, or write to a file")
        stream = out or getattr(sys.stdout, "buffer", None)
        if stream is None:  # as in a notebook
            raise OutputError("stdout is closed or not binary", "write to a file")
        self.out: BinaryIO = stream
        self.layout = layout
        self.schema = layout.schema().with_metadata(encode_metadata(metadata))
        self.writer = pa.ipc.new_stream(self.out, self.schema) if kind == "arrow" else None

    def write(self, encoded: EncodedChunk) -> None:
        """Write one chunk. Raises OutputError if stdout was closed or is full."""
        table = self.layout.build_table(encoded)
        with translate_stdout_errors():
            if self.writer is None:
                self.out.writelines(map(escape_json_line, table_to_json_lines(table)))
            else:
                self.writer.write_table(table.replace_schema_metadata(self.schema.metadata))
            self.out.flush()

    def close(self) -> None:
        with translate_stdout_errors():
            if self.writer is not None:
                self.writer.close()
            self.out.flush()


@contextmanager
def translate_stdout_errors() -> Iterator[None]:
    """Raise OutputError if stdout was closed or cannot be written."""
    with storage.translate_output_errors("stdout"):
        try:
            yield
        except BrokenPipeError:
            raise OutputError(
                "stdout was closed before all rows were written", "read the stream to its end, or write to a file"
            ) from None

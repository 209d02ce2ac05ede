"""Where tables become files: parquet, npy + ids, jsonl, arrow; the stdout stream; and nowhere (for measuring)."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedcli import storage
from embedcli.core import batching, quantization
from embedcli.core.arrow_values import table_to_rows
from embedcli.core.errors import OutputError, UsageError
from embedcli.core.types import OutputFormat
from embedcli.outputs import lance as lance_output
from embedcli.outputs.schema import ROW_GROUP_BYTES, OutputLayout, regroup_tables, vectors_from_table

if TYPE_CHECKING:
    from embedcli.core.types import EncodedChunk

BITS_PER_BYTE = 8
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
VECTOR_COLUMN_PATH = "embedding.list.element"
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
    """The format of an output: `to` if given, else by the name's ending; stdout is JSONL, a folder Parquet."""
    if to == "lance" and not lance_output.is_lance(output) and output != "-":
        raise UsageError(f"{output}: the name of a Lance dataset ends in .lance", "name the output so")
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
            f"use --to parquet|npy|jsonl|arrow|lance, or a name that ends in {', '.join(FORMATS_BY_ENDING)} or / for a folder",
        )
    return FORMATS_BY_ENDING[ending]


def encode_metadata(metadata: Metadata) -> dict[str, str]:
    """Arrow key-value metadata: each value as canonical JSON, so that equal jobs give equal bytes."""
    return {key: to_readable_json(value, sort_keys=True) for key, value in metadata.items()}


def to_readable_json(value: Any, **how: Any) -> str:
    """JSON that can be read by people; escaped where a name that is not Unicode leaves no other way."""
    text = json.dumps(value, ensure_ascii=False, **how)
    return json.dumps(value, **how) if LONE_SURROGATE.search(text) else text


@contextmanager
def open_parquet_writer(target: Any, schema: pa.Schema, metadata: Metadata) -> Iterator[pq.ParquetWriter]:
    """A Parquet writer with page checksums; vectors and hashes plain, everything else zstd with dictionaries."""
    plain = ("embedding", "text_hash")
    names = [field.name for field in schema if field.name not in plain and not pa.types.is_nested(field.type)]
    full = schema.with_metadata(encode_metadata(metadata))
    codecs = dict.fromkeys(names, "ZSTD")
    if "embedding" in schema.names and schema.field("embedding").type.value_type.bit_width == BITS_PER_BYTE:
        # Parquet stores one-byte numbers in four: zstd takes three of them back, at 1 GB/s.
        codecs[VECTOR_COLUMN_PATH] = "ZSTD"
    with pq.ParquetWriter(
        target,
        full,
        compression=codecs or "NONE",
        use_dictionary=[field.name for field in schema if field.name in names and pa.types.is_string(field.type)],
        write_statistics=names,
        write_page_checksum=True,
    ) as writer:
        yield writer


def table_to_parquet(table: pa.Table, metadata: Metadata) -> pa.Buffer:
    """A table as one whole Parquet file in memory."""
    sink = pa.BufferOutputStream()
    with open_parquet_writer(sink, table.schema, metadata) as writer:
        writer.write_table(table)
    return sink.getvalue()


def table_to_arrow(table: pa.Table, metadata: Metadata) -> pa.Buffer:
    """A table as one whole Arrow file in memory, its texts compressed a little: a tenth of the time of Parquet."""
    schema = table.schema.with_metadata(encode_metadata(metadata))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table.replace_schema_metadata(schema.metadata))
    return sink.getvalue()


def rows_per_row_group(layout: OutputLayout) -> int:
    """Rows per row group: ROW_GROUP_BYTES of stored vectors."""
    return max(1, ROW_GROUP_BYTES // layout.bytes_per_row)


def write_parquet(
    tables: Iterable[pa.Table], target: str, layout: OutputLayout, metadata: Metadata, rows: int
) -> list[str]:
    written = 0
    with storage.write_atomically(target) as out:
        with open_parquet_writer(out, layout.schema(), metadata) as writer:
            for group in regroup_tables(tables, rows_per_row_group(layout)):
                writer.write_table(group, row_group_size=group.num_rows)
                written += group.num_rows
                del group
        check_row_count(written, rows, target)
    return [target]


def write_arrow(
    tables: Iterable[pa.Table], target: str, layout: OutputLayout, metadata: Metadata, rows: int
) -> list[str]:
    written = 0
    schema = layout.schema().with_metadata(encode_metadata(metadata))
    with storage.write_atomically(target) as out:
        with pa.ipc.new_file(out, schema) as writer:
            for table in tables:
                writer.write_table(table.replace_schema_metadata(schema.metadata))
                written += table.num_rows
        check_row_count(written, rows, target)
    return [target]


def write_npy(
    tables: Iterable[pa.Table], target: str, layout: OutputLayout, metadata: Metadata, rows: int
) -> list[str]:
    """`NAME.npy` [rows, width], memory-mappable, and `NAME.ids.parquet` with all the other columns, which comes last:
    it says what both were made from.
    """
    ids = ids_path(target)
    schema = pa.schema([field for field in layout.schema() if field.name != "embedding"])
    descr = np.dtype(quantization.STORAGE_DTYPES[layout.precision]).str
    header = {"descr": descr, "fortran_order": False, "shape": (rows, layout.stored_width)}
    written = 0
    with storage.write_pair_atomically(target, ids) as (vectors, others):
        np.lib.format.write_array_header_1_0(vectors, header)
        with open_parquet_writer(others, schema, metadata) as writer:
            for table in regroup_tables(tables, rows_per_row_group(layout)):
                vectors.write(np.ascontiguousarray(vectors_from_table(table)).data)
                writer.write_table(table.drop_columns(["embedding"]))
                written += table.num_rows
                del table
        check_row_count(written, rows, target)
    return [target, ids]


def write_jsonl(
    tables: Iterable[pa.Table], target: str, layout: OutputLayout, metadata: Metadata, rows: int
) -> list[str]:
    """One JSON object a line, and then `NAME.space.json` with the metadata that the other formats carry inside."""
    written = 0
    sidecar = space_path(target)
    with storage.write_pair_atomically(target, sidecar) as (out, note):
        note.write((to_readable_json(metadata, sort_keys=True, indent=1) + "\n").encode())
        for table in tables:
            out.writelines(table_to_json_lines(table))
            written += table.num_rows
        check_row_count(written, rows, target)
    return [target, sidecar]


def write_lance(
    tables: Iterable[pa.Table], target: str, layout: OutputLayout, metadata: Metadata, rows: int
) -> list[str]:
    """A Lance dataset, under its name when it is whole; unlike files it is not read back after it was written."""
    schema = layout.schema().with_metadata(encode_metadata(metadata))
    with storage.replace_folder_atomically(target) as folder:
        check_row_count(lance_output.write_lance_dataset(tables, folder, schema), rows, target)
    return [target]


class OutputWriter(Protocol):
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
    """Every file an output consists of, the named one first."""
    return list(dict.fromkeys((output, metadata_path(output, kind))))


def metadata_path(output: str, kind: OutputFormat) -> str:
    """The file of an output that holds its metadata; where it is not the output itself, it is published last."""
    return ids_path(output) if kind == "npy" else space_path(output) if kind == "jsonl" else output


def ids_path(output: str) -> str:
    return output.removesuffix(".npy") + ".ids.parquet"


def space_path(output: str) -> str:
    return output + ".space.json"


def check_row_count(written: int, rows: int, target: str) -> None:
    """The last look before a file gets its name: as many rows in it as the parts hold."""
    if written != rows:
        raise AssertionError(f"{target}: {written} rows were merged where the parts hold {rows}")


def table_to_json_lines(table: pa.Table) -> Iterator[bytes]:
    """Each row as one line of JSON; the hash in hex, bytes in base64, times in ISO form."""
    import orjson

    vectors = vectors_from_table(table)
    others = table_to_rows(table.drop_columns(["embedding"]))
    at = table.schema.get_field_index("embedding")
    for row, vector in zip(others, vectors, strict=True):
        row["text_hash"] = row["text_hash"].hex()
        items = list(row.items())
        whole = dict([*items[:at], ("embedding", vector), *items[at:]])
        yield orjson.dumps(whole, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def to_json_values(values: Sequence[Any]) -> list[Any]:
    """Values as they come back from the lines that `json_lines` writes."""
    import orjson

    made: list[Any] = orjson.loads(orjson.dumps(list(values), default=_plain))
    return made


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        import base64

        return base64.b64encode(value).decode()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)


class StdoutWriter:
    """stdout as a sink: JSONL lines or one Arrow IPC stream, chunk by chunk, in order."""

    def __init__(
        self, kind: OutputFormat, layout: OutputLayout, metadata: Metadata, out: BinaryIO | None = None
    ) -> None:
        if kind not in ("jsonl", "arrow"):
            raise UsageError(f"{kind} cannot be streamed to stdout", "use --to jsonl or --to arrow, or name a file")
        taker = out or getattr(sys.stdout, "buffer", None)
        if taker is None:  # as in a notebook
            raise OutputError("stdout is closed, or takes no bytes", "name a file for the output")
        self.out: BinaryIO = taker
        self.layout = layout
        self.schema = layout.schema().with_metadata(encode_metadata(metadata))
        self.writer = pa.ipc.new_stream(self.out, self.schema) if kind == "arrow" else None

    def write(self, encoded: EncodedChunk) -> None:
        """Raises OutputError where stdout takes no more."""
        table = self.layout.build_table(encoded)
        with translate_stdout_errors():
            if self.writer is None:
                self.out.writelines(table_to_json_lines(table))
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
    """A stdout that was closed, or cannot be written, becomes OutputError."""
    with storage.translate_output_errors("stdout"):
        try:
            yield
        except BrokenPipeError:
            raise OutputError(
                "stdout was closed before all rows were written", "read to the end, or write to a file"
            ) from None


def split_into_files(rows: Sequence[int], bytes_per_row: int, part_size: int) -> list[tuple[int, int]]:
    """Ranges [first, last) of successive chunks, each as many as fit in `part_size` bytes of vectors, at least one."""
    return list(batching.group_by_size((count * bytes_per_row for count in rows), part_size))

"""Preview the beginning of an input: its format, its columns, and how it can be split."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from typing import Any, Literal

import pyarrow as pa

from embedcli import storage
from embedcli.core.errors import InputError, UsageError
from embedcli.core.types import InputFormat
from embedcli.readers import csv as csv_reader
from embedcli.readers import jsonl as jsonl_reader
from embedcli.readers import nested_fields
from embedcli.readers import parquet as parquet_reader
from embedcli.readers.csv_dialect import DEFAULT_OPTIONS, DELIMITERS, QUOTES, CsvOptions, looks_quoted
from embedcli.readers.decoding import BYTE_ORDER_MARK, detect_encoding, has_undecodable_lines, refuse_unmarked_utf16
from embedcli.storage import format_location
from embedcli.storage.lfs import LFS_PULL_HINT, is_lfs_pointer

# Plain JSONL is split into byte ranges of this size; a line belongs to the split in which it begins. That is about
# 30,000 rows of 500 bytes: a worker that dies loses one split, and 10 GB have 640 of them.
JSONL_SPLIT_BYTES = 16 << 20
# Bytes per row where the preview does not show them. They only decide how splits are grouped into partitions.
ASSUMED_ROW_BYTES = 500.0
ASSUMED_COMPRESSED_ROW_BYTES = 150.0
# A preview reads at most this many bytes of a JSONL file, and at least one line.
PREVIEW_BYTES = 4 << 20

INPUT_SUFFIX = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|tab|parquet|pq)(\.(gz|gzip|zst|zstd|bz2|xz))?$", re.IGNORECASE)
SUFFIX_FORMATS: Mapping[str, InputFormat] = {
    "jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl", "csv": "csv", "tsv": "tsv", "tab": "tsv",
    "parquet": "parquet", "pq": "parquet",
}  # fmt: skip
CONVERT_HINT = "convert it to JSONL, CSV, TSV or Parquet first"
FOREIGN_FILE_SIGNATURES = {
    b"PK\x03\x04": ("a zip archive or an Excel file", "unpack it first: unzip -p FILE.zip | embedcli encode - OUTPUT"),
    b"ARROW1": ("an Arrow IPC file", CONVERT_HINT),
    b"ORC": ("an ORC file", CONVERT_HINT),
    b"Obj\x01": ("an Avro file", CONVERT_HINT),
    b"\x93NUMPY": ("a NumPy array", CONVERT_HINT),
    b"%PDF": ("a PDF", CONVERT_HINT),
    b"SQLite format 3\0": ("an SQLite database", CONVERT_HINT),
    b"\x04\x22\x4d\x18": ("lz4-compressed", "decompress it first: lz4 -dc FILE | embedcli encode - OUTPUT"),
}
# Fields of objects that are nested deeper than this are not columns.
MAX_NESTING_DEPTH = 20
ARROW_TYPES: Mapping[type | None, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
}


@dataclass(frozen=True)
class InputPreview:
    """The facts about one input that its beginning shows.

    Attributes:
        path: The input.
        format: Its format.
        column_types: The type of each column; for JSONL, of most values in the first rows. Empty if there is no row.
        unit: The unit of `ranges`, as in `InputSplit`.
        ranges: (start, stop) of each split.
        size_bytes: The size of the file; None for a stream.
        total_rows: The number of rows; None except for Parquet.
        rows: The first rows of JSONL.
        problem: Why the first bad row of JSONL is rejected; empty without one.
        duplicate_names: Names that more than one column has.
        bytes_per_row: About how many bytes of the file a row takes.
        delimiter: The delimiter of CSV if it is an unusual one that was detected, otherwise empty.
        quotes: Where quotes are in a file of a format without quotes: around all names "in header", so that it is read
            as quoted, or around values "in fields", which are read as they are; otherwise "as usual".
        marked_encoding: The encoding that a byte order mark shows; None without one.
        has_undecodable_bytes: Whether text at its beginning does not fit its encoding.
    """

    path: str
    format: InputFormat
    column_types: Mapping[str, pa.DataType]
    unit: Literal["bytes", "rows", "all"]
    ranges: Sequence[tuple[int, int | None]] = ((0, None),)
    size_bytes: int | None = None
    total_rows: int | None = None
    rows: Sequence[dict[str, Any]] = ()
    problem: str = ""
    duplicate_names: frozenset[str] = frozenset()
    bytes_per_row: float = ASSUMED_ROW_BYTES
    delimiter: str = ""
    quotes: Literal["as usual", "in header", "in fields"] = "as usual"
    marked_encoding: str | None = None
    has_undecodable_bytes: bool = False

    def column_type(self, name: str) -> pa.DataType | None:
        """The output type of a column or nested field; None if the input does not have it."""
        data_type = nested_fields.nested_type(self.column_types, name)
        return None if data_type is None else parquet_reader.output_type(data_type)

    @cached_property
    def flat_column_types(self) -> dict[str, pa.DataType]:
        """The output type of each column; for a column of objects, of its fields instead."""
        return {
            name: parquet_reader.output_type(data_type)
            for name, data_type in nested_fields.flatten_types(self.column_types)
        }


def preview_input(
    path: str,
    forced_format: InputFormat | None,
    encoding: str,
    max_rows: int,
    prefetched: storage.PrefetchedFiles | None = None,
    csv_options: CsvOptions = DEFAULT_OPTIONS,
) -> InputPreview:
    """Preview one input.

    Args:
        path: The input.
        forced_format: The --format option.
        encoding: The canonical name of the text encoding.
        max_rows: How many rows of JSONL to read at most.
        prefetched: Files that are open already.
        csv_options: How delimited files are written.

    Raises:
        InputError: The input cannot be read or is not a table of rows.
        UsageError: The format cannot be detected.
    """
    if not storage.is_local(path) and (forced_format or format_from_name(path)) == "parquet":
        # From an object store only the footer is read. A file that is not Parquet is previewed like any other.
        with suppress(parquet_reader.UnreadableParquetError):
            return _preview_footer(path, prefetched)
    with storage.open_input(path, preview=True, prefetched=prefetched) as source:
        head = source.read()
        if is_lfs_pointer(head):
            raise InputError(f"{format_location(path)}: is a Git LFS pointer, not the file itself", LFS_PULL_HINT)
        marked_encoding, blocks = detect_encoding(chain([head], source), encoding)
        refuse_unmarked_utf16(head, encoding, path)
        file_format = forced_format or detect_format(path, head, marked_encoding or encoding)
        if file_format == "parquet":
            return _preview_parquet(source)
        if file_format == "jsonl":
            preview = _preview_jsonl(source, blocks, marked_encoding or encoding, max_rows)
        else:
            reader = csv_reader.CsvReader(blocks, path, file_format, encoding, csv_options)
            preview = _preview_delimited(source, reader, file_format, csv_options)
        return replace(preview, marked_encoding=marked_encoding)


def detect_format(path: str, head: bytes, encoding: str) -> InputFormat:
    """Detect the format of a file: by magic bytes, then by its name, then by the first line.

    Args:
        path: The file.
        head: Its first bytes.
        encoding: Its text encoding.

    Raises:
        InputError: The file is not a table of rows, or is not what its name says.
        UsageError: Nothing shows the format.
    """
    if head.startswith(b"PAR1"):
        return "parquet"
    for signature, (description, hint) in FOREIGN_FILE_SIGNATURES.items():
        if head.startswith(signature):
            raise InputError(f"{format_location(path)}: is {description}, not a table of rows", hint)
    file_format = format_from_name(path) or _format_from_first_line(path, head, encoding)
    if file_format == "parquet":
        raise InputError(
            f"{format_location(path)}: is named like Parquet, but is not",
            "fetch it again if it is incomplete, or use --format",
        )
    return file_format


def format_from_name(path: str) -> InputFormat | None:
    """The format by the suffix of a file name; None if it has no known suffix."""
    suffix = INPUT_SUFFIX.search(storage.strip_query(path))
    return SUFFIX_FORMATS[suffix[1].lower()] if suffix else None


def _format_from_first_line(path: str, head: bytes, encoding: str) -> InputFormat:
    text = head.decode(encoding, "replace").removeprefix(BYTE_ORDER_MARK).lstrip()
    first = text.partition("\n")[0]
    if not text or text[0] in "{[":
        return "jsonl"
    if "\t" in first:
        return "tsv"
    if "," in first:
        return "csv"
    raise UsageError(
        f"{format_location(path)}: neither its name nor its first line shows the format",
        "use --format jsonl, csv, tsv or parquet; lines of plain text become rows with: "
        "jq -cR '{text: .}' FILE | embedcli encode - OUTPUT",
    )


def _preview_parquet(source: storage.InputStream) -> InputPreview:
    if source.size is None:
        raise InputError(
            f"{format_location(source.path)}: Parquet cannot be read from a pipe", "give the path of the file"
        )
    if source.codec is not None:
        raise InputError(
            f"{format_location(source.path)}: Parquet inside {source.codec} cannot be read",
            "decompress it; Parquet has its own compression",
        )
    return _preview_footer(source.path)


def _preview_footer(path: str, prefetched: storage.PrefetchedFiles | None = None) -> InputPreview:
    with parquet_reader.open_parquet(path, prefetched) as (file, size):
        schema, rows = file.schema_arrow, file.metadata.num_rows
        column_types = {field.name: parquet_reader.output_type(field.type) for field in schema}
        duplicates = frozenset(name for name, count in Counter(schema.names).items() if count > 1)
        ranges = parquet_reader.split_row_ranges(file.metadata)
    return InputPreview(
        path, "parquet", column_types, "rows", ranges, size, total_rows=rows, duplicate_names=duplicates
    )


def _preview_delimited(
    source: storage.InputStream, reader: csv_reader.CsvReader, file_format: InputFormat, options: CsvOptions
) -> InputPreview:
    delimiter, quote = reader.dialect.delimiter, reader.dialect.quote
    is_detected = options.delimiter is None and delimiter != DELIMITERS[file_format]
    quotes: Literal["as usual", "in header", "in fields"] = "as usual"
    if options.quote is None and quote != QUOTES[file_format]:
        quotes = "in header"
    elif options.quote is None and quote is None and looks_quoted(reader.head, delimiter):
        quotes = "in fields"
    return InputPreview(
        source.path,
        file_format,
        {name: pa.string() for name in reader.header if name},
        "all",
        size_bytes=source.size,
        bytes_per_row=ASSUMED_ROW_BYTES if source.codec is None else ASSUMED_COMPRESSED_ROW_BYTES,
        delimiter=delimiter if is_detected else "",
        quotes=quotes,
        has_undecodable_bytes=reader.has_undecodable_bytes,
    )


def _preview_jsonl(source: storage.InputStream, blocks: Iterable[bytes], encoding: str, max_rows: int) -> InputPreview:
    lines = _first_lines(blocks, encoding, source.path, max_rows)
    first = next((line for line in lines if line.strip()), "")
    if first.lstrip()[:1] in ("[", b"["):
        raise InputError(
            f"{format_location(source.path)}: is one JSON array, not one JSON object per line",
            "make it JSONL first: jq -c '.[]' FILE | embedcli encode - OUTPUT",
        )
    parsed = jsonl_reader.parse_lines(lines, encoding)
    rows = [row for i, row in enumerate(parsed.rows) if i not in parsed.reject_reasons]
    is_splittable = encoding == "utf-8" and source.codec is None and source.size is not None
    return InputPreview(
        source.path,
        "jsonl",
        infer_column_types(rows),
        "bytes" if is_splittable else "all",
        split_byte_ranges(source.size or 0) if is_splittable else ((0, None),),
        size_bytes=source.size,
        rows=rows,
        has_undecodable_bytes=has_undecodable_lines(lines),
        problem=next(iter(parsed.reject_reasons.values()), ""),
        bytes_per_row=sum(map(len, lines)) / len(lines) + 1
        if is_splittable and lines
        else ASSUMED_COMPRESSED_ROW_BYTES,
    )


def _first_lines(blocks: Iterable[bytes], encoding: str, path: str, max_rows: int) -> list[Any]:
    """The first `max_rows` lines within PREVIEW_BYTES; they do not depend on the size of the blocks."""
    head = StreamHead(blocks)
    lines = list(islice(chain.from_iterable(jsonl_reader.iterate_lines(head, encoding, path)), max_rows + 1))
    return lines[:-1] if head.is_last_line_cut or len(lines) > max_rows else lines


@dataclass
class StreamHead:
    """The first PREVIEW_BYTES of a stream, or its first line if that is longer.

    Attributes:
        blocks: The stream.
        is_last_line_cut: Whether the last line is incomplete; known after the iteration.
    """

    blocks: Iterable[bytes]
    is_last_line_cut: bool = False

    def __iter__(self) -> Iterator[bytes]:
        size = lines = 0
        for block in self.blocks:
            room = PREVIEW_BYTES - size if lines else max(PREVIEW_BYTES - size, block.find(b"\n") + 1 or len(block))
            part = block[:room]
            size += len(part)
            lines += part.count(b"\n")
            if part:
                yield part
                self.is_last_line_cut = not part.endswith(b"\n")
            if len(part) < len(block):
                return
        self.is_last_line_cut = False


def infer_column_type(values: list[Any], depth: int = 0) -> pa.DataType:
    """The Arrow type of most values of a JSONL column; null for lists, or if there are no values."""
    counts = Counter(value_type for value_type in map(type, values) if value_type is not type(None))
    most_common = counts.most_common(1)[0][0] if counts else None
    if most_common is not dict or depth == MAX_NESTING_DEPTH:
        return ARROW_TYPES.get(most_common, pa.null())
    return pa.struct(list(infer_column_types([value for value in values if type(value) is dict], depth + 1).items()))


def infer_column_types(rows: list[dict[str, Any]], depth: int = 0) -> dict[str, pa.DataType]:
    """The type of most values of each column of some rows, or of each field of some objects."""
    columns: defaultdict[str, list[Any]] = defaultdict(list)
    for row in rows:  # one pass, because objects that are used as maps have other names in every row
        for name, value in row.items():
            columns[name].append(value)
    return {name: infer_column_type(values, depth) for name, values in columns.items()}


def split_byte_ranges(size: int) -> list[tuple[int, int | None]]:
    """The [start, stop) of each split of a plain JSONL file; one empty range for an empty file."""
    return [(start, min(start + JSONL_SPLIT_BYTES, size)) for start in range(0, max(1, size), JSONL_SPLIT_BYTES)]

"""Preview the beginning of an input: its format, its columns, and how it can be split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from typing import Any, Literal

import pyarrow as pa

from embedcli import storage
from embedcli.core.errors import InputError
from embedcli.core.types import InputFormat
from embedcli.readers import arrow as arrow_reader
from embedcli.readers import csv as csv_reader
from embedcli.readers import json_array, nested_fields, record_batches
from embedcli.readers import jsonl as jsonl_reader
from embedcli.readers import parquet as parquet_reader
from embedcli.readers import text as text_reader
from embedcli.readers.csv_dialect import DEFAULT_OPTIONS, DELIMITERS, QUOTES, CsvOptions, looks_quoted
from embedcli.readers.decoding import detect_encoding, has_undecodable_lines
from embedcli.readers.detection import BINARY_FORMATS, detect_format, format_from_name, read_head
from embedcli.readers.lines import iterate_lines
from embedcli.readers.own_files import OwnFileKind, recognize_by_schema
from embedcli.storage import format_location

# Plain JSONL is split into byte ranges of this size; a line belongs to the split in which it begins. That is about
# 30,000 rows of 500 bytes: a worker that dies loses one split, and 10 GB have 640 of them.
JSONL_SPLIT_BYTES = 16 << 20
# Bytes per row where the preview does not show them. They only decide how splits are grouped into partitions.
ASSUMED_ROW_BYTES = 500.0
ASSUMED_COMPRESSED_ROW_BYTES = 150.0
# A preview reads at most this many bytes of a JSONL file, and at least one line.
PREVIEW_BYTES = 4 << 20
# Lines of plain text that are previewed, for their average length.
MAX_TEXT_PREVIEW_LINES = 100

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
        total_rows: The number of rows; None except for Parquet and Arrow files.
        rows: The first rows of JSON.
        problem: Why the first bad row of JSON is rejected; empty without one.
        duplicate_names: Names that more than one column has.
        bytes_per_row: About how many bytes of the file a row takes.
        delimiter: The delimiter of CSV if it is an unusual one that was detected, otherwise empty.
        quotes: Where quotes are in a file of a format without quotes: around all names "in header", so that it is read
            as quoted, or around values "in fields", which are read as they are; otherwise "as usual".
        marked_encoding: The encoding that a byte order mark shows; None without one.
        has_undecodable_bytes: Whether text at its beginning does not fit its encoding.
        partition_types: The type of each column whose value is in the path (`lang=fr`), by name.
        shows_all_rows: Whether `column_types` are complete; not for JSON whose first rows were read only.
        own_kind: What a file is that embedcli wrote, by its Parquet metadata; None for other files.
        note: A sentence about how the input is read, if that is not evident.
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
    partition_types: Mapping[str, pa.DataType] = field(default_factory=dict)
    shows_all_rows: bool = True
    own_kind: OwnFileKind | None = None
    note: str = ""

    @property
    def has_arrow_types(self) -> bool:
        """Whether the columns have declared Arrow types: in Parquet and Arrow."""
        return self.format in BINARY_FORMATS

    @property
    def has_inferred_types(self) -> bool:
        """Whether the types of the columns are those of the first rows: in JSON."""
        return self.format in ("jsonl", "json")

    def column_type(self, name: str) -> pa.DataType | None:
        """The output type of a column or nested field; None if the input does not have it."""
        if name in self.partition_types:
            return self.partition_types[name]
        data_type = nested_fields.nested_type(self.column_types, name)
        return None if data_type is None else record_batches.output_type(data_type)

    @cached_property
    def flat_column_types(self) -> dict[str, pa.DataType]:
        """The output type of each column; for a column of objects, of its fields instead."""
        return {
            name: record_batches.output_type(data_type)
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
        head = read_head(source)
        marked_encoding, blocks = detect_encoding(chain([head], source), encoding)
        encoding = marked_encoding or encoding
        file_format = detect_format(path, head, encoding, forced_format, source.codec)
        if file_format == "parquet":
            return _preview_parquet(source)
        if file_format == "arrow":
            return _preview_arrow(source, blocks, is_file=head.startswith(arrow_reader.FILE_MAGIC))
        preview = _preview_text_format(source, blocks, encoding, file_format, max_rows, csv_options)
        preview = replace(preview, marked_encoding=marked_encoding)
    by_name = forced_format is None and file_format == "text"
    return replace(preview, note=f"{text_reader.NAME_NOTE}: {format_location(path)}.") if by_name else preview


def _preview_text_format(
    source: storage.InputStream,
    blocks: Iterable[bytes],
    encoding: str,
    file_format: InputFormat,
    max_rows: int,
    csv_options: CsvOptions,
) -> InputPreview:
    match file_format:
        case "jsonl":
            return _preview_jsonl(source, blocks, encoding, max_rows)
        case "json":
            return _preview_json_array(source, blocks, encoding, max_rows)
        case "text":
            return _preview_text(source, blocks, encoding)
        case _:
            reader = csv_reader.CsvReader(blocks, source.path, file_format, encoding, csv_options)
            return _preview_delimited(source, reader, file_format, csv_options)


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
        column_types = {field.name: record_batches.output_type(field.type) for field in schema}
        duplicates = frozenset(nested_fields.duplicate_names(schema))
        ranges = parquet_reader.split_row_ranges(file.metadata)
    return InputPreview(
        path,
        "parquet",
        column_types,
        "rows",
        ranges,
        size,
        total_rows=rows,
        duplicate_names=duplicates,
        own_kind=recognize_by_schema(path, schema),
    )


def _preview_arrow(source: storage.InputStream, blocks: Iterable[bytes], *, is_file: bool) -> InputPreview:
    is_splittable = is_file and source.codec is None and source.size is not None and storage.is_local(source.path)
    stream_schema = None if is_splittable else arrow_reader.ArrowStream.from_blocks(blocks, source.path).schema
    schema = arrow_reader.read_file_schema(source.path) if stream_schema is None else stream_schema
    preview = InputPreview(
        source.path,
        "arrow",
        {field.name: record_batches.output_type(field.type) for field in schema},
        "all",
        size_bytes=source.size,
        duplicate_names=frozenset(nested_fields.duplicate_names(schema)),
        own_kind=recognize_by_schema(source.path, schema),
    )
    if not is_splittable:
        return preview
    ranges = arrow_reader.split_record_batches(source.path)
    return replace(preview, unit="rows", ranges=ranges, total_rows=ranges[-1][1])


def _preview_text(source: storage.InputStream, blocks: Iterable[bytes], encoding: str) -> InputPreview:
    lines, _ = _first_lines(blocks, encoding, source.path, MAX_TEXT_PREVIEW_LINES)
    column_types = {text_reader.TEXT_COLUMN: pa.string()}
    return InputPreview(
        source.path,
        "text",
        column_types,
        **_line_ranges(source, encoding, lines),
        has_undecodable_bytes=has_undecodable_lines(lines),
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
    lines, shows_all_rows = _first_lines(blocks, encoding, source.path, max_rows)
    parsed = jsonl_reader.parse_lines(lines, encoding)
    rows = [row for i, row in enumerate(parsed.rows) if i not in parsed.reject_reasons]
    if not rows:
        json_array.check_one_object_per_line(lines, source.path)
    return InputPreview(
        source.path,
        "jsonl",
        infer_column_types(rows),
        **_line_ranges(source, encoding, lines),
        rows=rows,
        has_undecodable_bytes=has_undecodable_lines(lines),
        problem=next(iter(parsed.reject_reasons.values()), ""),
        shows_all_rows=shows_all_rows,
    )


def _line_ranges(source: storage.InputStream, encoding: str, lines: Sequence[Any]) -> dict[str, Any]:
    """How an input of lines is split, its size, and the average length of its first lines."""
    is_splittable = encoding == "utf-8" and source.codec is None and source.size is not None
    has_row_bytes = is_splittable and lines
    return {
        "unit": "bytes" if is_splittable else "all",
        "ranges": split_byte_ranges(source.size or 0) if is_splittable else ((0, None),),
        "size_bytes": source.size,
        "bytes_per_row": sum(map(len, lines)) / len(lines) + 1 if has_row_bytes else ASSUMED_COMPRESSED_ROW_BYTES,
    }


def _preview_json_array(
    source: storage.InputStream, blocks: Iterable[bytes], encoding: str, max_rows: int
) -> InputPreview:
    elements = json_array.first_elements(blocks, encoding, source.path, max_rows, PREVIEW_BYTES)
    parsed = jsonl_reader.parse_lines([element.text for element in elements], encoding, "element")
    rows = [row for i, row in enumerate(parsed.rows) if i not in parsed.reject_reasons]
    return InputPreview(
        source.path,
        "json",
        infer_column_types(rows),
        "all",
        size_bytes=source.size,
        rows=rows,
        has_undecodable_bytes=has_undecodable_lines([element.text for element in elements]),
        problem=next(iter(parsed.reject_reasons.values()), ""),
        bytes_per_row=ASSUMED_ROW_BYTES if source.codec is None else ASSUMED_COMPRESSED_ROW_BYTES,
        shows_all_rows=len(elements) < max_rows
        and source.codec is None
        and source.size is not None
        and source.size <= PREVIEW_BYTES,
    )


def _first_lines(blocks: Iterable[bytes], encoding: str, path: str, max_rows: int) -> tuple[list[Any], bool]:
    """The first `max_rows` lines within PREVIEW_BYTES, whatever the size of the blocks, and whether these are all."""
    head = StreamHead(blocks)
    lines = list(islice(chain.from_iterable(iterate_lines(head, encoding, path)), max_rows + 1))
    are_all = not head.is_cut and len(lines) <= max_rows
    return (lines[:-1] if head.is_last_line_cut or len(lines) > max_rows else lines), are_all


@dataclass
class StreamHead:
    """The first PREVIEW_BYTES of a stream, or its first line if that is longer.

    Attributes:
        blocks: The stream.
        is_cut: Whether the stream goes on; known after the iteration.
        is_last_line_cut: Whether the last line is incomplete; known after the iteration.
    """

    blocks: Iterable[bytes]
    is_cut: bool = False
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
                self.is_cut = True
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

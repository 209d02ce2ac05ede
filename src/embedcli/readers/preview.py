"""A look at the beginning of each input: its format, its columns, and how it can be cut into pieces."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
from embedcli.readers.decoding import BYTE_ORDER_MARK
from embedcli.storage import format_location

# Plain JSONL is cut into pieces of this size; a line belongs to the piece in which it begins.
# Some 30,000 rows of 500 bytes: a worker that dies costs one piece, and 10 GB have 640 of them.
JSONL_SPLIT_BYTES = 16 << 20
# What a row is taken to need where no look tells: a guess that only decides how pieces are grouped.
ASSUMED_ROW_BYTES = 500.0
ASSUMED_COMPRESSED_ROW_BYTES = 150.0
# A look takes this many bytes of a JSONL file at most, and at least one line.
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
# Fields of objects that lie deeper than this are no columns.
MAX_NESTING_DEPTH = 20
ARROW_TYPES: Mapping[type | None, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
}
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class InputPreview:
    """What the beginning of one input shows.

    `kinds` are its columns and their types (for JSONL, what most of the first rows hold), `twice` the names that more
    than one column has; no columns: nothing to see. `rows` are the first rows of JSONL, `trouble` is what is
    wrong with the first bad one. `ranges` are the addresses of its pieces, `total` its rows if known, `row_bytes` about
    how many bytes of the file a row takes, `delimiter` what tells its fields if it is not what the format says.
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

    def column_type(self, name: str) -> pa.DataType | None:
        """The type of a column, or of a field of an object (`nested`); None if the input has none of that name."""
        found = nested_fields.nested_type(self.column_types, name)
        return None if found is None else parquet_reader.output_type(found)

    @cached_property
    def flat_column_types(self) -> dict[str, pa.DataType]:
        """The columns and their types; of one that holds objects its fields."""
        return {name: parquet_reader.output_type(kind) for name, kind in nested_fields.flatten_types(self.column_types)}


def preview_input(
    path: str,
    forced: InputFormat | None,
    encoding: str,
    rows: int,
    prefetched: storage.PrefetchedFiles | None = None,
) -> InputPreview:
    """Look at one input; `rows` JSONL rows at most. InputError or UsageError if it is nothing we can read."""
    if not storage.is_local(path) and (forced or format_from_name(path)) == "parquet":
        # A store is asked for the footer alone; what is no Parquet file is looked at like any other.
        with suppress(parquet_reader.UnreadableParquetError):
            return _look_at_footer(path, prefetched)
    with storage.open_input(path, preview=True, prefetched=prefetched) as source:
        head = source.read()
        kind = forced or detect_format(path, head, encoding)
        if kind == "parquet":
            return _look_at_parquet(source)
        if encoding == "utf-8" and head.startswith(UTF16_BOMS):
            raise InputError(
                f"{format_location(path)}: is not UTF-8, it begins with the mark of UTF-16", "use --encoding utf-16"
            )
        blocks = chain([head], source)
        if kind == "jsonl":
            return _look_at_jsonl(source, blocks, encoding, rows)
        table = csv_reader.CsvReader(blocks, path, kind, encoding)
        bytes_each = ASSUMED_ROW_BYTES if source.codec is None else ASSUMED_COMPRESSED_ROW_BYTES
        kinds = {name: pa.string() for name in table.header if name}
        unusual = table.delimiter if table.delimiter != csv_reader.DELIMITERS[kind] else ""
        return InputPreview(
            path, kind, kinds, "all", size_bytes=source.size, bytes_per_row=bytes_each, delimiter=unusual
        )


def detect_format(path: str, head: bytes, encoding: str) -> InputFormat:
    """The format of a file that begins with `head`: by magic bytes, then by its name, then by the first line."""
    if head.startswith(b"PAR1"):
        return "parquet"
    for magic, (what, hint) in FOREIGN_FILE_SIGNATURES.items():
        if head.startswith(magic):
            raise InputError(f"{format_location(path)}: is {what}, not a table of rows", hint)
    named = format_from_name(path) or _sniffed(path, head, encoding)
    if named == "parquet":
        raise InputError(
            f"{format_location(path)}: is named like Parquet, but is not",
            "fetch it again if it is cut, or name its format with --format",
        )
    return named


def format_from_name(path: str) -> InputFormat | None:
    """The format that a file's name tells."""
    ending = INPUT_SUFFIX.search(storage.strip_query(path))
    return SUFFIX_FORMATS[ending[1].lower()] if ending else None


def _sniffed(path: str, head: bytes, encoding: str) -> InputFormat:
    text = head.decode(encoding, "replace").removeprefix(BYTE_ORDER_MARK).lstrip()
    first = text.partition("\n")[0]
    if not text or text[0] in "{[":
        return "jsonl"
    if "\t" in first:
        return "tsv"
    if "," in first:
        return "csv"
    raise UsageError(
        f"{format_location(path)}: neither its name nor its first line tells the format",
        "use --format jsonl, csv, tsv or parquet; lines of plain text become rows with: "
        "jq -cR '{text: .}' FILE | embedcli encode - OUTPUT",
    )


def _look_at_parquet(source: storage.InputStream) -> InputPreview:
    if source.size is None:
        raise InputError(f"{format_location(source.path)}: Parquet cannot be read from a pipe", "name the file itself")
    if source.codec is not None:
        raise InputError(
            f"{format_location(source.path)}: Parquet inside {source.codec} cannot be read",
            "decompress it; Parquet is compressed",
        )
    return _look_at_footer(source.path)


def _look_at_footer(path: str, prefetched: storage.PrefetchedFiles | None = None) -> InputPreview:
    with parquet_reader.open_parquet(path, prefetched) as (file, size):
        schema, rows = file.schema_arrow, file.metadata.num_rows
        kinds = {field.name: parquet_reader.output_type(field.type) for field in schema}
        twice = frozenset(name for name, times in Counter(schema.names).items() if times > 1)
        ranges = parquet_reader.split_row_ranges(file.metadata)
    return InputPreview(path, "parquet", kinds, "rows", ranges, size, total_rows=rows, duplicate_names=twice)


def _look_at_jsonl(source: storage.InputStream, blocks: Iterable[bytes], encoding: str, rows: int) -> InputPreview:
    lines = _first_lines(blocks, encoding, source.path, rows)
    first = next((line for line in lines if line.strip()), "")
    if first.lstrip()[:1] in ("[", b"["):
        raise InputError(
            f"{format_location(source.path)}: is one JSON array, not one JSON object a line",
            "make it JSONL first: jq -c '.[]' FILE | embedcli encode - OUTPUT",
        )
    parsed = jsonl_reader.parse_lines(lines, encoding)
    good = [row for i, row in enumerate(parsed.rows) if i not in parsed.reject_reasons]
    ranged = encoding == "utf-8" and source.codec is None and source.size is not None
    return InputPreview(
        source.path,
        "jsonl",
        infer_column_types(good),
        "bytes" if ranged else "all",
        split_byte_ranges(source.size or 0) if ranged else ((0, None),),
        size_bytes=source.size,
        rows=good,
        problem=next(iter(parsed.reject_reasons.values()), ""),
        bytes_per_row=sum(map(len, lines)) / len(lines) + 1 if ranged and lines else ASSUMED_COMPRESSED_ROW_BYTES,
    )


def _first_lines(blocks: Iterable[bytes], encoding: str, path: str, rows: int) -> list[Any]:
    """The first lines: `rows` of them, or those in PREVIEW_BYTES; the same however the stream is portioned."""
    beginning = StreamHead(blocks)
    lines = list(islice(chain.from_iterable(jsonl_reader.iterate_lines(beginning, encoding, path)), rows + 1))
    return lines[:-1] if beginning.is_last_line_cut or len(lines) > rows else lines


@dataclass
class StreamHead:
    """The first PREVIEW_BYTES of a stream, or its first line if that is longer. `cut` if the last line is not whole."""

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
    """What most values of a JSONL column are, as an Arrow type: null for lists, or if there are no values."""
    counts = Counter(kind for kind in map(type, values) if kind is not type(None))
    most = counts.most_common(1)[0][0] if counts else None
    if most is not dict or depth == MAX_NESTING_DEPTH:
        return ARROW_TYPES.get(most, pa.null())
    return pa.struct(list(infer_column_types([value for value in values if type(value) is dict], depth + 1).items()))


def infer_column_types(rows: list[dict[str, Any]], depth: int = 0) -> dict[str, pa.DataType]:
    """The columns of some rows, or the fields of some objects, and what most of their values are."""
    columns: defaultdict[str, list[Any]] = defaultdict(list)
    for row in rows:  # once: objects may be maps, with names of their own in every row
        for name, value in row.items():
            columns[name].append(value)
    return {name: infer_column_type(values, depth) for name, values in columns.items()}


def split_byte_ranges(size: int) -> list[tuple[int, int | None]]:
    """[start, stop) of each piece of a plain JSONL file; one empty range for an empty file."""
    return [(start, min(start + JSONL_SPLIT_BYTES, size)) for start in range(0, max(1, size), JSONL_SPLIT_BYTES)]

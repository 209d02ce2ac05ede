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
from embedcli.core.types import Format
from embedcli.readers import csv as csv_reader
from embedcli.readers import jsonl as jsonl_reader
from embedcli.readers import nested_fields
from embedcli.readers import parquet as parquet_reader
from embedcli.readers.decoding import BOM
from embedcli.storage import where

# Plain JSONL is cut into pieces of this size; a line belongs to the piece in which it begins.
# Some 30,000 rows of 500 bytes: a worker that dies costs one piece, and 10 GB have 640 of them.
PIECE_BYTES = 16 << 20
# What a row is taken to need where no look tells: a guess that only decides how pieces are grouped.
ROW_BYTES = 500.0
PACKED_ROW_BYTES = 150.0
# A look takes this many bytes of a JSONL file at most, and at least one line.
LOOK_BYTES = 4 << 20

ENDING = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|tab|parquet|pq)(\.(gz|gzip|zst|zstd|bz2|xz))?$", re.IGNORECASE)
FORMATS: Mapping[str, Format] = {
    "jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl", "csv": "csv", "tsv": "tsv", "tab": "tsv",
    "parquet": "parquet", "pq": "parquet",
}  # fmt: skip
CONVERT = "convert it to JSONL, CSV, TSV or Parquet first"
FOREIGN = {
    b"PK\x03\x04": ("a zip archive or an Excel file", "unpack it first: unzip -p FILE.zip | embedcli encode - OUTPUT"),
    b"ARROW1": ("an Arrow IPC file", CONVERT),
    b"ORC": ("an ORC file", CONVERT),
    b"Obj\x01": ("an Avro file", CONVERT),
    b"\x93NUMPY": ("a NumPy array", CONVERT),
    b"%PDF": ("a PDF", CONVERT),
    b"SQLite format 3\0": ("an SQLite database", CONVERT),
    b"\x04\x22\x4d\x18": ("lz4-compressed", "decompress it first: lz4 -dc FILE | embedcli encode - OUTPUT"),
}
# Fields of objects that lie deeper than this are no columns.
DEEPEST = 20
KINDS: Mapping[type | None, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Look:
    """What the beginning of one input shows.

    `kinds` are its columns and their types (for JSONL, what most of the first rows hold), `twice` the names that more
    than one column has; no columns: nothing to see. `rows` are the first rows of JSONL, `trouble` is what is
    wrong with the first bad one. `ranges` are the addresses of its pieces, `total` its rows if known, `row_bytes` about
    how many bytes of the file a row takes, `delimiter` what tells its fields if it is not what the format says.
    """

    path: str
    format: Format
    kinds: Mapping[str, pa.DataType]
    unit: Literal["bytes", "rows", "all"]
    ranges: Sequence[tuple[int, int | None]] = ((0, None),)
    size: int | None = None
    total: int | None = None
    rows: Sequence[dict[str, Any]] = ()
    trouble: str = ""
    twice: frozenset[str] = frozenset()
    row_bytes: float = ROW_BYTES
    delimiter: str = ""

    def kind(self, name: str) -> pa.DataType | None:
        """The type of a column, or of a field of an object (`nested`); None if the input has none of that name."""
        found = nested_fields.kind_in(self.kinds, name)
        return None if found is None else parquet_reader.plain(found)

    @cached_property
    def leaves(self) -> dict[str, pa.DataType]:
        """The columns and their types; of one that holds objects its fields."""
        return {name: parquet_reader.plain(kind) for name, kind in nested_fields.leaves(self.kinds)}


def look_at(path: str, forced: Format | None, encoding: str, rows: int) -> Look:
    """Look at one input; `rows` JSONL rows at most. InputError or UsageError if it is nothing we can read."""
    if not storage.is_local(path) and (forced or by_name(path)) == "parquet":
        # A store is asked for the footer alone; what is no Parquet file is looked at like any other.
        with suppress(parquet_reader.Unreadable):
            return _look_at_footer(path)
    with storage.open_input(path, look=True) as source:
        head = source.read()
        kind = forced or format_of(path, head, encoding)
        if kind == "parquet":
            return _look_at_parquet(source)
        if encoding == "utf-8" and head.startswith(UTF16_BOMS):
            raise InputError(f"{where(path)}: is not UTF-8, it begins with the mark of UTF-16", "use --encoding utf-16")
        blocks = chain([head], source)
        if kind == "jsonl":
            return _look_at_jsonl(source, blocks, encoding, rows)
        table = csv_reader.Table(blocks, path, kind, encoding)
        bytes_each = ROW_BYTES if source.codec is None else PACKED_ROW_BYTES
        kinds = {name: pa.string() for name in table.header if name}
        unusual = table.delimiter if table.delimiter != csv_reader.DELIMITERS[kind] else ""
        return Look(path, kind, kinds, "all", size=source.size, row_bytes=bytes_each, delimiter=unusual)


def format_of(path: str, head: bytes, encoding: str) -> Format:
    """The format of a file that begins with `head`: by magic bytes, then by its name, then by the first line."""
    if head.startswith(b"PAR1"):
        return "parquet"
    for magic, (what, hint) in FOREIGN.items():
        if head.startswith(magic):
            raise InputError(f"{where(path)}: is {what}, not a table of rows", hint)
    named = by_name(path) or _sniffed(path, head, encoding)
    if named == "parquet":
        raise InputError(
            f"{where(path)}: is named like Parquet, but is not",
            "fetch it again if it is cut, or name its format with --format",
        )
    return named


def by_name(path: str) -> Format | None:
    """The format that a file's name tells."""
    ending = ENDING.search(storage.without_query(path))
    return FORMATS[ending[1].lower()] if ending else None


def _sniffed(path: str, head: bytes, encoding: str) -> Format:
    text = head.decode(encoding, "replace").removeprefix(BOM).lstrip()
    first = text.partition("\n")[0]
    if not text or text[0] in "{[":
        return "jsonl"
    if "\t" in first:
        return "tsv"
    if "," in first:
        return "csv"
    raise UsageError(
        f"{where(path)}: neither its name nor its first line tells the format",
        "use --format jsonl, csv, tsv or parquet; lines of plain text become rows with: "
        "jq -cR '{text: .}' FILE | embedcli encode - OUTPUT",
    )


def _look_at_parquet(source: storage.Input) -> Look:
    if source.size is None:
        raise InputError(f"{where(source.path)}: Parquet cannot be read from a pipe", "name the file itself")
    if source.codec is not None:
        raise InputError(
            f"{where(source.path)}: Parquet inside {source.codec} cannot be read",
            "decompress it; Parquet is compressed",
        )
    return _look_at_footer(source.path)


def _look_at_footer(path: str) -> Look:
    with parquet_reader.opened(path) as (file, size):
        schema, rows = file.schema_arrow, file.metadata.num_rows
        kinds = {field.name: parquet_reader.plain(field.type) for field in schema}
        twice = frozenset(name for name, times in Counter(schema.names).items() if times > 1)
        ranges = parquet_reader.row_ranges(file.metadata)
    return Look(path, "parquet", kinds, "rows", ranges, size, total=rows, twice=twice)


def _look_at_jsonl(source: storage.Input, blocks: Iterable[bytes], encoding: str, rows: int) -> Look:
    lines = _first_lines(blocks, encoding, source.path, rows)
    first = next((line for line in lines if line.strip()), "")
    if first.lstrip()[:1] in ("[", b"["):
        raise InputError(
            f"{where(source.path)}: is one JSON array, not one JSON object a line",
            "make it JSONL first: jq -c '.[]' FILE | embedcli encode - OUTPUT",
        )
    parsed = jsonl_reader.parse(lines, encoding)
    good = [row for i, row in enumerate(parsed.rows) if i not in parsed.faults]
    ranged = encoding == "utf-8" and source.codec is None and source.size is not None
    return Look(
        source.path,
        "jsonl",
        kinds_of(good),
        "bytes" if ranged else "all",
        byte_ranges(source.size or 0) if ranged else ((0, None),),
        size=source.size,
        rows=good,
        trouble=next(iter(parsed.faults.values()), ""),
        row_bytes=sum(map(len, lines)) / len(lines) + 1 if ranged and lines else PACKED_ROW_BYTES,
    )


def _first_lines(blocks: Iterable[bytes], encoding: str, path: str, rows: int) -> list[Any]:
    """The first lines: `rows` of them, or those in LOOK_BYTES; the same however the stream is portioned."""
    beginning = Beginning(blocks)
    lines = list(islice(chain.from_iterable(jsonl_reader.stream_lines(beginning, encoding, path)), rows + 1))
    return lines[:-1] if beginning.cut or len(lines) > rows else lines


@dataclass
class Beginning:
    """The first LOOK_BYTES of a stream, or its first line if that is longer. `cut` if the last line is not whole."""

    blocks: Iterable[bytes]
    cut: bool = False

    def __iter__(self) -> Iterator[bytes]:
        size = lines = 0
        for block in self.blocks:
            room = LOOK_BYTES - size if lines else max(LOOK_BYTES - size, block.find(b"\n") + 1 or len(block))
            part = block[:room]
            size += len(part)
            lines += part.count(b"\n")
            if part:
                yield part
                self.cut = not part.endswith(b"\n")
            if len(part) < len(block):
                return
        self.cut = False


def kind_of(values: list[Any], depth: int = 0) -> pa.DataType:
    """What most values of a JSONL column are, as an Arrow type: null for lists, or if there are no values."""
    counts = Counter(kind for kind in map(type, values) if kind is not type(None))
    most = counts.most_common(1)[0][0] if counts else None
    if most is not dict or depth == DEEPEST:
        return KINDS.get(most, pa.null())
    return pa.struct(list(kinds_of([value for value in values if type(value) is dict], depth + 1).items()))


def kinds_of(rows: list[dict[str, Any]], depth: int = 0) -> dict[str, pa.DataType]:
    """The columns of some rows, or the fields of some objects, and what most of their values are."""
    columns: defaultdict[str, list[Any]] = defaultdict(list)
    for row in rows:  # once: objects may be maps, with names of their own in every row
        for name, value in row.items():
            columns[name].append(value)
    return {name: kind_of(values, depth) for name, values in columns.items()}


def byte_ranges(size: int) -> list[tuple[int, int | None]]:
    """[start, stop) of each piece of a plain JSONL file; one empty range for an empty file."""
    return [(start, min(start + PIECE_BYTES, size)) for start in range(0, max(1, size), PIECE_BYTES)]

"""Detect the format of an input from its first bytes and its name, and refuse files that are not tables."""

from __future__ import annotations

import re
from collections.abc import Mapping

from embedcli import storage
from embedcli.core.errors import InputError, UsageError
from embedcli.core.types import InputFormat
from embedcli.readers import arrow as arrow_reader
from embedcli.readers.decoding import BYTE_ORDER_MARK, refuse_unmarked_utf16
from embedcli.readers.signatures import (
    CONVERT_HINT,
    HEAD_BYTES,
    ForeignFile,
    describe_binary_text,
    describe_foreign_file,
    describe_markup,
)
from embedcli.storage import format_location
from embedcli.storage.lfs import LFS_PULL_HINT, is_lfs_pointer

INPUT_SUFFIX = re.compile(
    r"\.(jsonl|ndjson|json|csv|tsv|tab|txt|parquet|pq|arrow|arrows|feather|ipc)(\.(gz|gzip|zst|zstd|bz2|xz))?$",
    re.IGNORECASE,
)
SUFFIX_FORMATS: Mapping[str, InputFormat] = {
    "jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl", "csv": "csv", "tsv": "tsv", "tab": "tsv", "txt": "text",
    "parquet": "parquet", "pq": "parquet", "arrow": "arrow", "arrows": "arrow", "feather": "arrow", "ipc": "arrow",
}  # fmt: skip
BINARY_FORMATS: Mapping[InputFormat, str] = {"parquet": "Parquet", "arrow": "Arrow"}


def read_head(source: storage.InputStream) -> bytes:
    """The first bytes of a stream: at least HEAD_BYTES, if it has them."""
    head = source.read()
    while len(head) < HEAD_BYTES and (block := source.read()):
        head += block
    return head


def detect_format(
    path: str, head: bytes, encoding: str, forced_format: InputFormat | None = None, codec: str | None = None
) -> InputFormat:
    """Detect the format of a file: by magic bytes, then by its name, then by the first line.

    Args:
        path: The file.
        head: Its first bytes, at least HEAD_BYTES if it has them.
        encoding: Its text encoding.
        forced_format: The --format option: nothing is detected, but files that are not text are refused.
        codec: How the file is compressed, if it is.

    Raises:
        InputError: The file is not a table of rows, or is not what its name says.
        UsageError: Nothing shows the format.
    """
    if is_lfs_pointer(head):
        raise InputError(f"{format_location(path)}: is a Git LFS pointer, not the file itself", LFS_PULL_HINT)
    if forced_format is not None and forced_format in BINARY_FORMATS:
        return forced_format
    if forced_format is None and head.startswith(b"PAR1"):
        return "parquet"
    if forced_format is None and arrow_reader.is_arrow(head):
        return "arrow"
    named = None if forced_format else format_from_name(path)
    check_is_text(path, head, encoding, codec, may_be_markup=forced_format is not None)
    if named is not None and named in BINARY_FORMATS:
        raise InputError(
            f"{format_location(path)}: is named like {BINARY_FORMATS[named]}, but is not",
            "fetch it again if it is incomplete, or use --format",
        )
    if forced_format is not None:
        return forced_format
    return _refine_named_format(named, head, encoding) if named else _format_from_first_line(path, head, encoding)


def check_is_text(path: str, head: bytes, encoding: str, codec: str | None, *, may_be_markup: bool) -> None:
    """Refuse a file that is not text in the encoding, or, unless it may be, text with HTML or XML.

    Raises:
        InputError: The file is of another kind, which the message names.
    """
    found = describe_foreign_file(head)
    if found is not None:
        raise _not_a_table_error(path, found, codec)
    refuse_unmarked_utf16(head, encoding, path)
    text = decode_head(head[:HEAD_BYTES], encoding)
    found = None if may_be_markup else describe_markup(text)
    if found is not None:
        raise _not_a_table_error(path, found, codec)
    binary = describe_binary_text(text)
    if binary is not None:
        contents = f"{codec} with binary data inside" if codec else "binary data, not text"
        raise InputError(f"{format_location(path)}: is {contents}: {binary}", CONVERT_HINT)


def decode_head(head: bytes, encoding: str) -> str:
    """The text of the first bytes of a file, without a byte order mark and without what cannot be decoded."""
    return head.decode(encoding, "ignore").removeprefix(BYTE_ORDER_MARK)


def _not_a_table_error(path: str, found: ForeignFile, codec: str | None) -> InputError:
    inside = f" inside {codec}" if codec else ""
    return InputError(f"{format_location(path)}: is {found.description}{inside}, not a table of rows", found.hint)


def format_from_name(path: str) -> InputFormat | None:
    """The format by the suffix of a file name; None if it has no known suffix."""
    suffix = INPUT_SUFFIX.search(storage.strip_query(path))
    return SUFFIX_FORMATS[suffix[1].lower()] if suffix else None


def _refine_named_format(named: InputFormat, head: bytes, encoding: str) -> InputFormat:
    """JSON in .json and .jsonl files may be an array; a .txt file may hold JSON objects."""
    start = decode_head(head, encoding).lstrip()
    if named == "jsonl" and start.startswith("["):
        return "json"
    return "jsonl" if named == "text" and re.match(r'\{\s*("|\})', start) else named


def _format_from_first_line(path: str, head: bytes, encoding: str) -> InputFormat:
    text = head.decode(encoding, "replace").removeprefix(BYTE_ORDER_MARK).lstrip()
    first = text.partition("\n")[0]
    if not text or text[0] in "{[":
        return "json" if text.startswith("[") else "jsonl"
    if "\t" in first:
        return "tsv"
    if "," in first:
        return "csv"
    raise UsageError(
        f"{format_location(path)}: neither its name nor its first line shows the format",
        "use --format text to read every line as a row, or --format jsonl, json, csv, tsv, parquet or arrow",
    )

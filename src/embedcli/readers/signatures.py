"""Recognise files that are not tables by their first bytes, with a description and a hint for each kind."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

CONVERT_HINT = "export it to JSONL, CSV, TSV, Parquet or Arrow first"
TEXT_HINT = "export its text first, one row per line (--format text) or as JSONL"
UNPACK_HINT = "unpack it first, and name the files in it"
SHEET_HINT = "save the sheet as CSV first"
MODEL_HINT = "give a model with -m MODEL, and name a file of rows as the input"
DOWNLOAD_HINT = "check the address: servers answer with such a page instead of a file that is missing or needs a login"
MARKUP_HINT = "export its texts to JSONL or CSV first, or use --format text to read every line of it as a row"


class ForeignFile(NamedTuple):
    """What a file is, as in "is DESCRIPTION, not a table of rows", and what to do with it."""

    description: str
    hint: str


# The bytes cannot begin a text, or are too long to occur by accident.
SIGNATURES: dict[bytes, ForeignFile] = {
    b"\x7fELF": ForeignFile("an ELF executable or library", "name a file of rows"),
    b"%PDF-": ForeignFile("a PDF", TEXT_HINT),
    b"{\\rtf": ForeignFile("an RTF document", TEXT_HINT),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ForeignFile(
        "an Excel or Word file of the format before 2007 (.xls, .doc)", f"{SHEET_HINT}, or the text of a document"
    ),
    b"SQLite format 3\0": ForeignFile(
        "an SQLite database", "export a table first: sqlite3 -csv -header FILE 'SELECT * FROM my_table'"
    ),
    b"\x93NUMPY": ForeignFile("a NumPy array", CONVERT_HINT),
    b"\x89HDF\r\n\x1a\n": ForeignFile("an HDF5 file", CONVERT_HINT),
    b"FEA1": ForeignFile("a Feather file of version 1", "write it again as version 2: pyarrow.feather.write_feather"),
    b"PARE": ForeignFile("an encrypted Parquet file", "decrypt it first"),
    b"\x89PNG\r\n\x1a\n": ForeignFile("a PNG image", TEXT_HINT),
    b"\xff\xd8\xff": ForeignFile("a JPEG image", TEXT_HINT),
    b"GIF87a": ForeignFile("a GIF image", TEXT_HINT),
    b"GIF89a": ForeignFile("a GIF image", TEXT_HINT),
    b"II*\0": ForeignFile("a TIFF image", TEXT_HINT),
    b"MM\0*": ForeignFile("a TIFF image", TEXT_HINT),
    b"7z\xbc\xaf\x27\x1c": ForeignFile("a 7-Zip archive", UNPACK_HINT),
    b"Rar!\x1a\x07": ForeignFile("a RAR archive", UNPACK_HINT),
    b"!<arch>\n": ForeignFile("an ar archive or Debian package", UNPACK_HINT),
    b"\x04\x22\x4d\x18": ForeignFile(
        "lz4-compressed", "decompress it first: lz4 -dc FILE | embedcli encode - OUTPUT"
    ),
    b"\xff\x06\x00\x00sNaPpY": ForeignFile("Snappy-compressed", "decompress it first"),
    b"\0asm": ForeignFile("a WebAssembly program", "name a file of rows"),
}  # fmt: skip
# Begin with letters that a text may begin with, too, so the bytes after them must be those of a binary file.
BINARY_SIGNATURES: dict[bytes, ForeignFile] = {
    b"MZ": ForeignFile("a Windows executable or library", "name a file of rows"),
    b"ORC": ForeignFile("an ORC file", CONVERT_HINT),
    b"Obj\x01": ForeignFile("an Avro file", CONVERT_HINT),
    b"BM": ForeignFile("a BMP image", TEXT_HINT),
    b"RIFF": ForeignFile("a WebP image, or sound or video (RIFF)", TEXT_HINT),
    b"ID3": ForeignFile("an MP3 file", TEXT_HINT),
    b"OggS": ForeignFile("an Ogg file", TEXT_HINT),
    b"GGUF": ForeignFile("a GGUF model", MODEL_HINT),
}
MACH_O_MAGICS = (
    b"\xfe\xed\xfa\xce",
    b"\xfe\xed\xfa\xcf",
    b"\xce\xfa\xed\xfe",
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",
)
# The first name in a zip file that begins like one of these shows its kind.
ZIP_MEMBERS: tuple[tuple[re.Pattern[bytes], ForeignFile], ...] = (
    (re.compile(rb"xl/"), ForeignFile("an Excel workbook (.xlsx)", SHEET_HINT)),
    (re.compile(rb"word/"), ForeignFile("a Word document (.docx)", TEXT_HINT)),
    (re.compile(rb"ppt/"), ForeignFile("a PowerPoint presentation (.pptx)", TEXT_HINT)),
    (re.compile(rb"mimetypeapplication/vnd\.oasis"), ForeignFile("an OpenDocument file (.ods, .odt)", SHEET_HINT)),
    (re.compile(rb"mimetypeapplication/epub"), ForeignFile("an EPUB book", TEXT_HINT)),
    (re.compile(rb"[^/]+/(data\.pkl|byteorder|version)"), ForeignFile("a PyTorch file (.pt)", MODEL_HINT)),
    (re.compile(rb"[^/]+\.npy"), ForeignFile("a NumPy archive (.npz)", CONVERT_HINT)),
)
ZIP = ForeignFile("a zip archive", "unpack it first: unzip -p FILE.zip | embedcli encode - OUTPUT")
ZIP_MEMBER = b"PK\x03\x04"
# The name of a member begins this many bytes after its signature; its length is at byte 26 (PKWARE's APPNOTE, 4.3.7).
ZIP_NAME_OFFSET = 30
TAR_MAGIC_OFFSET = 257
MAX_SAFETENSORS_HEADER = 100 << 20
# Control characters that texts contain: tab, line feed, vertical tab, form feed, carriage return, escape, separators.
TEXT_CONTROLS = "\t\n\v\f\r\x1b\x1c\x1d\x1e\x1f\x1a"
NOT_TEXT = {code: None for code in (*range(0x20), 0x7F) if chr(code) not in TEXT_CONTROLS}
# A file is binary if its beginning has more than this share of control characters, and at least this number.
MAX_CONTROL_SHARE = 0.05
MIN_CONTROLS = 8
HEAD_BYTES = 4096


def describe_foreign_file(head: bytes) -> ForeignFile | None:
    """What a file is that is neither text nor an input format; None if its first bytes do not show it."""
    for signature, found in SIGNATURES.items():
        if head.startswith(signature):
            return found
    for signature, found in BINARY_SIGNATURES.items():
        if head.startswith(signature) and has_binary_bytes(head[:HEAD_BYTES]):
            return found
    return next((detected for detect in DETECTORS if (detected := detect(head)) is not None), None)


def has_binary_bytes(data: bytes) -> bool:
    """Whether some bytes contain a NUL or another control character that texts do not have."""
    text = data.decode("latin-1")
    return len(text.translate(NOT_TEXT)) < len(text)


def count_control_characters(text: str) -> int:
    """The number of control characters that texts do not have."""
    return len(text) - len(text.translate(NOT_TEXT))


def _detect_zip(head: bytes) -> ForeignFile | None:
    if not head.startswith(ZIP_MEMBER):
        return None
    positions = [match.start() for match in re.finditer(re.escape(ZIP_MEMBER), head)]
    for position in positions:
        name = head[position + ZIP_NAME_OFFSET : position + ZIP_NAME_OFFSET + 200]
        found = next((found for pattern, found in ZIP_MEMBERS if pattern.match(name)), None)
        if found is not None:
            return found
    return ZIP


def _detect_tar(head: bytes) -> ForeignFile | None:
    # Names and numbers end with NUL; a text may have this word in this place.
    if head[TAR_MAGIC_OFFSET : TAR_MAGIC_OFFSET + 5] != b"ustar" or not has_binary_bytes(head[:TAR_MAGIC_OFFSET]):
        return None
    return ForeignFile("a tar archive", "unpack it first: tar -xOf FILE NAME | embedcli encode - OUTPUT")


def _detect_mach_o(head: bytes) -> ForeignFile | None:
    if head.startswith((*MACH_O_MAGICS, b"\xca\xfe\xba\xbe")):
        return ForeignFile("a Mach-O executable or library, or a Java class", "name a file of rows")
    return None


def _detect_pickle(head: bytes) -> ForeignFile | None:
    if len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return ForeignFile("a Python pickle (.pkl, .pt)", CONVERT_HINT)
    return None


def _detect_safetensors(head: bytes) -> ForeignFile | None:
    if len(head) > 9 and head[8:9] == b"{" and 2 <= struct.unpack("<Q", head[:8])[0] <= MAX_SAFETENSORS_HEADER:
        return ForeignFile("a safetensors file with the weights of a model", MODEL_HINT)
    return None


def _detect_media(head: bytes) -> ForeignFile | None:
    # Before the type is the size of this header, which is below 2**24.
    return ForeignFile("a video or an image (MP4, HEIC)", TEXT_HINT) if head[4:8] == b"ftyp" and not head[0] else None


def _detect_duckdb(head: bytes) -> ForeignFile | None:
    # A checksum, the word, and the version as a 64-bit number, of which most bytes are NUL.
    if head[8:12] == b"DUCK" and has_binary_bytes(head[12:20]):
        return ForeignFile("a DuckDB database", "export a table first: COPY my_table TO 'rows.parquet'")
    return None


DETECTORS: tuple[Callable[[bytes], ForeignFile | None], ...] = (
    _detect_zip, _detect_tar, _detect_mach_o, _detect_pickle, _detect_safetensors, _detect_media, _detect_duckdb,
)  # fmt: skip


def describe_markup(text: str) -> ForeignFile | None:
    """Whether text begins as HTML or XML; None if it does not."""
    start = text.lstrip()[:200].lower()
    if re.match(r"<!doctype html|<html[\s>]|<head[\s>]", start):
        return ForeignFile("an HTML page", DOWNLOAD_HINT)
    if re.match(r"<\?xml\s|<!doctype ", start):
        return ForeignFile("an XML file", MARKUP_HINT)
    return None


def describe_binary_text(text: str) -> str | None:
    """What shows that a file is not text: NUL bytes or other control characters; None if it may be text."""
    controls = count_control_characters(text)
    if controls < MIN_CONTROLS or controls <= MAX_CONTROL_SHARE * len(text):
        return None
    nulls = text.count("\0")
    seen = f"{nulls} NUL bytes" if nulls > controls / 2 else f"{controls} control characters"
    return f"{seen} in its first {len(text)} characters"

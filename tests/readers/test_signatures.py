"""Files that are not tables are refused with their kind, whatever their names and compression."""

from __future__ import annotations

import gzip
import io
import pickle
import random
import sqlite3
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import duckdb
import numpy as np
import pytest
import zstandard
from test_readers import read_all

from embedcli.core.errors import InputError
from unreadable import check_refused

ROWS = b'{"id": 1, "text": "a"}\n' * 300


def zip_of(*names: str, mimetype: str | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        if mimetype is not None:
            archive.writestr("mimetype", mimetype)
        for name in names:
            archive.writestr(name, "<x/>")
    return out.getvalue()


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("rows.jsonl")
        info.size = len(ROWS)
        archive.addfile(info, io.BytesIO(ROWS))
    return out.getvalue()


def sqlite() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE rows (text)")
    return connection.serialize()


def duckdb_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.duckdb")
        duckdb.connect(str(path)).close()
        return path.read_bytes()


def numpy_archive() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.arange(3))
    return out.getvalue()


FILES: dict[str, tuple[bytes, str, str]] = {
    "elf": (Path(sys.executable).resolve().read_bytes()[:9000], "an ELF executable", "name a file of rows"),
    "pe": (b"MZ\x90\0\3\0\0\0\4\0\0\0\xff\xff\0\0" + bytes(100), "a Windows executable", "name a file of rows"),
    "mach-o": (b"\xcf\xfa\xed\xfe\x07\0\0\x01" + bytes(100), "a Mach-O executable", "name a file of rows"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "a PDF", "text"),
    "xlsx": (zip_of("[Content_Types].xml", "_rels/.rels", "xl/workbook.xml"), "an Excel workbook", "CSV"),
    "docx": (zip_of("[Content_Types].xml", "_rels/.rels", "word/document.xml"), "a Word document", "text"),
    "pptx": (zip_of("[Content_Types].xml", "ppt/presentation.xml"), "a PowerPoint presentation", "text"),
    "ods": (zip_of(mimetype="application/vnd.oasis.opendocument.spreadsheet"), "an OpenDocument file", "CSV"),
    "npz": (numpy_archive(), "a NumPy archive", "JSONL"),
    "pytorch": (zip_of("archive/data.pkl", "archive/byteorder"), "a PyTorch file", "-m MODEL"),
    "zip": (zip_of("rows.jsonl"), "a zip archive", "unzip"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), ".xls", "CSV"),
    "tar": (tar(), "a tar archive", "tar -xOf"),
    "tar.gz": (gzip.compress(tar()), "a tar archive inside gzip", "tar -xOf"),
    "tar.zst": (zstandard.compress(tar()), "a tar archive inside zstd", "tar -xOf"),
    "html": (b"\n<!DOCTYPE html>\n<html><body>404, not found</body></html>", "an HTML page", "address"),
    "html.gz": (gzip.compress(b"<html><body>a, b</body></html>"), "an HTML page inside gzip", "address"),
    "xml": (b'<?xml version="1.0"?>\n<rows/>', "an XML file", "--format text"),
    "png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG image", "text"),
    "jpeg": (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "a JPEG image", "text"),
    "pickle": (pickle.dumps({"text": ["a", "b"]}), "a Python pickle", "JSONL"),
    "old pickle": (pickle.dumps({"text": ["a"]}, protocol=2), "a Python pickle", "JSONL"),
    "safetensors": ((40).to_bytes(8, "little") + b'{"__metadata__": {}, "a": {"dtype": 1}}', "a safetensors", "-m"),
    "gguf": (b"GGUF\3\0\0\0" + bytes(50), "a GGUF model", "-m MODEL"),
    "sqlite": (sqlite(), "an SQLite database", "sqlite3"),
    "duckdb": (duckdb_file(), "a DuckDB database", "export a table"),
    "mp4": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2mp41", "a video or an image", "text"),
    "npy": (b"\x93NUMPY\1\0v\0{'descr'", "a NumPy array", "JSONL"),
    "orc": (b"ORC\x0a\x0b\x00\0\1\2", "an ORC file", "JSONL"),
    "avro": (b"Obj\x01\x04\x14avro.codec", "an Avro file", "JSONL"),
    "rtf": (b"{\\rtf1\\ansi text}", "an RTF document", "text"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["a", "a.csv", "a.jsonl", "a.txt", "a.parquet"])
@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_refused_by_what_it_is(kind: str, name: str, tmp_path: Path) -> None:
    content, description, hint = FILES[kind]
    path = tmp_path / name
    assert f"{path}: is " in check_refused(path, content, description, hint)


@pytest.mark.parametrize("kind", ["pdf", "xlsx", "pickle", "tar.gz"])
def test_a_forced_format_does_not_make_a_table_of_it(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(FILES[kind][0])
    with pytest.raises(InputError, match="not a table of rows"):
        read_all(path, format="text")


def random_bytes(count: int) -> bytes:
    return random.Random(0).randbytes(count)


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (random_bytes(5000), "is binary data, not text", "JSONL"),
        (gzip.compress(random_bytes(5000)), "is gzip with binary data inside", "JSONL"),
        (b"id,text\n" + b"a\0b\0c\0\n" * 40, "NUL bytes in its first", "JSONL"),
        ("id,text\n1,some words\n".encode("utf-16-le"), "looks like UTF-16-LE", "--encoding utf-16-le"),
        ("id,text\n1,some words\n".encode("utf-16-be"), "looks like UTF-16-BE", "--encoding utf-16-be"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_binary_data_under_the_name_of_a_table(
    name: str, content: bytes, message: str, hint: str, tmp_path: Path
) -> None:
    check_refused(tmp_path / name, content, message, hint)


@pytest.mark.parametrize("start", ["ORCID", "MZ", "BMI", "RIFF", "ID3", "Obj", "GGUF", "OggS", "PARIS"])
def test_a_text_may_begin_like_a_binary_file(start: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{start},text\n1,a\n", "utf-8")
    assert read_all(path, text_column="text").texts == ["a"]


@pytest.mark.parametrize("text", ["id,text\nDUCK,a\n", "key,ftyp,text\n1,2,a\n", "id,text\n" + "u" * 249 + "ustar,a\n"])
def test_a_text_may_have_the_words_of_a_binary_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text, "utf-8")
    assert read_all(path, text_column="text").texts == ["a"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "gb18030", "cp1251"])
def test_text_in_another_encoding_is_not_binary(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("строка текста\n".encode(encoding))
    assert read_all(path, encoding=encoding).texts == ["строка текста"]


def test_lines_of_markup_are_rows_of_text_if_the_format_is_given(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("<html>\n<p>a</p>\n", "utf-8")
    assert read_all(path, format="text").texts == ["<html>", "<p>a</p>"]


def test_few_control_characters_are_left_to_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text\n" + b"1,a NUL \0 and a bell \x07\n" * 3 + b"2,plain words only in this row\n" * 30)
    assert read_all(path).ids == ["1"] * 3 + ["2"] * 30

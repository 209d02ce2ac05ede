"""Any bytes result in rows, rejects or a clear error: never in another exception, a hang or a lost row."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embedcli import readers
from embedcli.core.errors import EmbedcliError, UsageError
from embedcli.core.job import Job
from embedcli.core.types import Chunk, InputFormat
from embedcli.readers import preview, signatures, template

ENCODINGS = ("utf-8", "latin-1", "utf-16", "utf-16-be", "gbk", "shift_jis", "utf-7", "cp037", "iso2022_jp", "ascii")
KINDS = (None, "jsonl", "csv", "tsv", "parquet")
TOKENS = [
    b'{"id": 1, "text": "a"}', b'{"text": "', b'"text"', b"text", b"id", b",", b"\t", b'"', b'""', b"\n", b"\r\n",
    b"\r", b"\n\n", b"{", b"}", b"[", b"]", b":", b" ", b"null", b"NaN", b"1e999", b"\\ud800", b"\\", b"\x00", b"\xff",
    b"\xef\xbb\xbf", b"\xe9", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\xff\xfe", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd",
    b"BZh9", b"\xfd7zXZ\x00", b"PAR1", "é".encode("utf-16"), "批量".encode("gbk"), b"99999999999999999999", b"-0",
    b"1.5", b"true",
]  # fmt: skip
LINES = [b'{"text": "a"}', b'{"text": "\xff"}', b"x" * 30, b"", b"  ", b"\xef\xbb\xbf{}"]
# Errors of a whole JSONL file, whatever its rows are.
FILE_ERRORS = (
    "JSON array", "the gzip", "the zstd", "the bz2", "the xz", "no column 'text'", "is not UTF-8",
    "not a table of rows", "binary data", "over several lines",
)  # fmt: skip

anything = st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(TOKENS), max_size=40).map(b"".join))
lines = st.lists(st.sampled_from(LINES), max_size=12)
flips = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def read(
    path: Path, kind: InputFormat | None, encoding: str = "utf-8", rows: int = 3, text: str | None = "text"
) -> list[Chunk]:
    job = Job(inputs=(str(path),), output="-", format=kind, encoding=encoding, text_column=text, chunk_rows=rows)
    plan = readers.plan_inputs(job)
    chunks = list(readers.read_chunks(job, plan, plan.splits))
    for chunk in chunks:
        assert chunk.rows_read == len(chunk.texts) + len(chunk.rejects)
        assert len(chunk.ids) == len(chunk.texts) == len(chunk.lines)
        assert all(text.strip() and text.encode() for text in chunk.texts)
        assert all(reject.reason and reject.line > 0 and reject.raw.encode() is not None for reject in chunk.rejects)
    starts = readers.count_split_starts(job, plan)
    assert [start.first_row for start in starts] == [
        sum(chunk.rows_read for chunk in chunks if chunk.input_split.index < i) for i in range(len(plan.splits))
    ]
    return chunks


def outcome(path: Path, kind: InputFormat | None, encoding: str = "utf-8", text: str | None = "text") -> int | str:
    """The number of rows, or the error of the file."""
    try:
        return rows_in(read(path, kind, encoding, text=text))
    except EmbedcliError as error:
        return error.message


def rows_in(chunks: list[Chunk]) -> int:
    return sum(chunk.rows_read for chunk in chunks)


@given(data=anything, encoding=st.sampled_from(ENCODINGS), kind=st.sampled_from(KINDS))
@example(data=b"\x00\x00\x00\xd8\x00\x00", encoding="utf-16", kind="jsonl")
def test_any_bytes_result_in_rows_rejects_or_an_error(
    folder: Path, data: bytes, encoding: str, kind: InputFormat | None
) -> None:
    path = folder / "any"
    path.write_bytes(data)
    for text in ("text", None):
        assert outcome(path, kind, encoding, text) != ""


@given(data=anything, header=st.sampled_from(["id,text\n", "id\ttext\n"]))
@example(data=b'1,"', header="id,text\n")
@example(data=b"\r1,a", header="id,text\n")
def test_any_rows_after_a_header_are_read_and_none_is_lost(folder: Path, data: bytes, header: str) -> None:
    path = folder / "table"
    path.write_bytes(header.encode() + data)
    count = outcome(path, "csv" if "," in header else "tsv")
    if isinstance(count, str) and "binary data" in count:
        assert sum(byte < 32 for byte in data) >= signatures.MIN_CONTROLS
        return
    assert isinstance(count, int)
    if b'"' not in data or "\t" in header:
        lines = [line.removesuffix(b"\r") for line in data.split(b"\n")]
        headers = (header.encode()[:-1], b"\xef\xbb\xbf" + header.encode()[:-1])
        assert count == sum(1 for line in lines if line and line not in headers)


@given(data=anything)
@example(data=b"\xef\xbb\xbf")
@example(data=b"\xef\xbb")
@example(data=b"\xef\xbb\xbf[")
@example(data=b"\n \x0b\n")
def test_every_line_of_jsonl_is_a_row_or_a_reject(folder: Path, data: bytes) -> None:
    path = folder / "a.jsonl"
    path.write_bytes(data)
    count = outcome(path, "jsonl")
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        return  # UTF-16 or UTF-32: its lines are not those of the bytes
    rows = sum(1 for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip())
    assert count == rows or (isinstance(count, str) and any(word in count for word in FILE_ERRORS))


@given(lines=lines, size=st.integers(1, 60), ending=st.sampled_from([b"", b"\n", b"\r\n"]))
def test_splits_of_any_size_give_the_same_rows(folder: Path, lines: list[bytes], size: int, ending: bytes) -> None:
    path = folder / "cut.jsonl"
    path.write_bytes(b"\n".join(lines) + ending)
    whole = read(path, "jsonl", rows=1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preview, "JSONL_SPLIT_BYTES", size)
        parts = read(path, "jsonl", rows=2)
    assert [text for chunk in parts for text in chunk.texts] == whole[0].texts
    assert [reject for chunk in parts for reject in chunk.rejects] == list(whole[0].rejects)
    assert [i for chunk in parts for i in chunk.ids.to_pylist()] == whole[0].ids.to_pylist()
    assert [line for chunk in parts for line in chunk.lines] == list(whole[0].lines)


@given(at=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 400) | st.none())
def test_damage_to_compressed_bytes_is_an_error_or_nothing(folder: Path, at: int, byte: int, cut: int | None) -> None:
    rows = b"".join(b'{"id": %d, "text": "row %d"}\n' % (i, i * i) for i in range(60))
    data = bytearray(gzip.compress(rows, mtime=0))
    at %= len(data)
    data[at] = byte
    path = folder / "a.jsonl.gz"
    path.write_bytes(data[:cut])
    count = outcome(path, "jsonl")
    headless = at < 10 or cut in (0, 1, 2)
    assert count == 60 or headless or (isinstance(count, str) and "the gzip data is" in count)


@pytest.fixture(scope="module")
def table(folder: Path) -> bytes:
    path = folder / "whole.parquet"
    texts = [f"row {i}" for i in range(60)]
    data = {"id": list(range(60)), "text": texts, "list": [["a"] * (i % 4) for i in range(60)]}
    pq.write_table(pa.table(data), path, row_group_size=20, write_page_checksum=True)
    return path.read_bytes()


@given(flips=flips, cut=st.floats(0, 1))
def test_damage_to_parquet_is_an_error_or_nothing(
    folder: Path, table: bytes, flips: list[tuple[float, int]], cut: float
) -> None:
    data = bytearray(table)
    for place, byte in flips:
        data[int(place * len(data))] = byte
    path = folder / "a.parquet"
    path.write_bytes(data[: max(len(data) // 2, int((0.5 + cut) * len(data)))])
    assert outcome(path, None) != ""


@given(text=st.text(alphabet="{}?ab %", max_size=12))
def test_any_template_is_understood_or_refused(text: str) -> None:
    try:
        parsed = template.parse_template(text)
    except UsageError:
        return
    values = {name: ["<>"] for name in parsed.names}
    assert parsed.names
    rendered = parsed.render(values, {})[0]
    expected = re.sub(r"\{\{|\}\}|\{[^{}]+\}", lambda match: "<>" if len(match[0]) > 2 else match[0][0], text)
    assert rendered == expected

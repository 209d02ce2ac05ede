"""How delimited files are written: quotes, line ends, headers. Wrong quotes cost one line; decisions are reported."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embedcli import readers
from embedcli.core.errors import InputError, UsageError
from embedcli.core.job import Job
from embedcli.core.job_options import validate_options
from embedcli.core.types import InputFormat
from embedcli.readers import csv as csv_reader
from embedcli.readers import csv_dialect, csv_rows
from embedcli.readers.csv_dialect import CsvOptions

Rows = list[tuple[str, ...]]


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def parse(
    data: bytes, kind: InputFormat = "csv", size: int = 1 << 20, **options: Any
) -> tuple[list[list[str]], list[tuple[int, str, str]]]:
    """The rows that can be parsed, and the line, the reason and the raw line of each that cannot."""
    reader = csv_reader.CsvReader(cut(data, size), "a", kind, "utf-8", CsvOptions(**options))
    rows, rejects = [], []
    for batch in reader.read_batches():
        rows += [row for i, row in enumerate(batch.rows) if i not in batch.reject_reasons]
        rejects += [(batch.lines[i], batch.reject_reasons[i], batch.raw_rows.get(i, "")) for i in batch.reject_reasons]
    return rows, rejects


def read(path: Path, **options: Any) -> tuple[list[str], list[int], tuple[str, ...]]:
    """The texts, the lines of the rejects, and the notes."""
    job = Job(inputs=(str(path),), output="-", **validate_options(options))
    plan = readers.plan_inputs(job)
    chunks = list(readers.read_chunks(job, plan, plan.splits))
    texts = [text for chunk in chunks for text in chunk.texts]
    return texts, [reject.line for chunk in chunks for reject in chunk.rejects], plan.columns.notes


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


# Quotes

STRAY = 'id\ttext\n1\t"To be or not to be, he said\n2\ta plain row\n3\tanother\n4\tthat was the end"\n5\tlast\n'


def test_a_stray_quote_in_tsv_is_a_character(tmp_path: Path) -> None:
    texts, rejects, notes = read(write(tmp_path / "a.tsv", STRAY))
    assert texts == ['"To be or not to be, he said', "a plain row", "another", 'that was the end"', "last"]
    assert (rejects, [note for note in notes if "quote" in note]) == ([], [])


@pytest.mark.parametrize("option", [{"quote": '"'}, {"format": "csv", "delimiter": "tab"}])
def test_quotes_in_tsv_are_read_on_demand(tmp_path: Path, option: dict[str, str]) -> None:
    path = write(tmp_path / "a.tsv", 'id\ttext\n1\t"two\n""lines"" and a\ttab"\n')
    assert read(path, text_column="text", **option)[0] == ['two\n"lines" and a\ttab']


def test_quotes_in_csv_are_characters_on_demand(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", STRAY.replace(", ", " ").replace("\t", ","))
    assert read(path, quote="none")[0][0] == '"To be or not to be he said'


@pytest.mark.parametrize(
    ("content", "looks_quoted"),
    [
        ('id\ttext\n1\t"a"\n2\t"b ""c"""\n', True),
        ('id\ttext\n1\t"a"\n2\t"two\nlines"\n3\t"cut', True),
        ('id\ttext\n1\t"a"\n2\t5" pipe\n', False),
        ('id\ttext\n1\t"a" said b\n', False),
        ("id\ttext\n1\ta\n", False),
        (STRAY, False),
    ],
)
def test_a_note_says_that_tsv_looks_quoted(tmp_path: Path, content: str, looks_quoted: bool) -> None:
    path = write(tmp_path / "a.tsv", content)
    note = f"The fields of {path} look quoted, but TSV is read without quotes; use --quote '\"' if they are."
    assert (note in read(path)[2]) == looks_quoted
    assert note not in read(path, quote='"')[2]
    assert note not in read(path, quote="none")[2]


def test_a_quoted_header_of_tsv_decides_that_its_fields_are_quoted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", '"id"\t"text"\n1\t"a ""b"""\n')
    texts, _, notes = read(path)
    assert texts == ['a "b"']
    assert (
        f"The header of {path} is quoted, so its fields are read as quoted; use --quote none if they are not." in notes
    )
    assert read(path, quote="none", text_column='"text"')[0] == ['"a ""b"""']


def test_a_delimiter_is_named_where_the_header_holds_commas(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id;text, as written;n, o\n1;a;2,5\n")
    assert read(path, delimiter="semicolon", text_column="text, as written")[0] == ["a"]
    assert read(path, delimiter=";", text_column="text, as written")[0] == ["a"]


@pytest.mark.parametrize("quote", ['"', "none"])
def test_escapes(quote: str) -> None:
    data = b'id,text\n1,a\\, b \\"c\\" \\\\\n2,d\\\ne\n3,f\n'
    rows, rejects = parse(data, quote=quote, escape="\\")
    assert (rows, rejects) == ([["1", 'a, b "c" \\'], ["2", "d\ne"], ["3", "f"]], [])
    assert parse(b'id,text\n1,"a \\"b\\", c ""d"""\n', escape="\\")[0] == [["1", 'a "b", c "d"']]
    assert parse(b"id,text\n1,'a, ''b'''\n", quote="'")[0] == [["1", "a, 'b'"]]


def test_files_without_a_header_and_with_title_lines(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", "1,a\n2,b\n"), header=False, text_column="column1")[0] == ["a", "b"]
    titled = write(tmp_path / "b.csv", 'Report "of\nthe, year\n\nid,text\n1,a\n2\n')
    assert read(titled, skip_lines=3)[:2] == (["a"], [6])
    assert read(titled, skip_lines=4, header=False, text_column="column1")[:2] == (["a"], [6])
    assert read(write(tmp_path / "c.csv", "sep=;\ntitle\nid;text\n1;a,b\n"), skip_lines=2)[0] == ["a,b"]
    assert read(write(tmp_path / "d.csv", "a\n"), skip_lines=9)[0] == []


def test_the_first_row_without_a_header_that_can_be_parsed_decides_the_width() -> None:
    rows, rejects = parse(b'1,"a" b\n\n2,b\n3\n', has_header=False)
    assert (rows, [line for line, _, _ in rejects]) == ([["2", "b"]], [1, 4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": ""}, "--delimiter '' is not one character"),
        ({"delimiter": ";;"}, "--delimiter ';;' is not one character"),
        ({"delimiter": "\n"}, r"--delimiter '\\n' is not one character"),
        ({"quote": "\r"}, "is not one character within a line"),
        ({"quote": "quote"}, "--quote 'quote' is not one character"),
        ({"escape": "none"}, "--escape 'none' is not one character"),
        ({"skip_lines": -1}, "--skip-lines -1 is too small"),
        ({"delimiter": '"'}, "also the character of --quote"),
        ({"delimiter": ";", "quote": ";"}, "also the character of --quote"),
        ({"delimiter": "backslash", "escape": "backslash"}, "also the character of --escape"),
    ],
)
def test_impossible_dialects_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(write(tmp_path / "a.csv", "id,text\n1,a\n"), **options)
    assert caught.value.hint


def test_only_what_differs_from_the_default_is_part_of_the_identity_of_a_job() -> None:
    job = Job(inputs=("a.csv",), output="o.npy")
    assert not {"delimiter", "quote", "escape", "header", "skip_lines"} & set(job.identity())
    options = {"delimiter": ";", "quote": "none", "escape": "\\", "header": False, "skip_lines": 2}
    assert replace(job, **options).identity() == job.identity() | options  # type: ignore[arg-type]


# Wrong quotes

words = st.text(alphabet="ab ,é\r", min_size=1, max_size=8).map(lambda text: f"a{text}z")
plain = st.text(alphabet="ab é5\r", min_size=1, max_size=8).map(lambda text: f"a{text}z")
good_lines = st.one_of(
    plain.map(lambda text: (text, text)),
    plain.map(lambda text: (f'{text}" {text}', f'{text}" {text}')),
    st.tuples(words, words).map(lambda pair: (f'"{pair[0]}""{pair[1]}"', f'{pair[0]}"{pair[1]}')),
)
# A field that begins with a quote and does not end with one.
bad_lines = plain.map(lambda text: (f'"{text}', None)) | plain.map(lambda text: (f'"{text}" {text}', None))
tables = st.lists(st.one_of(good_lines, good_lines, bad_lines), max_size=12)


@given(fields=tables, end=st.sampled_from(["\n", "\r\n"]), size=st.integers(1, 40), has_end=st.booleans())
@example(fields=[('"a', None), ("b", "b"), ('",c"', ",c"), ("d", "d")], end="\n", size=7, has_end=True)
def test_a_wrong_quote_costs_one_line(fields: list[tuple[str, str | None]], end: str, size: int, has_end: bool) -> None:
    lines = [f"{i},{field},x" for i, (field, _) in enumerate(fields)]
    data = end.join(["id,text,n", *lines]).encode() + end.encode() * has_end
    rows, rejects = parse(data, size=size)
    # Counted in the bytes: no field contains a line end.
    assert len(rows) + len(rejects) == len([line for line in data.split(b"\n")[1:] if line])
    assert [row[1] for row in rows] == [text for _, text in fields if text is not None]
    assert [(line - 2, raw) for line, _, raw in rejects] == [
        (i, lines[i]) for i, (_, text) in enumerate(fields) if text is None
    ]
    assert (rows, rejects) == parse(data)


def test_a_field_that_is_closed_remains_one_row() -> None:
    text = "line, of text\r\n" * 500
    for size in (1000, 1 << 20):
        assert parse(f'id,text\n1,"{text}"\n2,b\n'.encode(), size=size)[0] == [["1", text], ["2", "b"]]


@pytest.mark.parametrize(("lines", "characters"), [(20, 1 << 20), (1 << 20, 100)])
@pytest.mark.parametrize("size", [10, 50, 1 << 20])
def test_a_quoted_field_beyond_the_bounds_is_one_reject(
    monkeypatch: pytest.MonkeyPatch, lines: int, characters: int, size: int
) -> None:
    monkeypatch.setattr(csv_rows, "MAX_ROW_LINES", lines)
    monkeypatch.setattr(csv_rows, "MAX_MULTILINE_ROW_CHARACTERS", characters)
    others = [[str(i), "word"] for i in range(100)]
    following = "".join(f"{number},{word}\n" for number, word in others)
    for closing in ("", 'x,"y"\n', '"\n'):
        rows, rejects = parse(f'id,text\n1,"open\n{following}{closing}'.encode(), size=size)
        assert rows[:100] == others
        assert rejects[0] == (2, rejects[0][1], '1,"open')
        assert f"a quoted field covers more than {lines} lines or {characters} characters" in rejects[0][1]


def test_lines_before_a_wrong_width_are_read_again_only_if_they_are_rows() -> None:
    rows, rejects = parse(b'id,text,n\n1,"open,1\n2,b,2\n\n3,,5"\n4,d,4\n')
    assert rows == [["2", "b", "2"], ["3", "", '5"'], ["4", "d", "4"]]
    assert [(line, raw) for line, _, raw in rejects] == [(2, '1,"open,1')]
    assert rejects[0][1] == "bad CSV: a quoted field goes on to line 5, over lines that are rows"
    for text in ("a, text\nof lines, long", "a text\nof lines"):
        rows, rejects = parse(f'id,text,n\n1,"{text}",1,extra\n4,d,4\n'.encode())
        assert (rows, [line for line, _, _ in rejects]) == ([["4", "d", "4"]], [2])


def test_a_wrong_quote_in_the_header_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a.csv:1: bad CSV in the header: ',' expected after '\"'") as caught:
        read(write(tmp_path / "a.csv", 'id,"text" x\n1,a\n'))
    assert "--quote none" in caught.value.hint


# Line ends


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(("kind", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_only_the_line_end_of_the_file_ends_a_row(kind: InputFormat, delimiter: str, end: str) -> None:
    odd = "a\rb\x00c\x0cd\u2028e\u2029f\x85g\x0bh\x1ci\r"
    data = end.join([f"id{delimiter}text", f"1{delimiter}{odd}x", f"{odd}{delimiter}{odd}y", f"3{delimiter}c"])
    for size in (1, 5, 1 << 20):
        assert parse(data.encode(), kind, size)[0] == [["1", f"{odd}x"], [odd, f"{odd}y"], ["3", "c"]]


@pytest.mark.parametrize("size", [1, 5, 1 << 20])
def test_carriage_returns_end_lines_where_there_are_no_others(size: int) -> None:
    assert parse(b"id,text\r1,a\r\r2,b", size=size) == ([["1", "a"], ["2", "b"]], [])
    assert parse(b'id,text\r1,"a\nb\rc"\r2,b\r3\r', size=size)[0] == [["1", "a\nb\rc"], ["2", "b"]]
    assert [line for line, _, _ in parse(b'id,text\r1,"a\nb\rc"\r2,b\r3\r', size=size)[1]] == [5]
    assert parse(b"id\ttext\r1\ta\r", "tsv", size)[0] == [["1", "a"]]


def test_the_line_end_is_decided_by_a_long_beginning() -> None:
    long = "x\r" * csv_reader.HEAD_CHARACTERS
    for size in (1 << 10, 1 << 20):
        rows, _ = parse(f"1,{long}x\n2,b\n".encode(), size=size, has_header=False)
        assert rows == [["1", f"{long}x"], ["2", "b"]]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_carriage_return_in_jsonl_ends_no_row(tmp_path: Path, end: str) -> None:
    path = write(
        tmp_path / "a.jsonl", end.join(['{"text":\r"a"}', '{"text": "b\u2028\x85"}', '{"text": "c\rd"}']) + end
    )
    assert read(path)[:2] == (["a", "b\u2028\x85"], [3])


# Encodings


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_byte_order_mark_shows_the_encoding(tmp_path: Path, kind: str, encoding: str, is_compressed: bool) -> None:
    content = {
        "jsonl": '{"id": "1", "text": "é ☃"}\n{"id": "2", "text": 1}\n{"id": "3", "text": "b"}\n',
        "csv": 'id,text\n1,"é ☃"\n2\n3,b\n',
        "tsv": "id\ttext\n1\té ☃\n2\n3\tb\n",
    }[kind]
    mark = "" if encoding in ("utf-16", "utf-32") else "\ufeff"
    data = (mark + content).encode(encoding)
    path = write(tmp_path / f"a.{kind}", gzip.compress(data) if is_compressed else data)
    texts, rejects, notes = read(path)
    assert (texts, rejects) == (["é ☃", "b"], [2 if kind == "jsonl" else 3])
    assert f"{path} is read as {encoding.upper()[:6]}, as its byte order mark shows." in notes
    assert read(path, encoding=encoding)[:2] == (texts, rejects)


def test_undecodable_bytes_are_located_in_the_marked_encoding(tmp_path: Path) -> None:
    data = '{"text": "a"}\n{"text": "é'.encode("utf-16") + b"\x00\xdc" + '"}\n'.encode("utf-16-le")
    job = Job(inputs=(str(write(tmp_path / "a.jsonl", data)),), output="-")
    plan = readers.plan_inputs(job)
    (chunk,) = readers.read_chunks(job, plan, plan.splits)
    assert [reject.reason for reject in chunk.rejects] == ["bad encoding: byte 0x00 at byte 24 of the line"]


def test_detection_functions_at_their_limits() -> None:
    assert csv_dialect.detect_line_end("") == "\n"
    assert csv_dialect.detect_line_end('a,"b\nc"\r', '"') == "\r"
    assert csv_dialect.detect_line_end('a,"b\nc"\r', None) == "\n"
    assert csv_dialect.find_named_delimiter("sep=,") == ","
    assert csv_dialect.find_named_delimiter("sep=\r\n") is None


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_utf16_without_a_mark_is_refused_with_the_encoding_to_use(tmp_path: Path, kind: str, encoding: str) -> None:
    content = {"jsonl": '{"text": "é"}\n', "csv": "id,text\n1,é\n", "tsv": "id\ttext\n1\té\n"}[kind]
    path = write(tmp_path / f"a.{kind}", content.encode(encoding))
    with pytest.raises(InputError, match="without a byte order mark") as caught:
        read(path)
    assert caught.value.hint == f"use --encoding {encoding}"
    assert read(path, encoding=encoding)[0] == ["é"]


@pytest.mark.parametrize(("encoding", "text"), [("latin-1", "café"), ("gbk", "批量")])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_other_encodings_without_a_mark_are_rejects_with_a_note(
    tmp_path: Path, kind: str, encoding: str, text: str
) -> None:
    content = {"jsonl": '{"text": "%s"}\n{"text": "a"}\n', "csv": "text\n%s\na\n", "tsv": "text\n%s\na\n"}[kind] % text
    path = write(tmp_path / f"a.{kind}", content.encode(encoding))
    texts, rejects, notes = read(path)
    assert (texts, rejects) == (["a"], [1 + (kind != "jsonl")])
    assert any("use --encoding latin-1 or another" in note for note in notes)
    assert read(path, encoding=encoding)[0] == [text, "a"]
    assert not any("--encoding" in note for note in read(path, encoding=encoding)[2])


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", '{"text": "é"}\n'), ("a.csv", "id,tête,n\n1,a,b\n")])
def test_a_beginning_that_cannot_be_decoded_is_refused_with_a_hint(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(InputError, match="byte 0xe") as caught:
        read(write(tmp_path / name, content.encode("latin-1")))
    assert caught.value.hint == "use --encoding latin-1 or another"

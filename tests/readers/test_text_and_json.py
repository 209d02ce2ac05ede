"""Plain text, one row per line, and JSON arrays, read piece by piece."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from test_readers import job_of, read_all, reject_kinds

from embedcli import readers
from embedcli.core.errors import InputError, UsageError
from embedcli.readers import json_array, preview


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# Plain text


def test_every_line_of_a_text_file_is_a_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufefffirst, line\r\n\n  second\tline \n \r\nthird\rline\nlast".encode())
    result = read_all(path)
    assert result.texts == ["first, line", "  second\tline ", "third\rline", "last"]
    assert result.ids == [0, 1, 2, 3]
    assert result.lines == [1, 3, 5, 6]


def test_a_line_of_undecodable_bytes_is_a_reject(tmp_path: Path) -> None:
    path = write(tmp_path / "a", b"good\ncaf\xe9 au lait\nagain\n\xe3\x80\x80\n")
    result = read_all(path, format="text")
    assert result.texts == ["good", "again"]
    assert reject_kinds(result) == ["bad encoding", "text is empty"]
    assert [(reject.line, reject.id, reject.raw) for reject in result.rejects] == [
        (2, 1, "caf\\xe9 au lait"),
        (4, 3, "\u3000"),
    ]
    assert "byte 0xe9 at byte 3" in result.rejects[0].reason
    assert read_all(path, format="text", encoding="latin-1").texts[1] == "café au lait"


@pytest.mark.parametrize("size", [1, 5, 17, 1000])
def test_byte_ranges_of_text_give_the_same_rows(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.txt", b"".join(b"line %d\n%s" % (i, b"\r\n" * (i % 3)) for i in range(50)))
    whole = read_all(path)
    monkeypatch.setattr(preview, "JSONL_SPLIT_BYTES", size)
    assert len(readers.plan_inputs(job_of(path)).splits) >= path.stat().st_size // size
    assert read_all(path) == whole
    assert whole.ids == list(range(50))


def test_a_note_says_that_a_name_made_a_table_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"id\ttext\n1\ta\n")
    notes = readers.plan_inputs(job_of(path)).columns.notes
    assert any("--format csv or tsv reads a table" in note for note in notes)
    assert not any("Every line" in note for note in readers.plan_inputs(job_of(path, format="text")).columns.notes)
    assert read_all(path, format="tsv").texts == ["a"]
    with pytest.raises(UsageError, match="its columns are 'text'"):
        read_all(path, text_column="title")


# JSON arrays

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=3), max_size=6),
    size=st.integers(1, 40),
    indent=st.none() | st.integers(0, 3),
    is_text=st.booleans(),
)
def test_an_array_is_cut_into_its_elements(rows: list[object], size: int, indent: int | None, is_text: bool) -> None:
    whole = "\n " + json.dumps(rows, ensure_ascii=False, indent=indent) + " \n"
    encoding = "utf-16" if is_text else "utf-8"
    data = whole.encode(encoding, "replace")
    blocks = [data[i : i + size] for i in range(0, len(data), size)]
    found = [element for some, _ in json_array.split_elements(blocks, encoding, "a.json") for element in some]
    assert [json.loads(element.text) for element in found] == json.loads(data.decode(encoding))
    lines = whole.encode(errors="replace").decode().split("\n")
    for element in found:
        text = element.text if is_text else element.text.decode()
        assert text.partition("\n")[0] in lines[element.line - 1]


def test_elements_over_several_lines_have_the_line_that_they_begin_at(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n  {\n    "text": "a"\n  },\n  {"text": 1},\n\n  {"text": "c"}]', "utf-8")
    result = read_all(path, text_column="text")
    assert (result.texts, result.lines, result.ids) == (["a", "c"], [2, 7], [0, 2])
    assert [(reject.line, reject.reason, reject.raw) for reject in result.rejects] == [
        (5, "text is not a string: a whole number", '{"text": 1}')
    ]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a", "a.json.gz"])
def test_arrays_are_recognised_by_their_first_character(name: str, tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf[{"id": 7, "text": "a"}, {"id": 8, "text": "b"},]\n'
    path = write(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
    assert readers.plan_inputs(job_of(path)).formats == {str(path): "json"}
    other = write(tmp_path / f"b-{name}", path.read_bytes())
    result = read_all(path, other)
    assert (result.ids, result.texts) == ([7, 8, 7, 8], ["a", "b", "a", "b"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n{"text": "a"},\n{"text": "b"}', ":3: the JSON array is cut off, or a quote"),
        ('[\n{"text": "a"},\n', ":3: the JSON array is cut off: it is not closed"),
        ('[{"text": "a"},\n{"text": "b}, {"text": "c"}]', ":2: the JSON array is cut off, or a quote"),
        ('[{"text": "a"}]\n[{"text": "b"}]', ":2: the JSON array has ended, and more follows"),
        ('[{"text": "a"}]\n\n}', ":3: the JSON array has ended, and more follows"),
    ],
)
def test_an_array_that_does_not_end_well_is_an_error(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, "utf-8")
    with pytest.raises(InputError) as caught:
        read_all(path)
    assert message in caught.value.message
    rows = '{"text": "x", "more": [1, {"a": "]"}]},\n' * 5000
    path.write_text(content.replace("[", f"[{rows}", 1), "utf-8")
    with pytest.raises(InputError, match="JSON array"):
        read_all(path)


def test_a_preview_of_an_array_does_not_depend_on_block_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"id": i, "text": "x" * i} for i in range(20)]), "utf-8")
    for limit, expected in ((1, 1), (60, 2), (10_000, 15)):
        monkeypatch.setattr(preview, "PREVIEW_BYTES", limit)
        for portion in (1, 10, 1 << 16):
            monkeypatch.setattr("embedcli.storage.input_stream.PREVIEW_BYTES", portion)
            rows = preview.preview_input(str(path), None, "utf-8", 15).rows
            assert [row["id"] for row in rows] == list(range(expected)), (limit, portion)


# Memory

READ_IN_A_NEW_PROCESS = """
import re, sys
from pathlib import Path
from embedcli import readers
from embedcli.core.job import Job
job = Job(inputs=(sys.argv[1],), output="-", format=sys.argv[2] or None, text_column="text")
plan = readers.plan_inputs(job)
rows = sum(chunk.rows_read for chunk in readers.read_chunks(job, plan, plan.splits))
print(rows, int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10)
"""


def rows_and_peak_mb(path: Path, kind: str = "") -> tuple[int, int]:
    command = [sys.executable, "-c", READ_IN_A_NEW_PROCESS, str(path), kind]
    rows, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(rows), int(peak)


@pytest.mark.parametrize("codec", ["gz", "zst"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "text"])
def test_blank_lines_that_compress_well_do_not_fill_the_memory(kind: str, codec: str, tmp_path: Path) -> None:
    blank = b"\n" * (64 << 20)
    rows = b'{"text": "a"}\n' if kind == "jsonl" else b"text\na\n" if kind == "csv" else b"a\n"
    compress = gzip.compress if codec == "gz" else zstandard.compress
    path = write(tmp_path / f"a.{kind}.{codec}", compress(rows + blank + b"\n"))
    del blank
    count, peak = rows_and_peak_mb(path, kind)
    assert count == 1
    assert peak < 400


def test_a_long_array_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as out:
        out.write(b'[{"text": "a"}')
        for _ in range(200):
            out.write(b',{"text": "%s"}' % (b"word " * 200_000))
        out.write(b"]")
    count, peak = rows_and_peak_mb(path)
    assert count == 201
    assert peak < 400

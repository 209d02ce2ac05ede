"""Reading: every row is in a chunk or one of its rejects, once and in order, for every format and split size."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import awkward
from embedcli import readers
from embedcli.core.errors import InputError, UsageError
from embedcli.core.job import Job
from embedcli.core.types import Chunk, InputFormat, InputPlan, Reject
from embedcli.readers import chunker, csv_dialect, decoding, preview, record_batches
from embedcli.readers import csv as csv_reader
from embedcli.readers import parquet as parquet_reader

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.compress,
}


@dataclass(frozen=True)
class Result:
    """The rows of all chunks of one reading."""

    ids: list[Any]
    texts: list[str]
    lines: list[int]
    rejects: list[Reject]
    kept: list[dict[str, Any]]


def job_of(*inputs: Path | str, **options: Any) -> Job:
    """A job whose TSV inputs are quoted, so that they can hold the same rows as CSV."""
    return Job(inputs=tuple(map(str, inputs)), output="-", **{"quote": '"'} | options)


def join_chunks(chunks: Iterable[Chunk]) -> Result:
    result = Result([], [], [], [], [])
    for chunk in chunks:
        assert len(chunk.ids) == len(chunk.texts) == len(chunk.lines)
        assert chunk.rows_read == len(chunk.texts) + len(chunk.rejects)
        result.ids.extend(chunk.ids.to_pylist())
        result.texts.extend(chunk.texts)
        result.lines.extend(chunk.lines)
        result.rejects.extend(chunk.rejects)
        result.kept.extend(chunk.kept_columns.to_pylist())
    return result


def read_all(*inputs: Path | str, **options: Any) -> Result:
    job = job_of(*inputs, **options)
    plan = readers.plan_inputs(job)
    return join_chunks(readers.read_chunks(job, plan, plan.splits))


def reject_kinds(result: Result) -> list[str]:
    return [reject.kind for reject in result.rejects]


def write_jsonl(path: Path, rows: Iterable[Any], newline: str = "\n") -> Path:
    path.write_text("".join(json.dumps(row) + newline for row in rows), "utf-8", newline="")
    return path


def write_numbered_rows(path: Path, count: int) -> Path:
    return write_jsonl(path, ({"id": i, "text": f"row {i}"} for i in range(count)))


# The same rows in every format


@pytest.mark.parametrize("kind", awkward.FORMATS)
def test_awkward_rows_are_the_same_in_every_format(kind: InputFormat, tmp_path: Path) -> None:
    result, expected = read_all(awkward.write(tmp_path, kind)), awkward.expected(kind)
    assert result.ids == expected.ids
    assert result.texts == expected.texts
    assert [
        (reason, reject.id) for reason, reject in zip(reject_kinds(result), result.rejects, strict=True)
    ] == expected.rejects


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 23, 10_000])
@pytest.mark.parametrize("kind", awkward.FORMATS)
def test_chunks_of_any_size_are_full_and_have_the_same_rows(kind: InputFormat, rows: int, tmp_path: Path) -> None:
    path = awkward.write(tmp_path, kind)
    job = job_of(path, chunk_rows=rows)
    plan = readers.plan_inputs(job)
    chunks = list(readers.read_chunks(job, plan, plan.splits))
    assert join_chunks(chunks) == read_all(path)
    assert sum(chunk.rows_read for chunk in chunks) == awkward.expected(kind).count
    assert [chunk.index_in_split for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert all(max(len(chunk.texts), len(chunk.rejects)) == rows for chunk in chunks[:-1])
    assert 0 < max(len(chunks[-1].texts), len(chunks[-1].rejects)) <= rows


@pytest.mark.parametrize("kind", awkward.FORMATS)
def test_a_reject_has_the_line_of_its_row(kind: InputFormat, tmp_path: Path) -> None:
    path = awkward.write(tmp_path, kind)
    rejects = read_all(path, chunk_rows=4).rejects
    assert {reject.source for reject in rejects} == {str(path)}
    if kind in ("parquet", "arrow"):
        ids = awkward.table()["id"].to_pylist()
        assert all(ids[reject.line - 1] in (reject.id, "") for reject in rejects)
    else:
        physical = path.read_bytes().split(b"\n")
        for reject in rejects:
            start = reject.raw.splitlines()[0][:20].replace("\\xe9", "")
            line = physical[reject.line - 1].decode("utf-8", "ignore").replace('"', "")
            assert start.replace('"', "")[:6] in line


@pytest.mark.parametrize("kind", awkward.FORMATS)
def test_the_first_bad_row_is_an_error_with_on_bad_row_fail(kind: InputFormat, tmp_path: Path) -> None:
    path = awkward.write(tmp_path, kind)
    first = read_all(path).rejects[0]
    with pytest.raises(InputError) as caught:
        read_all(path, on_bad_row="fail")
    assert caught.value.message == f"{path}:{first.line}: {first.reason}"


def test_rejects_are_bounded_in_length_and_can_be_printed(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_bytes(b'{"id": 1, "text": "ok"}\n{"id": 2, "text": "' + b"x" * 50_000 + b"\xff\n")
    (reject,) = read_all(path).rejects
    assert len(reject.raw) == decoding.MAX_REJECT_CHARACTERS
    reject.raw.encode()


# Splits


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000, 4096, 10**9])
def test_byte_ranges_of_any_size_give_the_same_rows(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "é" * (i % 10) or None} for i in range(11)], newline="\n\n")
    whole = read_all(path)
    monkeypatch.setattr(preview, "JSONL_SPLIT_BYTES", size)
    job = job_of(path)
    plan = readers.plan_inputs(job)
    assert [input_split.index for input_split in plan.splits] == list(range(len(plan.splits)))
    assert len(plan.splits) == -(-path.stat().st_size // size)
    assert join_chunks(readers.read_chunks(job, plan, plan.splits)) == whole
    alone = [
        join_chunks(readers.read_chunks(job, plan, [input_split]))
        for input_split in plan.splits[:: 1 + len(plan.splits) // 30]
    ]
    assert all(set(part.ids) <= set(whole.ids) for part in alone)


@pytest.mark.parametrize("blocks", [1, 3, 1 << 20])
def test_ranges_do_not_depend_on_block_sizes(blocks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": i, "text": "x" * i} for i in range(20)])
    whole = read_all(path)
    monkeypatch.setattr(preview, "JSONL_SPLIT_BYTES", 100)
    monkeypatch.setattr("embedcli.storage.input_stream.RAW_BYTES", blocks)
    monkeypatch.setattr("embedcli.storage.input_stream.PREVIEW_BYTES", blocks)
    assert read_all(path) == whole


def write_parquet_rows(path: Path, count: int, group: int) -> Path:
    pq.write_table(
        pa.table({"text": [f"row {i}" if i % 5 else None for i in range(count)]}), path, row_group_size=group
    )
    return path


@pytest.mark.parametrize(("bound", "splits"), [(1, 10), (10, 10), (25, 5), (1000, 1)])
def test_splits_of_parquet_are_whole_row_groups(
    bound: int, splits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet_rows(tmp_path / "a.parquet", 97, 10)
    whole = read_all(path)
    monkeypatch.setattr(record_batches, "MAX_SPLIT_ROWS", bound)
    job = job_of(path)
    plan = readers.plan_inputs(job)
    assert len(plan.splits) == splits
    assert plan.total_rows == 97
    assert join_chunks(readers.read_chunks(job, plan, plan.splits)) == whole


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InputPlan:
    """Every kind of split in one plan: rows have no ids, and every seventh is bad."""
    rows = [{"text": f"row {i}" if i % 7 else ""} for i in range(100)]
    write_jsonl(tmp_path / "1.jsonl", rows, newline="\n\n")
    (tmp_path / "2.csv").write_text('text\n"two\nlines"\n\n""\nlast\n', "utf-8")
    write_parquet_rows(tmp_path / "3.parquet", 50, 10)
    write_jsonl(tmp_path / "4.jsonl", rows)
    compressed = gzip.compress((tmp_path / "4.jsonl").read_bytes())
    (tmp_path / "5.jsonl").write_bytes(compressed)
    monkeypatch.setattr(preview, "JSONL_SPLIT_BYTES", 500)
    monkeypatch.setattr(record_batches, "MAX_SPLIT_ROWS", 20)
    return readers.plan_inputs(job_of(tmp_path))


def test_every_subset_of_the_splits_gives_the_same_ids_and_lines(many: InputPlan) -> None:
    job = job_of("-", chunk_rows=8)
    whole = list(readers.read_chunks(job, many, many.splits))
    assert {input_split.unit for input_split in many.splits} == {"bytes", "rows", "all"}
    starts = dict(enumerate(readers.count_split_starts(job, many)))
    for splits in (many.splits[::2], many.splits[1::3], many.splits[::-1], many.splits[-1:]):
        indices = [input_split.index for input_split in splits]
        expected = join_chunks(
            sorted(
                (c for c in whole if c.input_split in splits), key=lambda c: (indices.index(c.key[0]), c.index_in_split)
            )
        )
        assert join_chunks(readers.read_chunks(job, many, splits)) == expected
        assert join_chunks(readers.read_chunks(job, many, splits, starts)) == expected


def test_generated_ids_number_all_rows_good_and_bad(many: InputPlan) -> None:
    result = join_chunks(readers.read_chunks(job_of("-"), many, many.splits))
    count = 100 + 3 + 50 + 100 + 100
    assert many.columns.id_column is None
    assert sorted(result.ids + [reject.id for reject in result.rejects]) == list(range(count))
    assert result.ids == sorted(result.ids)


def test_progress_reaches_the_size_of_the_inputs(many: InputPlan) -> None:
    done = [chunk.bytes_read for chunk in readers.read_chunks(job_of("-", chunk_rows=8), many, many.splits)]
    assert done == sorted(done)
    assert done[-1] == many.total_bytes


def test_every_split_ends_with_a_last_chunk_even_without_rows(many: InputPlan, tmp_path: Path) -> None:
    chunks = list(readers.read_chunks(job_of("-"), many, many.splits))
    assert [chunk.input_split.index for chunk in chunks if chunk.is_last] == [
        input_split.index for input_split in many.splits
    ]
    (tmp_path / "empty.jsonl").write_bytes(b"")
    job = job_of(tmp_path / "empty.jsonl")
    plan = readers.plan_inputs(job)
    (chunk,) = readers.read_chunks(job, plan, plan.splits)
    assert (chunk.is_last, chunk.rows_read, len(chunk.ids), chunk.kept_columns.num_rows) == (True, 0, 0, 0)


# Bounds


def test_a_chunk_closes_early_when_its_texts_are_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunker, "MAX_CHUNK_CHARACTERS", 1000)
    lengths = [10, 2000, 10, 400, 400, 400, 10]
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": i, "text": "x" * n} for i, n in enumerate(lengths)])
    job = job_of(path)
    plan = readers.plan_inputs(job)
    sizes = [[len(t) for t in chunk.texts] for chunk in readers.read_chunks(job, plan, plan.splits)]
    assert sizes == [[10, 2000], [10, 400, 400, 400], [10]]


def test_chunks_do_not_depend_on_the_block_sizes_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunker, "MAX_CHUNK_CHARACTERS", 500)
    rows = [{"text": "x" * (i % 90 + 1), "kept": "y" * (i % 70), "n": i} for i in range(500)]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    seen = []
    for portion in (1 << 20, 1000, 7):
        feed(monkeypatch, data, portion)
        job = job_of("-", format="jsonl", keep=("kept", "n"), chunk_rows=20)
        plan = readers.plan_inputs(job)
        seen.append(
            [(chunk.texts, chunk.kept_columns.to_pylist()) for chunk in readers.read_chunks(job, plan, plan.splits)]
        )
    assert seen[0] == seen[1] == seen[2]
    assert min(len(texts) for texts, _ in seen[0][:-1]) < 8


def test_a_chunk_closes_early_when_its_rejects_are_many(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": i, "text": None} for i in range(250)])
    job = job_of(path, chunk_rows=100, text_column="text")
    plan = readers.plan_inputs(job)
    assert [len(chunk.rejects) for chunk in readers.read_chunks(job, plan, plan.splits)] == [100, 100, 50]


def test_a_row_of_ten_megabytes_is_a_row(tmp_path: Path) -> None:
    long = "long " * (2 << 20)
    assert read_all(write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": long}, {"text": "b"}])).texts == [
        "a",
        long,
        "b",
    ]
    (tmp_path / "a.csv").write_text(f'text\n"{long}"\nb\n', "utf-8")
    assert read_all(tmp_path / "a.csv").texts == [long, "b"]


def test_a_file_without_line_ends_is_refused_before_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "MAX_ROW_BYTES", 2 << 20)
    monkeypatch.setattr(csv_reader, "MAX_ROW_BYTES", 2 << 20)
    for name in ("a.jsonl", "a.csv"):
        path = tmp_path / name
        path.write_bytes(b'{"text": "a"}\n' * 3 + b"x" * (8 << 20))
        with pytest.raises(InputError, match="longer than 2 MiB"):
            read_all(path, text_column='{"text": "a"}' if name == "a.csv" else "text")


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcli.storage.input_stream.RAW_BYTES", 16 << 10)

    def peak(count: int) -> int:
        job = job_of(write_numbered_rows(tmp_path / f"{count}.jsonl", count), chunk_rows=100)
        plan = readers.plan_inputs(job)
        tracemalloc.start()
        for chunk in readers.read_chunks(job, plan, plan.splits):
            assert len(chunk.texts) <= 100
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2000)
    assert peak(20_000) < 1.2 * peak(5000)


@pytest.mark.parametrize("kind", awkward.FORMATS)
def test_closing_the_iterator_early_closes_the_file(kind: InputFormat, tmp_path: Path) -> None:
    path = awkward.write(tmp_path, kind)
    job = job_of(path, chunk_rows=1)
    plan = readers.plan_inputs(job)
    stream = readers.read_chunks(job, plan, plan.splits)
    next(stream)
    assert str(path) in open_files()
    stream.close()
    assert str(path) not in open_files()


def open_files() -> list[str]:
    folder = Path("/proc/self/fd")
    return [os.readlink(link) for link in folder.iterdir() if link.is_symlink()]


# Bytes: compression, encodings, streams


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a"])
@pytest.mark.parametrize("codec", COMPRESS)
def test_compression_is_detected_by_magic_bytes_not_by_name(codec: str, name: str, tmp_path: Path) -> None:
    plain = awkward.write(tmp_path, "jsonl")
    path = tmp_path / name
    half = plain.read_bytes().index(b"\n", 3000) + 1
    parts = plain.read_bytes()[:half], plain.read_bytes()[half:]
    path.write_bytes(b"".join(map(COMPRESS[codec], parts)))
    assert readers.plan_inputs(job_of(path)).splits[0].unit == "all"
    result, expected = read_all(path), read_all(plain)
    assert result == replace(expected, rejects=[replace(reject, source=str(path)) for reject in expected.rejects])


@pytest.mark.parametrize("codec", COMPRESS)
def test_a_truncated_file_is_an_error_that_names_file_and_byte(codec: str, tmp_path: Path) -> None:
    data = COMPRESS[codec](write_numbered_rows(tmp_path / "a.jsonl", 20_000).read_bytes())
    path = tmp_path / "a.gz"
    path.write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(InputError) as caught:
        read_all(path, format="jsonl")
    assert (
        caught.value.message
        == f"{path}: the {codec} data is cut off: the file ends too early at byte {len(data) * 3 // 4}"
    )


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\r\n\r\n"])
def test_the_csv_delimiter_is_detected_in_the_header(mark: str, start: str, tmp_path: Path) -> None:
    """Spreadsheets write semicolons where the comma is the decimal mark."""
    path = tmp_path / "a.csv"
    rows = ['"id"{}text{}n', '1{}"a, b; c|d\te"{}3,5', '2{}"two\r\nlines, ""quoted"""{}x', "3{}short"]
    number = '"3,5"' if mark == "," else "3,5"
    content = "\r\n".join(rows).replace("3,5", number).replace("{}", mark)
    path.write_text(f"{start}{content}\r\n", "utf-8", newline="")
    result = read_all(path, keep=("n",))
    assert result.ids == ["1", "2"]
    assert result.texts == ["a, b; c|d\te", 'two\r\nlines, "quoted"']
    assert [row["n"] for row in result.kept] == ["3,5", "x"]
    assert [reject.reason for reject in result.rejects] == ["wrong number of columns: 2 instead of 3"]
    assert result.rejects[0].raw == f"3{mark}short"
    notes = readers.plan_inputs(job_of(path)).columns.notes
    note = f"The fields of {path} are separated by {mark!r} (seen in its header)."
    assert (note in notes) == (mark != ",")


@pytest.mark.parametrize("header", ["text", '"a;b",text', "text, a;b|c", '"te;xt"'])
def test_a_comma_or_a_single_name_leaves_csv_as_it_is(header: str) -> None:
    assert csv_dialect.detect_delimiter(header + "\na;b\n", "csv") == ","
    assert csv_dialect.detect_delimiter(header + "\na;b\n", "tsv") == "\t"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_other_encodings_give_the_same_rows(kind: InputFormat, encoding: str, tmp_path: Path) -> None:
    plain = awkward.write(tmp_path, kind)
    end = plain.read_bytes().index(b"all formats have.")
    whole = plain.read_bytes()[:end].decode()
    whole = whole[: whole.rindex("\n") + 1]
    whole = whole[: whole.rindex(",")] + "]" if kind == "json" else whole
    plain.write_text(whole, "utf-8", newline="")
    other = tmp_path / f"other.{kind}"
    other.write_bytes(whole.encode(encoding))
    result, expected = read_all(other, encoding=encoding), read_all(plain)
    assert result == replace(expected, rejects=[replace(reject, source=str(other)) for reject in expected.rejects])


@pytest.mark.parametrize(
    ("encoding", "good", "bad"),
    [
        ("gbk", "批量".encode("gbk"), b"\xb6\xff"),
        ("shift_jis", "日本".encode("shift_jis"), b"\x81\xff"),
        ("ascii", b"ascii", b"\xe9"),
        ("utf-8", "é".encode(), b"\xe9"),
        ("cp1252", "é".encode("cp1252"), b"\x81"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_bad_bytes_reject_one_row_in_the_middle_of_a_chunk(
    kind: InputFormat, encoding: str, good: bytes, bad: bytes, tmp_path: Path
) -> None:
    form, head = (b'{"id": "%d", "text": "%s"}\n', b"") if kind == "jsonl" else (b"%d,%s\n", b"id,text\n")
    path = tmp_path / f"a.{kind}"
    path.write_bytes(head + b"".join(form % (i, bad if i == 5 else good) for i in range(10)))
    result = read_all(path, encoding=encoding)
    assert result.texts == [good.decode(encoding)] * 9
    assert [int(i) for i in result.ids] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert [(reject.line, reason) for reject, reason in zip(result.rejects, reject_kinds(result), strict=True)] == [
        (6 + (kind == "csv"), "bad encoding")
    ]
    assert f"byte 0x{bad[0]:02x}" in result.rejects[0].reason or f"byte 0x{bad[1]:02x}" in result.rejects[0].reason


def test_an_unknown_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text\n1,a\n")
    with pytest.raises(UsageError, match="not a known text encoding"):
        read_all(path, encoding="utf-17")
    with pytest.raises(UsageError, match="not a known text encoding"):
        read_all(path, encoding="base64")


class Pipe(io.RawIOBase):
    """Bytes that come a few at a time, and cannot be had twice."""

    def __init__(self, data: bytes, portion: int) -> None:
        self._source = io.BytesIO(data)
        self._portion = portion

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._source.readinto(memoryview(buffer)[: self._portion])


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes, portion: int = 1000) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Pipe(data, portion))))


@pytest.mark.parametrize("portion", [13, 1000, 1 << 20])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "arrow"])
def test_stdin_gives_the_same_rows_as_the_file(
    kind: InputFormat, portion: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = awkward.write(tmp_path, kind)
    data, whole = path.read_bytes(), read_all(path)
    feed(monkeypatch, data, portion)
    result = read_all("-", format=kind)
    assert result == replace(whole, rejects=[replace(reject, source="-") for reject in whole.rejects])


def test_stdin_may_be_compressed_and_is_fed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = gzip.compress(write_numbered_rows(tmp_path / "a.jsonl", 5000).read_bytes())
    for _ in range(2):
        feed(monkeypatch, data)
        result = read_all("-")
        assert result.ids == list(range(5000))
    with pytest.raises(InputError, match="stdin: a pipe can be read only once"):
        read_all("-")


def test_errors_of_stdin_have_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, b"just some words\nand more\n")
    with pytest.raises(UsageError) as caught:
        read_all("-")
    assert "--format" in caught.value.hint
    feed(monkeypatch, write_parquet_rows(tmp_path / "a.parquet", 9, 9).read_bytes())
    with pytest.raises(InputError, match="stdin: Parquet cannot be read from a pipe"):
        read_all("-")


def test_a_named_pipe_is_read_once_from_its_beginning(tmp_path: Path) -> None:
    data = write_numbered_rows(tmp_path / "a.jsonl", 3000).read_bytes()
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(data,))
    writer.start()
    result = read_all(path)
    writer.join()
    assert result.ids == list(range(3000))


# CSV


def test_ragged_and_broken_rows_of_a_csv_do_not_affect_others(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,a\n2\n3,"b" c\n4,d,e\n\n5,"f\ng"\n6,"h "" i"\n7,j"k\n', "utf-8")
    result = read_all(path)
    assert list(zip(result.ids, result.lines, strict=True)) == [("1", 2), ("5", 7), ("6", 9), ("7", 10)]
    assert [(reject.line, reject.id) for reject in result.rejects] == [(3, "2"), (4, None), (5, "4")]


def test_a_quote_that_is_never_closed_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,a\n" + '2,"cut\noff', "utf-8")
    result = read_all(path)
    assert (result.ids, [reject.line for reject in result.rejects]) == (["1"], [3, 4])
    assert result.rejects[0].reason == "bad CSV: unexpected end of data (a quoted field goes on to line 4)"
    assert result.rejects[0].raw == '2,"cut'
    path.write_text("id,text\n1,a\n" + '2,"b\n' + "3,c\n" * 200, "utf-8")
    result = read_all(path)
    assert result.texts == ["a", *["c"] * 200]
    assert [(reject.line, reject.raw) for reject in result.rejects] == [(3, '2,"b')]


def test_headers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text,text\n1,a,b\n", "utf-8")
    with pytest.raises(InputError, match="the header names 'text' twice"):
        read_all(path)
    path.write_text("id,text\n", "utf-8")
    assert read_all(path).texts == []
    path.write_text("\ufeff\n\n,text,\n0,a,b\n", "utf-8")
    assert read_all(path).texts == ["a"]
    path.write_text("text\rold\rMac\r", "utf-8")
    assert read_all(path).texts == ["old", "Mac"]


# Parquet


def write_texts(path: Path, texts: pa.Array, **columns: Any) -> Path:
    pq.write_table(pa.table({"text": texts, **columns}), path)
    return path


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int16(), pa.string())], ids=str
)
def test_texts_may_have_any_string_type(kind: pa.DataType, tmp_path: Path) -> None:
    texts = pa.array(["a", None, "b", "", "a"]).cast(kind)
    result = read_all(write_texts(tmp_path / "a.parquet", texts, id=texts), text_column="text")
    assert (result.ids, result.texts) == (["a", "b", "a"], ["a", "b", "a"])
    assert reject_kinds(result) == ["text is missing or null", "text is empty"]


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.string()), pa.int64(), pa.struct([("a", pa.string())]), pa.binary(2), pa.float32()],
    ids=str,
)
def test_other_types_cannot_be_texts(kind: pa.DataType, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.parquet", pa.nulls(3, kind), other=["a"] * 3, more=["b"] * 3)
    with pytest.raises(UsageError) as caught:
        read_all(path, text_column="text")
    assert f"column 'text' holds {'list<element: string>' if kind == pa.list_(pa.string()) else kind}, not text" in (
        caught.value.message
    )
    with pytest.raises(UsageError, match="which column holds the text"):
        read_all(path)


KEPT = {
    "int8": pa.array([1, None, 3], pa.int8()),
    "uint64": pa.array([2**64 - 1, 0, None], pa.uint64()),
    "half": pa.array([1.5, None, 2.5], pa.float16()),
    "bool": pa.array([True, None, False]),
    "decimal": pa.array([None, "1.25", "3.00"], pa.string()).cast(pa.decimal128(10, 2)),
    "zoned": pa.array([0, None, 1], pa.timestamp("us", "Europe/Paris")),
    "date": pa.array([0, None, 1], pa.date32()),
    "binary": pa.array([b"\xff", None, b""], pa.binary()),
    "list": pa.array([["a", None], None, []], pa.list_(pa.string())),
    "struct": pa.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": []}]),
    "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    "fixed": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
    "null": pa.nulls(3),
    "large": pa.array(["a", None, "b"], pa.large_string()),
    "dictionary": pa.array(["a", None, "a"]).dictionary_encode(),
    "view": pa.array(["a", None, "b"], pa.string_view()),
}


def test_kept_columns_keep_their_types(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"id": [1, 2, 3], "text": ["a", None, "c"], **KEPT})
    pq.write_table(table, path, row_group_size=2)
    stored = pq.read_schema(path)
    job = job_of(path, keep=tuple(KEPT))
    plan = readers.plan_inputs(job)
    plain = {"dictionary": pa.string(), "view": pa.string()}
    assert plan.columns.kept_types == {name: plain.get(name, stored.field(name).type) for name in KEPT}
    (chunk,) = readers.read_chunks(job, plan, plan.splits)
    assert chunk.kept_columns.schema == pa.schema(list(plan.columns.kept_types.items()))
    assert chunk.kept_columns.to_pylist() == table.select(list(KEPT)).to_pylist()[::2]


def test_a_string_that_is_not_utf8_rejects_one_row_in_any_column(tmp_path: Path) -> None:
    good, bad = [b"a", b"b", b"c", b"d"], b"\xff"
    columns = {
        name: awkward.unchecked([bad if i == at else value for i, value in enumerate(good)])
        for at, name in enumerate(["id", "text", "kept"])
    }
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    result = read_all(path, keep=("kept",))
    assert (result.ids, result.texts, result.kept) == (["d"], ["d"], [{"kept": "d"}])
    assert reject_kinds(result) == ["bad encoding"] * 3


def test_long_texts_are_decoded_a_few_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": [str(i) * 1000 for i in range(100)]}), path, compression="none", use_dictionary=False
    )
    monkeypatch.setattr(parquet_reader, "PARQUET_BATCH_BYTES", 10_000)
    seen = []
    real = record_batches.to_row_batch

    def spied(batch: pa.RecordBatch, *rest: Any) -> Any:
        seen.append(batch.num_rows)
        return real(batch, *rest)

    monkeypatch.setattr(record_batches, "to_row_batch", spied)
    assert len(read_all(path).texts) == 100
    assert max(seen) < 10


def test_damaged_parquet_is_a_clear_error(tmp_path: Path) -> None:
    path = write_parquet_rows(tmp_path / "a.parquet", 50_000, 1000)
    data = path.read_bytes()
    for damaged in (data[:-100], data[:4], data[: len(data) // 2] + data[-8:], b"PAR1" + bytes(100) + b"PAR1"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.parquet: cannot be read as Parquet"):
            read_all(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="named like Parquet, but is not"):
        read_all(path)


def test_a_file_that_shrinks_after_planning_is_noticed(tmp_path: Path) -> None:
    job = job_of(write_numbered_rows(tmp_path / "a.jsonl", 50))
    plan = readers.plan_inputs(job)
    write_numbered_rows(tmp_path / "a.jsonl", 49)
    with pytest.raises(InputError, match="has become shorter"):
        list(readers.read_chunks(job, plan, plan.splits))


def test_a_parquet_file_that_changes_after_planning_is_noticed(tmp_path: Path) -> None:
    job = job_of(write_parquet_rows(tmp_path / "a.parquet", 50, 10))
    plan = readers.plan_inputs(job)
    write_parquet_rows(tmp_path / "a.parquet", 30, 10)
    with pytest.raises(InputError, match="has other rows than when it was planned"):
        list(readers.read_chunks(job, plan, plan.splits))


# One bad row among good ones


@pytest.mark.parametrize("column", ["id", "text", "kept", "mixed"])
def test_a_lone_surrogate_rejects_one_row_in_any_column(column: str, tmp_path: Path) -> None:
    rows = [{"id": f"{i}", "text": "a", "kept": "b", "mixed": {"c": "d"}} for i in range(9)]
    value: Any = {"c": "\ud83d"} if column == "mixed" else "\ud83d"
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, {**rows[0], "id": "bad", column: value}, *rows])
    result = read_all(path, keep=("kept", "mixed"))
    assert (len(result.texts), reject_kinds(result), result.rejects[0].line) == (18, ["lone surrogate"], 10)
    assert result.kept[0] == {"kept": "b", "mixed": '{"c":"d"}'}


def test_json_texts_are_the_same_beside_a_row_that_is_not_plain_json(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": "é", "x": {"é": [1, 2.5, None, "\u2028"]}}, {"text": "b", "x": 1}]
    plain = write_jsonl(tmp_path / "a.jsonl", rows)
    awkward_too = write_jsonl(tmp_path / "b.jsonl", [*rows, {"text": "c", "x": float("nan")}])
    assert read_all(awkward_too, keep=("x",)).kept == [*read_all(plain, keep=("x",)).kept, {"x": "NaN"}]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_file_that_ends_within_a_character(kind: InputFormat, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"text\na\ncaf\xc3" if kind == "csv" else b'{"text": "a"}\n{"text": "caf\xc3')
    result = read_all(path)
    assert (result.texts, reject_kinds(result)) == (["a"], ["bad encoding"])


def test_long_rows_of_a_csv_are_parsed_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcli.storage.input_stream.RAW_BYTES", 5000)
    table = csv_reader.CsvReader([b"text\n", *[b"x" * 999 + b"\n"] * 50], "a.csv", "csv", "utf-8")
    assert max(len(batch.rows) for batch in table.read_batches()) < 5

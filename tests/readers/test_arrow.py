"""Arrow IPC: files and streams give the same rows as Parquet, and damage is an error."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from test_readers import feed, job_of, read_all

import awkward
from embedcli import readers
from embedcli.core.errors import InputError

ROWS = 5000
TABLE = pa.table(
    {
        "id": pa.array(range(ROWS)),
        "text": pa.array([f"row {i}" if i % 7 else None for i in range(ROWS)], pa.string()),
        "kind": pa.array([f"kind {i % 3}" for i in range(ROWS)]).dictionary_encode(),
        "doc": pa.array([{"title": f"t{i}", "tags": ["a", str(i)]} for i in range(ROWS)]),
        "vector": pa.array([[float(i), 1.0] for i in range(ROWS)], pa.list_(pa.float32(), 2)),
        "day": pa.array(range(ROWS), pa.date32()),
    }
)


def arrow_file(table: pa.Table = TABLE, compression: str | None = None, rows: int = 700) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as out:
        out.write_table(table, max_chunksize=rows)
    return sink.getvalue()


def arrow_stream(table: pa.Table = TABLE, compression: str | None = None, rows: int = 700) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as out:
        out.write_table(table, max_chunksize=rows)
    return sink.getvalue()


def feather(table: pa.Table = TABLE) -> bytes:
    sink = io.BytesIO()
    pyarrow.feather.write_feather(table, sink)
    return sink.getvalue()


KEPT = ("kind", "doc", "vector", "day")


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize(("name", "make"), [("a.arrow", arrow_file), ("a.arrows", arrow_stream), ("a", arrow_stream)])
def test_arrow_gives_the_same_rows_as_parquet(
    name: str, make: Callable[..., bytes], compression: str | None, tmp_path: Path
) -> None:
    pq.write_table(TABLE, tmp_path / "a.parquet")
    (tmp_path / name).write_bytes(make(compression=compression))
    result, expected = read_all(tmp_path / name, keep=KEPT), read_all(tmp_path / "a.parquet", keep=KEPT)
    assert (result.ids, result.texts, result.lines) == (expected.ids, expected.texts, expected.lines)
    assert result.kept == expected.kept
    assert [(r.line, r.reason, r.id, r.raw) for r in result.rejects] == [
        (r.line, r.reason, r.id, r.raw) for r in expected.rejects
    ]
    assert len(result.ids) + len(result.rejects) == ROWS
    plans = [readers.plan_inputs(job_of(tmp_path / other, keep=KEPT)) for other in (name, "a.parquet")]
    assert plans[0].columns.kept_types == plans[1].columns.kept_types


@pytest.mark.parametrize("make", [arrow_file, arrow_stream, feather])
@pytest.mark.parametrize("portion", [100, 1 << 16])
def test_stdin_may_be_arrow(make: Callable[..., bytes], portion: int, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, make(), portion)
    result = read_all("-", text_column="doc.title", id_column="")
    assert result.ids == list(range(ROWS))
    assert result.texts[-1] == f"t{ROWS - 1}"


def test_arrow_inside_gzip_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.arrow.gz").write_bytes(gzip.compress(arrow_file()))
    (tmp_path / "b.arrow").write_bytes(arrow_file())
    a, b = (read_all(tmp_path / name) for name in ("a.arrow.gz", "b.arrow"))
    assert (a.ids, a.texts) == (b.ids, b.texts)


def test_splits_of_a_file_are_whole_record_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.feather"
    path.write_bytes(arrow_file())
    whole = read_all(path, id_column="")
    monkeypatch.setattr("embedcli.readers.record_batches.MAX_SPLIT_ROWS", 1500)
    job = job_of(path, id_column="")
    plan = readers.plan_inputs(job)
    assert [(s.start, s.stop) for s in plan.splits] == [(0, 1400), (1400, 2800), (2800, 4200), (4200, 5000)]
    assert plan.total_rows == ROWS
    assert read_all(path, id_column="") == whole
    last = list(readers.read_chunks(job, plan, plan.splits[-1:]))
    assert last[0].ids.to_pylist()[0] == next(i for i in whole.ids if i >= 4200)
    assert last[-1].bytes_read == path.stat().st_size - path.stat().st_size * 4200 // ROWS


@pytest.mark.parametrize("make", [arrow_file, arrow_stream])
def test_data_that_is_cut_off_anywhere_is_an_error(make: Callable[..., bytes], tmp_path: Path) -> None:
    data = make(TABLE.slice(0, 40), rows=10)
    path = tmp_path / "a.arrow"
    for at in [*range(8, len(data), 97), len(data) - 1, len(data) - 8]:
        for compress in (bytes, gzip.compress):
            path.write_bytes(compress(data[:at]))
            with pytest.raises(InputError, match="cut off"):
                read_all(path)


def test_more_data_after_a_stream_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.arrows").write_bytes(arrow_stream() * 2)
    with pytest.raises(InputError, match="more data follows the end"):
        read_all(tmp_path / "a.arrows")


def test_feather_of_version_1_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.feather").write_bytes(b"FEA1\0\0\0\0" + bytes(100) + b"FEA1")
    with pytest.raises(InputError, match="a Feather file of version 1"):
        read_all(tmp_path / "a.feather")


def test_offsets_that_point_outside_are_an_error_not_a_crash(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2, 3], "text": ["one", "two", "three"]})
    data = arrow_file(table)
    offsets = b"".join(i.to_bytes(4, "little") for i in (0, 3, 6, 11))
    assert data.count(offsets) == 1
    path = tmp_path / "a.arrow"
    path.write_bytes(data.replace(offsets, offsets[:8] + (1 << 30).to_bytes(4, "little") + offsets[12:]))
    with pytest.raises(InputError, match="the Arrow data is damaged"):
        read_all(path)


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for name, make in (("a.arrow", arrow_file), ("b.arrow", arrow_stream)):
        (tmp_path / name).write_bytes(make(TABLE.slice(0, 0)))
        assert read_all(tmp_path / name).ids == []


def test_views_and_nested_dictionaries_are_read(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["a", "b"], pa.string_view()),
            "words": pa.array([["x", "y"], ["x"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        }
    )
    (tmp_path / "a.arrow").write_bytes(arrow_file(table))
    result: Any = read_all(tmp_path / "a.arrow", keep=("text",))
    assert result.texts == ["a", "b"]
    assert result.kept == [{"text": "a"}, {"text": "b"}]


def test_bytes_that_are_not_utf8_reject_a_row(tmp_path: Path) -> None:
    path = awkward.write(tmp_path, "arrow")
    assert [r.reason for r in read_all(path).rejects if r.id == "latin"] == [
        "bad encoding: byte 0xe9 at byte 3 of column 'text'"
    ]

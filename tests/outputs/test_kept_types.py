"""Columns of every Parquet type, kept in every kind of output, in one run and in several: the input's values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
from embedcli.core.arrow_values import column_to_python, table_to_rows

GROUP_ROWS = 70
GROUPS = 3
OUTPUTS = ["out.parquet", "out/", "out.npy", "out.arrow", "out.jsonl"]

Maker = Callable[[int], pa.Array]


def coded(group: int) -> pa.Array:
    """Texts as a dictionary, a null among them; each group's dictionary is another one."""
    texts = [None if i % 9 == 4 else f"g{group}s{i // 5}" for i in range(GROUP_ROWS)]
    return pa.array(texts).dictionary_encode()


def offsets(kind: Any = None) -> pa.Array:
    """One value a row, but the third row is null."""
    return pa.array([None if i == 2 else i for i in range(GROUP_ROWS)] + [GROUP_ROWS], kind or pa.int32())


def views(group: int, kind: pa.DataType) -> pa.Array:
    return coded(group).dictionary_decode().cast(kind)


NESTED: dict[str, Maker] = {
    "dictionary": coded,
    "list": lambda n: pa.ListArray.from_arrays(offsets(), coded(n)),
    "large list": lambda n: pa.LargeListArray.from_arrays(offsets(pa.int64()), coded(n)),
    "fixed list": lambda n: pa.FixedSizeListArray.from_arrays(coded(n), 1),
    "struct": lambda n: pa.StructArray.from_arrays([coded(n)], ["d"], mask=pa.array([i == 2 for i in range(70)])),
    "required": lambda n: pa.StructArray.from_arrays([coded(n).fill_null("-")], fields=[required()]),
    "list of structs": lambda n: pa.ListArray.from_arrays(offsets(), pa.StructArray.from_arrays([coded(n)], ["d"])),
    "map": lambda n: pa.MapArray.from_arrays(offsets(), pa.array(map(str, range(70))), coded(n)),
    "map by dictionary": lambda n: pa.MapArray.from_arrays(offsets(), coded(n).fill_null("-"), coded(n)),
    "list of views": lambda n: pa.ListArray.from_arrays(offsets(), views(n, pa.string_view())),
    "struct of views": lambda n: pa.StructArray.from_arrays([views(n, pa.binary_view())], ["d"]),
    "list view": lambda n: pa.array([list(range(i % 4)) for i in range(GROUP_ROWS)], pa.list_view(pa.int64())),
}


def times(kind: pa.DataType, first: int, step: int) -> Maker:
    """Numbers as times of a kind, every eleventh one null."""
    width = pa.int32() if kind.bit_width == 32 else pa.int64()
    numbers = [None if i % 11 == 0 else first + i * step for i in range(GROUP_ROWS)]
    return lambda n: pa.array(numbers, width).cast(kind)


TIMES: dict[str, Maker] = {
    "nanoseconds": times(pa.timestamp("ns"), 0, 1_000_000_007),
    "nanoseconds in a zone": times(pa.timestamp("ns", "Europe/Berlin"), 0, 1_000_000_007),
    "in an unknown zone": times(pa.timestamp("us", "Mars/Base"), 0, 1),
    "after the year 9999": times(pa.timestamp("us"), 400_000_000_000_000_000, 1),
    "before the year 1": times(pa.timestamp("us", "Europe/Berlin"), -70_000_000_000_000_000, 1),
    "date after the year 9999": times(pa.date32(), 4_000_000, 1),
    "date before the year 1": times(pa.date32(), -800_000, 1),
    "time of day": times(pa.time64("ns"), 0, 1001),
    "duration": times(pa.duration("ns"), 0, 1001),
    "long duration": times(pa.duration("s"), 1 << 62, 1),
    "list of times": lambda n: pa.ListArray.from_arrays(offsets(), times(pa.timestamp("ns"), 0, 1001)(n)),
    "struct of times": lambda n: pa.StructArray.from_arrays([times(pa.date32(), 4_000_000, 1)(n)], ["d"]),
    "plain time": times(pa.timestamp("us", "UTC"), 0, 1_000_000),
}


def required() -> pa.Field:
    return pa.field("d", pa.dictionary(pa.int32(), pa.string()), nullable=False)


def write(path: Path, columns: dict[str, Maker]) -> list[dict[str, Any]]:
    """An input of several row groups, and its kept columns row by row."""
    rows = jobs.rows(GROUP_ROWS * GROUPS)
    tables = []
    for group in range(GROUPS):
        here = rows[group * GROUP_ROWS :][:GROUP_ROWS]
        base = {"id": [row["id"] for row in here], "text": [row["text"] for row in here]}
        tables.append(pa.table({**base, **{name: make(group) for name, make in columns.items()}}))
    with pq.ParquetWriter(path, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    return [row for table in tables for row in table_to_rows(table.select(list(columns)))]


def kept(output: Path, names: list[str]) -> list[pa.Table]:
    """The kept columns of an output, file by file."""
    if output.is_dir():
        parts = json.loads((output / "_manifest.json").read_bytes())["parts"]
        return [pq.read_table(output / part, columns=names) for part in parts]
    if output.suffix == ".arrow":
        return [pa.ipc.open_file(output).read_all().select(names)]
    return [pq.read_table(output.with_suffix(".ids.parquet") if output.suffix == ".npy" else output, columns=names)]


def encode(folder: Path, names: list[str], output: str) -> Path:
    """Encode in three runs, two of them cut short; the bytes are those of a single run."""
    keep = [flag for name in names for flag in ("--keep", name)]
    flags = ["-m", jobs.word_model(folder), "--chunk-rows", 40, "--part-size", "8kB", "-q", *keep]
    runs = [["--stop-after", 80], ["--stop-after", 80], []]
    ends = [jobs.run("encode", folder / "in.parquet", f"{folder}/{output}", *flags, *more) for more in runs]
    assert [ended.code for ended in ends] == [75, 75, 0], ends[-1].err
    assert jobs.run("encode", folder / "in.parquet", f"{folder}/whole-{output}", *flags).code == 0
    assert jobs.contents(folder / output) == jobs.contents(folder / f"whole-{output}")
    return folder / output


def lines_of(output: Path, names: list[str]) -> list[dict[str, Any]]:
    """Those columns of a JSONL output, row by row."""
    lines = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    return [{name: line[name] for name in names} for line in lines]


def in_json(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value, default=lambda held: held.decode() if isinstance(held, bytes) else str(held)))


@pytest.mark.parametrize("output", OUTPUTS)
def test_dictionaries_and_views_inside_of_columns_become_what_they_stand_for(tmp_path: Path, output: str) -> None:
    names = list(NESTED)
    expected = write(tmp_path / "in.parquet", NESTED)
    made = encode(tmp_path, names, output)
    if output.endswith("jsonl"):
        found = lines_of(made, [name for name in names if name != "struct of views"])
        for row in expected:
            del row["struct of views"]  # bytes: base64 in JSON
        assert found == in_json(expected)
        return
    tables = kept(made, names)
    assert [row for table in tables for row in table.to_pylist()] == expected
    assert all(table.schema.equals(tables[0].schema, check_metadata=True) for table in tables)
    assert "dictionary<" not in "".join(str(kind) for kind in tables[0].schema.types)
    assert len(tables) > 1 or output != "out/"


def test_one_column_of_two_inputs_is_one_type_whether_it_is_a_dictionary_or_not(tmp_path: Path) -> None:
    expected = [row["c"] for row in write(tmp_path / "in.parquet", {"c": NESTED["list"]})]
    write(tmp_path / "in.2.parquet", {"c": lambda n: NESTED["list"](n).cast(pa.list_(pa.string()))})
    flags = ["-m", jobs.word_model(tmp_path), "--keep", "c", "-q"]
    inputs = [tmp_path / "in.parquet", tmp_path / "in.2.parquet"]
    assert jobs.run("encode", *inputs, tmp_path / "out.arrow", *flags).code == 0
    values = pa.ipc.open_file(tmp_path / "out.arrow").read_all()["c"].to_pylist()
    assert values == expected * 2


def test_a_list_view_of_dictionaries_is_refused(tmp_path: Path) -> None:
    ones = pa.array([1] * GROUP_ROWS, pa.int32())
    starts = offsets()[:-1].fill_null(2)
    write(tmp_path / "in.parquet", {"c": lambda n: pa.ListViewArray.from_arrays(starts, ones, coded(n))})
    flags = ["-m", jobs.word_model(tmp_path), "--keep", "c"]
    ended = jobs.run("encode", tmp_path / "in.parquet", tmp_path / "out.arrow", *flags)
    assert ended.code == 2
    assert "cannot be kept" in ended.err


@pytest.mark.parametrize("output", OUTPUTS)
def test_times_that_python_has_no_values_for_are_kept(tmp_path: Path, output: str) -> None:
    names = list(TIMES)
    expected = write(tmp_path / "in.parquet", TIMES)
    made = encode(tmp_path, names, output)
    if output.endswith("jsonl"):
        lines = lines_of(made, names)
        assert lines == json.loads(orjson.dumps(expected, default=str))
        assert lines[1]["nanoseconds"] == "1970-01-01T00:00:01.000000007"
        assert lines[1]["nanoseconds in a zone"] == "1970-01-01T01:00:01.000000007+01:00"
        assert lines[1]["in an unknown zone"] == "1970-01-01T00:00:00.000001+00:00"
        assert lines[1]["after the year 9999"] == "+14645-06-30T15:06:40.000001"
        assert lines[1]["plain time"] == "1970-01-01T00:00:01+00:00"
        assert lines[11]["nanoseconds"] is None
        return
    files, source = kept(made, names), pq.read_table(tmp_path / "in.parquet", columns=names)
    assert [row for table in files for row in table_to_rows(table)] == expected
    assert all(table.schema.types == source.schema.types for table in files)


@pytest.mark.parametrize("name", [name for name in TIMES if "of times" not in name])
def test_times_are_ids_too(tmp_path: Path, name: str) -> None:
    expected = write(tmp_path / "in.parquet", {name: TIMES[name]})
    table = pq.read_table(tmp_path / "in.parquet")
    texts = pa.array(
        [None if i == 5 else "zzz" if i == 7 else text for i, text in enumerate(table["text"].to_pylist())]
    )
    pq.write_table(table.select([name]).append_column("text", texts), tmp_path / "in.parquet")
    output = tmp_path / "out.parquet"
    flags = ["-m", jobs.word_model(tmp_path), "--id-column", name, "-q"]
    assert jobs.run("encode", tmp_path / "in.parquet", output, *flags).code == 3
    missing = [i for i in range(len(expected)) if expected[i][name] is None]
    good = [row[name] for i, row in enumerate(expected) if i not in (5, 7, *missing)]
    assert column_to_python(pq.read_table(output)["id"]) == good
    rejects = [json.loads(line) for line in Path(f"{output}.rejects.jsonl").read_text("utf-8").splitlines()]
    assert {reject["line"] - 1: reject["id"] for reject in rejects} == {
        i: None if i in missing else str(expected[i][name]) for i in (5, 7, *missing)
    }
    assert jobs.run("encode", tmp_path / "in.parquet", output, *flags, "--update").code in (0, 3)
    for command in (["inspect", output], ["verify", output, tmp_path / "in.parquet"]):
        for form in ([], ["--json"]):
            ended = jobs.run(*command, *form)
            assert ended.code == 0, ended.err + ended.out


def test_a_search_shows_times(tmp_path: Path) -> None:
    write(tmp_path / "in.parquet", TIMES)
    output = encode(tmp_path, list(TIMES), "out.parquet")
    columns = [flag for name in TIMES for flag in ("--show", name)]
    for form in ([], ["--json"]):
        ended = jobs.run("search", output, "word1", *columns, *form)
        assert ended.code == 0, ended.err
        assert "1970-01-01T00:00:" in ended.out
    for ending in ("jsonl", "parquet"):
        hits = tmp_path / f"hits.{ending}"
        flat = [flag for name in TIMES if "of times" not in name for flag in ("--show", name)]
        ended = jobs.run("search", output, "word1", *flat, "-k", 200, "-o", hits)
        assert ended.code == 0, ended.err
    assert pq.read_schema(hits).field("nanoseconds").type == pa.string()
    assert pq.read_schema(hits).field("plain time").type == pa.timestamp("us", "UTC")
    assert "1970-01-01T00:00:01.000000007" in pq.read_table(hits)["nanoseconds"].to_pylist()
    ended = jobs.run("compare", output, output, "--json")
    assert ended.code == 0, ended.err

"""Columns of every Parquet type, kept in every kind of output, in one run and in several: the input's values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
from test_resume import contents

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
    return [row for table in tables for row in table.select(list(columns)).to_pylist()]


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
    runs = [["--limit", 80], ["--limit", 80], []]
    ends = [jobs.run("encode", folder / "in.parquet", f"{folder}/{output}", *flags, *more) for more in runs]
    assert [ended.code for ended in ends] == [75, 75, 0], ends[-1].err
    assert jobs.run("encode", folder / "in.parquet", f"{folder}/whole-{output}", *flags).code == 0
    assert contents(folder / output) == contents(folder / f"whole-{output}")
    return folder / output


def in_json(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value, default=lambda held: held.decode() if isinstance(held, bytes) else str(held)))


@pytest.mark.parametrize("output", OUTPUTS)
def test_dictionaries_and_views_inside_of_columns_become_what_they_stand_for(tmp_path: Path, output: str) -> None:
    names = list(NESTED)
    expected = write(tmp_path / "in.parquet", NESTED)
    made = encode(tmp_path, names, output)
    if output.endswith("jsonl"):
        lines = [json.loads(line) for line in made.read_text("utf-8").splitlines()]
        found = [{name: line[name] for name in names if name != "struct of views"} for line in lines]
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

"""Columns whose values are in the names of folders, in every format and every role."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from embedcli import readers
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.readers.partition_columns import infer_partition_types, partition_constants
from jobs import run, word_model

FORMATS = ("parquet", "jsonl", "csv")


def write(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".csv":
        path.write_text("".join(",".join(map(str, line)) + "\n" for line in (rows[0], *(row.values() for row in rows))))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(folder: Path, **options: Any) -> tuple[list[Any], list[str], list[dict[str, Any]], list[str]]:
    """Ids, texts, kept values and the reasons of rejects."""
    job = Job((str(folder),), "-", **options)
    plan = readers.plan_inputs(job)
    chunks = list(readers.read_chunks(job, plan, plan.splits))
    return (
        [value for chunk in chunks for value in chunk.ids.to_pylist()],
        [text for chunk in chunks for text in chunk.texts],
        [row for chunk in chunks for row in chunk.kept_columns.drop(["source"]).to_pylist()],
        [reject.reason for chunk in chunks for reject in chunk.rejects],
    )


@pytest.fixture(params=FORMATS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Two partitions, with two rows and one."""
    name = f"part-0.{request.param}"
    write(tmp_path / "data/lang=fr/year=2024" / name, {"id": "a", "text": "un"}, {"id": "b", "text": "deux"})
    write(tmp_path / "data/lang=en%2DGB/year=0999" / name, {"id": "c", "text": "one"})
    return tmp_path / "data"


def test_partition_columns_are_kept(folder: Path) -> None:
    ids, texts, kept, _ = read(folder, keep=("lang", "year"))
    assert ids == ["c", "a", "b"]
    assert texts == ["one", "un", "deux"]
    assert kept == [{"lang": "en-GB", "year": 999}, {"lang": "fr", "year": 2024}, {"lang": "fr", "year": 2024}]


def test_partition_columns_are_ids_and_parts_of_templates(folder: Path) -> None:
    assert read(folder, id_column="year", text_column="text")[0] == [999, 2024, 2024]
    assert read(folder, template="{lang} {year}: {text}")[1] == ["en-GB 999: one", "fr 2024: un", "fr 2024: deux"]
    assert read(folder, text_column="lang")[1] == ["en-GB", "fr", "fr"]


def test_partition_columns_are_never_guessed(tmp_path: Path) -> None:
    write(tmp_path / "text=x/id=7/a.jsonl", {"body": "word"})
    columns = readers.plan_inputs(Job((str(tmp_path),), "-")).columns
    assert (columns.text_column, columns.id_column, columns.partition_types) == ("body", None, {})


def test_a_null_partition_is_null_and_rejects_ids(tmp_path: Path) -> None:
    for ending in FORMATS:
        write(tmp_path / f"lang=__HIVE_DEFAULT_PARTITION__/a.{ending}", {"text": "one"})
    write(tmp_path / "lang=fr/a.jsonl", {"text": "un"})
    assert read(tmp_path, keep=("lang",))[2] == [{"lang": None}] * 3 + [{"lang": "fr"}]
    ids, _, _, reasons = read(tmp_path, id_column="lang")
    assert ids == ["fr"]
    assert reasons == ["id is missing or null"] * 3


def test_a_partition_that_one_file_lacks_is_refused(folder: Path) -> None:
    ending = next(path.suffix for path in folder.rglob("*.*"))
    write(folder / f"top{ending}", {"id": "d", "text": "top"})
    assert read(folder)[0] == ["c", "a", "b", "d"]
    for options in ({"keep": ("lang",)}, {"id_column": "lang"}, {"template": "{lang} {text}"}):
        with pytest.raises(UsageError, match=f"top{ending}: --.*: there is no column 'lang'"):
            read(folder, **options)


def test_the_error_for_a_wrong_name_lists_partition_columns(folder: Path) -> None:
    with pytest.raises(UsageError, match="'lang', 'year'") as refused:
        read(folder, keep=("years",))
    assert "did you mean 'year'?" in refused.value.hint


@pytest.mark.parametrize("ending", FORMATS)
def test_a_column_of_the_file_comes_before_one_of_its_folder(ending: str, tmp_path: Path) -> None:
    write(tmp_path / f"lang=fr/a.{ending}", {"text": "word", "lang": "of the file"})
    job = Job((str(tmp_path),), "-", keep=("lang",))
    plan = readers.plan_inputs(job)
    assert next(readers.read_chunks(job, plan, plan.splits)).kept_columns.to_pylist() == [{"lang": "of the file"}]
    assert "'lang' is read from the rows, not from the names of folders" in " ".join(plan.columns.notes)


@pytest.mark.parametrize(
    "values",
    [
        ["1", "2"],
        ["01", "-7"],
        ["1", "x"],
        ["1.5"],
        ["a%20b", "a%3Db", "a=b"],
        ["__HIVE_DEFAULT_PARTITION__", "3"],
        ["__HIVE_DEFAULT_PARTITION__", "x"],
        ["+5"],
        ["true"],
        [" 1"],
    ],
    ids=str,
)
def test_names_and_values_are_those_of_pyarrow(values: list[str], tmp_path: Path) -> None:
    paths = [tmp_path / f"a%20key={value}" / "part-0.parquet" for value in values]
    for path in paths:
        write(path, {"text": path.parent.name})
    expected = ds.dataset(tmp_path, partitioning="hive").to_table().to_pylist()
    types = infer_partition_types(map(str, paths))
    found = [{"text": path.parent.name, **partition_constants(str(path), types)} for path in paths]
    assert sorted(found, key=str) == sorted(expected, key=str)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_run_writes_partition_columns(ending: str, tmp_path: Path) -> None:
    for i, lang in enumerate(("fr", "en")):
        write(tmp_path / f"data/lang={lang}/a.{ending}", {"id": i, "text": f"word{i + 1}"})
    options = ("--keep", "lang", "--model", word_model(tmp_path), "--offline")
    ended = run("encode", tmp_path / "data", tmp_path / "out.parquet", *options)
    assert ended.code == 0, ended.err
    written = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert {int(row["id"]): row["lang"] for row in written} == {0: "fr", 1: "en"}

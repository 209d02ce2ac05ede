"""Nested fields as columns (dumps of search engines, translation sets), and texts stored as bytes in Parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_columns import columns_of, read, refusal, write

import jobs
from embedcli.readers import preview
from embedcli.readers.nested_fields import nested_value

# Like a dump of a search engine; the object of the third row and a text of the fourth are null.
DUMP: list[dict[str, Any]] = [
    {"_id": "a", "_source": {"title": "one", "body": "first", "meta": {"n": 1, "lang": "en"}}},
    {"_id": "b", "_source": {"title": "two", "body": "second", "meta": {"n": 2, "lang": "fr"}}},
    {"_id": "c", "_source": None},
    {"_id": "d", "_source": {"title": None, "body": "fourth", "meta": {"n": 4, "lang": "zh"}}},
]
BOTH = pytest.mark.parametrize("ending", ["jsonl", "parquet"])


@BOTH
def test_a_field_is_a_column(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"in.{ending}", *DUMP)
    options: dict[str, Any] = {"text_column": "_source.title", "keep": ("_source.meta.lang", "_source.meta.n")}
    assert read(path, **options) == (
        ["a", "b"],
        ["one", "two"],
        [{"_source.meta.lang": "en", "_source.meta.n": 1}, {"_source.meta.lang": "fr", "_source.meta.n": 2}],
        ["text is missing or null", "text is missing or null"],
    )


@BOTH
def test_fields_in_a_template_and_as_ids(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"in.{ending}", *DUMP)
    options: dict[str, Any] = {"template": "{_source.title?}: {_source.body}", "id_column": "_source.meta.n"}
    ids, texts, _, reasons = read(path, **options)
    assert (ids, texts) == ([1, 2, 4], ["one: first", "two: second", ": fourth"])
    assert len(reasons) == 1
    assert columns_of(path, **options).id_type == pa.int64()


@BOTH
def test_a_column_with_the_exact_name_comes_first(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"in.{ending}", {"id": 1, "a.b": "flat", "a": {"b": "deep"}})
    assert read(path, text_column="a.b")[1] == ["flat"]


def test_names_may_have_dots_at_every_depth() -> None:
    row: dict[str, Any] = {"a": {"b.c": 1, "b": {"d": 2}}, "a.b": {"e": 3}, "x.y": 4, "none": None, "list": [{"a": 5}]}
    values = [nested_value(row, name) for name in ("a.b.c", "a.b.d", "a.b.e", "x.y")]
    assert values == [1, 2, 3, 4]
    assert [nested_value(row, name) for name in ("a.z", "none.a", "list.a", "a.b.c.d", ".", "a.")] == [None] * 6


@BOTH
def test_the_error_lists_nested_fields(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"in.{ending}", *DUMP[:2])
    names = "'_id', '_source.title', '_source.body', '_source.meta.n', '_source.meta.lang'"
    assert refusal(path).message.endswith(f"which column holds the text? its columns are {names}")
    error = refusal(path, text_column="_source.tilte")
    assert "there is no column '_source.tilte'" in error.message
    assert "did you mean '_source.title'?" in error.hint
    assert "'_source'" in refusal(path, id_column="_source", text_column="_source.title").message


@BOTH
def test_a_single_nested_string_is_guessed(ending: str, tmp_path: Path) -> None:
    lone, dump = tmp_path / f"lone.{ending}", tmp_path / f"dump.{ending}"
    assert columns_of(write(lone, {"n": 1, "doc": {"words": "one"}})).text_column == "doc.words"
    error = refusal(write(dump, {"_index": "docs", "_id": "a", "_source": {"words": "one"}}))
    assert "which column holds the text? its columns are '_index', '_id', '_source.words'" in error.message


def test_only_the_fields_that_are_needed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their sizes decide how many rows are read at once."""
    path = write(tmp_path / "in.parquet", *({"id": i, "d": {"t": "x" * 500, "u": "y" * 500}} for i in range(100)))
    reads: list[tuple[int, tuple[str, ...]]] = []
    iterate = pq.ParquetFile.iter_batches

    def recorded(self: Any, size: int, **options: Any) -> Any:
        for batch in iterate(self, size, **options):
            reads.append((size, tuple(field.name for field in batch.schema.field("d").type)))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", recorded)
    monkeypatch.setattr("embedcli.readers.parquet.PARQUET_BATCH_BYTES", 20)
    assert len(read(path, text_column="d.t")[1]) == 100
    assert {fields for _, fields in reads} == {("t",)}
    assert max(size for size, _ in reads) < 100


def test_a_job_on_nested_fields_is_resumed_and_searched(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": i, "d": {"text": f"word{i} word{i + 1}"}} for i in range(60)]
    path, output = jobs.write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet"
    options = ("--model", jobs.word_model(tmp_path), "--text-column", "d.text", "--keep", "d.text")
    assert jobs.run("encode", path, output, *options).code == 0
    assert "nothing to do" in jobs.run("encode", path, output, *options).err
    assert pq.read_table(output)["d.text"].to_pylist() == [row["d"]["text"] for row in rows]
    result = jobs.run("search", output, "word7 word8", "-k", 1, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)[0]["id"] == 7


@BOTH
def test_inspect_names_the_fields(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"in.{ending}", *DUMP[:2])
    result = jobs.run("inspect", path, "--text-column", "_source.body", "--json")
    assert result.code == 0, result.err
    kinds = {"_id": "string", "_source.title": "string", "_source.body": "string"}
    assert json.loads(result.out)["columns"] == kinds | {"_source.meta.n": "int64", "_source.meta.lang": "string"}


def test_very_deep_fields_are_not_columns(tmp_path: Path) -> None:
    deep: Any = "text"
    for _ in range(300):
        deep = {"a": deep}
    path = write(tmp_path / "in.jsonl", {"id": 1, "text": "one", "deep": deep})
    assert read(path)[1] == ["one"]
    assert "there is no column" in refusal(path, text_column="deep" + ".a" * 300).message


def test_an_object_with_other_names_in_every_row(tmp_path: Path) -> None:
    """An object that is used as a map: the names of each row are read once, not once per row."""
    rows = [{"id": i, "text": "one", "scores": {f"doc{i}-{j}": 0.5 for j in range(3)}} for i in range(200)]
    path = write(tmp_path / "in.jsonl", *rows)
    assert columns_of(path).text_column == "text"
    assert read(path, keep=("scores.doc7-1",))[2][7:9] == [{"scores.doc7-1": 0.5}, {"scores.doc7-1": None}]
    calls: list[int] = []

    class Row(dict[str, Any]):
        def items(self) -> Any:
            calls.append(1)
            return super().items()

    kinds = preview.infer_column_types([Row(row) for row in rows])
    assert kinds["scores"].num_fields == 600
    assert len(calls) == 200


# Bytes


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())]
)
def test_texts_stored_as_bytes_are_read(kind: pa.DataType, tmp_path: Path) -> None:
    """Some programs write strings as bytes into Parquet; rows that are not UTF-8 are rejected."""
    data = pa.array([b"one", "zw\u00f6lf".encode(), b"\xff\xfe", None], pa.binary())
    data = data.dictionary_encode() if pa.types.is_dictionary(kind) else data.cast(kind)
    pq.write_table(pa.table({"id": [1, 2, 3, 4], "text": data}), tmp_path / "in.parquet")
    ids, texts, _, reasons = read(tmp_path / "in.parquet")
    assert (ids, texts) == ([1, 2], ["one", "zw\u00f6lf"])
    assert "byte 0xff at byte 0 of column 'text'" in reasons[0]
    assert reasons[1] == "text is missing or null"


def test_a_note_names_an_id_column_of_another_type(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uuid": pa.array([b"0" * 16], pa.binary(16)), "text": ["one"]}), tmp_path / "in.parquet")
    assert "No id column was found ('uuid' holds fixed_size_binary[16])" in columns_of(tmp_path / "in.parquet").notes[0]
    assert read(tmp_path / "in.parquet", id_column="uuid")[0] == [b"0" * 16]

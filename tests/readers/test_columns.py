"""Planning: which files are read, in which format, and which columns hold texts, ids and kept values."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
from embedcli import readers
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.types import InputColumns
from embedcli.readers import planner, preview, template
from unreadable import check_refused


def write(path: Path, *rows: Any) -> Path:
    """Rows of dicts in the format of the path's ending."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".csv":
        names = list(rows[0])
        lines = [",".join(names)] + [",".join(str(row[name]) for name in names) for row in rows]
        path.write_text("\n".join(lines), "utf-8")
    else:
        path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


def job_of(*inputs: Path, output: str = "-", **options: Any) -> Job:
    return Job(inputs=tuple(map(str, inputs)), output=output, **options)


def columns_of(*inputs: Path, **options: Any) -> InputColumns:
    return readers.plan_inputs(job_of(*inputs, **options)).columns


def read(*inputs: Path, **options: Any) -> tuple[list[Any], list[str], list[dict[str, Any]], list[str]]:
    """Ids, texts, kept values and reasons."""
    job = job_of(*inputs, **options)
    plan = readers.plan_inputs(job)
    chunks = list(readers.read_chunks(job, plan, plan.splits))
    return (
        [i for chunk in chunks for i in chunk.ids.to_pylist()],
        [text for chunk in chunks for text in chunk.texts],
        [row for chunk in chunks for row in chunk.kept_columns.to_pylist()],
        [reject.reason for chunk in chunks for reject in chunk.rejects],
    )


def refusal(*inputs: Path, **options: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        columns_of(*inputs, **options)
    return caught.value


# Guesses


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    ("names", "text", "id_column"),
    [
        (["id", "text"], "text", "id"),
        (["Text", "_ID", "url"], "Text", "_ID"),
        (["body", "content", "doc_id"], "content", "doc_id"),
        (["review", "uuid"], "review", "uuid"),
        (["review"], "review", None),
        (["title", "body"], "body", None),
    ],
)
def test_well_known_names_and_a_single_text_column_are_guessed_and_reported(
    names: list[str], text: str, id_column: str | None, ending: str, tmp_path: Path
) -> None:
    path = write(tmp_path / f"a.{ending}", dict.fromkeys(names, "value"))
    columns = columns_of(path)
    assert (columns.text_column, columns.id_column) == (text, id_column)
    notes = " ".join(columns.notes)
    assert f"{text!r} (guessed; --text-column names another)" in notes
    assert (f"{id_column!r} (guessed" if id_column else "rows are numbered from 0") in notes
    assert columns_of(path, id_column="", text_column=text).id_column is None
    assert columns_of(path, text_column=names[0], id_column=names[0]).notes == ()


def test_a_guess_has_the_right_type(tmp_path: Path) -> None:
    row = {"id": {"$oid": "1"}, "text": ["a", "b"], "body": "c", "year": 1}
    for name in ("a.jsonl", "a.parquet"):
        columns = columns_of(write(tmp_path / name, row))
        assert (columns.text_column, columns.id_column) == ("body", None)


def test_a_sparse_column_is_still_guessed(tmp_path: Path) -> None:
    rows = [{"id": None, "text": None}] * 5 + [{"id": 1, "text": "a"}, {"id": "b", "text": 2}, {"id": 2, "text": "c"}]
    columns = columns_of(write(tmp_path / "a.jsonl", *rows))
    assert (columns.text_column, columns.id_column, columns.id_type) == ("text", "id", pa.int64())


def test_nothing_is_guessed_among_several_columns(tmp_path: Path) -> None:
    error = refusal(write(tmp_path / "a.csv", {"alpha": 1, "beta": 2}))
    assert "which column holds the text? its columns are 'alpha', 'beta'" in error.message
    assert "--text-column" in error.hint


def test_a_guess_must_hold_for_every_input(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"id": 1, "text": "x", "body": "y"})
    write(tmp_path / "b.parquet", {"id": 1, "body": "z"})
    assert columns_of(tmp_path).text_column == "body"


# Names


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("option", ["text_column", "id_column", "keep", "template"])
def test_the_error_for_a_wrong_name_lists_the_columns(option: str, ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a.{ending}", {"id": "1", "title": "t", "body": "b"})
    value: Any = {"keep": ("titel",), "template": "{titel}"}.get(option, "titel")
    error = refusal(path, **{option: value})
    flag = "--" + option.replace("_", "-")
    assert error.message == f"{path}: {flag}: there is no column 'titel'; its columns are 'id', 'title', 'body'"
    assert "did you mean 'title'?" in error.hint


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_every_input_is_checked(ending: str, tmp_path: Path) -> None:
    good = write(tmp_path / f"1.{ending}", {"id": "1", "words": "a"})
    bad = write(tmp_path / f"2.{ending}", {"id": "1", "text": "a"})
    assert refusal(good, bad, text_column="words").message.startswith(str(bad))


def test_sparse_json_keys_are_accepted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b", "tag": "x"})
    other = write(tmp_path / "b.jsonl", {"text": "c"})
    assert read(path, other, keep=("tag",))[2] == [
        {"tag": None, "source": str(path)},
        {"tag": "x", "source": str(path)},
        {"tag": None, "source": str(other)},
    ]


def test_columns_with_reserved_names_cannot_be_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"id": 1, "doc_id": 2, "text": "a", "embedding": [1.0], "source": "wiki"})
    assert "the output has its own column 'embedding'" in refusal(path, keep=("embedding",)).message
    assert "the output's id is taken from 'doc_id'" in refusal(path, keep=("id",), id_column="doc_id").message
    assert columns_of(path, keep=("id", "text", "text")).kept_types == {"text": pa.string()}
    with pytest.raises(UsageError) as refused:
        readers.plan_inputs(Job((str(path),), "-", keep=("embedding",)), "--columns")
    assert refused.value.message.startswith("--columns embedding: ")
    other = Path(shutil.copy(path, tmp_path / "other.jsonl"))
    columns = columns_of(path, other, keep=("source",))
    assert not columns.has_source_column
    assert "names of the input files are not written" in " ".join(columns.notes)


def test_a_duplicate_column_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["text", "text", "body"]), path)
    assert "more than one column 'text'" in refusal(path, text_column="text").message
    assert read(path, text_column="body")[1] == ["c"]


@pytest.mark.parametrize(
    "options",
    [{}, {"text_column": "text", "id_column": ""}, {"text_column": "body", "keep": ("text",)}, {"template": "{text?}"}],
    ids=["guessed", "text", "kept", "template"],
)
def test_a_duplicate_column_is_refused_in_every_role_and_input(options: dict[str, Any], tmp_path: Path) -> None:
    good = write(tmp_path / "a.parquet", {"text": "x", "body": "y"})
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["text", "text", "body"]), tmp_path / "b.parquet")
    assert refusal(good, tmp_path / "b.parquet", **options).message.endswith(
        "b.parquet: has more than one column 'text'"
    )


def test_a_duplicate_id_column_is_refused_when_it_is_guessed(tmp_path: Path) -> None:
    pq.write_table(pa.table([[1], [2], ["c"]], names=["id", "id", "text"]), tmp_path / "a.parquet")
    assert "more than one column 'id'" in refusal(tmp_path / "a.parquet").message
    assert columns_of(tmp_path / "a.parquet", id_column="").text_column == "text"


def test_a_duplicate_field_is_refused(tmp_path: Path) -> None:
    fields = pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["t", "t", "u"])
    pq.write_table(pa.table({"doc": fields}), tmp_path / "a.parquet")
    assert "more than one column 'doc.t'" in refusal(tmp_path / "a.parquet", text_column="doc.t").message
    assert columns_of(tmp_path / "a.parquet", text_column="doc.u").text_column == "doc.u"


@pytest.mark.parametrize("option", ["text_column", "id_column", "keep"])
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_column_that_only_later_rows_have_is_a_note(option: str, ending: str, tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "id": i} for i in range(1500)] + [{"text": "last", "id": 1500, "summary": "seen"}]
    path = tmp_path / f"a.{ending}"
    path.write_text(json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows)))
    options = {option: ("summary",) if option == "keep" else "summary"}
    ids, texts, kept, reasons = read(path, **options)
    assert any("have no column 'summary'" in note for note in columns_of(path, **options).notes)
    if option == "keep":
        assert [row["summary"] for row in kept] == [None] * 1500 + ['"seen"']
    else:
        assert len(reasons) == 1500
        assert (texts if option == "text_column" else ids) == ["seen"]


def test_a_mistyped_name_is_refused_for_long_inputs_and_any_unknown_one_for_short_ones(tmp_path: Path) -> None:
    long = write(tmp_path / "a.jsonl", *({"text": f"t{i}", "summary": "x"} for i in range(1500)))
    assert "did you mean 'summary'?" in refusal(long, text_column="sumary").hint
    short = write(tmp_path / "b.jsonl", {"text": "a"})
    assert "there is no column 'other'" in refusal(short, text_column="other").message
    assert refusal(long, short, text_column="summary").message.startswith(str(short))
    assert "have no column 'other'" in " ".join(columns_of(long, text_column="other").notes)


# Types


@pytest.mark.parametrize(
    ("values", "kind", "kept"),
    [
        ([1, None, -5], pa.int64(), [1, None, -5]),
        ([1, 2**64 - 1], pa.uint64(), [1, 2**64 - 1]),
        ([1, 2.5], pa.float64(), [1.0, 2.5]),
        ([True, None], pa.bool_(), [True, None]),
        (["a", None], pa.string(), ["a", None]),
        ([{"a": [1]}, None], pa.string(), ['{"a":[1]}', None]),
        ([1, "a"], pa.string(), ["1", '"a"']),
        ([True, 1], pa.string(), ["true", "1"]),
        ([-1, 2**64 - 1], pa.string(), ["-1", "18446744073709551615"]),
        ([None, None], pa.string(), [None, None]),
    ],
    ids=str,
)
def test_types_of_kept_json_columns_are_inferred_from_their_values(
    values: list[Any], kind: pa.DataType, kept: list[Any], tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", *({"text": "a", "x": value} for value in values))
    assert columns_of(path, keep=("x",)).kept_types == {"x": kind}
    assert [row["x"] for row in read(path, keep=("x",))[2]] == kept


@pytest.mark.parametrize(
    ("first", "later", "reason"),
    [
        (1, "a", "a string instead of int64"),
        (1, 1.0, "a number instead of int64"),
        (1, True, "true or false instead of int64"),
        (1, 2**63, "a whole number too large for int64"),
        (1.5, 2**53 + 1, "a whole number too large for double"),
        ("a", 1, "a whole number instead of string"),
        (True, 0, "a whole number instead of bool"),
        (1, [1], "a list instead of int64"),
    ],
)
def test_a_later_value_of_another_type_is_a_reject(first: Any, later: Any, reason: str, tmp_path: Path) -> None:
    rows = [{"text": "a", "x": first}] * 1000 + [{"text": "a", "x": later}, {"text": "a", "x": first}]
    path = write(tmp_path / "a.jsonl", *rows)
    _, texts, kept, reasons = read(path, keep=("x",))
    assert (len(texts), len(kept)) == (1001, 1001)
    assert reasons == [f"kept column has another type: x: {reason}"]


@pytest.mark.parametrize(
    ("ids", "kind", "bad"),
    [
        ([3, 1, 2], pa.int64(), []),
        (["b", "a"], pa.string(), []),
        ([2**63, 1], pa.uint64(), []),
        ([1, "2", 3], pa.int64(), ["id has another type: a string instead of int64"]),
        (["1", 2, "3"], pa.string(), ["id has another type: a whole number instead of string"]),
        ([1, None, 2], pa.int64(), ["id is missing or null"]),
        ([1, 2, 10**30], pa.int64(), ["id has another type: a number instead of int64"]),
        ([-(2**63), 1, True], pa.int64(), ["id has another type: true or false instead of int64"]),
    ],
    ids=str,
)
def test_ids_keep_their_type(ids: list[Any], kind: pa.DataType, bad: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({"id": i, "text": "a"} for i in ids))
    assert columns_of(path).id_type == kind
    got, _, _, reasons = read(path)
    assert reasons == bad
    assert got == [i for i in ids if type(i) is (str if kind == pa.string() else int) and i != 10**30]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([1, 2], pa.int8()),
        pa.array([1, 2], pa.uint64()),
        pa.array(["a", "b"], pa.large_string()),
        pa.array([b"a", b"\xff"], pa.binary()),
        pa.array([b"a" * 16, b"b" * 16], pa.binary(16)),
        pa.array([0, 1], pa.timestamp("us", "UTC")),
        pa.array(["a", "b"]).dictionary_encode(),
    ],
    ids=lambda ids: str(ids.type),
)
def test_ids_of_parquet_keep_their_own_type(ids: pa.Array, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ids, "text": ["a", "b"]}), path)
    kind = pa.string() if pa.types.is_dictionary(ids.type) else pq.read_schema(path).field("id").type
    assert columns_of(path, id_column="id").id_type == kind
    assert read(path, id_column="id")[0] == ids.to_pylist()


@pytest.mark.parametrize("ids", [pa.nulls(1), pa.array([[1]]), pa.array([{"a": 1}])], ids=lambda ids: str(ids.type))
def test_other_types_cannot_be_ids(ids: pa.Array, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ids, "text": ["a"]}), path)
    assert ", not ids" in refusal(path, id_column="id").message
    assert columns_of(path).id_column is None
    other = write(tmp_path / "a.jsonl", {"id": [1], "text": "a"})
    assert "neither whole numbers nor strings" in refusal(other, id_column="id").message


def test_inputs_of_several_formats_are_one_table(tmp_path: Path) -> None:
    write(tmp_path / "1.csv", {"id": "a", "text": "one", "n": 1})
    write(tmp_path / "2.parquet", {"id": "b", "text": "two", "n": "2"})
    (tmp_path / "10.jsonl.gz").write_bytes(gzip.compress(b'{"id": "c", "text": "three", "n": "3"}'))
    ids, texts, kept, _ = read(tmp_path, keep=("n",))
    assert (ids, texts) == (["a", "b", "c"], ["one", "two", "three"])
    assert [(row["n"], Path(row["source"]).name) for row in kept] == [
        ("1", "1.csv"),
        ("2", "2.parquet"),
        ("3", "10.jsonl.gz"),
    ]


def test_types_without_a_common_type_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "1.csv", {"id": 1, "text": "a"})
    write(tmp_path / "2.jsonl", {"id": 1, "text": "a"})
    error = refusal(tmp_path)
    assert error.message == f"column 'id' is string in {tmp_path}/1.csv and int64 in {tmp_path}/2.jsonl"
    schema = pa.schema([("id", pa.int32()), ("text", pa.string())])
    pq.write_table(pa.table({"id": [7], "text": ["b"]}, schema=schema), tmp_path / "3.parquet")
    columns = columns_of(tmp_path / "2.jsonl", tmp_path / "3.parquet")
    assert columns.id_type == pa.int64()
    assert read(tmp_path / "2.jsonl", tmp_path / "3.parquet")[0] == [1, 7]


# Templates


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_template_joins_columns(ending: str, tmp_path: Path) -> None:
    path = write(
        tmp_path / f"a.{ending}", {"title": "T", "a.b": "100%", "id": "1"}, {"title": "", "a.b": "", "id": "2"}
    )
    ids, texts, _, reasons = read(path, template="{{t}}: {title} {a.b?}%s")
    assert (ids, texts, reasons) == (["1"], ["{t}: T 100%%s"], ["text is empty"])


def test_missing_values_of_a_template(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"a": "x", "b": 2020},
        {"a": "x"},
        {"b": "y"},
        {"a": None, "b": "y"},
        {"a": "x", "b": None},
        {"a": 1.5, "b": "y"},
        {"a": ["x"], "b": "y"},
        {"a": "x", "b": True},
    ]
    _, texts, _, reasons = read(write(tmp_path / "a.jsonl", *rows), template="{a}|{b?}")
    assert texts == ["x|2020", "x|", "x|"]
    assert reasons == ["template column is missing or null: a"] * 2 + [
        f"template column is neither a string nor a whole number: {name}" for name in "aab"
    ]


def test_an_optional_column_may_be_missing_from_a_whole_input(tmp_path: Path) -> None:
    for ending in ("csv", "parquet"):
        first = write(tmp_path / f"1.{ending}", {"a": "x", "b": "y"})
        second = write(tmp_path / f"2.{ending}", {"a": "z"})
        assert read(first, second, template="{a} {b?}")[1] == ["x y", "z "]
    assert "there is no column 'c'" in refusal(first, template="{a} {c?}").message


@pytest.mark.parametrize("text", ["", "no column", "{", "}", "{}", "{?}", "{a} {", "{a}}", "{a{b}}"])
def test_invalid_templates_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        template.parse_template(text)
    assert "{title}" in caught.value.hint


def test_a_template_reads_no_attributes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"a": "x"})
    assert "there is no column 'a.__class__'" in refusal(path, template="{a.__class__}").message
    assert "cannot be used together" in refusal(path, template="{a}", text_column="a").message


# Formats


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.txt", b'{"text": "a"}\n', "jsonl"),
        ("a", b"id,text\n1,a\n", "csv"),
        ("a.data", b"id\ttext, more\n1\ta\n", "tsv"),
        ("a.TSV", b"text\na\n", "tsv"),
        ("a.json", b'{"text": "a"}\n', "jsonl"),
        ("a.csv.gz", gzip.compress(b"text\na\n", mtime=0), "csv"),
        ("a.gz", gzip.compress(b"\xef\xbb\xbfid,text\n1,a\n", mtime=0), "csv"),
        ("a.csv", b"text\na\n", "csv"),
    ],
)
def test_formats_are_detected_by_name_then_by_the_first_line(
    name: str, content: bytes, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert readers.plan_inputs(job_of(path)).formats == {str(path): kind}


def test_parquet_is_detected_by_magic_bytes_and_any_format_can_be_forced(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"text": "a"}).rename(tmp_path / "a.csv")
    assert readers.plan_inputs(job_of(tmp_path / "a.csv")).formats == {str(tmp_path / "a.csv"): "parquet"}
    (tmp_path / "b.csv").write_text('{"text": "a"}', "utf-8")
    assert read(tmp_path / "b.csv", format="jsonl")[1] == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("a.jsonl", b"[1]\n[2]\n", ":2: the JSON array has ended, and more follows", "jq -c '.[]'"),
        ("a.json", b'{\n  "text": "a"\n}\n', "has JSON objects over several lines", "jq -c ."),
        ("a.json", b'{\n  "n": 1, "data": [\n    {"text": "a"}]}', 'the rows in "data"', "jq -c '.[\"data\"][]'"),
        ("a.zip", b"PK\x03\x04...", "a zip archive", "unzip"),
        ("a.csv", b"ARROW1\0\0", "the Arrow data is cut off", "fetch"),
        ("a.arrow", b"text\na\n", "named like Arrow, but is not", "--format"),
        ("a.parquet", b"text\na\n", "named like Parquet, but is not", "--format"),
        ("a.parquet", gzip.compress(b"PAR1", mtime=0), "Parquet inside gzip", "decompress"),
        ("a.jsonl", b"not JSON at all\n", ":1: bad JSON", "--format"),
    ],
)
def test_errors_for_unreadable_files_have_a_hint(
    name: str, content: bytes, message: str, hint: str, tmp_path: Path
) -> None:
    check_refused(tmp_path / name, content, message, hint)


def test_plain_text_needs_an_explicit_format_or_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("some words\n", "utf-8")
    refused = refusal(path)
    assert "shows the format" in refused.message
    assert "--format text" in str(refused.hint)
    assert read(path, format="text")[1] == ["some words"]
    assert read(path.rename(tmp_path / "a.txt"))[1] == ["some words"]


# Empty inputs


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.jsonl.gz", "a"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_empty_table(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert read(path) == ([], [], [], [])
    assert read(path, text_column="body", id_column="key", keep=("x",)) == ([], [], [], [])
    columns = columns_of(path, text_column="body", id_column="key", keep=("x",))
    assert (columns.text_column, columns.id_column, list(columns.kept_types)) == ("body", "key", ["x"])
    assert columns.notes == ("The input has no rows.",)


def test_a_table_without_rows_still_has_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    schema = pa.schema([("id", pa.int32()), ("text", pa.string()), ("tag", pa.list_(pa.string()))])
    pq.write_table(schema.empty_table(), path)
    columns = columns_of(path, keep=("tag",))
    assert (columns.id_type, columns.kept_types) == (pa.int32(), {"tag": pa.list_(pa.string())})
    assert read(path) == ([], [], [], [])
    plan = readers.plan_inputs(job_of(path))
    assert (plan.total_rows, len(plan.splits)) == (0, 1)


def test_empty_inputs_among_others_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_bytes(b"")
    (tmp_path / "2.csv").write_bytes(b"")
    pq.write_table(pa.table({"id": pa.nulls(0), "words": pa.nulls(0)}), tmp_path / "3.parquet")
    write(tmp_path / "4.jsonl", {"id": 1, "words": "a"})
    assert read(tmp_path)[:2] == ([1], ["a"])


def test_bad_rows_alone_are_rejects_if_the_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"bad\n")
    assert read(path, text_column="text")[3] == ["bad JSON: unexpected character, expected a JSON value at column 1"]


def test_the_input_without_the_text_is_named(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", {"id": "1", "text": "a"})
    other = write(tmp_path / "b.jsonl", {"id": "2", "texto": "b", "nota": "c"})
    with pytest.raises(UsageError, match=r"b\.jsonl: which column holds the text\? its columns are 'id', 'texto'"):
        readers.plan_inputs(Job(inputs=(str(first), str(other)), output="-"))


# Outputs beside inputs


def test_files_that_the_job_writes_are_not_inputs(tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl", {"text": "a"})
    output = tmp_path / "out.parquet"
    for name in ("out.parquet", "out.parquet.rejects.jsonl"):
        (tmp_path / name).write_bytes(b"anything")
    plan = readers.plan_inputs(job_of(tmp_path, output=str(output)))
    assert [input_split.path for input_split in plan.splits] == [str(rows)]
    with pytest.raises(UsageError, match="is the input and the output"):
        readers.plan_inputs(job_of(rows, output=str(rows)))
    with pytest.raises(UsageError, match="is the input and the output"):
        readers.plan_inputs(job_of(tmp_path, output=f"{tmp_path}/"))
    folder = tmp_path / "parts"
    folder.mkdir()
    write(folder / "part-0.jsonl", {"text": "a"})
    write(folder / "part-00000.jsonl", {"text": "a"})
    write(folder / "part-00001-002.jsonl", {"text": "a"})
    write(folder / "_rejects.jsonl", {"text": "a"})
    every = tmp_path / "**" / "*.json*"
    before, foreign = ["a.jsonl", "out.parquet.rejects.jsonl"], ["part-0.jsonl"]
    with pytest.raises(UsageError, match=r"part-00000\.jsonl: is an input, and the output may need its name"):
        names_of(every, f"{folder}/")
    published = ["part-00000.jsonl", "part-00001-002.jsonl"]
    (folder / "_manifest.json").write_text(json.dumps({"parts": published}))
    assert names_of(every, f"{folder}/") == [*before, *foreign]
    (folder / "_manifest.json").write_text(json.dumps({"parts": published, "sizes": dict.fromkeys(published, 1)}))
    assert names_of(every, f"{folder}/") == [*before, *foreign]
    with pytest.raises(UsageError, match=r"part-00000\.jsonl: is the input and the output"):
        names_of(folder / "part-00000.jsonl", f"{folder}/")
    assert names_of(folder / "part-0.jsonl", f"{folder}/") == foreign


def names_of(inputs: Path, output: str) -> list[str]:
    return [Path(input_split.path).name for input_split in readers.plan_inputs(job_of(inputs, output=output)).splits]


@pytest.mark.parametrize("name", ["o.jsonl", "o.npy", "o.parquet"])
def test_files_beside_a_file_output_are_not_inputs(name: str, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"text": "a"})
    staging_folder = tmp_path / f"{name}.parts"
    staging_folder.mkdir()
    for own in (
        name,
        f"{name}.space.json",
        f"{name}.rejects.jsonl",
        f"{staging_folder}/rejects-000000-000000-aa.jsonl",
    ):
        (tmp_path / own).write_text('{"text": "own"}\n')
    assert names_of(tmp_path / "**" / "*.json*", str(tmp_path / name)) == ["a.jsonl"]
    with pytest.raises(UsageError, match="is the input and the output"):
        names_of(tmp_path / f"{name}.space.json", str(tmp_path / name))


def test_only_the_beginning_of_many_files_is_kept_while_planning(tmp_path: Path) -> None:
    for i in range(30):
        write(tmp_path / f"{i}.jsonl", *({"id": k, "text": "a"} for k in range(200)))
    job = job_of(tmp_path)
    assert len(readers.plan_inputs(job).splits) == 30
    assert [Path(path).name for path in planner.list_inputs(job).paths] == [f"{i}.jsonl" for i in range(30)]


@pytest.mark.parametrize("limit", [1, 30, 64, 1000])
@pytest.mark.parametrize("portion", [1, 10, 1 << 16])
def test_a_preview_is_bounded_and_does_not_depend_on_block_sizes(
    limit: int, portion: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", *({"id": i, "text": "x" * i} for i in range(20)))
    monkeypatch.setattr(preview, "PREVIEW_BYTES", limit)
    monkeypatch.setattr("embedcli.storage.input_stream.PREVIEW_BYTES", portion)
    input_preview = preview.preview_input(str(path), None, "utf-8", 15)
    ends = [at for at, byte in enumerate(path.read_bytes(), 1) if byte == ord("\n")]
    whole = sum(1 for end in ends if end <= limit)
    assert [row["id"] for row in input_preview.rows] == list(range(min(15, max(1, whole))))


def test_a_long_line_does_not_delay_the_preview(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as out:
        out.write(b'{"id": 1, "text": "a"}\n' * 300)
        out.truncate(10 << 30)
    plan = readers.plan_inputs(job_of(path))
    assert len(plan.splits) == 640
    assert [(input_split.start, input_split.stop) for input_split in plan.splits[-2:]] == [
        (638 << 24, 639 << 24),
        (639 << 24, 640 << 24),
    ]


def test_several_columns_in_one_keep_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text,lang,title\n1,x,de,y\n")
    done = jobs.run("encode", tmp_path / "in.csv", tmp_path / "out.parquet", "--keep", "lang,title")
    assert "--keep: there is no column 'lang,title', but there are 'lang' and 'title'" in done.err
    assert "hint: give one --keep for each: --keep lang --keep title" in done.err

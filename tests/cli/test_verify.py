"""`embedcli verify`: what is right passes, and each kind of damage is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import jobs
from embedcli.analysis import stored_rows, verify
from embedcli.cli import app
from sample_outputs import FORMATS, PRECISIONS, unit_vectors
from searchable import PROMPTS, TEXTS, model_folder

ROWS = [{"id": f"t{i}", "text": f"{text} {TEXTS[i % 5]}"} for i, text in enumerate(TEXTS * 5)]
BAD = [{"id": "b1", "text": ""}, {"id": "b2", "text": "\x7f"}]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model") / "tiny", PROMPTS)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """in.jsonl with two bad rows among good ones, and out.parquet made from it."""
    folder = tmp_path_factory.mktemp("made")
    write_rows(folder / "in.jsonl", [*ROWS[:20], BAD[0], *ROWS[20:40], BAD[1], *ROWS[40:]])
    assert run("encode", folder / "in.jsonl", folder / "out.parquet", "-m", model)[0] == 3
    return folder


@pytest.fixture
def copy(tmp_path: Path, made: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, args)))
    return result.exit_code, result.stdout, result.stderr


def verified(*args: object) -> tuple[int, dict[str, Any]]:
    """The exit code and each check by its name."""
    code, out, err = run("verify", *args, "--json")
    assert out, err
    return code, {check["name"]: check for check in json.loads(out)["checks"]}


def edited(path: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    """Change an output's rows and leave what it says of itself."""
    table = pq.read_table(path)
    made = edit(table)
    pq.write_table(made.cast(table.schema).replace_schema_metadata(table.schema.metadata), path)


def with_vectors(table: pa.Table, vectors: Any) -> pa.Table:
    at = table.schema.get_field_index("embedding")
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(vectors).reshape(-1)), type=table.schema.field(at).type
    )
    return table.set_column(at, table.schema.field(at), column)


def vectors_of(table: pa.Table) -> Any:
    return np.array(table["embedding"].combine_chunks().flatten().to_numpy()).reshape(table.num_rows, -1)


def test_a_sound_output_passes(made: Path) -> None:
    code, checks = verified(made / "out.parquet")
    assert code == 0
    assert {name: check["ok"] for name, check in checks.items()} == dict.fromkeys(
        ["digests", "rows", "ids", "values", "norms", "input", "texts", "vectors"], True
    )
    assert checks["rows"]["detail"] == "62 read = 60 embedded + 2 rejected"
    assert checks["vectors"]["detail"].startswith("60 rows encoded again: lowest cosine 1.0")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [*FORMATS[:4], "out/"])
def test_every_format_and_precision_passes(tmp_path: Path, model: Path, name: str, precision: str) -> None:
    write_rows(tmp_path / "in.jsonl", ROWS)
    target = f"{tmp_path}/{name}"
    assert run("encode", tmp_path / "in.jsonl", target, "-m", model, "--precision", precision)[0] == 0
    code, checks = verified(target, tmp_path / "in.jsonl", "--all")
    assert (code, checks["texts"]["detail"]) == (0, "60 rows have the input's ids and texts")


@pytest.mark.parametrize(
    "flags",
    [
        ("--as", "document"),
        ("--prompt", "rain "),
        ("--no-normalize",),
        ("--truncate-dim", "7"),
        ("--max-seq-length", "2", "--overflow", "truncate"),
        ("--template", "{text} {id}"),
        ("--id-column", "text"),
    ],
)
def test_what_decides_the_vectors_is_taken_from_the_output(tmp_path: Path, model: Path, flags: tuple[str, ...]) -> None:
    write_rows(tmp_path / "in.jsonl", ROWS)
    assert run("encode", tmp_path / "in.jsonl", tmp_path / "out.parquet", "-m", model, *flags)[0] == 0
    code, checks = verified(tmp_path / "out.parquet", "--all")
    assert code == 0, checks


def test_the_note_of_a_recorded_prompt_says_where_it_comes_from(tmp_path: Path, model: Path) -> None:
    write_rows(tmp_path / "in.jsonl", ROWS)
    assert run("encode", tmp_path / "in.jsonl", tmp_path / "out.parquet", "-m", model, "--prompt", "rain ")[0] == 0
    notes = run("verify", tmp_path / "out.parquet")[2]
    assert f"prompt: 'rain ' (recorded in {tmp_path / 'out.parquet'})\n" in notes
    assert "--prompt" not in notes


def swap(values: Any, first: int, second: int) -> Any:
    order = np.arange(len(values))
    order[[first, second]] = order[[second, first]]
    return values[order] if isinstance(values, np.ndarray) else values.take(pa.array(order))


def swap_vectors(table: pa.Table) -> pa.Table:
    return with_vectors(table, swap(vectors_of(table), 3, 7))


def swap_ids(table: pa.Table) -> pa.Table:
    return table.set_column(0, "id", swap(table["id"].combine_chunks(), 3, 7))


def drop_row(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 5), table.slice(6)])


def add_row(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table.slice(5, 1)])


def spoil(table: pa.Table) -> pa.Table:
    vectors = vectors_of(table)
    vectors[4, 2] = np.nan
    return with_vectors(table, vectors)


def stretch(table: pa.Table) -> pa.Table:
    vectors = vectors_of(table)
    vectors[4] *= 1.01
    return with_vectors(table, vectors)


@pytest.mark.parametrize(
    ("damage", "failing", "ids"),
    [
        (swap_vectors, {"vectors"}, ["t3", "t7"]),
        (swap_ids, {"missing", "extra"}, ["t3"]),
        (drop_row, {"rows", "missing"}, ["t5"]),
        (add_row, {"rows", "ids", "extra"}, ["t5"]),
        (spoil, {"values", "vectors"}, ["t4"]),
        (stretch, {"norms"}, []),
    ],
)
def test_each_kind_of_damage_is_found(
    copy: Path, damage: Callable[[pa.Table], pa.Table], failing: set[str], ids: list[str]
) -> None:
    edited(copy / "out.parquet", damage)
    code, checks = verified(copy / "out.parquet", "--all")
    assert code == 1
    failed = {name for name, check in checks.items() if check["ok"] is False}
    assert failing <= failed <= failing | {"vectors"}
    assert checks["digests"]["ok"] is None  # not those of the bytes that another program wrote
    named = [id for name in failing for id in checks[name]["ids"]]
    assert set(ids) <= set(named)


def test_people_see_what_failed_and_the_ids(copy: Path) -> None:
    edited(copy / "out.parquet", swap_vectors)
    code, out, _ = run("verify", copy / "out.parquet", "--all")
    line = next(line for line in out.splitlines() if line.startswith("vectors"))
    assert code == 1
    assert line.split()[1] == "FAILED"
    assert line.endswith("2 below 0.9999: t3, t7")


def test_a_sample_is_the_same_for_the_same_seed(copy: Path) -> None:
    edited(copy / "out.parquet", swap_vectors)
    found = [verified(copy / "out.parquet", "--rows", 20, "--seed", seed)[1]["vectors"] for seed in (*range(12), 0)]
    assert found[0] == found[-1]
    assert all(check["detail"].startswith("20 rows") for check in found)
    assert {check["ok"] for check in found} == {True, False}


def test_a_changed_input_is_noticed(copy: Path) -> None:
    rows = [json.loads(line) for line in (copy / "in.jsonl").read_text().splitlines()]
    rows[11]["text"] += " storm"
    write_rows(copy / "in.jsonl", rows)
    code, checks = verified(copy / "out.parquet")
    assert (code, checks["texts"]["ids"]) == (1, ["t11"])
    assert checks["texts"]["detail"] == "1 row has a different text in the input"
    write_rows(copy / "in.jsonl", rows[:-1])
    code, checks = verified(copy / "out.parquet")
    assert (code, checks["input"]["ok"], checks["texts"]["ids"]) == (1, False, ["t11"])
    assert (checks["extra"]["ids"], "missing" in checks) == (["t59"], False)
    assert checks["extra"]["detail"] == "1 row of the output is not in the input with this text"


ROW_CHECKS = {"texts", "missing", "extra", "order"}


def edit_input(copy: Path, edit: Callable[[list[Any]], Any]) -> None:
    """Edit the rows of the input; those that are rejected come last."""
    rows = [json.loads(line) for line in (copy / "in.jsonl").read_text().splitlines()]
    accepted = [row for row in rows if row not in BAD]
    edit(accepted)
    write_rows(copy / "in.jsonl", [*accepted, *BAD])


def failed_ids(copy: Path) -> dict[str, list[Any]]:
    """The ids that each failed comparison of the rows names."""
    _, checks = verified(copy / "out.parquet")
    return {name: checks[name]["ids"] for name in ROW_CHECKS & checks.keys() if not checks[name]["ok"]}


def test_rows_behind_a_lost_one_are_still_compared(copy: Path) -> None:
    def edit(rows: list[Any]) -> None:
        rows[20]["text"] += " storm"
        rows[30]["id"] = "t-new"
        del rows[5]

    edit_input(copy, edit)
    assert failed_ids(copy) == {"texts": ["t20"], "missing": ["t-new"], "extra": ["t5", "t30"]}


def test_rows_in_another_order_are_no_missing_rows(copy: Path) -> None:
    edit_input(copy, lambda rows: rows.insert(10, rows.pop(3)))
    assert failed_ids(copy) == {"order": ["t3"]}
    edit_input(copy, lambda rows: rows.reverse())
    assert failed_ids(copy).keys() == {"order"}


def test_rows_far_from_their_place_are_not_looked_for(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (stored_rows, verify):
        monkeypatch.setattr(module, "MAX_DISTANCE", 4)
    edit_input(copy, lambda rows: rows.insert(10, rows.pop(50)))
    _, checks = verified(copy / "out.parquet")
    far = "or not within 4 rows of its place"
    assert checks["missing"]["detail"] == f"1 row of the input is not in the output with this text, {far}"
    assert checks["extra"]["detail"] == f"1 row of the output is not in the input with this text, {far}"
    assert failed_ids(copy) == {"missing": ["t50"], "extra": ["t50"]}


def test_rows_that_were_passed_over_are_given_up(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output has five rows, one in three, before the one that the input has last."""
    monkeypatch.setattr(stored_rows, "MAX_DISTANCE", 4)

    def edit(rows: list[Any]) -> None:
        rows.append(rows[0])
        del rows[0:15:3]

    edit_input(copy, edit)
    assert failed_ids(copy) == {"missing": ["t0"], "extra": ["t0", "t3", "t6", "t9", "t12"]}


def test_repeated_ids_in_the_input_pass(tmp_path: Path, model: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [row | {"id": "same"} for row in ROWS])
    assert run("encode", tmp_path / "in.jsonl", tmp_path / "out.parquet", "-m", model)[0] == 0
    code, checks = verified(tmp_path / "out.parquet", "--all")
    assert code == 0
    assert checks["ids"]["detail"].endswith("as in the input")


def test_repeated_ids_pass_beside_a_changed_text(tmp_path: Path, model: Path) -> None:
    rows = [row | {"id": "same"} for row in ROWS]
    write_rows(tmp_path / "in.jsonl", rows)
    assert run("encode", tmp_path / "in.jsonl", tmp_path / "out.parquet", "-m", model)[0] == 0
    write_rows(tmp_path / "in.jsonl", [*rows[:-1], rows[-1] | {"text": "storm"}])
    code, checks = verified(tmp_path / "out.parquet")
    assert (code, checks["texts"]["ok"], checks["ids"]["ok"]) == (1, False, True)
    write_rows(tmp_path / "in.jsonl", rows[:-1])
    code, checks = verified(tmp_path / "out.parquet")
    assert (code, checks["extra"]["ok"], checks["ids"]["ok"]) == (1, False, False)


@pytest.mark.parametrize("name", ["out.parquet", "out.npy", "out/"])
def test_only_rows_that_were_rejected_may_be_missing(tmp_path: Path, model: Path, name: str) -> None:
    """One text is refused when it is read, one by the encoder; a row has to be the same to be excused."""
    output, source = f"{tmp_path}/{name}", tmp_path / "in.jsonl"
    write_rows(source, [*ROWS[:5], *BAD])
    assert run("encode", source, output, "-m", model)[0] == 3
    assert verified(output, source)[0] == 0
    filled = [{"id": "b1", "text": "sun"}, {"id": "b2", "text": "sun"}]
    renamed = {"id": "b3", "text": BAD[1]["text"]}
    for kept, changed in ((BAD[1], filled[0]), (BAD[0], filled[1]), (BAD[1], renamed)):
        write_rows(source, [*ROWS[:5], kept, changed])
        code, checks = verified(output, source)
        assert (code, checks["missing"]["ids"]) == (1, [changed["id"]])
        assert checks["missing"]["detail"] == "1 row of the input is not in the output with this text"


def test_a_rejected_row_beside_one_with_its_id_is_not_a_changed_one(tmp_path: Path, model: Path) -> None:
    rows = [{"id": "a", "text": "\x7f"}, {"id": "a", "text": "sun"}, {"id": "a", "text": "rain"}]
    write_rows(tmp_path / "in.jsonl", rows)
    assert run("encode", tmp_path / "in.jsonl", tmp_path / "out.parquet", "-m", model)[0] == 3
    code, checks = verified(tmp_path / "out.parquet")
    assert (code, checks["texts"]["detail"]) == (0, "2 rows have the input's ids and texts")


def test_a_good_text_that_became_empty_is_an_extra_row_only(copy: Path) -> None:
    edit_input(copy, lambda rows: rows[7].update(text=""))
    assert failed_ids(copy) == {"extra": ["t7"]}


def test_a_rejected_row_is_known_though_little_of_it_is_listed(tmp_path: Path, model: Path) -> None:
    """The more rows a chunk has, the less of each is kept for the rejects file."""
    write_rows(tmp_path / "in.jsonl", [*ROWS, {"id": "b1", "text": "\x7f" * 900}])
    output = tmp_path / "out.parquet"
    assert run("encode", tmp_path / "in.jsonl", output, "-m", model, "--chunk-rows", 100_000)[0] == 3
    listed = json.loads((tmp_path / "out.parquet.rejects.jsonl").read_text())
    assert len(listed["raw"]) < 100
    code, checks = verified(output)
    assert code == 0, checks


def test_without_the_rejects_file_rejected_rows_are_not_excused(copy: Path) -> None:
    rejects = copy / "out.parquet.rejects.jsonl"
    rejects.rename(copy / "elsewhere.jsonl")
    code, checks = verified(copy / "out.parquet")
    assert (code, checks["missing"]["ids"]) == (1, ["b2"])
    absent = f"{rejects}, which lists the rejected rows, does not exist"
    assert checks["missing"]["remedy"] == absent
    assert checks["rows"]["detail"] == f"62 read = 60 embedded + 2 rejected; {absent}"
    rejects.write_text("[]\n[]\n")
    code, _, err = run("verify", copy / "out.parquet")
    assert code == 1
    assert f"{rejects} cannot be read as a rejects file" in err


def test_ids_of_another_type_are_told(tmp_path: Path, model: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [{"id": i, "text": text} for i, text in enumerate(TEXTS)])
    assert run("encode", tmp_path / "in.jsonl", tmp_path / "out.parquet", "-m", model)[0] == 0
    write_rows(tmp_path / "in.jsonl", [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)])
    code, checks = verified(tmp_path / "out.parquet")
    assert (code, checks["missing"]["remedy"]) == (1, "the input's ids are text, the output's are numbers")


def test_what_is_not_compared_is_named(tmp_path: Path, model: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [row | {"lang": "en"} for row in ROWS])
    assert run("encode", tmp_path / "in.jsonl", tmp_path / "out.parquet", "-m", model, "--keep", "lang")[0] == 0
    code, checks = verified(tmp_path / "out.parquet", "--rows", 0)
    assert (code, checks["vectors"]["ok"]) == (0, None)
    assert checks["texts"]["detail"] == "60 rows have the input's ids and texts; not compared: lang"
    table = pq.read_table(tmp_path / "out.parquet")
    pq.write_table(table, tmp_path / "other.parquet")
    lines = run("verify", tmp_path / "other.parquet", "--only-output")[1].splitlines()
    assert lines[0] == "digests  -       none recorded: written by another program or an earlier version"


def test_the_output_alone_takes_no_input(made: Path) -> None:
    code, _, err = run("verify", made / "out.parquet", made / "in.jsonl", "--only-output")
    assert code == 2
    assert "--only-output reads no input" in err


def test_a_lost_line_of_the_rejects_file_is_noticed(copy: Path) -> None:
    rejects = copy / "out.parquet.rejects.jsonl"
    rejects.write_text(rejects.read_text().splitlines()[0] + "\n")
    code, checks = verified(copy / "out.parquet")
    assert (code, checks["rows"]["detail"]) == (1, "2 rows were rejected, the rejects file lists 1")


def test_the_output_alone(copy: Path, tmp_path: Path) -> None:
    (copy / "in.jsonl").unlink()
    code, _, err = run("verify", copy / "out.parquet")
    assert code == 2
    assert "in.jsonl, the recorded input of" in err
    assert f"embedcli verify {copy / 'out.parquet'} INPUT" in err
    assert verified(copy / "out.parquet", "--only-output")[0] == 0
    edited(copy / "out.parquet", spoil)
    assert verified(copy / "out.parquet", "--only-output")[0] == 1
    np.save(tmp_path / "v.npy", unit_vectors(3, 4))
    assert verified(tmp_path / "v.npy", "--only-output")[0] == 0
    assert run("verify", tmp_path / "v.npy", copy / "out.parquet")[0] == 2


def test_another_model_is_refused(copy: Path, tmp_path: Path) -> None:
    other = model_folder(tmp_path / "other", {"query": "q"})
    code, _, err = run("verify", copy / "out.parquet", "--model", other)
    assert code == 2
    assert "another version" in err


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([date(2026, 1, day) for day in (1, 2, 3)]),
        pa.array([datetime(2026, 1, 1, hour) for hour in (1, 2, 3)], pa.timestamp("us", "UTC")),
        pa.array([Decimal("1.50"), Decimal("2.25"), Decimal("3.00")]),
        pa.array([b"\x00\xff", b"b", b"c"]),
        pa.array([1.5, 2.5, 3.5]),
        pa.array([1, 2**63, 2**64 - 1], pa.uint64()),
    ],
    ids=lambda ids: str(ids.type),
)
@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_ids_of_every_type_are_those_of_the_input(name: str, ids: Any, tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": ids, "text": ["word1 word2", "word3", "word4"]}), source)
    assert jobs.run("encode", source, tmp_path / name, "-m", jobs.word_model(tmp_path), "--id-column", "id").code == 0
    done = jobs.run("verify", tmp_path / name)
    assert done.code == 0, done.out
    assert "3 rows have the input's ids and texts" in done.out


def test_an_input_in_another_folder_must_be_given(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (copy / "in.jsonl").rename(tmp_path / "data/in.jsonl")
    monkeypatch.chdir(copy)
    code, _, err = run("verify", "out.parquet")
    assert code == 2
    assert "in.jsonl, the recorded input of out.parquet, is neither in the current folder nor beside the output" in err
    assert "hint: give it: embedcli verify out.parquet INPUT" in err
    assert run("verify", "out.parquet", "../data/in.jsonl")[0] == 0

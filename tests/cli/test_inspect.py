"""`embedcli inspect`: counts equal what a hand would count, for people and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from embedcli.analysis import quantiles
from embedcli.analysis.quantiles import StreamingQuantiles
from embedcli.cli import app
from sample_outputs import FORMATS, PRECISIONS, make_output, unit_vectors


def run(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["inspect", *args])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("name", FORMATS)
def test_an_output_is_described_by_its_numbers(tmp_path: Path, name: str) -> None:
    vectors = unit_vectors(50, 8) * np.linspace(1, 3, 50, dtype=np.float32)[:, None]
    vectors[7] = 0
    vectors[8, 3] = np.nan
    vectors[9, 0] = np.inf
    ids = [f"r{i}" for i in range(48)] + ["r3", "r3"]
    path = make_output(tmp_path / name, vectors, ids=ids, kept={"lang": ids}, truncated=[1, 2, 3], n_tokens=9)
    code, out, _ = run(str(path), "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["kind"], found["rows"], found["dim"], found["precision"]) == ("output", 50, 8, "float32")
    if name != "out.jsonl":  # JSON has no word for NaN
        assert (found["non_finite_rows"], found["zero_rows"]) == (2, 1)
        assert found["norms"]["max"] == pytest.approx(3)
        assert found["norms"]["min"] == 0
        assert found["norms"]["median"] == pytest.approx(np.median([0, *np.delete(np.linspace(1, 3, 50), [7, 8, 9])]))
    assert (found["truncated_rows"], found["truncated_share"]) == (3, 0.06)
    assert found["tokens"] == {"total": 450, "min": 9, "median": 9, "p95": 9, "max": 9}
    assert found["ids"] == {
        "column": "id", "type": "string", "duplicates": 1, "examples": [{"id": "r3", "rows": 3}],
    }  # fmt: skip
    assert found["columns"]["lang"] == "string"
    assert found["space"]["model"] == "tests/made-up"


def test_people_read_the_same(tmp_path: Path) -> None:
    path = make_output(tmp_path / "out.parquet", unit_vectors(12, 8), ids=list(range(12)), truncated=[0])
    code, out, err = run(str(path))
    shown = {line[:11].rstrip(): line[11:].lstrip() for line in out.splitlines()}
    assert (code, err) == (0, "")
    assert shown["rows"] == "12"
    assert shown["vectors"] == "8 dimensions, stored as float32"
    assert shown["norms"] == "1 to 1, median 1"
    assert shown["damage"] == "none: every vector is finite and not zero"
    assert shown["truncated"] == "1 row (8.33%)"
    assert shown["ids"] == "id (int64), all unique"


@pytest.mark.parametrize("stored_as", PRECISIONS)
def test_every_precision_has_sensible_norms(tmp_path: Path, stored_as: str) -> None:
    path = make_output(tmp_path / "out.parquet", unit_vectors(50, 32), stored_as=stored_as)  # type: ignore[arg-type]
    found = json.loads(run(str(path), "--json")[1])
    if "binary" in stored_as:
        assert found["norms"] is None
    else:
        assert found["norms"]["median"] == pytest.approx(1, abs=0.02)


def test_windows_of_one_row_are_not_duplicates(tmp_path: Path) -> None:
    kind = pa.list_(pa.float32(), 2)
    table = pa.table(
        {
            "id": ["a", "a", "b", "b"],
            "embedding": pa.array([[1.0, 0.0]] * 4, kind),
            "window": pa.array([0, 1, 0, 0], pa.int32()),
        }
    )
    pq.write_table(table, tmp_path / "out.parquet")
    found = json.loads(run(str(tmp_path / "out.parquet"), "--json")[1])
    assert found["ids"]["examples"] == [{"id": ["b", 0], "rows": 2}]


def test_equal_hashes_are_not_duplicates(tmp_path: Path) -> None:
    assert hash(-1) == hash(-2)
    path = make_output(tmp_path / "out.parquet", unit_vectors(3, 4), ids=[-1, -2, 5])
    assert json.loads(run(str(path), "--json")[1])["ids"]["duplicates"] == 0


def test_ids_are_shown_as_they_are_or_as_json(tmp_path: Path) -> None:
    ids = ["plain é", "tab\t", "back\\slash", "bell\x07", "bell\x07"]
    path = make_output(tmp_path / "out.parquet", unit_vectors(5, 4), ids=ids)
    lines = run(str(path))[1].splitlines()
    shown = [line.split(None, 2)[2] for line in lines if line.startswith("row ")]
    assert shown == ["plain é", '"tab\\t"', '"back\\\\slash"']
    assert any(line.endswith('1 appears more than once: "bell\\u0007" (2 rows)') for line in lines)


def test_a_file_of_another_program_is_described_as_one(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones((3, 4), np.float32))
    code, out, _ = run(str(tmp_path / "v.npy"))
    assert code == 0
    assert "unknown: not recorded in the file" in out
    assert "none; row numbers from 0" in out


def test_an_output_of_zero_rows(tmp_path: Path) -> None:
    path = make_output(tmp_path / "out.parquet", np.zeros((0, 4), np.float32))
    found = json.loads(run(str(path), "--json")[1])
    assert (found["rows"], found["norms"], found["truncated_share"]) == (0, None, None)
    assert run(str(path))[0] == 0


def test_damage_and_absence_end_in_one_sentence(tmp_path: Path) -> None:
    path = make_output(tmp_path / "out.parquet", unit_vectors(900, 8))
    raw = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(1)
    raw[chunk.data_page_offset + 2000] ^= 1
    path.write_bytes(raw)
    code, out, err = run(str(path))
    assert (code, out) == (1, "")
    assert "the vector column is damaged" in err
    code, _, err = run(str(tmp_path / "nothing.parquet"))
    assert code == 2
    assert "no such file" in err


@given(st.lists(st.lists(st.integers(-1000, 1000), max_size=50), max_size=20))
def test_spread_is_exact_below_its_limit(lists: list[list[int]]) -> None:
    spread = StreamingQuantiles()
    for values in lists:
        spread.add(np.array(values, np.int64))
    every = [value for values in lists for value in values]
    assert spread.count == len(every)
    if every:
        expected = {"min": min(every), "q": np.quantile(every, 0.3), "max": max(every)}
        assert spread.summary(q=0.3) == pytest.approx(expected)
    else:
        assert spread.summary(q=0.3) is None


@given(st.lists(st.integers(1, 700), min_size=1, max_size=20))
def test_spread_holds_an_even_share_beyond_its_limit(sizes: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantiles, "MAX_HELD_VALUES", 100)
        spread, start = StreamingQuantiles(), 0
        for size in sizes:
            spread.add(np.arange(start, start + size))
            start += size
        held = np.concatenate(spread._held)
        assert len(held) <= 100
        assert len(set(np.diff(held))) <= 1
        assert held[0] == 0
        assert start - held[-1] <= spread._step
        assert (spread.minimum, spread.maximum) == (0, start - 1)


ROWS = [
    {"id": "a", "text": "one", "lang": "en"},
    {"id": "b", "text": "three", "lang": "fr"},
    {"id": "c", "text": None, "lang": "en"},
    {"id": "d", "text": "", "lang": "en"},
    {"id": "e", "text": "sevenths", "lang": None},
]


def test_an_input_is_described_by_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "{oops\n")
    code, out, err = run(str(path), "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["kind"], found["rows"], found["good_rows"], found["rejected"]) == ("input", 6, 3, 3)
    assert found["rejects"] == {"text is missing or null": 1, "text is empty": 1, "bad JSON": 1}
    assert found["columns"] == {"id": "string", "text": "string", "lang": "string"}
    assert (found["text_column"], found["id_column"]) == ("text", "id")
    assert found["characters"] == {"total": 16, "min": 3, "median": 5, "p95": pytest.approx(7.7), "max": 8}
    shown = {line[:10].rstrip(): line[10:].lstrip() for line in run(str(path))[1].splitlines()}
    assert shown["rows"] == "6, of which 3 can be embedded"
    assert shown["characters"].startswith("16 in total; per row 3 to 8, median 5")


def test_samples_are_the_same_rows_in_every_format(sample_data: Path) -> None:
    found = [
        json.loads(run(str(sample_data / f"texts.{ending}"), "--json")[1]) for ending in ("jsonl", "csv", "parquet")
    ]
    for key in ("rows", "good_rows", "characters", "columns", "text_column", "id_column"):
        assert found[0][key] == found[1][key] == found[2][key], key


def test_input_flags_are_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    found = json.loads(run(str(path), "--format", "jsonl", "--template", "{lang?}: {id}", "--json")[1])
    assert (found["good_rows"], found["characters"]["max"]) == (5, 5)
    code, _, err = run(str(path), "--format", "jsonl", "--text-column", "txt")
    assert code == 2
    assert "'txt'" in err
    assert "lang" in err


def test_an_empty_input_is_an_input(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("")
    code, out, _ = run(str(tmp_path / "in.jsonl"), "--json")
    assert (code, json.loads(out)["rows"]) == (0, 0)
    assert run(str(tmp_path / "in.jsonl"))[0] == 0

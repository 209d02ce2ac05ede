"""What `embedcli load` promises, for every database: each row once, nothing mixed, nothing lost by a kill."""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

import jobs
from backends import BACKENDS, TABLE, Backend
from embedcli.core.errors import OutputError
from embedcli.databases import connect, parse_target
from embedcli.databases import target as target_module
from embedcli.databases.address import find_target
from embedcli.databases.record import parse_record
from embedcli.databases.rejects import load_rejects_path
from loads import check, drop, load, load_until, loaded, make_backend, names, read_rejects, rehearse, run
from sample_outputs import PRECISIONS, SPACE, make_output, unit_vectors
from searchable import embedded, model_folder

if TYPE_CHECKING:
    from embedcli.core.types import Precision

DIM = 16
AWKWARD = [
    "plain", "two words", " padded ", "comma,", "tab\t", "new\nline", "quote'", 'double"', "back\\slash", "%s %(x)s $1",
    "\\N", "null", "NULL", "ünïcödé ☃", "👩‍👩‍👧‍👦", "e\u0301", "\u00e9", "\u200b",
    "\x01\x1f\x7f", "A", "a", "0", "00", "-1", "x" * 900, "; --",
    "{}", "[1]", "\U0010ffff",
]  # fmt: skip


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    yield from make_backend(request.param, tmp_path)


@pytest.fixture(params=sorted(name for name, kind in BACKENDS.items() if kind.can_swap))
def swapping(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """A database that replaces a table in one step."""
    yield from make_backend(request.param, tmp_path)


# Rows


def test_every_row_arrives_once_with_its_values(tmp_path: Path, backend: Backend) -> None:
    count = len(AWKWARD)
    kept = {
        "text": [*AWKWARD[1:], None],
        "n": [None, *range(count - 1)],
        "Ratio of two": [0.1 * i for i in range(count - 1)] + [float("nan")],
        "flag": [None, True, False, *[True] * (count - 3)],
        "day": [datetime.date(2024, 2, 29), datetime.date(1, 1, 1), None, *[datetime.date(2030, 1, 1)] * (count - 3)],
        "moment": [datetime.datetime(2024, 2, 29, 1, 2, 3, 456789, datetime.UTC)] * (count - 1) + [None],
        "price": [decimal.Decimal("12.30")] * (count - 1) + [None],
        "raw": [b"\x00\xff'", b"", None, *[b"x"] * (count - 3)],
        "tags": [["a", None, "b'\""], [], None, *[["c"]] * (count - 3)],
        "nested": [{"a": 1, "b": {"c": "x\ty"}}, None, *[{"a": None, "b": None}] * (count - 2)],
        "order": ["a reserved word"] * count,
        'quo"te': list(range(count)),
    }
    output = make_output(tmp_path / "out.parquet", unit_vectors(count, DIM), ids=AWKWARD, kept=kept)
    loaded(output, backend)
    assert sorted(backend.ids()) == sorted(AWKWARD)
    done = check(output, backend)
    assert (done.code, done.err) == (0, ""), done.out
    assert f"{count} rows fetched, 0 with other values" in done.out


@pytest.mark.parametrize("ids", [[5, -3, 0, 2**62, -(2**63)], None], ids=["int", "row numbers"])
def test_ids_that_are_numbers(tmp_path: Path, backend: Backend, ids: list[int] | None) -> None:
    output = loaded(make_output(tmp_path / "out.parquet", unit_vectors(5, DIM), ids=ids), backend)
    assert sorted(backend.ids(column="id" if ids else "row")) == sorted(ids or range(5))
    assert check(output, backend).code == 0
    assert load(output, backend).counts == (0, 5)


@pytest.mark.parametrize("name", ["out.npy", "out.arrow", "out.jsonl", "out.folder"])
def test_every_format_is_loaded(tmp_path: Path, backend: Backend, name: str) -> None:
    output = make_output(tmp_path / name, unit_vectors(50, DIM), ids=names(50), kept={"text": names(50)})
    loaded(output, backend)
    assert sorted(backend.ids()) == sorted(names(50))
    assert check(output, backend).code == 0
    assert load(output, backend).counts == (0, 50)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions_are_kept_or_refused(tmp_path: Path, backend: Backend, precision: Any) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(30, DIM), ids=names(30), stored_as=precision)
    done = load(output, backend)
    is_dequantized = precision in ("int8", "uint8")
    assert (
        f"the {precision} vectors are loaded as the float32 numbers that they stand for" in done.err
    ) is is_dequantized
    if precision not in backend.precisions and not is_dequantized:
        assert done.code == 2
        assert f"does not hold {precision} vectors" in done.err
        return
    assert done.code == 0, done.err
    assert check(output, backend).code == 0
    assert load(output, backend).counts == (0, 30)


def test_int8_vectors_without_their_ranges_are_refused(tmp_path: Path, backend: Backend) -> None:
    output = make_output(
        tmp_path / "out.parquet", unit_vectors(3, DIM), ids=names(3), stored_as="int8", space={"ranges": None}
    )
    done = load(output, backend)
    assert done.code == 2
    assert "does not contain the ranges of its int8 vectors" in done.err
    assert "there is no such table" in run("search", backend.address, "x", "--table", TABLE).err


def test_windows_of_one_text_are_rows_of_their_own(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = jobs.enter_folder(tmp_path, monkeypatch, 20)
    options = ("--model", folder / "words.txt", "--overflow", "split", "--max-seq-length", "4", "--split-overlap", "0")
    assert run("encode", "in.jsonl", "out.parquet", *options).code == 0
    loaded(Path("out.parquet"), backend)
    ids = backend.ids()
    assert len(ids) > len(set(ids)) == 20
    assert check("out.parquet", backend).code == 0
    assert load("out.parquet", backend).counts == (0, len(ids))
    # A text that became shorter leaves no window of its earlier version behind.
    texts = jobs.rows(20)
    texts[11]["text"] = "word1 word2"
    jobs.write_jsonl(folder / "in.jsonl", texts)
    assert run("encode", "in.jsonl", "out.parquet", *options, "--overwrite").code == 0
    loaded(Path("out.parquet"), backend)
    assert len(backend.ids()) == len(ids) - ids.count("r11") + 1
    assert check("out.parquet", backend).code == 0
    jobs.write_jsonl(folder / "in.jsonl", texts[:9])
    assert run("encode", "in.jsonl", "out.parquet", *options, "--overwrite", "--max-removed", "100%").code == 0
    loaded(Path("out.parquet"), backend, "--sync")
    assert set(backend.ids()) == {f"r{i}" for i in range(9)}
    assert check("out.parquet", backend).code == 0


def test_an_output_without_rows(tmp_path: Path, backend: Backend) -> None:
    output = loaded(make_output(tmp_path / "out.parquet", unit_vectors(0, DIM), ids=[]), backend)
    assert backend.ids() == []
    assert check(output, backend).code == 0


# Again


def test_a_second_run_does_not_look_at_the_rows(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = loaded(make_output(tmp_path / "out.parquet", unit_vectors(40, DIM), ids=names(40)), backend)
    loader = import_module("embedcli.databases.loader")
    monkeypatch.setattr(loader, "read_rows", None)
    done = load(output, backend)
    assert (done.code, done.counts) == (0, (0, 40)), done.err
    assert "nothing to do" in done.err


def test_only_changed_rows_are_sent(tmp_path: Path, backend: Backend) -> None:
    vectors, texts = unit_vectors(40, DIM), names(40)
    loaded(make_output(tmp_path / "out.parquet", vectors, ids=names(40), kept={"text": texts}), backend)
    vectors = np.concatenate([vectors, unit_vectors(3, DIM, seed=9)])
    vectors[[3, 5]] = unit_vectors(2, DIM, seed=8)
    texts = [*texts, "new", "newer", "newest"]
    texts[7] = "another text"
    output = make_output(tmp_path / "out.parquet", vectors, ids=names(43), kept={"text": texts})
    # A row of a made output has the hash of its position, which wraps at 16: those of the first 40 rows stay.
    done = check(output, backend)
    assert done.code == 1
    assert "3 rows missing, 3 of another version of the output: r40, r41, r42, r3, r5, r7" in done.out
    done = load(output, backend)
    assert done.counts == (6, 37), done.err
    assert sorted(backend.ids()) == sorted(names(43))
    assert check(output, backend).code == 0


def test_a_value_that_becomes_null(tmp_path: Path, backend: Backend) -> None:
    kept: dict[str, list[Any]] = {"text": names(4), "n": [1, 2, 3, 4], "tags": [["x"]] * 4, "x": [0.5] * 4}
    loaded(make_output(tmp_path / "out.parquet", unit_vectors(4, DIM), ids=names(4), kept=kept), backend)
    kept = {name: [*values[:2], None, values[3]] for name, values in kept.items()}
    output = make_output(tmp_path / "out.parquet", unit_vectors(4, DIM), ids=names(4), kept=kept)
    assert load(output, backend).counts == (1, 3)
    assert check(output, backend).code == 0


def test_rows_that_left_the_output_stay_until_sync(tmp_path: Path, backend: Backend) -> None:
    vectors = unit_vectors(40, DIM)
    loaded(make_output(tmp_path / "out.parquet", vectors, ids=names(40)), backend)
    output = loaded(make_output(tmp_path / "out.parquet", vectors[:32], ids=names(32)), backend)
    assert sorted(backend.ids()) == sorted(names(40))
    assert check(output, backend).code == 1
    done = load(output, backend, "--sync")
    assert done.code == 0
    assert "deleted   8 rows" in done.err
    assert sorted(backend.ids()) == sorted(names(32))
    assert check(output, backend).code == 0
    assert "nothing to do" in load(output, backend, "--sync").err


def test_rows_that_vanished_are_sent_again(tmp_path: Path, backend: Backend) -> None:
    output = loaded(make_output(tmp_path / "out.parquet", unit_vectors(40, DIM), ids=names(40)), backend)
    for id in ("r3", "r39"):
        backend.delete(id)
    done = check(output, backend)
    assert done.code == 1
    assert "2 rows missing" in done.out
    assert "r3, r39" in done.out
    assert load(output, backend).counts == (2, 38)
    assert check(output, backend).code == 0


def test_a_row_that_is_there_twice_is_deleted_or_named(tmp_path: Path, backend: Backend) -> None:
    output = loaded(make_output(tmp_path / "out.parquet", unit_vectors(40, DIM), ids=names(40)), backend)
    if not backend.can_repeat_ids:
        with pytest.raises(Exception, match=r"(?i)unique|constraint"):
            backend.repeat("r3")
        return
    backend.repeat("r3")
    done = check(output, backend)
    assert done.code == 1
    assert "41 rows in the table, 40 in the output; 1 row of the table with the id of another row; " in done.out
    assert "not in the output" not in done.out
    done = load(output, backend, "--sync")
    if backend.repairs_ids:
        assert (done.code, done.counts) == (0, (0, 40)), done.err
        assert "deleted   1 row" in done.err
    else:
        assert done.code == 1
        assert "has 1 row with the id of another row" in done.err
        assert ("--swap" in done.err) is backend.can_swap
        if not backend.can_swap:
            return
        loaded(output, backend, "--swap")
    assert sorted(backend.ids()) == sorted(names(40))
    assert check(output, backend).code == 0
    assert "nothing to do" in load(output, backend).err


def test_a_count_that_was_recorded_wrongly_hides_nothing(tmp_path: Path, backend: Backend) -> None:
    """As two loads at once left it: some rows are missing or twice, and the record agrees with their number."""
    output = loaded(make_output(tmp_path / "out.parquet", unit_vectors(40, DIM), ids=names(40)), backend)
    backend.delete("r5")
    change_recorded_rows(backend, 39)
    assert load(output, backend).counts == (1, 39)
    if backend.repairs_ids:
        for number, option in enumerate([[], ["--sync"], ["--swap"]]):
            backend.repeat("r7")
            backend.repeat("r8")
            backend.delete(f"r{number}")
            change_recorded_rows(backend, 41)
            loaded(output, backend, *option)
            assert sorted(backend.ids()) == sorted(names(40))
    assert check(output, backend).code == 0
    assert "nothing to do" in load(output, backend).err


def change_recorded_rows(backend: Backend, rows: int) -> None:
    with connect(parse_target(backend.address, TABLE)) as database:
        record = database.read_record(TABLE)
        assert record is not None
        record["load"]["table_rows"] = rows
        database.write_record(TABLE, record)


def test_a_folder_that_grows_sends_only_its_new_files(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_output(tmp_path / "out.folder", unit_vectors(30, DIM), ids=names(30))
    loaded(folder, backend)
    more = make_output(tmp_path / "more.folder", unit_vectors(9, DIM, seed=4), ids=[f"s{i}" for i in range(9)])
    manifest = json.loads((folder / "_manifest.json").read_bytes())
    for i in range(3):
        (more / f"part-{i:05d}.parquet").rename(folder / f"part-{i + 3:05d}.parquet")
        manifest["parts"].append(f"part-{i + 3:05d}.parquet")
    (folder / "_manifest.json").write_text(json.dumps(manifest))
    rows = import_module("embedcli.databases.rows")
    opened: list[str] = []
    original = rows.open_part

    def open_part(dataset: Any, part: Any) -> Any:
        opened.append(part.path)
        return original(dataset, part)

    monkeypatch.setattr(rows, "open_part", open_part)
    assert load(folder, backend).counts == (9, 30)
    assert [Path(path).name for path in opened] == [f"part-{i:05d}.parquet" for i in (3, 4, 5)]
    assert len(backend.ids()) == 39
    assert check(folder, backend).code == 0


def test_an_id_that_comes_again_in_a_new_file_is_rejected(tmp_path: Path, backend: Backend) -> None:
    folder = make_output(tmp_path / "out.folder", unit_vectors(30, DIM), ids=names(30))
    loaded(folder, backend)
    more = make_output(tmp_path / "more.folder", unit_vectors(3, DIM, seed=4), ids=["r0", "s1", "s2"])
    manifest = json.loads((folder / "_manifest.json").read_bytes())
    for i in range(3):
        (more / f"part-{i:05d}.parquet").rename(folder / f"part-{i + 3:05d}.parquet")
        manifest["parts"].append(f"part-{i + 3:05d}.parquet")
    (folder / "_manifest.json").write_text(json.dumps(manifest))
    for _ in range(2):
        assert load(folder, backend).code == 3
        assert sorted(backend.ids()) == sorted([*names(30), "s1", "s2"])
        assert check(folder, backend).code == 0
    (reject,) = read_rejects(folder, backend)
    assert (reject["id"], reject["line"], reject["reason"]) == ("r0", 31, "id appears twice in the output")


@pytest.mark.parametrize("name", ["out/", "out.parquet"])
def test_an_input_that_grows_from_one_file_to_two(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of several inputs encode writes their names into a column `source`, which a table of one input does not have."""
    folder = jobs.enter_folder(tmp_path, monkeypatch, 30)
    Path("inputs").mkdir()
    rows = jobs.rows(30)
    jobs.write_jsonl(folder / "inputs/a.jsonl", rows[:20])
    encode = ("encode", "inputs", name, "--model", folder / "words.txt", "--keep", "text")
    assert run(*encode).code == 0
    output = loaded(Path(name), backend)
    jobs.write_jsonl(folder / "inputs/b.jsonl", rows[20:])
    assert run(*encode, "--update").code == 0
    for option in ([], ["--sync"]):
        done = load(output, backend, *option)
        assert done.code == 0, done.err
        assert "the table has no column 'source': the names of the inputs are left out" in done.err
    assert len(backend.ids()) == 30
    assert check(output, backend).code == 0
    # And back from two to one, into a table that has the column.
    drop(backend)
    loaded(output, backend)
    Path("inputs/b.jsonl").unlink()
    assert run(*encode, "--update", "--max-removed", "100%").code == 0
    loaded(output, backend, "--sync")
    assert len(backend.ids()) == 20
    assert check(output, backend).code == 0


# Disks


@pytest.mark.parametrize("calls", [0, 1], ids=["before the table", "before the rows"])
def test_a_full_disk_ends_a_load_at_once(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """The disk has space for some calls, and then a megabyte."""
    output = make_output(tmp_path / "out.parquet", unit_vectors(40, DIM), ids=names(40))
    sizes = iter([1 << 40] * calls)
    disk_space = import_module("embedcli.databases.disk_space")
    monkeypatch.setattr(disk_space, "count_free_bytes", lambda path: next(sizes, 1 << 20))
    done = load(output, backend)
    if parse_target(backend.address).path is None:
        assert done.code == 0, done.err
        return
    assert done.code == 1
    assert "1.0 MB are left on its disk, and the next rows may need" in done.err
    assert "hint: free some space" in done.err
    monkeypatch.undo()
    assert load(output, backend).counts == (40, 0)


def test_an_error_on_a_full_disk_says_so(tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(40, DIM), ids=names(40))
    disk_space = import_module("embedcli.databases.disk_space")

    def finish_load(self: Any, table: str, layout: Any) -> None:
        monkeypatch.setattr(disk_space, "count_free_bytes", lambda path: 1000)
        raise OutputError("the page could not be written", "check the disk")

    address = parse_target(backend.address)
    monkeypatch.setattr(find_target(address.scheme), "finish_load", finish_load)
    done = load(output, backend)
    assert done.code == 1
    assert ("; 0.0 MB are left on the disk" in done.err) is (address.path is not None)


# Spaces and tables


@pytest.mark.parametrize("option", [[], ["--sync"]])
def test_another_space_is_refused_before_a_row_is_sent(tmp_path: Path, backend: Backend, option: list[str]) -> None:
    output = loaded(make_output(tmp_path / "out.parquet", unit_vectors(40, DIM), ids=names(40)), backend)
    other = make_output(
        tmp_path / "other.parquet", unit_vectors(9, DIM, seed=3), ids=names(9), space={"fingerprint": "e" * 64}
    )
    done = load(other, backend, *option)
    assert done.code == 2
    assert "fingerprint is 'ffff" in done.err
    assert "there, 'eeee" in done.err
    assert "pooling" not in done.err
    narrow = make_output(tmp_path / "narrow.parquet", unit_vectors(9, 8), ids=names(9))
    assert "dim is 16 there, 8 in the output" in load(narrow, backend, *option).err
    assert sorted(backend.ids()) == sorted(names(40))
    assert check(output, backend).code == 0


def test_other_columns_are_refused(tmp_path: Path, backend: Backend) -> None:
    vectors = unit_vectors(4, DIM)
    output = loaded(make_output(tmp_path / "a.parquet", vectors, ids=names(4), kept={"n": [1, 2, 3, 4]}), backend)
    other = make_output(tmp_path / "b.parquet", vectors, ids=names(4), kept={"lang": ["a", "b", "c", "d"]})
    done = load(other, backend)
    assert done.code == 2
    assert "the output has no column 'n'; the table has no column 'lang'" in done.err
    assert check(output, backend).code == 0


@pytest.mark.parametrize("option", [[], ["--sync"], ["--swap"]])
def test_a_table_of_another_program_is_left_alone(tmp_path: Path, backend: Backend, option: list[str]) -> None:
    backend.create_foreign_table()
    done = load(make_output(tmp_path / "out.parquet", unit_vectors(4, DIM), ids=names(4)), backend, *option)
    assert done.code == 2
    if backend.can_swap or option != ["--swap"]:
        assert "was not created by `embedcli load`" in done.err
    assert backend.ids() == ["theirs"]


def test_tables_of_other_programs_beside_it_are_left_alone(tmp_path: Path, backend: Backend) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(4, DIM), ids=names(4))
    for number, neighbour in enumerate(["{}__new", *backend.neighbours]):
        table = f"table{number}"
        other = neighbour.format(table)
        backend.create_foreign_table(other)
        for option in ([], ["--swap"], ["--sync"]):
            done = run("load", output, backend.address, "--table", table, *option)
            assert done.code in (0, 2), done
            assert done.code == 0 or "--table" in done.err.split("hint: ")[1], done
            assert backend.ids(other) == ["theirs"]


def test_names_that_differ_in_their_case_are_not_mixed_up(tmp_path: Path, backend: Backend) -> None:
    output = loaded(make_output(tmp_path / "out.parquet", unit_vectors(4, DIM), ids=names(4)), backend)
    other = make_output(tmp_path / "other.parquet", unit_vectors(3, DIM, seed=1), ids=names(3))
    for option in ([], ["--sync"], ["--swap"] if backend.can_swap else []):
        done = run("load", other, backend.address, "--table", "DOCS", *option)
        if backend.has_case_sensitive_names:
            assert done.code == 0, done.err
            assert sorted(backend.ids("DOCS")) == names(3)
        else:
            assert done.code == 2, done
            assert "there is a table docs" in done.err
    assert sorted(backend.ids()) == names(4)
    assert check(output, backend).code == 0


@pytest.mark.parametrize("name", ["a", "_a", "a_", "select", "x" * 50])
def test_short_and_long_names_are_taken_or_refused(tmp_path: Path, backend: Backend, name: str) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(4, DIM), ids=names(4))
    done = run("load", output, backend.address, "--table", name)
    assert done.code == 0 or (done.code == 2 and "cannot be the name of a table" in done.err), done


def test_vectors_of_an_unknown_space_are_refused(tmp_path: Path, backend: Backend) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(4, DIM), ids=names(4), space={"model": None})
    done = load(output, backend)
    assert done.code == 2
    assert "does not name the model" in done.err


# Rejects


def test_an_id_that_appears_twice_is_loaded_once(tmp_path: Path, backend: Backend) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(5, DIM), ids=["a", "b", "a", "c", "b"])
    for _ in range(2):
        done = load(output, backend)
        assert done.code == 3, done.err
        assert sorted(backend.ids()) == ["a", "b", "c"]
        assert check(output, backend).code == 0
    assert [(reject["id"], reject["line"]) for reject in read_rejects(output, backend)] == [("a", 3), ("b", 5)]
    assert "3 rows in the table, 3 in the output, and 2 whose id appears twice" in check(output, backend).out
    # Another table has rejects of its own, and a file that was removed is written again.
    done = run("load", output, backend.address, "--table", "other")
    (path,) = set(tmp_path.glob("*load-rejects*")) - {
        Path(load_rejects_path(str(output), parse_target(backend.address, TABLE)))
    }
    path.unlink()
    assert done.err.splitlines()[-1] == "2 rows were rejected"
    done = load(output, backend)
    assert "2 id appears twice in the output; first:" in done.err
    assert done.err.splitlines()[-1] == "nothing to do: the table is up to date; 2 rows were rejected"
    assert len(read_rejects(output, backend)) == 2
    assert run("load", output, backend.address, "--table", "other").code == 3
    assert path.exists()


def test_the_last_line_names_the_rejects_where_all_rows_are(tmp_path: Path, backend: Backend) -> None:
    output = make_output(tmp_path / "out.parquet", np.full((3, DIM), np.nan, np.float32), ids=["a", "b", "c"])
    done = load(output, backend)
    assert (done.code, done.err.splitlines()[-1]) == (3, "3 rows were rejected")
    assert "3 that the database cannot hold" in check(output, backend).out


def test_nul_characters_are_kept_or_rejected(tmp_path: Path, backend: Backend) -> None:
    kept: dict[str, list[Any]] = {"text": ["fine", "a\0b", "fine"], "tags": [["x"], ["y"], ["z\0"]]}
    output = make_output(tmp_path / "out.parquet", unit_vectors(3, DIM), ids=["a", "b", "c"], kept=kept)
    done = load(output, backend)
    assert (done.code, sorted(backend.ids())) == ((0, ["a", "b", "c"]) if backend.takes_nul else (3, ["a"])), done.err
    assert check(output, backend).code == 0


def test_vectors_that_are_not_finite_are_rejected(tmp_path: Path, backend: Backend) -> None:
    vectors = unit_vectors(3, DIM)
    vectors[1, 2] = np.nan
    output = make_output(tmp_path / "out.parquet", vectors, ids=["a", "b", "c"])
    assert load(output, backend).code == 3
    assert sorted(backend.ids()) == ["a", "c"]


# Kills


def test_three_kills_lose_and_repeat_nothing(tmp_path: Path, backend: Backend) -> None:
    count = 400
    output = make_output(
        tmp_path / "out.parquet", unit_vectors(count, DIM), ids=names(count), kept={"text": names(count)}
    )
    calls = rehearse(output, backend)
    for part in (0.2, 0.35, 0.5):  # runs after a kill have fewer calls
        assert load_until(int(calls * part), output, backend)
    done = load(output, backend)
    assert done.code == 0, done.err
    assert sum(done.counts) == count
    assert sorted(backend.ids()) == sorted(names(count))
    assert check(output, backend).code == 0
    assert "nothing to do" in load(output, backend).err


def test_a_kill_while_changes_are_sent_leaves_no_row_behind(tmp_path: Path, backend: Backend) -> None:
    count = 200
    loaded(make_output(tmp_path / "out.parquet", unit_vectors(count, DIM), ids=names(count)), backend)
    output = make_output(tmp_path / "out.parquet", unit_vectors(count - 20, DIM, seed=2), ids=names(count - 20))
    calls = rehearse(output, backend)
    assert load_until(int(calls * 0.3), output, backend, "--sync")
    for part in (0.6, 0.9):
        load_until(int(calls * part), output, backend, "--sync")
        assert len(backend.ids()) == len(set(backend.ids()))
    assert load(output, backend, "--sync").code == 0
    assert sorted(backend.ids()) == sorted(names(count - 20))
    assert check(output, backend).code == 0


def test_an_output_comes_back_after_the_kill_of_another(tmp_path: Path, backend: Backend) -> None:
    """The table has as many rows as before, so that only its record can tell that they have changed."""
    old = make_output(tmp_path / "old.parquet", unit_vectors(200, DIM), ids=names(200))
    new = make_output(tmp_path / "new.parquet", unit_vectors(200, DIM, seed=2), ids=names(200))
    loaded(old, backend)
    call = 8
    while check(old, backend).code == 0:
        assert load_until(call, new, backend, inside="upsert_rows"), "not killed before the end"
        call *= 2
    loaded(old, backend)
    assert check(old, backend).code == 0


# Swap


def test_hints_name_what_works(tmp_path: Path, backend: Backend) -> None:
    """About another model, other columns and the swap itself: what a hint names does not fail with the next hint."""
    loaded(make_output(tmp_path / "out.parquet", unit_vectors(9, DIM), ids=names(9)), backend)
    model = make_output(tmp_path / "model.parquet", unit_vectors(9, DIM), ids=names(9), space={"model": "tests/other"})
    columns = make_output(tmp_path / "columns.parquet", unit_vectors(9, DIM), ids=names(9), kept={"n": [*range(9)]})
    for number, output in enumerate((model, columns)):
        for done in (load(output, backend), load(output, backend, "--sync"), check(output, backend)):
            assert done.code == 2
            hint = done.err.split("hint: ")[1]
            assert "another --table" in hint
            assert ("--swap" in hint) is backend.can_swap
        if not backend.can_swap:
            assert "another --table" in load(output, backend, "--swap").err.split("hint: ")[1]
        assert run("load", output, backend.address, "--table", f"other{number}").code == 0
        if backend.can_swap:
            loaded(output, backend, "--swap")


def test_a_swap_is_refused_where_it_is_not_one_step(tmp_path: Path, backend: Backend) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(4, DIM), ids=names(4))
    done = load(output, backend, "--swap")
    assert done.code == (0 if backend.can_swap else 2)
    assert ("cannot replace a table in one step" in done.err) is not backend.can_swap


def test_a_swap_replaces_another_space(tmp_path: Path, swapping: Backend) -> None:
    loaded(make_output(tmp_path / "out.parquet", unit_vectors(40, DIM), ids=names(40)), swapping)
    space = {"model": "tests/other"}
    new = make_output(tmp_path / "new.parquet", unit_vectors(9, 8), ids=names(9), kept={"text": names(9)}, space=space)
    done = load(new, swapping, "--swap")
    assert done.code == 0, done.err
    assert sorted(swapping.ids()) == sorted(names(9))
    assert check(new, swapping).code == 0
    assert "nothing to do" in load(new, swapping).err


def test_a_swap_says_that_it_deletes_all_other_rows(tmp_path: Path, swapping: Backend) -> None:
    loaded(make_output(tmp_path / "out.parquet", unit_vectors(9, DIM), ids=names(9)), swapping)
    output = make_output(tmp_path / "new.parquet", unit_vectors(4, DIM, seed=1), ids=names(4))
    done = load(output, swapping, "--sync", "--swap")
    assert done.code == 0
    assert "--swap replaces all rows, so that --sync has nothing more to delete" in done.err
    assert sorted(swapping.ids()) == names(4)


def test_a_swap_may_be_the_first_load(tmp_path: Path, swapping: Backend) -> None:
    output = loaded(make_output(tmp_path / "out.parquet", unit_vectors(40, DIM), ids=names(40)), swapping, "--swap")
    assert sorted(swapping.ids()) == sorted(names(40))
    assert check(output, swapping).code == 0


def test_a_killed_swap_never_shows_a_mixture(tmp_path: Path, swapping: Backend) -> None:
    count = 60
    old = make_output(tmp_path / "old.parquet", unit_vectors(count, DIM), ids=[f"old{i}" for i in range(count)])
    new = make_output(tmp_path / "new.parquet", unit_vectors(count, DIM, seed=1), ids=[f"new{i}" for i in range(count)])
    loaded(old, swapping)
    assert load_until(rehearse(new, swapping) // 2, new, swapping, "--swap")
    check_one_of(old, new, swapping, count)
    calls = rehearse(new, swapping, "--swap", inside="replace_table")
    for call in range(1, calls + 1, max(1, calls // 9)):
        load_until(call, new, swapping, "--swap", inside="replace_table")
        check_one_of(old, new, swapping, count)
    assert load(new, swapping, "--swap").code == 0
    assert check(new, swapping).code == 0


def check_one_of(old: Path, new: Path, backend: Backend, count: int) -> None:
    """The table has all rows of one output, and none of the other."""
    ids = backend.ids()
    assert len(ids) == count
    found = {id.rstrip("0123456789") for id in ids}
    assert found in ({"old"}, {"new"})
    assert check(old if found == {"old"} else new, backend).code == 0


# Verify and search


def test_verify_finds_a_changed_vector(tmp_path: Path, backend: Backend) -> None:
    vectors = unit_vectors(40, DIM)
    output = loaded(make_output(tmp_path / "out.parquet", vectors, ids=names(40)), backend)
    backend.change_vector("r7", vectors[8].tolist())
    done = check(output, backend)
    assert done.code == 1
    assert "1 with other values than the output: r7; " in done.out
    if backend.can_swap:
        assert "; load --swap replaces all rows" in done.out
        loaded(output, backend, "--swap")
    else:
        assert "; delete these rows in the database, and load sends them again" in done.out
        backend.delete("r7")
        loaded(output, backend)
    assert check(output, backend).code == 0
    assert run("verify", output, backend.address, "--table", TABLE, "--rows", 0).code == 0


def test_verify_needs_the_table(tmp_path: Path, backend: Backend) -> None:
    output = loaded(make_output(tmp_path / "out.parquet", unit_vectors(4, DIM), ids=names(4)), backend)
    done = run("verify", output, backend.address, "--table", "other")
    assert done.code == 2
    assert "table other: there is no such table" in done.err


def test_search_finds_what_it_finds_in_the_output(tmp_path: Path, backend: Backend) -> None:
    model = model_folder(tmp_path / "model")
    for precision in (*backend.precisions, "int8"):
        for option in ([], ["--index"]) if backend.has_index else ([],):
            output = embedded(tmp_path / "out.parquet", model, precision=precision)
            drop(backend)
            loaded(output, backend, *option)
            for words in ("mouse", "rain", "storm pan"):
                check_same_hits(output, backend, words, ties=precision in ("binary", "ubinary"))


def check_same_hits(output: Path, backend: Backend, words: str, *, ties: bool) -> None:
    """The best ten rows by the file and by the database; among so few bits there are ties, in any order."""
    options = (words, "-k", 10, "--json", "--show", "text")
    expected = json.loads(run("search", output, *options).out)
    done = run("search", backend.address, *options, "--table", TABLE)
    assert (done.code, done.err) == (0, ""), done.err
    found = json.loads(done.out)
    assert [hit["score"] for hit in found] == pytest.approx([hit["score"] for hit in expected], abs=1e-6)
    assert [hit["rank"] for hit in found] == list(range(1, 11))
    assert ties or [(hit["id"], hit["text"]) for hit in found] == [(hit["id"], hit["text"]) for hit in expected]


def test_search_names_a_column_that_is_missing(tmp_path: Path, backend: Backend) -> None:
    output = loaded(embedded(tmp_path / "out.parquet", model_folder(tmp_path / "model")), backend)
    done = run("search", backend.address, "mouse", "--table", TABLE, "--show", "title")
    assert done.code == 2
    assert "has no column 'title'" in done.err
    assert output.exists()


# Refusals


def test_an_index_is_built_or_refused(tmp_path: Path, backend: Backend) -> None:
    vectors = unit_vectors(300, 64)
    output = make_output(tmp_path / "out.parquet", vectors, ids=names(300))
    done = load(output, backend, "--index")
    if not backend.has_index:
        assert done.code == 2
        assert "has no index for vectors" in done.err
        return
    for precision in backend.precisions:
        if precision != "float32" and not backend.can_swap:
            continue
        if precision != "float32":
            stored_as = cast("Precision", precision)
            output = make_output(tmp_path / "out.parquet", vectors, ids=names(300), stored_as=stored_as)
            done = load(output, backend, "--index", "--swap")
        assert done.code == 0, done.err
        assert "index     " in done.err
        assert check(output, backend).code == 0
        assert "nothing to do" in load(output, backend, "--index").err
        check_nearest(vectors, backend)


def check_nearest(vectors: Any, backend: Backend) -> None:
    """Some rows are the nearest to their own vectors."""
    with connect(parse_target(backend.address, TABLE), read_only=True) as database:
        layout = parse_record(database.read_record(TABLE) or {}, TABLE).layout
        for row in (0, 123, 299):
            query = vectors[row : row + 1].astype(np.float32)
            sent = np.packbits(query > 0, axis=-1) if layout.precision == "ubinary" else query
            found = database.find_nearest(TABLE, layout, sent, 3, ["id"])
            assert found.column("id").to_pylist()[0] == f"r{row}"
            assert found.num_rows == 3


@pytest.mark.parametrize("name", ["1st", "a b", "x;y", 'q"', "a.b.c", "x" * 51])
def test_names_that_need_quotes_are_refused(tmp_path: Path, backend: Backend, name: str) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(4, DIM), ids=names(4))
    done = run("load", output, backend.address, "--table", name)
    assert done.code == 2
    assert "cannot be the name of a table" in done.err


def test_names_that_a_load_uses_itself_are_refused(tmp_path: Path, backend: Backend) -> None:
    output = loaded(make_output(tmp_path / "out.parquet", unit_vectors(4, DIM), ids=names(4)), backend)
    other = make_output(tmp_path / "other.parquet", unit_vectors(3, DIM, seed=1), ids=names(3))
    for name in ("docs__new", "docs__NEW", *backend.reserved):
        for command in (["load", other, backend.address], ["verify", other, backend.address]):
            done = run(*command, "--table", name)
            assert done.code == 2, done
            assert f"{name!r} cannot be the name of a table" in done.err
        assert run("search", backend.address, "words", "--table", name).code == 2
    assert sorted(backend.ids()) == names(4)
    assert check(output, backend).code == 0


def test_a_kept_column_named_like_ours_is_refused(tmp_path: Path, backend: Backend) -> None:
    kept = {target_module.DIGEST_COLUMN: ["x"] * 4}
    output = make_output(tmp_path / "out.parquet", unit_vectors(4, DIM), ids=names(4), kept=kept)
    done = load(output, backend)
    assert done.code == 2
    assert "cannot tell the columns" in done.err


def test_the_space_is_recorded(tmp_path: Path, backend: Backend) -> None:
    loaded(make_output(tmp_path / "out.parquet", unit_vectors(4, DIM), ids=names(4)), backend)
    with connect(parse_target(backend.address, TABLE), read_only=True) as database:
        record = database.read_record(TABLE)
    assert record is not None
    assert record["vector_space"].items() >= SPACE.items()

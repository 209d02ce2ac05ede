"""Lance datasets as outputs: the rows of any other output, whole or not there, and read by every command."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import jobs
from embedcli import storage
from embedcli.core.errors import OutputError, UsageError
from embedcli.outputs import lance as lance_output
from embedcli.outputs import writers
from embedcli.outputs.dataset import open_dataset

lance: Any = pytest.importorskip("lance")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a model and 40 rows."""
    monkeypatch.setenv("EMBEDCLI_MODEL", "words.txt")
    return jobs.enter_folder(tmp_path, monkeypatch, 40)


def encode(output: str = "out.lance", *arguments: object) -> jobs.Ended:
    return jobs.run("encode", "in.jsonl", output, "--keep", "n", "--chunk-rows", 7, *arguments)


def content(path: str) -> tuple[list[Any], np.ndarray[Any, Any]]:
    """The columns without vectors as rows, and the vectors as they are stored."""
    made = open_dataset(path)
    names = list(made.schema.names)
    blocks = list(made.read_blocks(names))
    rows = [row for block in blocks for row in block.columns.to_pylist()]
    return rows, np.concatenate([block.vectors for block in blocks])


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "uint8", "binary", "ubinary"])
def test_it_holds_what_a_parquet_output_holds(here: Path, precision: str) -> None:
    for output in ("out.lance", "out.parquet"):
        assert encode(output, "--precision", precision).code == 0
    rows, stored = content("out.lance")
    expected_rows, expected = content("out.parquet")
    assert rows == expected_rows
    assert stored.dtype == expected.dtype
    assert np.array_equal(stored, expected)
    assert open_dataset("out.lance").vector_space == open_dataset("out.parquet").vector_space
    assert jobs.left_in(here) == ["out.lance", "out.parquet"]


def test_lance_itself_reads_it(here: Path) -> None:
    encode()
    data = lance.dataset("out.lance")
    assert data.schema.field("embedding").type.list_size == jobs.DIM
    query = content("out.lance")[1][5]
    nearest = data.to_table(nearest={"column": "embedding", "q": query, "k": 1}, columns=["id"])
    assert nearest["id"].to_pylist() == ["r5"]


def test_every_command_reads_it(here: Path) -> None:
    encode()
    found = json.loads(jobs.run("inspect", "out.lance", "--json").out)
    assert (found["rows"], found["dim"], found["bytes"] > 1000) == (40, jobs.DIM, True)
    text = json.loads((here / "in.jsonl").read_text().splitlines()[11])["text"]
    hits = json.loads(jobs.run("search", "out.lance", text, "-k", 3, "--json").out)
    assert "r11" in json.dumps(hits)
    done = jobs.run("verify", "out.lance", "in.jsonl")
    assert done.code == 0, done.out + done.err
    encode("out.parquet")
    assert jobs.run("compare", "out.lance", "out.parquet").code == 0


def test_the_same_command_again_has_nothing_to_do(here: Path) -> None:
    encode()
    before = sorted((path, path.stat().st_mtime_ns) for path in Path("out.lance").rglob("*"))
    for output in ("out.lance", "out.lance/"):
        done = encode(output)
        assert (done.code, "nothing to do" in done.err) == (0, True)
    assert sorted((path, path.stat().st_mtime_ns) for path in Path("out.lance").rglob("*")) == before
    done = encode("out.lance", "--truncate-dim", 4)
    assert (done.code, "other settings" in done.err) == (2, True)


def test_it_is_replaced_and_updated(here: Path) -> None:
    encode()
    jobs.write_jsonl(here / "in.jsonl", [*jobs.rows(40), {"id": "new", "text": "word1 word2", "n": 1}])
    assert encode().code == 2
    done = encode("out.lance", "--update")
    assert (done.code, "1 added" in done.err) == (0, True), done.err
    assert content("out.lance")[0][-1]["id"] == "new"
    assert encode("out.lance", "--overwrite", "--truncate-dim", 4).code == 0
    assert open_dataset("out.lance").stored_width == 4
    assert jobs.left_in(here) == ["out.lance"]


def test_one_that_fails_is_not_there_and_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(lance_output, "write_lance_dataset", lambda tables, folder, schema: torn(folder))
        done = encode()
    assert (done.code, "No space left" in done.err) == (1, True)
    assert jobs.left_in(here) == ["out.lance.parts"]
    refused = jobs.run("search", "out.lance", "word1")
    assert (refused.code, "not finished; its part files" in refused.err) == (2, True)
    assert "40 rows were there already" in encode().err
    assert len(content("out.lance")[0]) == 40


def torn(folder: str) -> int:
    os.mkdir(folder)
    Path(folder, "half.lance").write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_what_is_raised_while_rows_are_made_comes_back_as_itself(tmp_path: Path) -> None:
    def damaged(number: int) -> pa.Table:
        raise OutputError(f"part {number} is damaged", "run again")

    with pytest.raises(OutputError, match="part 3 is damaged"):
        lance_output.write_lance_dataset(map(damaged, [3]), str(tmp_path / "new"), pa.schema([("id", pa.int64())]))


def test_what_a_dead_process_left_is_swept_and_a_living_one_keeps_its_own(here: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    for pid in (process.pid, os.getppid()):
        Path(f".out.lance.tmp-{pid}/new/data").mkdir(parents=True)
    encode()
    assert jobs.left_in(here) == [f".out.lance.tmp-{os.getppid()}", "out.lance"]


def test_the_old_one_comes_back_when_it_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.lance"
    target.mkdir()
    (target / "old").touch()
    rename = os.rename

    def failing(one: str, other: str) -> None:
        if one.endswith("new"):
            raise OSError(5, "Input/output error")
        rename(one, other)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OutputError, match="Input/output error"), storage.replace_folder_atomically(str(target)) as new:
        os.mkdir(new)
    assert [path.name for path in tmp_path.rglob("*")] == ["out.lance", "old"]


def test_what_cannot_be_a_dataset_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "must end in .lance" in encode("out.parquet", "--to", "lance").err
    assert "cannot be streamed" in encode("-", "--to", "lance").err
    Path("file.lance").write_text("text")
    done = encode("file.lance")
    assert done.code == 2
    assert Path("file.lance").read_text() == "text"
    monkeypatch.setattr(lance_output, "find_spec", lambda name: None)
    done = encode()
    assert (done.code, "pip install 'embedcli[lance]'" in done.err) == (2, True)
    with pytest.raises(UsageError, match="name of a Lance dataset"):
        writers.resolve_output_format("out/", "lance")

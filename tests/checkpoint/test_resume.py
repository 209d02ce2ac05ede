"""Resume from every kind of source into every kind of output: the bytes are those of an uninterrupted run."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import jobs

ROWS = jobs.rows(230)


def write(folder: Path, kind: str) -> list[Path]:
    """The rows as one or more inputs of a kind."""
    plain = jobs.write_jsonl(folder / "in.jsonl", ROWS)
    table = pa.Table.from_pylist([{"id": row["id"], "text": row["text"]} for row in ROWS])
    other = folder / f"in.{kind}"
    match kind:
        case "gz":
            other.write_bytes(gzip.compress(plain.read_bytes()))
        case "bz2":
            other.write_bytes(bz2.compress(plain.read_bytes()))
        case "csv":
            pyarrow.csv.write_csv(table, other)
        case "parquet":
            pq.write_table(table, other, row_group_size=70)
        case "two files":
            return [plain, jobs.write_jsonl(folder / "in.2.jsonl", ROWS[:90])]
        case _:
            return [plain]
    return [other]


@pytest.mark.parametrize("kind", ["jsonl", "gz", "bz2", "csv", "parquet", "two files"])
@pytest.mark.parametrize("output", ["out.parquet", "out/"])
def test_a_run_that_was_stopped_twice_gives_the_same_output(tmp_path: Path, kind: str, output: str) -> None:
    model = jobs.word_model(tmp_path)
    inputs = write(tmp_path, kind)
    flags = ["-m", model, "--chunk-rows", 40, "-q", *(["--format", "jsonl"] if kind in ("gz", "bz2") else [])]
    whole = f"{tmp_path}/whole{output[3:]}"
    assert jobs.run("encode", *inputs, whole, *flags).code == 0
    codes = [jobs.run("encode", *inputs, f"{tmp_path}/{output}", *flags, "--stop-after", 80).code for _ in range(2)]
    assert codes == [75, 75]
    assert jobs.run("encode", *inputs, f"{tmp_path}/{output}", *flags).code == 0
    assert jobs.contents(Path(f"{tmp_path}/{output}")) == jobs.contents(Path(whole))


@pytest.mark.parametrize("output", ["out.npy", "out.jsonl", "out.arrow"])
def test_a_stopped_run_gives_the_same_output_in_other_formats(tmp_path: Path, output: str) -> None:
    model = jobs.word_model(tmp_path)
    inputs = write(tmp_path, "jsonl")
    flags = ["-m", model, "--chunk-rows", 40, "-q"]
    whole = f"{tmp_path}/whole{output[3:]}"
    jobs.run("encode", *inputs, whole, *flags)
    assert jobs.run("encode", *inputs, tmp_path / output, *flags, "--stop-after", 80).code == 75
    assert jobs.run("encode", *inputs, tmp_path / output, *flags, "--batch-tokens", 33).code == 0
    assert jobs.contents(tmp_path / output) == jobs.contents(Path(whole))


@pytest.mark.parametrize("name", ["out.parquet", "out/"])
def test_an_interrupted_overwrite_is_resumed_without_the_flag(tmp_path: Path, name: str) -> None:
    model = jobs.word_model(tmp_path)
    source, output = tmp_path / "in.jsonl", f"{tmp_path}/{name}"
    command = ("encode", source, output, "-m", model, "--chunk-rows", 16)
    jobs.write_jsonl(source, jobs.rows(100))
    assert jobs.run(*command).code == 0
    jobs.write_jsonl(source, jobs.rows(100, seed=5))
    stopped = jobs.run(*command, "--overwrite", "--stop-after", 40)
    assert (stopped.code, "without --overwrite to go on" in stopped.err) == (75, True)
    # Another job is still compared with the finished output alone.
    assert "--prompt (none, now" in jobs.run(*command, "--prompt", "word3 ").err
    done = jobs.run(*command, "--report", tmp_path / "run.json")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run.json").read_text())["rows"]["resumed"] >= 40
    assert jobs.run("verify", output, source, "--all").code == 0
    assert "nothing to do" in jobs.run(*command).err


def test_a_finished_job_with_rejects_ends_with_the_same_exit_code(tmp_path: Path) -> None:
    source, output = jobs.write_jsonl(tmp_path / "in.jsonl", [*ROWS[:5], {"id": "bad", "text": ""}]), tmp_path / "o.npy"
    command = ("encode", source, output, "-m", jobs.word_model(tmp_path))
    results = [jobs.run(*command), jobs.run(*command), jobs.run(*command, "--update"), jobs.run("merge", output)]
    assert [done.code for done in results] == [3, 3, 3, 3]
    assert all("nothing to do: the output is finished; 1 row was rejected" in done.err for done in results[1:])

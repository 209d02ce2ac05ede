"""The main job from argv to files: formats, outputs, exit codes, and what is said on the way."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import zstandard

import jobs
from embedcli.checkpoint.ledger import Ledger

ROWS = jobs.rows(150)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return jobs.word_model(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return jobs.write_jsonl(tmp_path / "in.jsonl", ROWS)


def vectors(path: Path) -> Any:
    table = pq.read_table(path)
    return np.array(table.column("embedding").to_pylist(), np.float32)


def test_rows_come_out_in_order_with_the_mean_of_their_words(tmp_path: Path, model: Path, source: Path) -> None:
    done = jobs.run("encode", source, tmp_path / "out.parquet", "-m", model, "--keep", "n")
    assert done.code == 0, done.err
    assert done.out == ""
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.names == ["id", "embedding", "n_tokens", "truncated", "text_hash", "n"]
    assert table.column("id").to_pylist() == [row["id"] for row in ROWS]
    assert table.column("n").type == pa.int64()
    assert table.column("n").to_pylist() == list(range(150))
    assert table.column("n_tokens").to_pylist() == [len(row["text"].split()) for row in ROWS]
    lines = model.read_text().splitlines()[1:]
    known = {line.split()[0]: np.array(line.split()[1:], np.float32) for line in lines}
    expected = [np.mean([known[word] for word in row["text"].split()], axis=0) for row in ROWS]
    np.testing.assert_allclose(vectors(tmp_path / "out.parquet"), np.array(expected), atol=1e-6)


def test_the_space_is_in_the_file(tmp_path: Path, model: Path, source: Path) -> None:
    jobs.run("encode", source, tmp_path / "out.parquet", "-m", model, "--prompt", "word1 ", "--truncate-dim", 8)
    schema = pq.read_schema(tmp_path / "out.parquet")
    space = json.loads(schema.metadata[b"embedcli"])
    wanted = {"dim": 8, "truncate_dim": 8, "prompt": "word1 ", "precision": "float32", "model": str(model)}
    assert {key: space[key] for key in wanted} == wanted
    assert {"fingerprint", "max_seq_length", "normalize", "dtype", "engine", "pooling", "revision"} <= set(space)
    assert space["versions"]["embedcli"]
    field = schema.field("embedding")
    assert not field.nullable
    assert field.type.list_size == 8
    norms = np.linalg.norm(vectors(tmp_path / "out.parquet"), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-5)


def test_the_vector_column_has_no_dictionary_no_statistics_and_no_codec(
    tmp_path: Path, model: Path, source: Path
) -> None:
    jobs.run("encode", source, tmp_path / "out.parquet", "-m", model)
    column = pq.read_metadata(tmp_path / "out.parquet").row_group(0).column(1)
    assert column.path_in_schema.startswith("embedding")
    assert (column.statistics, column.compression, column.has_dictionary_page) == (None, "UNCOMPRESSED", False)


WRITERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


@pytest.mark.parametrize(
    "form", ["csv", "tsv", "parquet", "gz", "bz2", "zst", "bom", "two files", "folder", "glob", "stdin"]
)
def test_every_source_gives_the_same_vectors(tmp_path: Path, model: Path, source: Path, form: str) -> None:
    table = pa.Table.from_pylist([{"id": row["id"], "text": row["text"]} for row in ROWS])
    other, options, stdin = tmp_path / f"in.{form}", [], None
    match form:
        case "csv" | "tsv":
            delimiter = pyarrow.csv.WriteOptions(delimiter="," if form == "csv" else "\t")
            pyarrow.csv.write_csv(table, other, delimiter)
        case "parquet":
            pq.write_table(table, other, row_group_size=40)
        case "gz" | "bz2" | "zst":
            # By its first bytes, not by its name.
            other = tmp_path / "in.other.jsonl"
            other.write_bytes(WRITERS[form](source.read_bytes()))
        case "bom":
            other = tmp_path / "in.bom.jsonl"
            other.write_bytes(b"\xef\xbb\xbf" + source.read_bytes())
        case "stdin":
            other, options, stdin = Path("-"), ["--format", "jsonl"], source.read_bytes()
        case _:
            folder = tmp_path / "in.parts"
            folder.mkdir()
            jobs.write_jsonl(folder / "b2.jsonl", ROWS[:100])
            jobs.write_jsonl(folder / "b10.jsonl", ROWS[100:])
            other = {"folder": folder, "glob": folder / "b*.jsonl"}.get(form, folder / "b2.jsonl")
            options = [str(folder / "b10.jsonl")] if form == "two files" else []
    inputs = [other, *options] if form == "two files" else [other]
    flags = [] if form == "two files" else options
    assert jobs.run("encode", source, tmp_path / "a.parquet", "-m", model).code == 0
    job = ("encode", *inputs, tmp_path / "b.parquet", "-m", model, *flags)
    done = jobs.run(*job) if stdin is None else jobs.run_apart(*job, stdin=stdin)
    assert done.code == 0, done.err
    ours, theirs = pq.read_table(tmp_path / "a.parquet"), pq.read_table(tmp_path / "b.parquet")
    assert ours.column("id").to_pylist() == theirs.column("id").to_pylist()
    np.testing.assert_allclose(vectors(tmp_path / "a.parquet"), vectors(tmp_path / "b.parquet"), atol=1e-6)
    if form in ("two files", "folder", "glob"):
        assert [Path(name).name for name in theirs.column("source").to_pylist()[::120]] == ["b2.jsonl", "b10.jsonl"]


def test_chunks_and_budgets_do_not_change_vectors(tmp_path: Path, model: Path, source: Path) -> None:
    jobs.run("encode", source, tmp_path / "a.parquet", "-m", model)
    jobs.run("encode", source, tmp_path / "b.parquet", "-m", model, "--chunk-rows", 7, "--batch-tokens", 20)
    np.testing.assert_allclose(vectors(tmp_path / "a.parquet"), vectors(tmp_path / "b.parquet"), atol=1e-5)


@pytest.mark.parametrize("name", ["out.npy", "out.jsonl", "out.arrow", "out/", "-", "- arrow"])
def test_every_output_holds_the_same(tmp_path: Path, model: Path, source: Path, name: str) -> None:
    jobs.run("encode", source, tmp_path / "a.parquet", "-m", model)
    expected = pq.read_table(tmp_path / "a.parquet")
    output = name.split(maxsplit=1)[0] if name.startswith("-") else f"{tmp_path}/{name}"
    job = ("encode", source, output, "-m", model, *(["--to", "arrow"] if "arrow" in name else []))
    streamed = b""
    if output == "-":
        streamed = subprocess.run(jobs.command(*job), capture_output=True, check=True).stdout
    else:
        assert jobs.run(*job).code == 0
    if name == "out.npy":
        found = np.load(tmp_path / "out.npy", mmap_mode="r")
        np.testing.assert_array_equal(found, vectors(tmp_path / "a.parquet"))
        assert pq.read_table(tmp_path / "out.ids.parquet").equals(expected.drop_columns(["embedding"]))
    elif name in ("out.jsonl", "-"):
        text = (tmp_path / "out.jsonl").read_text() if name == "out.jsonl" else streamed.decode()
        lines = [json.loads(line) for line in text.splitlines()]
        assert list(lines[0]) == expected.schema.names
        assert [line["id"] for line in lines] == expected.column("id").to_pylist()
        found = np.array([line["embedding"] for line in lines], np.float32)
        np.testing.assert_array_equal(found, vectors(tmp_path / "a.parquet"))
    else:
        if name == "out/":
            found = pq.read_table(tmp_path / "out")
        elif name == "out.arrow":
            found = pa.ipc.open_file(tmp_path / "out.arrow").read_all()
        else:
            found = pa.ipc.open_stream(streamed).read_all()
        assert found.select(expected.schema.names).equals(expected)


def test_an_arrow_output_is_an_input_of_the_next_run(tmp_path: Path, model: Path, source: Path) -> None:
    jobs.run("encode", source, tmp_path / "a.parquet", "-m", model)
    jobs.run("encode", source, tmp_path / "a.arrow", "-m", model, "--keep", "text")
    stream = ("encode", source, "-", "-m", model, "--keep", "text", "--to", "arrow")
    streamed = subprocess.run(jobs.command(*stream), capture_output=True, check=True).stdout
    for given, stdin in ((tmp_path / "a.arrow", b""), ("-", streamed)):
        job = jobs.command("encode", given, tmp_path / "b.parquet", "-m", model, "--overwrite")
        done = subprocess.run(job, input=stdin, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert pq.read_table(tmp_path / "b.parquet").equals(pq.read_table(tmp_path / "a.parquet"))


BAD = [
    b"{not json",
    b'{"id": "x"}',
    b'{"id": "x", "text": null}',
    b'{"id": "x", "text": 5}',
    b'{"id": "x", "text": " "}',
]
BAD += [
    b'{"id": "x", "text": "\\ud800"}',
    b'{"id": "x", "text": "\xff\xfe"}',
    b"[1]",
    b'{"id": "x", "text": "unknown"}',
]


def test_bad_rows_are_rejected_with_their_line(tmp_path: Path, model: Path) -> None:
    good = b'{"id": "g", "text": "word1"}'
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join([good, *BAD, good]) + b"\n")
    done = jobs.run("encode", source, tmp_path / "out.parquet", "-m", model, "--id-column", "id")
    assert done.code == 3, done.err
    assert f"11 in, 2 embedded, {len(BAD)} rejected" in done.err
    rejects = [json.loads(line) for line in (tmp_path / "out.parquet.rejects.jsonl").read_text().splitlines()]
    assert [reject["line"] for reject in rejects] == list(range(2, 2 + len(BAD)))
    assert all(reject["source"] == str(source) and reject["reason"] for reject in rejects)
    assert rejects[0]["raw"] == "{not json"
    assert pq.read_metadata(tmp_path / "out.parquet").num_rows == 2


def test_fail_stops_at_the_first_bad_row(tmp_path: Path, model: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"id": "g", "text": "word1"}\n{not json\n')
    done = jobs.run("encode", source, tmp_path / "out.parquet", "-m", model, "--on-bad-row", "fail")
    assert done.code == 1
    assert f"{source}:2: " in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(("allowed", "code"), [("0", 1), ("2", 3), ("1%", 1), ("50%", 3)])
def test_max_rejects(tmp_path: Path, model: Path, allowed: str, code: int) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"id": "g", "text": "word1"}\n' * 10 + b"{not json\n" * 2)
    done = jobs.run("encode", source, tmp_path / "out.parquet", "-m", model, "--max-rejects", allowed)
    assert done.code == code, done.err
    assert (tmp_path / "out.parquet").exists() == (code == 3)


@pytest.mark.parametrize("allowed", ["many", "-5", "nan", "200%", "1.5", ""])
def test_what_max_rejects_cannot_be_is_said_before_the_work(
    tmp_path: Path, model: Path, source: Path, allowed: str
) -> None:
    done = jobs.run("encode", source, tmp_path / "out.parquet", "-m", model, "--max-rejects", allowed)
    assert done.code == 2
    assert "is neither a number nor a percentage" in done.err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("harm", ["gone", "empty"])
def test_a_folder_output_without_one_of_its_parts_is_not_finished(
    tmp_path: Path, model: Path, source: Path, harm: str
) -> None:
    command = ("encode", source, f"{tmp_path}/out/", "-m", model)
    assert jobs.run(*command).code == 0
    part = tmp_path / "out" / "part-00000.parquet"
    whole = part.read_bytes()
    part.write_bytes(b"") if harm == "empty" else part.unlink()
    done = jobs.run(*command)
    assert done.code == 2
    assert "part-00000.parquet: a file of the finished output" in done.err
    assert jobs.run(*command, "--overwrite").code == 0
    assert part.read_bytes() == whole


def test_zero_rows_give_an_empty_output(tmp_path: Path, model: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"")
    done = jobs.run("encode", source, tmp_path / "out.parquet", "-m", model, "--text-column", "text")
    assert done.code == 0, done.err
    table = pq.read_table(tmp_path / "out.parquet")
    assert (table.num_rows, table.schema.field("embedding").type.list_size) == (0, jobs.DIM)


def test_a_row_of_ten_megabytes(tmp_path: Path, model: Path) -> None:
    rows = [{"id": "a", "text": "word1"}, {"id": "b", "text": "word1 " * 1_700_000}, {"id": "c", "text": "word2"}]
    source = jobs.write_jsonl(tmp_path / "in.jsonl", rows)
    assert jobs.run("encode", source, tmp_path / "out.parquet", "-m", model).code == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column("n_tokens").to_pylist() == [1, 1_700_000, 1]


REFUSED = {
    "no such column": (["--text-column", "body"], 2, "'id', 'text', 'n'"),
    "no such kept column": (["--keep", "nope"], 2, "'id', 'text', 'n'"),
    "reserved column": (["--keep", "embedding"], 2, "embedding"),
    "no such model": (["-m", "./nowhere"], 1, "nowhere"),
    "wide dimension": (["--truncate-dim", "99"], 2, "between 1 and"),
    "zero budget": (["--batch-tokens", "0"], 2, "too small"),
    "no such flag": (["--nope"], 2, "--nope"),
    "attribute in template": (["--template", "{text.__class__}"], 2, "template"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_in_a_sentence(tmp_path: Path, model: Path, source: Path, case: str) -> None:
    flags, code, said = REFUSED[case]
    flags = flags if "-m" in flags else [*flags, "-m", str(model)]
    done = jobs.run("encode", source, tmp_path / "out.parquet", *flags)
    assert done.code == code, done.err
    assert said in done.err
    assert "Traceback" not in done.err
    assert jobs.left_in(tmp_path) == []


@pytest.mark.parametrize(
    "case", ["missing input", "missing folder", "truncated gz", "unknown ending", "one path", "a file as folder"]
)
def test_paths_that_cannot_be_right(tmp_path: Path, model: Path, source: Path, case: str) -> None:
    cut = tmp_path / "in.cut.gz"
    cut.write_bytes(gzip.compress(os.urandom(99) + source.read_bytes())[:-40])
    arguments: dict[str, tuple[list[Any], int]] = {
        "missing input": ([tmp_path / "no.jsonl", tmp_path / "out.parquet"], 2),
        "missing folder": ([source, tmp_path / "no" / "out.parquet"], 1),
        "truncated gz": ([cut, tmp_path / "out.parquet", "--format", "jsonl", "--text-column", "text"], 1),
        "unknown ending": ([source, tmp_path / "out.xyz"], 2),
        "one path": ([source], 2),
        "a file as folder": ([source, source / "out.parquet"], 1),
    }
    given, code = arguments[case]
    done = jobs.run("encode", *given, "-m", model)
    assert done.code == code, done.err
    assert done.err.count("error: ") == 1
    assert "Traceback" not in done.err
    assert not (tmp_path / "out.parquet").exists()


def test_files_of_a_folder_are_in_the_order_of_the_rows_by_name(tmp_path: Path, model: Path, source: Path) -> None:
    assert jobs.run("encode", source, f"{tmp_path}/out/", "-m", model, "--chunk-rows", 10, "--part-size", 1).code == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))
    assert names[:2] == ["part-00000.parquet", "part-00000_00001.parquet"]
    assert len(names) == 15
    read = [id for name in names for id in pq.read_table(tmp_path / "out" / name)["id"].to_pylist()]
    assert read == [row["id"] for row in ROWS]
    assert jobs.run("encode", source, f"{tmp_path}/out/", "-m", model, "--overwrite").code == 0
    assert [path.name for path in (tmp_path / "out").glob("*.parquet")] == ["part-00000.parquet"]


def test_a_finished_job_is_left_alone_and_another_is_refused(tmp_path: Path, model: Path, source: Path) -> None:
    output = tmp_path / "out.parquet"
    jobs.run("encode", source, output, "-m", model)
    before = output.read_bytes(), output.stat().st_mtime_ns
    again = jobs.run("encode", source, output, "-m", model)
    assert again.code == 0
    assert "nothing to do" in again.err
    assert (output.read_bytes(), output.stat().st_mtime_ns) == before
    other = jobs.run("encode", source, output, "-m", model, "--prompt", "word3 ")
    assert other.code == 2
    assert '--prompt (none, now "word3 ")' in other.err
    assert "--overwrite" in other.err
    assert jobs.left_in(tmp_path) == ["out.parquet"]
    assert jobs.run("encode", source, output, "-m", model, "--prompt", "word3 ", "--overwrite").code == 0
    assert output.read_bytes() != before[0]


@pytest.mark.parametrize(("name", "updatable"), [("out.parquet", True), ("out.npy", True), ("out.jsonl", False)])
def test_a_changed_input_is_refused_even_with_equal_size_and_time(
    name: str, updatable: bool, tmp_path: Path, model: Path, source: Path
) -> None:
    output = tmp_path / name
    jobs.run("encode", source, output, "-m", model)
    source.write_text(source.read_text().replace("word1 ", "word2 ", 1))
    done = jobs.run("encode", source, output, "-m", model)
    assert done.code == 2
    assert "has changed" in done.err
    assert "--overwrite" in done.err
    assert ("--update" in done.err) == updatable
    assert (jobs.run("encode", source, output, "-m", model, "--update").code == 0) == updatable


def test_a_touched_input_is_still_the_same_job(tmp_path: Path, model: Path, source: Path) -> None:
    output = tmp_path / "out.parquet"
    jobs.run("encode", source, output, "-m", model)
    os.utime(source, (1, 1))
    assert jobs.run("encode", source, output, "-m", model).code == 0


def test_a_closed_stdout_ends_in_a_sentence(tmp_path: Path, model: Path) -> None:
    source = jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(20000))
    with subprocess.Popen(
        jobs.command("encode", source, "-", "-m", model, "--chunk-rows", 500),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait() == 1
    assert "error: stdout was closed" in said
    assert "Traceback" not in said
    assert "Exception ignored" not in said


@pytest.mark.parametrize("to", ["jsonl", "arrow"])
def test_a_full_disk_behind_stdout_is_reported(to: str, model: Path, source: Path) -> None:
    with open("/dev/full", "wb") as full:
        command = jobs.command("encode", source, "-", "-m", model, "--to", to)
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, text=True)
    assert done.returncode == 1
    assert "error: stdout: cannot be written: No space left on device\nhint: free some space" in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_reader_that_stops_early_is_not_an_error(source: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(jobs.command("inspect", source), stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signals_keep_the_state_even_while_stdin_is_silent(
    tmp_path: Path, model: Path, number: signal.Signals, code: int
) -> None:
    rows = jobs.rows(2000)
    source = jobs.write_jsonl(tmp_path / "in.jsonl", rows).read_bytes()
    output = tmp_path / "out.parquet"
    flags = ["--format", "jsonl", "-m", model, "--chunk-rows", 150, "--progress", "plain"]
    with silent(jobs.command("encode", "-", output, *flags), source) as process:
        jobs.wait_for(lambda: len(list(tmp_path.glob("out.parquet.parts/part-*"))) >= 13, process)
        process.send_signal(number)
        said = process.stderr.read().decode() if process.stderr else ""
        assert process.wait(20) == code, said
    assert "run the same command again" in said
    assert not output.exists()
    done = jobs.run_apart("encode", "-", output, *flags, stdin=source)
    assert done.code == 0, done.err
    assert "1,950 rows were there already" in done.err
    assert pq.read_table(output).column("id").to_pylist() == [row["id"] for row in rows]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signals_before_the_first_rows_leave_nothing(
    tmp_path: Path, model: Path, number: signal.Signals, code: int
) -> None:
    flags = ["--format", "jsonl", "-m", model]
    with silent(jobs.command("encode", "-", tmp_path / "out.parquet", *flags), b"") as process:
        jobs.wait_for(lambda: jobs.catches(process.pid, number), process)
        process.send_signal(number)
        assert process.wait(20) == code
    assert jobs.left_in(tmp_path) == []


@contextmanager
def silent(command: list[str], data: bytes) -> Iterator[Any]:
    """A process whose stdin got `data` and stays open."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(data)
        process.stdin.flush()
        try:
            yield process
        finally:
            process.kill()


def test_limited_runs_add_up(tmp_path: Path, model: Path, source: Path) -> None:
    output = tmp_path / "out.parquet"
    flags = ["-m", model, "--chunk-rows", 20, "--stop-after", 60]
    codes = [jobs.run("encode", source, output, *flags).code for _ in range(3)]
    assert codes == [75, 75, 0]
    jobs.run("encode", source, tmp_path / "b.parquet", "-m", model, "--chunk-rows", 20)
    assert output.read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_windows_of_a_few_seconds_finish_the_job(tmp_path: Path, model: Path, source: Path) -> None:
    flags = ["-m", model, "--chunk-rows", 40, "--max-seconds", 0.000001]
    codes = [jobs.run("encode", source, tmp_path / "out.parquet", *flags).code for _ in range(4)]
    assert codes == [75, 75, 75, 0]


def test_the_report_is_written_after_success_and_failure(tmp_path: Path, model: Path, source: Path) -> None:
    report = tmp_path / "run.json"
    jobs.run("encode", source, tmp_path / "out.parquet", "-m", model, "--report", report, "-q")
    made = json.loads(report.read_text())
    assert (made["exit_code"], made["rows"]["read"], made["rows"]["rows"]) == (0, 150, 150)
    assert made["counters"]["fed_tokens"] == sum(
        len(row["text"].split()) for row in {r["text"]: r for r in ROWS}.values()
    )
    assert set(made["stage_seconds"]) == {"read", "tokenize", "forward", "write"}
    jobs.run("encode", source, tmp_path / "out.parquet", "-m", "./nowhere", "--report", report, "-q")
    made = json.loads(report.read_text())
    assert made["exit_code"] == 1
    assert "nowhere" in made["reason"]


def test_environment_variables_set_options(tmp_path: Path, model: Path, source: Path) -> None:
    done = jobs.run_apart(
        "encode", source, tmp_path / "out.parquet", EMBEDCLI_MODEL=str(model), EMBEDCLI_TRUNCATE_DIM="4"
    )
    assert done.code == 0, done.err
    assert vectors(tmp_path / "out.parquet").shape == (150, 4)


def test_quiet_says_nothing_and_plain_lines_carry_the_time(tmp_path: Path, model: Path, source: Path) -> None:
    assert jobs.run("encode", source, tmp_path / "a.parquet", "-m", model, "-q").err == ""
    said = jobs.run("encode", source, tmp_path / "b.parquet", "-m", model).err.splitlines()
    assert all(line[4] == "-" and line[19:21] == "Z " for line in said)
    assert any("guessed" in line for line in said)


def test_generated_row_numbers(tmp_path: Path, model: Path) -> None:
    source = jobs.write_jsonl(tmp_path / "in.jsonl", [{"text": "word1"}, {"text": ""}, {"text": "word2"}])
    assert jobs.run("encode", source, tmp_path / "out.parquet", "-m", model).code == 3
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column("row").to_pylist() == [0, 2]
    assert table.column("row").type == pa.int64()


def test_ids_keep_their_type(tmp_path: Path, model: Path) -> None:
    rows = [{"id": 2**40 + i, "text": "word1"} for i in range(3)]
    source = jobs.write_jsonl(tmp_path / "in.jsonl", rows)
    jobs.run("encode", source, tmp_path / "out.parquet", "-m", model)
    column = pq.read_table(tmp_path / "out.parquet").column("id")
    assert (column.type, column.to_pylist()) == (pa.int64(), [row["id"] for row in rows])


@pytest.mark.parametrize("kind", ["float16", "binary", "ubinary"])
def test_stored_precision(tmp_path: Path, model: Path, source: Path, kind: str) -> None:
    jobs.run("encode", source, tmp_path / "a.parquet", "-m", model)
    assert jobs.run("encode", source, tmp_path / "b.parquet", "-m", model, "--precision", kind).code == 0
    stored = pq.read_table(tmp_path / "b.parquet").column("embedding").combine_chunks().flatten().to_numpy()
    from embedcli.core import quantization

    expected = quantization.quantize(vectors(tmp_path / "a.parquet"), kind)  # type: ignore[arg-type]
    np.testing.assert_array_equal(stored.reshape(150, -1), expected)


# Each takes time at every start: by a run with word vectors, and by one with the default engine.
UNUSED = {"pandas", "torch", "transformers", "scipy", "urllib3", "rich", "tqdm"}
UNUSED |= {f"embedcli.{name}" for name in ("cli.search", "runners.coordinator", "runners.merge", "outputs.reuse")}


@pytest.mark.parametrize(("engine", "unused"), [("words", "openvino"), ("default", "pyarrow.compute")])
def test_a_run_imports_no_library_it_does_not_need(
    tmp_path: Path, model: Path, source: Path, engine: str, unused: str
) -> None:
    code = "import sys; from embedcli.cli import main\ntry: main()\nfinally: print(*sys.modules)"
    arguments = ["encode", source, tmp_path / "out.parquet", "--limit", 3, "-q"]
    arguments += ["-m", model] if engine == "words" else []
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, check=True)
    assert set(done.stdout.decode().split()) & (UNUSED | {unused}) == set()


def test_long_texts_become_windows_with_the_default_engine(tmp_path: Path, sample_data: Path) -> None:
    source = sample_data / "texts.jsonl"
    done = jobs.run("encode", source, tmp_path / "out.parquet", "--overflow", "split", "--keep", "text", "-q")
    assert done.code == 0, done.err
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert len(rows) > 205
    assert len({row["id"] for row in rows}) == 205
    assert max(row["n_tokens"] for row in rows) <= 256
    whole = [row for row in rows if row["window"] == 0]
    assert all(row["char_start"] == 0 for row in whole)
    ends = {row["id"]: row["char_end"] for row in rows}
    assert all(ends[row["id"]] == len(row["text"]) for row in whole)


def test_rows_that_are_appended_while_a_job_runs_are_not_forgotten(
    tmp_path: Path, model: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, more = Ledger.add_chunk, [json.dumps({"id": "late", "text": ROWS[0]["text"]}) + "\n"]

    def appending(self: Ledger, *values: Any) -> Any:
        if more:
            with source.open("a") as file:
                file.write(more.pop())
        return add(self, *values)

    monkeypatch.setattr(Ledger, "add_chunk", appending)
    command = ("encode", source, tmp_path / "out.parquet", "--model", model, "--id-column", "id")
    ended = jobs.run(*command)
    assert ended.code == 1
    assert "has changed while it was read; nothing was published" in ended.err
    assert not (tmp_path / "out.parquet").exists()
    assert jobs.run(*command, "--update").code == 0
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist()[-1] == "late"


def test_a_folder_output_takes_and_leaves_what_is_not_its_own(tmp_path: Path, model: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = ROWS[:30]
    inputs = [tmp_path / "c.jsonl", data / "a.jsonl", data / "part-b.jsonl"]
    for i, path in enumerate(inputs):
        jobs.write_jsonl(path, rows[10 * i : 10 * i + 10])
    (data / "part-notes.csv").write_text("mine")
    command = ("encode", *inputs, f"{data}/", "--model", model)
    refused = jobs.run(*command)
    assert refused.code == 2
    assert "part-notes.csv" in refused.err
    assert not list(data.glob("*.parquet"))
    for _ in range(2):
        assert jobs.run(*command, "--overwrite").code == 0
        assert pa.dataset.dataset(sorted(data.glob("*.parquet"))).count_rows() == 30
    assert (data / "part-notes.csv").read_text() == "mine"
    assert all(path.exists() for path in inputs)


def test_files_named_like_part_files_of_unknown_origin_are_not_replaced(
    tmp_path: Path, model: Path, source: Path
) -> None:
    (tmp_path / "data").mkdir()
    foreign = tmp_path / "data" / "part-00000.parquet"
    foreign.write_bytes(b"somebody's")
    command = ("encode", source, f"{tmp_path}/data/", "--model", model)
    (tmp_path / "other" / "part-00001.parquet").mkdir(parents=True)
    folder = jobs.run("encode", source, f"{tmp_path}/other/", "--model", model)
    assert (folder.code, "part-00001.parquet: the file exists, and the folder has no record" in folder.err) == (2, True)
    refused = jobs.run(*command)
    assert refused.code == 2
    assert "part-00000.parquet: the file exists, and the folder has no record" in refused.err
    assert foreign.read_bytes() == b"somebody's"
    assert jobs.left_in(tmp_path / "data") == ["part-00000.parquet"]
    assert jobs.run(*command, "--overwrite").code == 0
    assert pq.read_table(foreign).num_rows == len(ROWS)


def test_overwrite_removes_nothing_of_a_folder_that_the_output_has_not_made(
    tmp_path: Path, model: Path, source: Path
) -> None:
    folder = tmp_path / "data"
    command = ("encode", source, f"{folder}/", "--model", model, "--overwrite")
    assert jobs.run(*command).code == 0
    mine = folder / "part-00077.jsonl"
    jobs.write_jsonl(mine, ROWS[:20])
    assert jobs.run(*command).code == 0
    assert mine.exists()
    both = jobs.run("encode", source, mine, f"{folder}/", "--model", model, "--overwrite")
    assert both.code == 2
    assert "part-00077.jsonl: is an input, and the output may need its name" in both.err
    assert len(mine.read_text().splitlines()) == 20


def test_a_link_to_vectors_and_one_to_their_record_stay(tmp_path: Path, model: Path, source: Path) -> None:
    (tmp_path / "store").mkdir()
    names = ("out.npy", "out.ids.parquet")
    for name in names:
        (tmp_path / name).symlink_to(tmp_path / "store" / name)
    command = ("encode", source, tmp_path / "out.npy", "--model", model)
    for flags in ((), ("--overwrite",), ()):
        assert jobs.run(*command, *flags).code == 0
        assert all((tmp_path / name).is_symlink() and (tmp_path / "store" / name).is_file() for name in names)


def test_names_that_are_not_unicode_are_inputs_too(tmp_path: Path, model: Path) -> None:
    name = os.fsdecode(b"b\xff.jsonl")
    jobs.write_jsonl(tmp_path / name, ROWS[:5])
    for output in ("out.parquet", "out.npy", "out.jsonl", "out/"):
        done = jobs.run_apart("encode", f"{tmp_path}/b*.jsonl", f"{tmp_path}/{output}", "--model", model)
        assert done.code == 0, done.err
        again = jobs.run_apart("encode", f"{tmp_path}/b*.jsonl", f"{tmp_path}/{output}", "--model", model)
        assert "nothing to do" in again.err
    report = tmp_path / "run.json"
    done = jobs.run_apart("encode", tmp_path / name, tmp_path / "c.parquet", "--model", model, "--report", report)
    assert done.code == 0, done.err
    assert json.loads(report.read_text("utf-8"))["job"]["inputs"] == [str(tmp_path / name)]


@pytest.mark.parametrize("kind", ["npy", "arrow", "parquet"])
def test_a_folder_of_any_format_is_updated_and_reused(tmp_path: Path, model: Path, kind: str) -> None:
    source = jobs.write_jsonl(tmp_path / "in.jsonl", ROWS[:60])
    folder = ("encode", source, f"{tmp_path}/out/", "--to", kind, "--model", model)
    assert jobs.run(*folder).code == 0
    jobs.write_jsonl(source, ROWS[:80])
    for flags in (("--update",), ()):
        done = jobs.run(*folder, *flags)
        assert done.code == 0, done.err
    plain, reused = tmp_path / "plain.parquet", tmp_path / "reused.parquet"
    assert jobs.run("encode", source, plain, "--model", model).code == 0
    done = jobs.run("encode", source, reused, "--model", model, "--reuse", f"{tmp_path}/out/")
    assert done.code == 0, done.err
    np.testing.assert_array_equal(vectors(reused), vectors(plain))
    assert "80 reused" in done.err

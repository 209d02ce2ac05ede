"""stdin, stdout and stderr that are closed, full or of another encoding, and folders that are not there."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import jobs

ROWS = jobs.rows(60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    jobs.word_model(tmp_path)
    jobs.write_jsonl(tmp_path / "in.jsonl", ROWS)
    return tmp_path


def in_shell(folder: Path, arguments: str, redirections: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command with redirections of a shell; what is not redirected is captured."""
    command = f"{shlex.join(jobs.command())} {arguments} {redirections}"
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, env=os.environ | environment, capture_output=True, check=False
    )


CLOSED = [">&-", "<&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full", ">&- 2>/dev/full"]


@pytest.mark.parametrize("redirections", CLOSED)
def test_a_job_does_not_need_its_standard_streams(folder: Path, redirections: str) -> None:
    done = in_shell(folder, "encode in.jsonl out.parquet -m words.txt --report r.json", redirections)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert pq.read_table(folder / "out.parquet").column("id").to_pylist() == [row["id"] for row in ROWS]
    assert json.loads((folder / "r.json").read_text())["exit_code"] == 0


@pytest.mark.parametrize("redirections", CLOSED)
def test_workers_do_not_need_them_either(folder: Path, redirections: str) -> None:
    done = in_shell(folder, "encode in.jsonl out/ -m words.txt --workers 2 --report r.json", redirections)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert json.loads((folder / "r.json").read_text())["rows"]["rows"] == len(ROWS)


@pytest.mark.parametrize("redirections", [">&-", ">/dev/full", "<&- >&- 2>&-"])
@pytest.mark.parametrize("arguments", ["inspect in.jsonl", "models --json", "--help", "--version"])
def test_lost_output_is_a_failure(folder: Path, arguments: str, redirections: str) -> None:
    done = in_shell(folder, arguments, redirections)
    assert done.returncode == 1
    if "2>" not in redirections:
        reason = "Bad file descriptor" if ">&-" in redirections else "No space left on device"
        assert done.stderr.decode().startswith(f"error: {reason}: stdout\n")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("redirections", ["2>&-", "2>/dev/full"])
def test_errors_keep_their_code_without_stderr(folder: Path, redirections: str) -> None:
    assert in_shell(folder, "encode in.jsonl out.parquet -m words.txt --keep nothing", redirections).returncode == 2
    assert in_shell(folder, "unknown", redirections).returncode == 2
    done = in_shell(folder, "encode in.jsonl - -m words.txt", redirections)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, len(ROWS))


def test_rows_from_a_closed_stdin(folder: Path) -> None:
    done = in_shell(folder, "encode - out.parquet --format jsonl -m words.txt", "<&-")
    assert done.returncode == 1
    assert b"error: stdin is closed or not binary\nhint: " in done.stderr


def test_rows_to_a_closed_stdout(folder: Path) -> None:
    done = in_shell(folder, "encode in.jsonl - -m words.txt", ">&-")
    assert done.returncode == 1
    assert b"error: stdout is closed or not binary\nhint: write to a file" in done.stderr


@pytest.mark.parametrize("redirections", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(folder: Path, redirections: str) -> None:
    code = (
        "import os\n"
        "from embedcli.cli.standard_streams import set_up_standard_streams\n"
        "set_up_standard_streams()\n"
        "opened = os.open('in.jsonl', os.O_RDONLY)\n"
        "os.write(os.open('number', os.O_WRONLY | os.O_CREAT), str(opened).encode())\n"
    )
    command = f"{sys.executable} -c {shlex.quote(code)} {redirections}"
    subprocess.run(["sh", "-c", command], cwd=folder, check=True)
    assert int((folder / "number").read_text()) > 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16"])
def test_text_that_the_encoding_of_the_streams_lacks(folder: Path, encoding: str) -> None:
    jobs.write_jsonl(folder / "größe.jsonl", [{"id": "日本", "text": "word1", "título": "ñ"}])
    for flag in ("", "--json"):
        done = in_shell(folder, f"inspect größe.jsonl {flag}", "", PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
        text = done.stdout.decode(encoding)
        assert json.loads(text)["path"] == "größe.jsonl" if flag else "jsonl" in text
    done = in_shell(folder, "encode größe.jsonl out.parquet -m words.txt --keep título", "", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_names_outside_the_locale(folder: Path, locale: str) -> None:
    jobs.write_jsonl(folder / "größe.jsonl", [{"id": "日本", "text": "word1", "título": "ñ"}])
    environment = {"LC_ALL": locale}
    done = in_shell(folder, "encode größe.jsonl größe.parquet -m words.txt --keep título", "", **environment)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(folder / "größe.parquet").column("título").to_pylist() == ["ñ"]
    done = in_shell(folder, "inspect größe.parquet --json", "", **environment)
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["columns"])[-1] == "título"


def test_a_current_folder_that_is_gone(folder: Path) -> None:
    gone = folder / "gone"
    gone.mkdir()
    arguments = f"encode {folder}/in.jsonl {folder}/out.parquet -m {folder}/words.txt"
    command = f"cd {gone} && rmdir {gone} && {shlex.join(jobs.command())} {arguments}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    command = command.replace(f"{folder}/out.parquet", "relative.parquet")
    gone.mkdir()
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    assert done.returncode in (1, 2)
    assert b"error: " in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"unexpected" not in done.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": ""},
        {"HOME": "/proc/nowhere"},
        {"XDG_CACHE_HOME": "/proc/nowhere", "EMBEDCLI_CACHE": "/proc/nowhere", "HF_HOME": "/proc/nowhere"},
        {"TMPDIR": "/proc/nowhere"},
    ],
)
def test_folders_of_the_user_that_are_not_there(folder: Path, environment: dict[str, str]) -> None:
    done = in_shell(folder, "encode in.jsonl out.parquet -m words.txt", "", **environment)
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert in_shell(folder, "models", "", **environment).returncode == 0

"""Progress as people see it, through a pseudo-terminal: every batch moves it, and nothing else does.

The batches wait for the test, which lets one through at a time and looks at the terminal: no clock is involved.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fake_server import FakeServer, Reply, Seen
from gated_run import pass_gate
from jobs import PATIENCE, WORDS, Ended, run, word_model

SUPPORT = Path(__file__).resolve().parent.parent / "support"
ROWS = 240
PICTURE = re.compile(r"embedding\b[^\r\n]*? rows\b")
NUMBERS = re.compile(r"([\d,]+)(?:/(~?)([\d,]+))? rows")
SPINNER = re.compile(r"(starting|loading the model|reading the) .*0:00:0")
PERCENT = re.compile(r"(\d+)%")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def texts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with one to eight words, all different."""
    return [
        {"id": f"r{i}", "text": " ".join([f"n{seed}x{i}", *(WORDS[(i * 7 + k) % 100] for k in range(i % 8))])}
        for i in range(count)
    ]


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@dataclass
class Terminal:
    """A command whose stderr is a terminal; `seen` is what it has written there."""

    process: subprocess.Popen[bytes]
    descriptor: int
    gate: Path
    log: Path
    seen: bytearray = field(default_factory=bytearray)
    released: int = 0

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.descriptor, 65536)
            except OSError:  # Linux says so when the last process has closed the terminal
                return
            if not data:
                return
            self.seen += data

    @property
    def text(self) -> str:
        return CONTROL.sub("", self.seen.decode("utf-8", "replace"))

    def pictures(self) -> list[str]:
        """The bars so far, each as far as its rows."""
        return PICTURE.findall(self.text)

    def shown_rows(self) -> list[int]:
        """The rows of every picture so far."""
        return [int(match[1].replace(",", "")) for match in map(NUMBERS.search, self.pictures()) if match]

    def percentages(self) -> list[int]:
        return [int(match[1]) for match in map(PERCENT.search, self.pictures()) if match]

    def computed(self) -> list[int]:
        """The rows of every batch that was let through."""
        return [int(line) for line in self.log.read_text().split()] if self.log.exists() else []

    def wait(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < until, self.text[-2000:]
            time.sleep(0.01)

    def wait_for_rows(self, count: int) -> None:
        """Wait until a number of rows is shown, or the command has ended."""
        self.wait(lambda: max(self.shown_rows(), default=0) >= count or self.process.poll() is not None)

    def release(self) -> bool:
        """Let a batch through; False if the command has ended and wants no more."""
        while self.process.poll() is None:
            try:
                descriptor = os.open(self.gate, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # nobody waits yet
                time.sleep(0.01)
                continue
            try:
                os.write(descriptor, b"x")
                self.released += 1
                self.wait(lambda: len(self.computed()) >= self.released or self.process.poll() is not None)
                return True
            except BrokenPipeError:  # the reader of the last byte was just closing
                continue
            finally:
                os.close(descriptor)
        return False

    def end(self) -> Ended:
        out, _ = self.process.communicate(timeout=PATIENCE)
        self._reader.join(PATIENCE)
        os.close(self.descriptor)
        return Ended(self.process.returncode, out.decode(), self.text)


def start(
    folder: Path, command: list[str], environment: dict[str, str] | None = None, stdin: bytes | None = None
) -> Terminal:
    """Start a command on a terminal of 100 columns."""
    gate, log = folder / "gate", folder / "log"
    if not gate.exists():
        os.mkfifo(gate)
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    own = {"PYTHONPATH": str(SUPPORT), "TERM": "xterm-256color", "COLUMNS": "", "PYTHONUTF8": "1"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, **own, **(environment or {})},
        start_new_session=True,
    )
    os.close(theirs)
    if stdin is not None and process.stdin is not None:
        process.stdin.write(stdin)
        process.stdin.close()
        process.stdin = None
    return Terminal(process, ours, gate, log)


def start_job(folder: Path, style: str = "rich", stdin: bytes | None = None, **options: Any) -> Terminal:
    """Start a job whose batches wait."""
    options = {"model": str(folder / "words.txt"), "chunk_rows": 100, "output": str(folder / "out.parquet"), **options}
    arguments = [style, str(folder / "gate"), str(folder / "log"), json.dumps(options)]
    return start(folder, [sys.executable, "-c", "import gated_run; gated_run.main()", *arguments], stdin=stdin)


def check(terminal: Terminal, rows: int, finished: int = 0, *, batches: int = 4) -> Ended:
    """Let a job through, batch by batch, and compare what is shown with what is computed.

    Args:
        terminal: The job.
        rows: All rows of the input.
        finished: How many of them need no computation; they count as done from when they are read on.
        batches: The least number of batches.
    """
    before = max(terminal.shown_rows(), default=0)
    while terminal.release():
        computed = sum(terminal.computed())
        terminal.wait_for_rows(before + computed)
        assert max(terminal.shown_rows(), default=0) <= computed + finished
    ended = terminal.end()
    assert ended.code == 0, ended.err
    assert len(terminal.computed()) >= batches
    percentages, shown = terminal.percentages(), terminal.shown_rows()
    assert percentages == sorted(percentages)
    assert shown == sorted(shown)
    assert len(set(shown)) >= batches, "every batch moves the bar"
    assert (shown[-1], percentages[-1]) == (rows, 100)
    if not finished:
        assert set(percentages) - {100}, "it does not begin with 100 %"
    return ended


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    word_model(tmp_path)
    return tmp_path


def write_input(folder: Path, kind: str) -> Path:
    rows, path = texts(ROWS), folder / f"in.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        path.write_text("id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in rows))
    else:
        path.write_bytes(gzip.compress(as_jsonl(rows)) if kind.endswith("gz") else as_jsonl(rows))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "jsonl.gz", "parquet"])
def test_the_bar_moves_with_every_batch(folder: Path, kind: str) -> None:
    terminal = start_job(folder, inputs=[str(write_input(folder, kind))])
    ended = check(terminal, ROWS)
    assert ended.out == ""
    totals = [
        int(match[3].replace(",", "")) for match in map(NUMBERS.search, terminal.pictures()) if match and match[3]
    ]
    assert all(0.8 * ROWS < total < 1.25 * ROWS for total in totals)
    assert ("/~" in ended.err) <= (kind != "parquet")
    assert "rows/s" in ended.err
    assert "tok/s" in ended.err
    assert re.search(r"\d:\d\d:\d\d left", ended.err)


def test_stdin_has_percentages_once_it_is_read(folder: Path) -> None:
    check(start_job(folder, inputs=["-"], stdin=as_jsonl(texts(ROWS))), ROWS)


def test_the_tqdm_bar_shows_the_same(folder: Path) -> None:
    check(start_job(folder, "tqdm", inputs=[str(write_input(folder, "jsonl"))]), ROWS)


def test_resumed_rows_are_done(folder: Path) -> None:
    path = write_input(folder, "jsonl")
    first = start_job(folder, inputs=[str(path)], stop_after=100)
    while first.release():
        pass
    assert first.end().code == 75
    (folder / "log").unlink()
    second = start_job(folder, inputs=[str(path)])
    second.wait(lambda: max(second.shown_rows(), default=0) == 100)
    check(second, ROWS, 100)


def test_reused_rows_are_done(folder: Path) -> None:
    (folder / "in.jsonl").write_bytes(as_jsonl(texts(ROWS)))
    first = start_job(folder, inputs=[str(folder / "in.jsonl")])
    while first.release():
        pass
    assert first.end().code == 0
    (folder / "log").unlink()
    (folder / "in.jsonl").write_bytes(as_jsonl([*texts(80), *texts(160, seed=1)]))
    ended = check(start_job(folder, inputs=[str(folder / "in.jsonl")], update=True), ROWS, 80, batches=3)
    assert "80 reused" in ended.err


def test_workers_have_one_bar(folder: Path) -> None:
    paths = []
    for number in range(4):
        paths.append(folder / f"in.{number}.jsonl")
        paths[-1].write_bytes(as_jsonl(texts(ROWS // 4, seed=number)))
    check(start_job(folder, inputs=[str(path) for path in paths], workers=2, chunk_rows=30), ROWS)


def test_a_hosted_model_shows_requests_and_cost(folder: Path) -> None:
    path = write_input(folder, "jsonl")
    gate, log = folder / "gate", folder / "log"

    def wait(seen: Seen, reply: Reply) -> None:
        pass_gate(str(gate), str(log), len(seen.texts))

    with FakeServer(dim=8) as server:
        # A short text and the fixed texts, twice, are asked before the rows.
        server.faults += [*[lambda seen, reply: None] * 3, *[wait] * 100]
        job = ["-m", "openai:fake-embedding", "--base-url", server.base_url, "--batch-tokens", "200"]
        job += ["--max-concurrency", "1", "--price-per-mtok", "0.5", "--chunk-rows", "100"]
        command = [sys.executable, "-m", "embedcli", "encode", str(path), str(folder / "out.parquet"), *job]
        ended = check(start(folder, command), ROWS)
    assert re.search(r"[2-9] requests  cost 0\.\d+", ended.err)


def test_ctrl_c_is_answered_at_once(folder: Path) -> None:
    terminal = start_job(folder, inputs=[str(write_input(folder, "jsonl"))])
    assert terminal.release()
    terminal.wait(lambda: "%" in terminal.text)
    terminal.process.send_signal(signal.SIGINT)
    # The batch still waits: nothing but the message can have been written.
    message = "stopping after the current batch; press Ctrl-C again to stop now"
    terminal.wait(lambda: message in terminal.text)
    while terminal.release():
        pass
    ended = terminal.end()
    assert ended.code == 130
    assert not PICTURE.search(ended.err[ended.err.index(message) :]), "the bar is removed"
    assert ended.err.splitlines()[-1].startswith("stopped by SIGINT")
    assert "run the same command again" in ended.err.splitlines()[-1]


def test_a_second_ctrl_c_stops_now(folder: Path) -> None:
    terminal = start_job(folder, inputs=[str(write_input(folder, "jsonl"))])
    assert terminal.release()
    terminal.wait(lambda: "%" in terminal.text)
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait(lambda: "press Ctrl-C again" in terminal.text)
    terminal.process.send_signal(signal.SIGINT)
    ended = terminal.end()
    assert ended.code == 130
    assert ended.err.splitlines()[-1] == "hint: run the same command again; encode and load continue where they stopped"
    assert terminal.seen.rstrip().endswith(b"where they stopped"), "the terminal is left as it was"


def test_what_shows_no_rows_has_a_spinner(folder: Path) -> None:
    terminal = start_job(folder, inputs=[str(write_input(folder, "jsonl"))])
    terminal.wait(
        lambda: re.search(r"(starting|loading|reading) .*0:00:0", terminal.text) is not None or "%" in terminal.text
    )
    while terminal.release():
        pass
    assert terminal.end().code == 0


def test_a_pipe_gets_lines_without_control_characters(folder: Path) -> None:
    path = write_input(folder, "jsonl")
    done = run("encode", path, folder / "out.parquet", "-m", folder / "words.txt", "--progress", "plain")
    assert done.code in (0, 3)
    assert "\x1b" not in done.err

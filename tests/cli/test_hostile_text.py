"""Whatever names, texts, settings and servers contain, a terminal gets no control character from it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedcli
import fake_server
import jobs

# The clipboard, a colour, a cleared screen in one C1 character, a title, two ways to reverse a line, a line separator,
# the delete character, and what rich would take for markup or an emoji.
EVIL = "x\x1b]52;c;aGk=\x07\x1b[31mEVIL\x9b2J\x1b]0;title\x07\u202ey\u2066z\u2028w\x7f[red]:warning:"
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# What a progress bar and Click write themselves: colours, cursor movements, carriage returns.
OWN_CONTROL = re.compile("\x1b\\[(?!31mEVIL)[0-9;?]*[A-Za-z]|\r")

INPUT, OUTPUT, MODEL = f"in.{EVIL}.jsonl", f"out.{EVIL}.parquet", f"words.{EVIL}.txt"
QUERIES, REPORT, SETTINGS, BAD = f"q{EVIL}.jsonl", f"r{EVIL}.json", f"s{EVIL}.toml", f"bad{EVIL}.csv"

# Arguments, and environment variables.
COMMANDS: dict[str, tuple[list[str], dict[str, str]]] = {
    "encode": (["encode", INPUT, f"new.{EVIL}.parquet", "-m", MODEL, "--keep", EVIL, "--report", f"n{EVIL}.json"], {}),
    "encode to stdout": (["encode", INPUT, "-", "-m", MODEL, "--keep", EVIL], {}),
    "encode verbose": (["encode", "-v", BAD, "b.parquet", "-m", MODEL], {}),
    "missing column": (["encode", INPUT, "b.parquet", "-m", MODEL, "--text-column", f"no{EVIL}"], {}),
    "missing input": (["encode", f"no{EVIL}*", "b.parquet", "-m", MODEL], {}),
    "missing model": (["encode", INPUT, "b.parquet", "-m", f"no/{EVIL}", "--offline"], {}),
    "damaged input": (["encode", f"damaged{EVIL}.parquet", "b.parquet", "-m", MODEL], {}),
    "another job": (["encode", INPUT, OUTPUT, "-m", MODEL], {}),
    "unknown command": ([f"no{EVIL}"], {}),
    "unknown option": (["encode", f"--no{EVIL.replace('=', '')}", INPUT, "b.parquet"], {}),
    "wrong number": (["encode", INPUT, "b.parquet", "--chunk-rows", EVIL], {}),
    "wrong variable": (["encode", INPUT, "b.parquet"], {"EMBEDCLI_CHUNK_ROWS": EVIL}),
    "model variable": (["encode", INPUT, "b.parquet", "--offline"], {"EMBEDCLI_MODEL": EVIL}),
    "settings file": (["--config", SETTINGS, "inspect", INPUT], {}),
    "no settings file": (["--config", f"no{EVIL}", "inspect", INPUT], {}),
    "settings variable": (["inspect", INPUT], {"EMBEDCLI_CONFIG": SETTINGS}),
    "inspect input": (["inspect", INPUT], {}),
    "inspect input as JSON": (["inspect", INPUT, "--json"], {}),
    "inspect rejects": (["inspect", BAD], {}),
    "inspect output": (["inspect", OUTPUT], {}),
    "inspect output as JSON": (["inspect", OUTPUT, "--json"], {}),
    "search": (["search", OUTPUT, "word1", EVIL], {}),
    "search as JSON": (["search", OUTPUT, "word1", "--json"], {}),
    "search queries": (["search", OUTPUT, "--queries", QUERIES], {}),
    "search column": (["search", OUTPUT, "word1", "--show", f"no{EVIL}"], {}),
    "compare": (["compare", OUTPUT, f"two.{EVIL}.parquet"], {}),
    "compare as JSON": (["compare", OUTPUT, f"two.{EVIL}.parquet", "--json"], {}),
    "compare precision": (["compare", OUTPUT, "--precision", EVIL], {}),
    "verify": (["verify", OUTPUT, INPUT], {}),
    "verify as JSON": (["verify", OUTPUT, INPUT, "--json"], {}),
    "plan": (["plan", INPUT, "-m", MODEL], {}),
    "report": (["report", REPORT], {}),
    "report as JSON": (["report", REPORT, "--json"], {}),
    "eval": (["eval", f"pairs{EVIL}.jsonl", "-m", MODEL], {}),
    "plot": (["plot", OUTPUT, f"map{EVIL}.html"], {}),
    "batch export": (["batch", "export", INPUT, f"requests{EVIL}.jsonl", "-m", f"openai:{EVIL}"], {}),
    "pull": (["pull", EVIL], {"HF_HUB_OFFLINE": "1"}),
    "models": (["models", "--cache-dir", EVIL], {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with EVIL in their names, columns, ids, texts and settings."""
    home = tmp_path_factory.mktemp("evil")
    jobs.word_model(home).rename(home / MODEL)
    made: list[dict[str, Any]] = [
        {"id": f"{row['id']}{EVIL}", "text": f"{row['text']} {EVIL}", EVIL: EVIL} for row in jobs.rows(40)
    ]
    bad: list[dict[str, Any]] = [
        {"id": f"b{EVIL}", "text": EVIL, EVIL: EVIL},
        {"id": f"n{EVIL}", "text": None, EVIL: 1},
    ]
    jobs.write_jsonl(home / INPUT, [*made, *bad])
    jobs.write_jsonl(home / QUERIES, [{"id": EVIL, "text": f"word2 {EVIL}"}])
    jobs.write_jsonl(
        home / f"pairs{EVIL}.jsonl",
        [
            {"text_a": "word1 word2", "text_b": "word3", "score": 0.1},
            {"text_a": "word4", "text_b": "word5", "score": 1},
        ],
    )
    (home / BAD).write_text(f"id,text,{EVIL}\n1,{EVIL},1,2,3\n{EVIL},,\n".replace("\u2028", ""))
    (home / f"damaged{EVIL}.parquet").write_bytes(b"PAR1" + EVIL.encode() * 9)
    (home / SETTINGS).write_text(f"{json.dumps(EVIL)} = {json.dumps(EVIL)}\n".replace("\x7f", "\\u007f"))
    asked = ["-m", MODEL, "--keep", EVIL, "--keep", "text", "--report", REPORT, "--prompt", EVIL]
    done = subprocess.run(jobs.command("encode", INPUT, OUTPUT, *asked), cwd=home, check=False, capture_output=True)
    assert done.returncode == 3, done.stderr.decode()
    table = pq.read_table(home / OUTPUT)
    pq.write_table(table.slice(0, 30), home / f"two.{EVIL}.parquet")
    assert isinstance(table, pa.Table)
    return home


def run_in_pipe(folder: Path, arguments: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        jobs.command(*arguments), cwd=folder, env=os.environ | environment, check=False, capture_output=True
    )
    return (done.stdout + done.stderr).decode()


def run_in_terminal(folder: Path, arguments: list[str], environment: dict[str, str]) -> str:
    """Both streams on one pseudo terminal, which changes no line ends."""
    leader, follower = pty.openpty()
    tty.setraw(follower)
    read: list[bytes] = []

    def collect() -> None:
        while True:
            try:
                data = os.read(leader, 65536)
            except OSError:  # Linux: no process has the terminal open any more
                return
            read.append(data)

    reader = threading.Thread(target=collect)
    reader.start()
    environment = {"TERM": "xterm", **environment}
    with subprocess.Popen(
        jobs.command(*arguments), cwd=folder, env=os.environ | environment, stdout=follower, stderr=follower
    ) as process:
        os.close(follower)
        process.wait(jobs.PATIENCE)
    reader.join(jobs.PATIENCE)
    os.close(leader)
    return b"".join(read).decode()


PLACES: list[Any] = [pytest.param(run_in_pipe, id="pipe"), pytest.param(run_in_terminal, id="terminal")]


def assert_harmless(text: str, *, is_terminal: bool) -> None:
    assert text
    shown = OWN_CONTROL.sub("", text) if is_terminal else text
    assert (CONTROL.findall(shown), text) == ([], text)


@pytest.mark.parametrize("run", PLACES)
@pytest.mark.parametrize("name", COMMANDS)
def test_no_control_character_is_printed(folder: Path, name: str, run: Callable[..., str]) -> None:
    arguments, environment = COMMANDS[name]
    text = run(folder, arguments, environment)
    assert_harmless(text, is_terminal=run is run_in_terminal)
    if name not in ("models", "eval"):
        assert "EVIL" in text
    if name == "encode":
        assert "[red]:warning:" in text


@pytest.fixture
def server() -> Iterator[fake_server.FakeServer]:
    with fake_server.FakeServer(dim=8) as running:
        yield running


@pytest.mark.parametrize("run", PLACES)
@pytest.mark.parametrize("fault", ["message", "html", "model"])
def test_answers_of_a_server(folder: Path, server: fake_server.FakeServer, fault: str, run: Callable[..., str]) -> None:
    faults = {
        "message": fake_server.status(400, {}, EVIL, EVIL),
        "html": fake_server.raw(f"<html>{EVIL}</html>".encode(), 404),
        "model": fake_server.other_model(EVIL),
    }
    server.faults += [faults[fault]] * 9
    arguments = ["encode", INPUT, f"{fault}.parquet", "-m", f"openai:{EVIL}", "--base-url", server.base_url]
    text = run(folder, [*arguments, "--overwrite"], {"OPENAI_API_KEY": "k"})
    assert_harmless(text, is_terminal=run is run_in_terminal)
    assert "EVIL" in text


def test_an_arrow_stream_is_not_written_to_a_terminal(folder: Path) -> None:
    text = run_in_terminal(folder, ["encode", INPUT, "-", "-m", MODEL, "--to", "arrow"], {})
    assert "an Arrow stream cannot be written to a terminal\n" in text
    assert "use --to jsonl, or redirect stdout" in text
    assert_harmless(text, is_terminal=True)


def test_only_the_console_prints() -> None:
    """What is printed anywhere else would not be escaped."""
    source = Path(embedcli.__file__).parent
    printing = re.compile(r"\becho\(|sys\.std(out|err)\.write\b")
    found = [path for path in source.rglob("*.py") if printing.search(path.read_text("utf-8"))]
    assert [path.relative_to(source).as_posix() for path in found] == ["cli/console.py"]

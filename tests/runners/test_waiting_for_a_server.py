"""Runs with a hosted model end in time while they wait for its server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fake_server as fake
import jobs
from fake_server import FakeServer

STOPPED = "stopped by --max-seconds: run the same command again to go on"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(dim=8) as running:
        yield running


def encode(folder: Path, server: FakeServer, *more: object, output: str = "out.parquet") -> jobs.Ended:
    rows = [{"id": i, "text": f"text {i}"} for i in range(60)]
    jobs.write_jsonl(folder / "in.jsonl", rows)
    target = output if output == "-" else f"{folder}/{output}"
    asked = ("-m", f"openai:{fake.MODEL}", "--base-url", server.base_url, "--chunk-rows", 10, "--progress", "none")
    return jobs.run_apart("encode", folder / "in.jsonl", target, *asked, *more)


def fails_after(server: FakeServer, answers: int, failure: fake.Fault) -> fake.Fault:
    """Answer so many requests, then fail for all."""

    def fault(seen: fake.Seen, reply: fake.Reply) -> None:
        if len(server.seen) > answers:
            failure(seen, reply)

    return fault


BUSY = fake.status(429, {"Retry-After": "3600"})


@pytest.mark.parametrize("failure", [BUSY, fake.status(503)], ids=["busy", "down"])
def test_max_seconds_ends_the_retries_and_keeps_what_is_finished(
    tmp_path: Path, server: FakeServer, failure: fake.Fault
) -> None:
    server.usual = fails_after(server, 6, failure)
    flags = ("--max-concurrency", 1, "--report", tmp_path / "run.json")
    ended = encode(tmp_path, server, "--max-seconds", 3, *flags)
    assert ended.code == 75, ended.err
    assert STOPPED in ended.err
    assert "Traceback" not in ended.err
    kept = json.loads((tmp_path / "run.json").read_text())["rows"]["rows"]
    assert 0 < kept < 60
    server.usual, before = None, len(server.sent)
    assert encode(tmp_path, server, *flags).code == 0
    assert len([text for text in server.sent[before:] if text.startswith("text ")]) < 60


@pytest.mark.parametrize(
    ("output", "more"),
    [("out.parquet", ()), ("-", ()), ("out.parquet", ("--workers", 2))],
    ids=["file", "stdout", "workers"],
)
def test_max_seconds_ends_the_wait_for_a_server_at_start(
    tmp_path: Path, server: FakeServer, output: str, more: tuple[object, ...]
) -> None:
    server.usual = BUSY
    ended = encode(tmp_path, server, "--max-seconds", 2, *more, output=output)
    assert ended.code == 75, ended.err
    assert "stopped by --max-seconds: " in ended.err
    assert "error:" not in ended.err


def test_max_seconds_ends_the_retries_of_workers(tmp_path: Path, server: FakeServer) -> None:

    def busy_for_rows(seen: fake.Seen, reply: fake.Reply) -> None:
        if any(text.startswith("text") for text in seen.texts):
            BUSY(seen, reply)

    server.usual = busy_for_rows
    ended = encode(tmp_path, server, "--max-seconds", 4, "--workers", 2)
    assert ended.code == 75, ended.err
    assert "stopped by --max-seconds: run the same command again; a smaller --chunk-rows" in ended.err
    assert "error:" not in ended.err


def test_an_error_says_how_many_rows_are_finished(tmp_path: Path, server: FakeServer) -> None:
    # Three requests are made at the start, and each chunk is one request.
    server.usual = fails_after(server, 5, fake.status(401))
    ended = encode(tmp_path, server, "--max-concurrency", 1)
    assert ended.code == 1, ended.err
    hint = next(line for line in ended.err.splitlines() if line.startswith("hint: "))
    assert re.search(r"; the same command goes on after [124]0 finished rows$", hint), hint


def test_an_error_in_the_first_chunk_says_how_to_lose_less(tmp_path: Path, server: FakeServer) -> None:
    def fails_for_the_last_text(seen: fake.Seen, reply: fake.Reply) -> None:
        if any(text.startswith("text 59") for text in seen.texts):
            fake.status(401)(seen, reply)

    server.usual, server.max_inputs = fails_for_the_last_text, 5
    ended = encode(tmp_path, server, "--max-concurrency", 1, "--chunk-rows", 60, "--batch-tokens", 10)
    assert ended.code == 1, ended.err
    assert "; no chunk of 60 rows was finished: a smaller --chunk-rows loses less" in ended.err
    assert "kept" not in ended.err

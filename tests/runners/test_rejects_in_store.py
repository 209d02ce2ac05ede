"""The rejects of an output in an object store: their own file when too many end the run, and their counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import jobs
import s3_server
from embedcli.storage import clients, lease_lock

GOOD, EMPTY = b'{"id": "g", "text": "word1"}\n', b'{"id": "e", "text": ""}\n'


@pytest.fixture(scope="module")
def store() -> Iterator[s3_server.Store]:
    with s3_server.run_server() as made:
        yield made


@pytest.mark.parametrize("name", ["out.parquet", "out/"])
def test_too_many_rejects_are_written_beside_the_output(
    store: s3_server.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable, value in store.environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(lease_lock, "SETTLE_SECONDS", 0.0)
    clients._arrow_client.cache_clear()
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_bytes(GOOD * 4 + EMPTY * 3)
    address = f"rejects/{tmp_path.name}/{name}"
    command = ("encode", "in.jsonl", f"s3://data/{address}", "-m", jobs.word_model(tmp_path), "--chunk-rows", 2)
    assert jobs.run(*command, "--max-rejects", 1).code == 1
    is_folder = name == "out/"
    unpublished = address + ("_unpublished-rejects.jsonl" if is_folder else ".unpublished-rejects.jsonl")
    assert store.get(unpublished).count(b"text is empty") >= 2
    done = jobs.run(*command)
    file = f"s3://data/{address}" + ("_rejects.jsonl" if is_folder else ".rejects.jsonl")
    assert f"rejects   3 text is empty; first: in.jsonl:5; all in {file}\n" in done.err
    assert "1 id appears more than once" in done.err
    assert unpublished not in store.names(address)

"""A folder output in an object store is not touched before it is known that the new one may replace it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jobs
import s3_server
from embedcli import storage
from embedcli.core.errors import OutputError
from embedcli.storage import clients, lease_lock, object_store

FLAGS = ["--update", "--overwrite"]


@pytest.fixture(scope="module")
def store() -> Iterator[s3_server.Store]:
    with s3_server.run_server() as made:
        yield made


@pytest.fixture
def s3(store: s3_server.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Encodes rows to a folder of its own in the store; `published()` returns its finished files."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(lease_lock, "SETTLE_SECONDS", 0.0)
    clients._arrow_client.cache_clear()
    monkeypatch.chdir(tmp_path)
    jobs.word_model(tmp_path)
    folder = f"removed/{tmp_path.name}/"

    class Output:
        address = f"s3://data/{folder}"

        def encode(self, rows: list[dict[str, Any]], *options: object) -> jobs.Ended:
            jobs.write_jsonl(Path("in.jsonl"), rows)
            fixed = ("-m", "words.txt", "-q", "--chunk-rows", 4, "--part-size", 150)
            return jobs.run("encode", "in.jsonl", self.address, *fixed, *options)

        def published(self) -> dict[str, bytes]:
            return {name: store.get(name) for name in store.names(folder) if "/_parts/" not in name}

    return Output()


@pytest.mark.parametrize("flags", [["--update"], ["--overwrite"], ["--overwrite", "--workers", "2"]], ids=" ".join)
def test_the_old_output_is_kept(s3: Any, flags: list[str]) -> None:
    assert s3.encode(jobs.rows(40)).code == 0
    before = s3.published()
    changed = [{**row, "text": row["text"] + " word1"} for row in jobs.rows(12)]
    refused = s3.encode(changed, *flags)
    assert refused.code == 1, refused.err
    assert "40 rows" in refused.err
    assert s3.published() == before
    allowed = s3.encode(changed, *flags, "--max-removed", "100%")
    assert allowed.code == 0, allowed.err
    replaced = s3.published()
    assert replaced.keys() < before.keys()
    assert not storage.list_files(storage.join(s3.address, "_parts"))


@pytest.mark.parametrize("flag", FLAGS)
def test_an_update_that_is_stopped_leaves_the_old_output(s3: Any, flag: str) -> None:
    assert s3.encode(jobs.rows(40)).code == 0
    before = s3.published()
    changed = [{**row, "text": row["text"] + " word1"} for row in jobs.rows(40)]
    assert s3.encode(changed, flag, "--stop-after", 20).code == 75
    assert s3.published() == before
    finish = ["--update"] if flag == "--update" else []
    done = s3.encode(changed, *finish)
    assert done.code == 0, done.err
    after = s3.published()
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)


@pytest.mark.parametrize("failing", range(1, 4))
def test_publishing_that_fails_is_finished_by_the_next_run(
    s3: Any, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert s3.encode(jobs.rows(40)).code == 0
    before = s3.published()
    changed = [{**row, "text": row["text"] + " word1"} for row in jobs.rows(40)]
    move, calls = object_store.RemoteFileSystem.move, 0

    def fail(self: Any, path: str, new_path: str) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OutputError("the store does not answer", "try again")
        move(self, path, new_path)

    monkeypatch.setattr(object_store.RemoteFileSystem, "move", fail)
    assert s3.encode(changed, "--overwrite").code == 1
    done = s3.encode(changed)
    assert done.code == 0, done.err
    resumed = s3.published()
    assert resumed.keys() == before.keys()
    assert s3.encode(changed, "--overwrite").code == 0
    assert s3.published() == resumed

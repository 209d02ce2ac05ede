"""`embedcli batch` and the price of a job: an import is an encode whose answers lie in files."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import fake_server as fake
import jobs
from batch_lines import answer, expired, read, refusal, write
from fake_server import FakeServer, expected

DIM = 6
MODEL = "openai:" + fake.MODEL
TWICE = [{"id": "again", "text": "word1 word2", "n": 60}, {"id": "twice", "text": "word1 word2", "n": 61}]
ROWS = [*jobs.rows(60), *TWICE]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return jobs.write_jsonl(tmp_path / "in.jsonl", ROWS)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(dim=DIM) as running:
        yield running


DOCS = Path(__file__).resolve().parents[2] / "docs"


def exported(folder: Path, source: Path, *flags: object) -> list[dict[str, Any]]:
    """The requests of a whole export."""
    requests = folder / "requests.jsonl"
    done = jobs.run("batch", "export", source, requests, "-m", MODEL, *flags)
    assert done.code == 0, done.err
    assert done.out == ""
    return read(requests)


def assert_right(output: Path, rows: list[dict[str, Any]]) -> None:
    table = pq.read_table(output)
    assert table.column("id").to_pylist() == [row["id"] for row in rows]
    vectors = np.array(table.column("embedding").to_pylist(), np.float32)
    np.testing.assert_allclose(vectors, expected([row["text"] for row in rows], DIM), atol=1e-6)


def test_what_comes_back_in_any_order_is_joined(tmp_path: Path, source: Path) -> None:
    requests = exported(tmp_path, source, "--keep", "n")
    lines = [answer(request, DIM) for request in reversed(requests)]
    results = [write(tmp_path / f"results{i}.jsonl", lines[i::2]) for i in range(2)]
    done = jobs.run("batch", "import", *results, tmp_path / "out.parquet")
    assert done.code == 0, done.err
    assert_right(tmp_path / "out.parquet", ROWS)
    assert pq.read_table(tmp_path / "out.parquet").column("n").to_pylist() == [row["n"] for row in ROWS]
    again = jobs.run("batch", "import", *results, tmp_path / "out.parquet")
    assert again.code == 0
    assert "nothing to do" in again.err


def test_names_that_are_not_unicode_are_exported_too(tmp_path: Path, source: Path) -> None:
    named = source.rename(tmp_path / os.fsdecode(b"\xff.jsonl"))
    results = write(tmp_path / "results.jsonl", [answer(request, DIM) for request in exported(tmp_path, named)])
    done = jobs.run("batch", "import", results, tmp_path / "out.parquet", "--report", tmp_path / "run.json")
    assert done.code == 0, done.err
    assert_right(tmp_path / "out.parquet", ROWS)
    assert json.loads((tmp_path / "run.json").read_bytes())["job"]["inputs"] == [str(named)]


def test_an_import_is_the_job_that_encode_would_run(tmp_path: Path, source: Path, server: FakeServer) -> None:
    requests = exported(tmp_path, source, "--base-url", server.base_url)
    results = write(tmp_path / "results.jsonl", [answer(request, DIM) for request in requests])
    assert jobs.run("batch", "import", results, tmp_path / "out.parquet").code == 0
    done = jobs.run("encode", source, tmp_path / "out.parquet", "-m", MODEL, "--base-url", server.base_url)
    assert done.code == 0, done.err
    assert "nothing to do" in done.err
    assert server.seen == []


def test_encode_goes_on_where_an_import_stopped(tmp_path: Path, source: Path, server: FakeServer) -> None:
    requests = exported(tmp_path, source, "--base-url", server.base_url)
    results = write(tmp_path / "results.jsonl", [answer(request, DIM) for request in requests])
    flags = [tmp_path / "out.parquet", "--chunk-rows", 16]
    assert jobs.run("batch", "import", results, *flags, "--stop-after", 30).code == 75
    done = jobs.run("encode", source, *flags, "-m", MODEL, "--base-url", server.base_url)
    assert done.code == 0, done.err
    assert "resumed" in done.err
    sent_rows = {*server.sent} & {row["text"] for row in ROWS}
    assert 0 < len(sent_rows) < len(ROWS) - 30
    assert_right(tmp_path / "out.parquet", ROWS)


def test_refused_texts_are_rejects(tmp_path: Path, source: Path) -> None:
    first, *others = exported(tmp_path, source)
    lines = [refusal(first), *(answer(request, DIM) for request in others)]
    done = jobs.run("batch", "import", write(tmp_path / "results.jsonl", lines), tmp_path / "out.parquet")
    assert done.code == 3, done.err
    refused = [row for row in ROWS if row["text"] == first["body"]["input"]]
    assert_right(tmp_path / "out.parquet", [row for row in ROWS if row not in refused])
    rejects = read(tmp_path / "out.parquet.rejects.jsonl")
    assert [reject["id"] for reject in rejects] == [row["id"] for row in refused]
    assert all("refused" in reject["reason"] for reject in rejects)


def test_what_expired_is_asked_again_and_joined(tmp_path: Path, source: Path) -> None:
    requests = exported(tmp_path, source)
    lines = [expired(request) for request in requests[:9]] + [answer(request, DIM) for request in requests[9:]]
    results = write(tmp_path / "results.jsonl", lines)
    done = jobs.run("batch", "import", results, tmp_path / "out.parquet")
    assert done.code == 1
    assert "have no answer" in done.err
    assert "--results" in done.err or "batch export" in done.err
    assert not (tmp_path / "out.parquet").exists()
    second = tmp_path / "second"
    second.mkdir()
    rest = exported(second, source, "--results", results)
    assert len(rest) == 9
    more = write(tmp_path / "more.jsonl", [answer(request, DIM) for request in rest])
    shutil.copy(second / "requests.job.json", tmp_path / "more.job.json")
    assert jobs.run("batch", "import", results, more, tmp_path / "out.parquet").code == 0
    assert_right(tmp_path / "out.parquet", ROWS)
    allowed = jobs.run("batch", "import", results, tmp_path / "part.parquet", "--allow-missing")
    assert allowed.code == 3
    assert pq.read_metadata(tmp_path / "part.parquet").num_rows < len(ROWS)


def test_an_import_that_stops_goes_on(tmp_path: Path, source: Path) -> None:
    requests = exported(tmp_path, source)
    results = write(tmp_path / "results.jsonl", [answer(request, DIM) for request in requests])
    command = ["batch", "import", results, tmp_path / "out.parquet", "--chunk-rows", 16]
    assert jobs.run(*command, "--stop-after", 30).code == 75
    done = jobs.run(*command)
    assert done.code == 0, done.err
    assert "resumed" in done.err
    assert_right(tmp_path / "out.parquet", ROWS)


def test_rows_that_moved_and_rows_that_changed(tmp_path: Path, source: Path) -> None:
    requests = exported(tmp_path, source)
    results = write(tmp_path / "results.jsonl", [answer(request, DIM) for request in requests])
    assert jobs.run("batch", "import", results, tmp_path / "out.parquet").code == 0
    moved = tmp_path / "moved"
    moved.mkdir()
    fewer = jobs.write_jsonl(moved / "in.jsonl", ROWS[5:])
    source.unlink()
    assert jobs.run("batch", "import", results, tmp_path / "out.parquet").code == 2
    refused = jobs.run("batch", "import", results, tmp_path / "out.parquet", "-i", fewer)
    assert refused.code == 2
    assert "--update" in refused.err
    done = jobs.run("batch", "import", results, tmp_path / "out.parquet", "-i", fewer, "--update")
    assert done.code == 0, done.err
    assert "5 removed" in done.err
    assert_right(tmp_path / "out.parquet", ROWS[5:])


def test_what_cannot_be_right(tmp_path: Path, source: Path) -> None:
    results = write(tmp_path / "results.jsonl", [])
    cases: list[tuple[list[object], str]] = [
        (["export", source], "needs an input and an output"),
        (["import", results], "needs results and an output"),
        (["import", results, tmp_path / "out.parquet"], ".job.json"),
        (["export", source, tmp_path / "requests.jsonl", "-m", "all-MiniLM-L6-v2"], "hosted"),
    ]
    for arguments, says in cases:
        done = jobs.run("batch", *arguments)
        assert done.code == 2, done.err
        assert says in done.err
        assert "hint: " in done.err


def test_an_export_estimates_its_cost(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": 1, "text": "one two"}\n{"id": 2, "text": "one two"}\n{"id": 3}\n')
    done = jobs.run("batch", "export", source, tmp_path / "requests.jsonl", "-m", MODEL, "--price-per-mtok", 1e6)
    assert done.code == 3, done.err
    assert "3 in, 1 unreadable" in done.err
    assert "1, 1 repeated" in done.err
    assert "cost      2 at 1e+06 per million tokens" in done.err


# Money


def test_the_server_says_what_is_billed(tmp_path: Path, source: Path, server: FakeServer) -> None:
    report = tmp_path / "report.json"
    flags = ["-m", MODEL, "--base-url", server.base_url, "--price-per-mtok", 0.5, "--report", report]
    done = jobs.run("encode", source, tmp_path / "out.parquet", *flags)
    assert done.code == 0, done.err
    tokens = sum(fake.tokens_of(text) for text in server.sent)
    made = json.loads(report.read_bytes())
    assert made["usage"]["tokens"] == tokens
    amount = pytest.approx(tokens * 0.5e-6)
    assert made["cost"] == {"amount": amount, "tokens": tokens, "price_per_mtok": 0.5, "counted_by": "server"}
    assert f"for {tokens:,} tokens as the server counts them, at 0.5 per million" in done.err


def test_without_usage_fed_tokens_are_billed(tmp_path: Path, source: Path, server: FakeServer) -> None:
    model = jobs.word_model(tmp_path)
    server.usual = fake.without_usage()
    hosted = ["-m", MODEL, "--base-url", server.base_url]
    cases: list[tuple[str, list[object]]] = [("hosted", [*hosted]), ("local", ["-m", model])]
    for name, flags in cases:
        report = tmp_path / f"{name}.json"
        command = ["encode", source, tmp_path / f"{name}.parquet", *flags, "--price-per-mtok", 2, "--report", report]
        assert jobs.run(*command).code == 0
        made = json.loads(report.read_bytes())
        assert made["cost"]["counted_by"] == "embedcli"
        assert made["cost"]["tokens"] == made["counters"]["fed_tokens"] > 0
        assert made["cost"]["amount"] == pytest.approx(made["cost"]["tokens"] * 2e-6)


def test_without_a_price_there_is_no_cost(tmp_path: Path, source: Path) -> None:
    report = tmp_path / "report.json"
    done = jobs.run("encode", source, tmp_path / "out.parquet", "-m", jobs.word_model(tmp_path), "--report", report)
    assert json.loads(report.read_bytes())["cost"] is None
    assert "cost" not in done.err


# Documents


def test_every_command_of_the_page_works(tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    server.key = "sk-of-the-test"
    jobs.write_jsonl(Path("rows.jsonl"), ROWS)
    lines = re.findall(r"^\$ embedcli (.*)$", (DOCS / "guides" / "hosted-models.md").read_text("utf-8"), re.MULTILINE)
    assert {line.split()[0] for line in lines} == {"encode", "plan", "batch"}
    for line in lines:
        words = shlex.split(line.replace("http://localhost:8000/v1", server.base_url))
        named = next((word for word in words if word.startswith("openai:")), None)
        server.model = named.removeprefix("openai:") if named else server.model
        if words[:2] == ["batch", "import"]:
            made = [answer(request, DIM, model=server.model) for request in read("requests.jsonl")]
            write(Path("results.jsonl"), made)
        done = jobs.run(*words)
        assert done.code == 0, (line, done.err)
        assert words[0] != "plan" or done.out
    assert_right(Path("out.parquet"), ROWS)
    assert_right(Path("batch.parquet"), ROWS)
    assert len(np.load("own.npy")) == len(ROWS)


def test_the_prompts_of_known_families_are_in_the_page() -> None:
    from embedcli.models.registry import MODEL_REGISTRY

    page = (DOCS / "reference" / "models.md").read_text("utf-8")
    for entry in MODEL_REGISTRY:
        for prompt in (entry.prompts or {}).values():
            for part in prompt.split("\n"):
                assert f"`{part}`" in page, f"{entry.alias}: {part}"

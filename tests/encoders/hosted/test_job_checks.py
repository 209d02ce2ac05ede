"""Options that make no sense for a hosted model are refused or noted before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import fake_server as fake
import jobs
from embedcli.core.errors import UsageError
from embedcli.encoders.hosted.encoder import load_hosted_encoder
from fake_server import FakeServer
from hosted import FakeClock, job_for


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"base_url": ""}, "--base-url is empty"),
        ({"base_url": "  "}, "--base-url is empty"),
        ({"model": "openai:"}, "names no model"),
        ({"model": "openai: "}, "names no model"),
    ],
)
def test_empty_values_are_refused(
    server: FakeServer, flags: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with pytest.raises(UsageError, match=words):
        load_hosted_encoder(job_for(server, **flags), print, clock=FakeClock())
    assert server.seen == []


@pytest.mark.parametrize(
    ("flags", "note"),
    [
        ({"device": "cuda"}, "--device cuda is not used: a hosted model is computed by its server"),
        ({"dtype": "float16"}, "--dtype float16 is not used: a hosted model is computed by its server"),
        ({"omit_field": ("nosuch",)}, "--omit-field nosuch changes nothing: embedcli does not send this field"),
        ({"omit_field": ("dimensions", "encoding_format")}, None),
        ({}, None),
    ],
)
def test_options_without_effect_are_noted(server: FakeServer, flags: dict[str, object], note: str | None) -> None:
    notes: list[str] = []
    load_hosted_encoder(job_for(server, **flags), notes.append, clock=FakeClock()).close()
    assert [text for text in notes if "is not used" in text or "changes nothing" in text] == ([note] if note else [])


def test_search_says_nothing_about_an_option_that_it_does_not_have(tmp_path: Path, server: FakeServer) -> None:
    jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(5))
    flags = ("-m", f"openai:{fake.MODEL}", "--base-url", server.base_url)
    encoded = jobs.run("encode", tmp_path / "in.jsonl", tmp_path / "out.parquet", *flags, "--as", "query")
    assert "--as query changes nothing" in encoded.err
    found = jobs.run("search", tmp_path / "out.parquet", "words", "--base-url", server.base_url)
    assert found.code == 0, found.err
    assert "--as" not in found.err


def test_eval_says_nothing_about_an_option_that_was_not_given(tmp_path: Path, server: FakeServer) -> None:
    jobs.write_jsonl(tmp_path / "documents.jsonl", [{"id": i, "text": f"text {i}"} for i in range(4)])
    jobs.write_jsonl(tmp_path / "queries.jsonl", [{"id": "q", "text": "text 1"}])
    jobs.write_jsonl(tmp_path / "judged.jsonl", [{"query_id": "q", "document_id": 1, "relevance": 1}])
    files = ("documents.jsonl", "--queries", tmp_path / "queries.jsonl", "--relevance", tmp_path / "judged.jsonl")
    flags = ("-m", f"openai:{fake.MODEL}", "--base-url", server.base_url)
    done = jobs.run("eval", tmp_path / files[0], *files[1:], *flags)
    assert done.code == 0, done.err
    assert "--as" not in done.err


@pytest.mark.parametrize(
    ("number", "words"),
    [(0.0, "the server's vector has only zeros"), (float("nan"), "the server's vector is not finite")],
)
def test_vectors_that_cannot_be_used_are_named(tmp_path: Path, server: FakeServer, number: float, words: str) -> None:
    jobs.write_jsonl(tmp_path / "in.jsonl", [{"id": 1, "text": "good"}, {"id": 2, "text": "bad"}])

    def spoil(seen: fake.Seen, reply: fake.Reply) -> None:
        for item in reply.body["data"]:
            if seen.texts[item["index"]] == "bad":
                item["embedding"] = [number] * 8

    server.base64, server.usual = False, spoil
    flags = ("-m", f"openai:{fake.MODEL}", "--base-url", server.base_url)
    done = jobs.run("encode", tmp_path / "in.jsonl", tmp_path / "out.parquet", *flags)
    assert done.code == 3, done.err
    assert f"{words}, also when asked again" in (tmp_path / "out.parquet.rejects.jsonl").read_text()
    assert "1 row had a vector with NaN, infinity or only zeros, asked for again" in done.err
    assert "again in float32" not in done.err


def test_an_estimated_number_of_tokens_is_called_one(tmp_path: Path, server: FakeServer) -> None:
    jobs.write_jsonl(tmp_path / "in.jsonl", [{"id": 1, "text": "many words " * 50}])
    flags = ("-m", f"openai:{fake.MODEL}", "--base-url", server.base_url, "--max-seq-length", 20)
    done = jobs.run("encode", tmp_path / "in.jsonl", tmp_path / "out.parquet", *flags, "--overflow", "error")
    assert done.code == 1
    assert "the text has about " in done.err

"""The key, and other secrets of an address, are sent to the server and appear nowhere else."""

from __future__ import annotations

import base64
import gc
import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fake_server as fake
import jobs
from embedcli.core.errors import EmbedcliError, UsageError
from embedcli.core.job import Job
from embedcli.encoders.hosted import client, job_checks, response
from embedcli.encoders.hosted import encoder as hosted_encoder
from embedcli.encoders.hosted.client import RequestRefusedError
from fake_server import FakeServer
from hosted import FakeClock, embed, job_for

KEY = "sk-live-0123456789abcdef"
QUERY_KEY = "query+secret/99"
PASSWORD = "pass-word-77"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def echo(code: int) -> fake.Fault:
    """An error that tells the whole request back, as careless proxies do."""

    def fault(seen: fake.Seen, reply: fake.Reply) -> None:
        reply.status, reply.body = code, {"error": {"message": f"{dict(seen.headers)} {seen.path}"}}

    return fault


def everything_said(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + getattr(error, "hint", "")


@pytest.mark.usefixtures("_key")
@pytest.mark.parametrize("code", [400, 401, 403, 404, 405, 500, 503])
def test_a_server_that_echoes_the_key(server: FakeServer, code: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    notes: list[str] = []
    encoder = hosted_encoder.load_hosted_encoder(job_for(server, patience=30), notes.append, clock=FakeClock())
    server.usual = echo(code)
    tokens = encoder.tokenize(["a"])
    said = ""
    try:
        encoder.collect(encoder.forward(tokens, np.array([0])))
        said = encoder.reject_reason(tokens, 0) or ""
    except EmbedcliError as error:
        said = everything_said(error)
    assert "***" in said
    assert server.seen[-1].headers["authorization"] == f"Bearer {KEY}"
    everything = [said, *notes, caplog.text, repr(encoder), repr(vars(encoder)), json.dumps(encoder.vector_space())]
    assert [text for text in everything if KEY in text] == []
    encoder.close()


@pytest.mark.usefixtures("_key")
def test_the_key_is_in_no_object_that_prints_it(server: FakeServer) -> None:
    encoder = hosted_encoder.load_hosted_encoder(job_for(server), print, clock=FakeClock())
    ours = [thing for thing in gc.get_objects() if str(type(thing).__module__).startswith("embedcli")]
    assert encoder in ours
    assert [type(thing) for thing in ours if KEY in repr(thing)] == []
    encoder.close()


def test_secrets_of_the_address_travel_but_are_not_shown(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    base = server.base_url.replace("http://", f"http://user:{PASSWORD}@") + "?api-key=query%2Bsecret%2F99&v=1"
    notes: list[str] = []
    encoder = hosted_encoder.load_hosted_encoder(job_for(server, base_url=base), notes.append, clock=FakeClock())
    embed(encoder, ["a"])
    assert server.seen[-1].path == "/v1/embeddings?api-key=query%2Bsecret%2F99&v=1"
    assert server.seen[-1].headers["authorization"].startswith("Basic ")
    basic = server.seen[-1].headers["authorization"].removeprefix("Basic ")
    server.usual = echo(403)
    with pytest.raises(EmbedcliError) as caught:
        embed(encoder, ["a"])
    where = client.parse_server_address(job_for(server, base_url=base))
    everything = [everything_said(caught.value), *notes, caplog.text, repr(where), json.dumps(encoder.vector_space())]
    for secret in (PASSWORD, basic, QUERY_KEY, "query%2Bsecret%2F99"):
        assert [text for text in everything if secret in text] == []
    encoder.close()


def test_a_key_in_the_query_reaches_the_server_and_no_file_or_message(tmp_path: Path, server: FakeServer) -> None:
    jobs.write_jsonl(tmp_path / "in.jsonl", [{"id": 1, "text": "one"}, {"id": 2, "text": "poison"}])
    refuse, report = echo(500), tmp_path / "report.json"

    def fault(seen: fake.Seen, reply: fake.Reply) -> None:
        if "poison" in seen.texts:
            refuse(seen, reply)

    server.usual = fault
    address = f"{server.base_url}?api-key=query%2Bsecret%2F99"
    command = ("encode", tmp_path / "in.jsonl", tmp_path / "out.parquet", "-m", f"openai:{fake.MODEL}")
    result = jobs.run(*command, "--base-url", address, "--report", report, "--request-field", "user=me")
    assert result.code == 3
    assert server.seen[-1].path.endswith("?api-key=query%2Bsecret%2F99")
    assert "***" in (tmp_path / "out.parquet.rejects.jsonl").read_text()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {tmp_path / "out.parquet", report} <= {*written}
    for secret in (QUERY_KEY, "query%2Bsecret%2F99"):
        assert [path for path in written if secret.encode() in path.read_bytes()] == []
        assert secret not in result.out + result.err


@pytest.mark.parametrize("key", ["two words", "sk-\x07", "sk-é", "sk-a\nsk-b"])
def test_a_key_no_header_can_carry_is_refused_unshown(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UsageError) as caught:
        hosted_encoder.load_hosted_encoder(job_for(server), print, clock=FakeClock())
    assert key not in everything_said(caught.value)


@pytest.mark.usefixtures("_key")
def test_a_key_over_plain_http_is_warned_of() -> None:
    job = Job(("in",), "out", model="openai:x", base_url="http://192.0.2.1/v1")
    notes = list(job_checks.list_notes(job, client.parse_server_address(job), KEY))
    assert notes == ["the key travels unencrypted to 192.0.2.1: use https:// where you can"]


@pytest.mark.parametrize(
    ("base", "url", "host", "is_loopback"),
    [
        ("https://api.example.com/v1/", "https://api.example.com/v1/embeddings", "api.example.com", False),
        ("http://localhost:8080", "http://localhost:8080/embeddings", "localhost", True),
        ("http://[::1]:80/v1", "http://[::1]:80/v1/embeddings", "::1", True),
        ("https://u:p@h.example/x/embeddings?k=v", "https://h.example/x/embeddings", "h.example", False),
    ],
)
def test_addresses(base: str, url: str, host: str, is_loopback: bool) -> None:
    where = client.parse_server_address(Job(("in",), "out", base_url=base))
    assert (where.url, where.host, where.is_loopback) == (url, host, is_loopback)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": {"message": "openai", "type": "t", "code": null}}', "openai"),
        (b'{"error": "tei", "error_type": "Validation"}', "tei"),
        (b'{"object": "error", "message": "vllm", "code": 400}', "vllm"),
        (b'{"detail": "fastapi"}', "fastapi"),
        (b'{"detail": [{"loc": ["body"], "msg": "field required"}]}', "field required"),
        (b"<html><h1>502</h1>nginx</html>", "502 nginx"),
        (b"", ""),
        (b"[1]", "[1]"),
        (b"\xff\xfe", ""),
    ],
)
def test_what_servers_say_in_errors(body: bytes, text: str) -> None:
    assert text in response.parse_error_body(body)[0]


def test_a_long_complaint_is_cut_and_made_one_printable_line(server: FakeServer) -> None:
    encoder = hosted_encoder.load_hosted_encoder(job_for(server), print, clock=FakeClock())
    server.faults.append(fake.status(400, message="\x1b[31m" + "many\nwords " * 500))
    with pytest.raises(RequestRefusedError) as caught:
        encoder._endpoint.post(b'{"input": ["a"]}')
    assert len(str(caught.value)) < 320
    assert str(caught.value).isprintable()
    encoder.close()


def test_no_proxy_stands_between_us_and_a_server_on_this_machine(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    encoder = hosted_encoder.load_hosted_encoder(job_for(server), print, clock=FakeClock())
    assert encoder.dim == 8
    encoder.close()


def test_a_proxy_named_in_the_environment_is_used(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.base_url.removesuffix("/v1"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(EmbedcliError, match="does not know this model or path"):
        hosted_encoder.load_hosted_encoder(job_for(server, base_url="http://192.0.2.1/other"), print, clock=FakeClock())
    assert server.seen[0].path == "http://192.0.2.1/other/embeddings"


def test_a_proxy_gets_its_password_and_nobody_sees_it(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy = server.base_url.removesuffix("/v1").replace("http://", f"http://me:{PASSWORD}@")
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(EmbedcliError) as caught:
        hosted_encoder.load_hosted_encoder(job_for(server, base_url="http://192.0.2.1/other"), print, clock=FakeClock())
    given = server.seen[0].headers["proxy-authorization"].removeprefix("Basic ")
    assert base64.b64decode(given).decode() == f"me:{PASSWORD}"
    assert [text for text in (everything_said(caught.value), caplog.text) if PASSWORD in text or given in text] == []


def test_search_asks_no_other_server_than_the_one_that_made_the_rows(
    tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.parquet"
    jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(5))
    model = ("-m", f"openai:{fake.MODEL}")
    assert jobs.run("encode", tmp_path / "in.jsonl", output, *model, "--base-url", server.base_url).code == 0
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.seen.clear()
    with FakeServer() as other:
        monkeypatch.setenv("OPENAI_BASE_URL", other.base_url.replace("127.0.0.1", "localhost"))
        refused = jobs.run("search", output, "words")
        assert refused.code == 2
        assert f"add --base-url {server.base_url}" in refused.err
        assert (other.seen, server.seen) == ([], [])
        assert jobs.run("search", output, "words", "--base-url", server.base_url).code == 0
        assert other.seen == []
        assert server.seen != []

"""Fields of requests: those of known servers, of --request-field and of --omit-field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import fake_server as fake
import jobs
from embedcli.core.errors import ModelError, UsageError
from embedcli.core.job import Job
from embedcli.encoders.hosted import client, identity, known_hosts
from embedcli.encoders.hosted import encoder as hosted_encoder
from embedcli.encoders.hosted.known_hosts import KNOWN_HOSTS, OPENAI, HostDialect, find_dialect
from embedcli.encoders.hosted.request_fields import format_request_fields, resolve_request_fields
from fake_server import FakeServer
from hosted import DIM, WORDS, FakeClock, embed, job_for

VOYAGE = find_dialect("api.voyageai.com")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(dim=DIM) as running:
        yield running


def job(*fields: str, omit: tuple[str, ...] = (), **flags: Any) -> Job:
    return Job(("in",), "out", model="openai:x", request_field=fields, omit_field=omit, **flags)


def load(server: FakeServer, **flags: Any) -> hosted_encoder.HostedEncoder:
    return hosted_encoder.load_hosted_encoder(job_for(server, **flags), print, clock=FakeClock())


# The options


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("input_type=passage", "input_type", "passage"),
        ("truncate_prompt_tokens=512", "truncate_prompt_tokens", 512),
        ("truncation=false", "truncation", False),
        ('options={"a": [1, 2]}', "options", {"a": [1, 2]}),
        ('user="7"', "user", "7"),
        ("task=a=b", "task", "a=b"),
        ("task=", "task", ""),
        ("task=NaN", "task", "NaN"),
    ],
)
def test_values_are_json_or_strings(text: str, name: str, value: Any) -> None:
    fields = resolve_request_fields(job(text), OPENAI)
    assert fields.extra == {name: value}
    assert resolve_request_fields(job(*format_request_fields(fields.extra)), OPENAI) == fields


@pytest.mark.parametrize(
    ("fields", "omit"),
    [
        (("model=other",), ()),
        (("input=[]",), ()),
        ((), ("model",)),
        ((), ("input",)),
        (("novalue",), ()),
        (("=x",), ()),
        (("two words=x",), ()),
        ((), ("",)),
        (("user=a",), ("user",)),
        (("api_key=shown-secret",), ()),
        (("Authorization=shown-secret",), ()),
        (("x_api_key=shown-secret",), ()),
        (("access_token=shown-secret",), ()),
        (("password=shown-secret",), ()),
        (('extra={"auth": [{"api-key": "shown-secret"}]}',), ()),
        (("user=sk-the-real-key",), ()),
    ],
)
def test_fields_that_cannot_be_given(
    fields: tuple[str, ...], omit: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-the-real-key")
    with pytest.raises(UsageError) as caught:
        resolve_request_fields(job(*fields, omit=omit), OPENAI)
    assert caught.value.hint
    assert "shown-secret" not in str(caught.value) + caught.value.hint
    assert "sk-the-real-key" not in str(caught.value) + caught.value.hint


def test_fields_are_sent_and_recorded(server: FakeServer) -> None:
    server.usual = fake.requires_field("input_type")
    with pytest.raises(ModelError, match="'input_type' parameter is required") as caught:
        load(server)
    assert "--request-field" in caught.value.hint
    encoder = load(server, request_field=("input_type=passage", "truncate=END"))
    embed(encoder, WORDS)
    assert {(seen.body["input_type"], seen.body["truncate"]) for seen in server.seen[-2:]} == {("passage", "END")}
    assert encoder.vector_space()["request_fields"] == {"input_type": "passage", "truncate": "END"}
    encoder.close()


def test_nothing_is_recorded_where_nothing_is_given(server: FakeServer) -> None:
    encoder = load(server)
    assert not {"request_fields", "omitted_fields"} & set(encoder.vector_space())
    encoder.close()


@pytest.mark.parametrize("name", ["encoding_format", "dimensions"])
def test_an_omitted_field_is_never_sent(server: FakeServer, name: str) -> None:
    encoder = load(server, omit_field=(name,), truncate_dim=5)
    embed(encoder, WORDS)
    assert all(name not in seen.body for seen in server.seen)
    assert len(server.seen) == 4
    assert encoder.vector_space().get("omitted_fields") == (["dimensions"] if name == "dimensions" else None)
    encoder.close()


def test_a_field_that_is_given_replaces_that_of_embedcli(server: FakeServer) -> None:
    encoder = load(server, request_field=("encoding_format=float", "dimensions=4"), truncate_dim=3)
    assert {(seen.body["encoding_format"], seen.body["dimensions"]) for seen in server.seen} == {("float", 4)}
    assert encoder.dim == 4
    encoder.close()


@pytest.mark.parametrize("name", ["encoding_format", "dimensions"])
def test_a_field_that_a_strict_server_forbids_is_found_out(server: FakeServer, name: str) -> None:
    server.usual = fake.forbids_field(name)
    encoder = load(server, truncate_dim=5)
    server.seen.clear()
    embed(encoder, WORDS)
    assert all(name not in seen.body for seen in server.seen)
    encoder.close()


def test_other_fields_are_another_vector_space(server: FakeServer) -> None:
    identities = [
        identity.hosted_model_identity(job_for(server, **flags))
        for flags in ({}, {"request_field": ("a=1",)}, {"request_field": ("a=2",)}, {"omit_field": ("dimensions",)})
    ]
    assert len({json.dumps(identity) for identity in identities}) == 4


# Known servers


@pytest.fixture
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    here = HostDialect(
        "Here",
        "https://example.com",
        ("127.0.0.1",),
        max_inputs=3,
        dimensions_field="output_dimension",
        role_field="input_type",
        role_values={"query": "query", "document": "passage"},
        key_header="api-key",
    )
    monkeypatch.setattr(known_hosts, "KNOWN_HOSTS", (here,))


@pytest.mark.usefixtures("_known")
def test_a_known_server_gets_its_own_fields_limits_and_key_header(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-azure")
    encoder = load(server, as_="document", truncate_dim=5)
    embed(encoder, WORDS)
    assert {seen.body["input_type"] for seen in server.seen} == {"passage"}
    assert {seen.body["output_dimension"] for seen in server.seen} == {5}
    assert all("dimensions" not in seen.body for seen in server.seen)
    assert max(len(seen.texts) for seen in server.seen) == 3
    assert {seen.headers.get("api-key") for seen in server.seen} == {"sk-azure"}
    assert all("authorization" not in seen.headers for seen in server.seen)
    assert encoder.vector_space()["request_fields"] == {"input_type": "passage"}
    encoder.close()


@pytest.mark.usefixtures("_known")
def test_search_asks_for_queries_where_rows_were_documents(tmp_path: Path, server: FakeServer) -> None:
    jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(3))
    hosted = ("--base-url", server.base_url)
    output = tmp_path / "out.parquet"
    extra = ("--as", "document", "--request-field", "truncate=END")
    assert jobs.run("encode", tmp_path / "in.jsonl", output, "-m", f"openai:{fake.MODEL}", *hosted, *extra).code == 0
    metadata = pq.read_schema(output).metadata
    assert any(b'"input_type": "passage"' in value or b'"input_type":"passage"' in value for value in metadata.values())
    server.seen.clear()
    assert jobs.run("search", output, "words", *hosted).code == 0
    assert {(seen.body["input_type"], seen.body["truncate"]) for seen in server.seen} == {("query", "END")}
    server.seen.clear()
    assert jobs.run("search", output, "words", *hosted, "--request-field", "input_type=other").code == 0
    assert {(seen.body["input_type"], seen.body.get("truncate")) for seen in server.seen} == {("other", None)}


def test_batch_files_hold_the_fields(tmp_path: Path) -> None:
    jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(2))
    command = ("batch", "export", tmp_path / "in.jsonl", tmp_path / "requests.jsonl", "-m", "openai:x")
    assert jobs.run(*command, "--request-field", "input_type=passage", "--omit-field", "dimensions").code == 0
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [line["body"]["input_type"] for line in lines] == ["passage", "passage"]
    assert json.loads((tmp_path / "requests.job.json").read_text())["request_field"] == ["input_type=passage"]


def test_fields_given_win_over_the_role(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_request_fields(job(as_="query"), VOYAGE).extra == {"input_type": "query"}
    assert resolve_request_fields(job("input_type=x", as_="query"), VOYAGE).extra == {"input_type": "x"}
    assert resolve_request_fields(job(as_="query", omit=("input_type",)), VOYAGE).extra == {}
    assert resolve_request_fields(job(as_="query"), OPENAI).extra == {}
    assert resolve_request_fields(job(as_="none"), VOYAGE).extra == {}


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("api.openai.com", "OpenAI"),
        ("my-resource.openai.azure.com", "Azure OpenAI"),
        ("API.VoyageAI.com", "Voyage"),
        ("integrate.api.nvidia.com", "NVIDIA NIM"),
        ("notapi.voyageai.com.example", "OpenAI"),
        ("xapi.mistral.ai", "OpenAI"),
        ("localhost", "OpenAI"),
    ],
)
def test_hosts_are_known_by_their_names(host: str, name: str) -> None:
    assert find_dialect(host).name == name


def test_the_table_is_consistent() -> None:
    domains = [domain for dialect in KNOWN_HOSTS for domain in dialect.domains]
    assert len(domains) == len(set(domains))
    for dialect in KNOWN_HOSTS:
        assert dialect.documentation.startswith("https://")
        assert set(dialect.role_values) == ({"query", "document"} if dialect.role_field else set())


def test_azure_has_its_path_its_version_and_its_header() -> None:
    base = "https://name.openai.azure.com/openai/deployments/small?api-version=2024-10-21"
    where = client.parse_server_address(Job(("in",), "out", base_url=base))
    assert where.target_path == "/openai/deployments/small/embeddings?api-version=2024-10-21"
    assert client._build_headers(where, "secret")["api-key"] == "secret"
    assert "Authorization" not in client._build_headers(where, "secret")

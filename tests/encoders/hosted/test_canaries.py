"""Canaries: a model swapped behind its name is found, and the noise of a server is not mistaken for one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import fake_server as fake
import jobs
from embedcli.encoders.hosted.canaries import (
    CANARY_TEXTS,
    Canaries,
    build_canaries,
    compare_canaries,
    digest_request,
)
from fake_server import FakeServer, expected

DIM = 48


def answers(seed: int, dim: int, noise: float, model: str = "") -> Any:
    """The vectors of the canary texts, of length 1, with normal noise of this standard deviation per number."""
    rng = np.random.default_rng(seed)
    vectors = expected([model + text for text in CANARY_TEXTS], dim)
    return np.asarray(vectors + rng.normal(0, noise, vectors.shape), np.float32)


def canaries(seed: int, dim: int, noise: float, model: str = "", request: str = "") -> dict[str, Any]:
    built = build_canaries(answers(seed, dim, noise, model), answers(seed + 1, dim, noise, model), request)
    assert built is not None
    return dict(json.loads(json.dumps(built.to_json())))


@pytest.mark.parametrize("dim", [8, 64, 384, 1536])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_noise_is_no_false_alarm(dim: int, noise: float) -> None:
    recorded = canaries(0, dim, noise)
    for run in range(100):
        comparison = compare_canaries(recorded, canaries(10 + 2 * run, dim, noise))
        assert comparison is not None
        assert not comparison.has_moved, str(comparison)


@pytest.mark.parametrize("dim", [8, 64, 384, 1536])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_another_model_is_found(dim: int, noise: float) -> None:
    recorded = canaries(0, dim, noise)
    for run in range(100):
        comparison = compare_canaries(recorded, canaries(10 + 2 * run, dim, noise, model=f"other {run}"))
        assert comparison is not None
        assert comparison.has_moved


def test_a_model_that_changed_a_little_is_found() -> None:
    recorded, vectors = canaries(0, 384, 0.0), answers(0, 384, 0.0)
    retrained = vectors + 0.1 * answers(0, 384, 0.0, model="direction of training")
    built = build_canaries(retrained, retrained, "")
    assert built is not None
    comparison = compare_canaries(recorded, built.to_json())
    assert comparison is not None
    assert comparison.has_moved
    assert comparison.lowest_cosine == pytest.approx(0.995, abs=0.002)


def test_what_cannot_be_compared_is_not() -> None:
    recorded = canaries(0, 16, 0.0)
    assert compare_canaries(None, recorded) is None
    assert compare_canaries({**recorded, "version": 2}, recorded) is None
    assert compare_canaries(recorded, canaries(0, 16, 0.0, request=digest_request({"input_type": "query"}))) is None
    other_width = compare_canaries(recorded, canaries(0, 24, 0.0))
    assert other_width is not None
    assert other_width.has_moved
    nothing = answers(0, 16, 0.0)
    nothing[2] = np.nan
    assert build_canaries(nothing, nothing, "") is None


def test_the_metadata_is_small() -> None:
    assert len(json.dumps(canaries(0, 3072, 1e-3))) < 1000
    restored = Canaries.from_json(canaries(0, 3072, 1e-3))
    assert restored is not None
    assert restored.projections.shape == (len(CANARY_TEXTS), 64)


# Whole runs


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(dim=DIM) as running:
        yield running


def swapped(seen: fake.Seen, reply: fake.Reply) -> None:
    """Answer with the vectors of another model of the same dimensions, under the same name."""
    vectors = expected([f"another model: {text}" for text in seen.texts], DIM)
    for item, vector in zip(reply.body["data"], vectors.tolist(), strict=True):
        item["embedding"] = vector


def encode(server: FakeServer, source: Path, output: Path, *flags: object) -> Any:
    return jobs.run("encode", source, output, "-m", f"openai:{fake.MODEL}", "--base-url", server.base_url, *flags)


@pytest.fixture
def output(server: FakeServer, tmp_path: Path) -> Path:
    source = jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(20))
    done = encode(server, source, tmp_path / "out.parquet")
    assert done.code == 0, done.err
    return tmp_path / "out.parquet"


def test_an_update_by_another_model_is_refused(server: FakeServer, output: Path, tmp_path: Path) -> None:
    source = jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(25))
    server.usual = swapped
    refused = encode(server, source, output, "--update")
    assert refused.code == 2
    assert "now serves another model as openai:fake-embedding (lowest cosine of 5 fixed texts" in refused.err
    assert pq.read_metadata(output).num_rows == 20
    server.usual = None
    assert encode(server, source, output, "--update").code == 0
    assert pq.read_metadata(output).num_rows == 25


def test_reuse_of_another_model_is_refused(server: FakeServer, output: Path, tmp_path: Path) -> None:
    source = jobs.write_jsonl(tmp_path / "more.jsonl", jobs.rows(25))
    server.usual = swapped
    refused = encode(server, source, tmp_path / "new.parquet", "--reuse", output)
    assert refused.code == 2
    assert "now serves another model" in refused.err


def test_resuming_with_another_model_is_refused(server: FakeServer, tmp_path: Path) -> None:
    source, output = jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(40)), tmp_path / "out.parquet"
    assert encode(server, source, output, "--chunk-rows", 10, "--stop-after", 20).code in (0, 75)
    server.usual = swapped
    refused = encode(server, source, output, "--chunk-rows", 10)
    assert refused.code == 2
    assert "now serves another model" in refused.err
    server.usual = None
    assert encode(server, source, output, "--chunk-rows", 10).code == 0
    assert not Path(f"{output}.parts").exists()


def test_searching_with_another_model_is_refused(server: FakeServer, output: Path) -> None:
    query = ("search", output, "word1 word2", "--base-url", server.base_url)
    assert jobs.run(*query).code == 0
    server.usual = swapped
    refused = jobs.run(*query)
    assert refused.code == 2
    assert "was encoded with another model" in refused.err


def test_verify_shows_canaries(server: FakeServer, output: Path) -> None:
    offline = jobs.run("verify", output, "--only-output")
    assert "vectors of 5 fixed texts are recorded" in offline.out
    asked = ("verify", output, "--base-url", server.base_url)
    same = jobs.run(*asked)
    assert same.code == 0
    assert "lowest cosine of 5 fixed texts with their recorded vectors 1.0000" in same.out
    server.usual = swapped
    moved = jobs.run(*asked)
    assert moved.code == 1
    assert "FAILED" in moved.out


def test_outputs_without_canaries_go_on(server: FakeServer, output: Path, tmp_path: Path) -> None:
    table = pq.read_table(output)
    metadata = dict(table.schema.metadata)
    space = json.loads(metadata[b"embedcli"])
    assert space.pop("canaries")["dim"] == DIM
    pq.write_table(table.replace_schema_metadata({**metadata, b"embedcli": json.dumps(space)}), output)
    source = jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(25))
    assert encode(server, source, output, "--update").code == 0
    assert "canaries" in json.loads(pq.read_schema(output).metadata[b"embedcli"])


def test_a_server_that_refuses_the_fixed_texts_has_no_canaries(server: FakeServer, tmp_path: Path) -> None:
    server.refuses = lambda text: text in CANARY_TEXTS
    source = jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(5))
    assert encode(server, source, tmp_path / "out.parquet").code == 0
    assert "canaries" not in json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[b"embedcli"])


def test_a_server_of_one_text_a_request_has_canaries(server: FakeServer, tmp_path: Path) -> None:
    server.max_inputs = 1
    source = jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(5))
    assert encode(server, source, tmp_path / "out.parquet").code == 0
    assert "canaries" in json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[b"embedcli"])

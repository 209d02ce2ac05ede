"""Whole jobs of one head of BGE-M3: outputs, interrupted runs, updates, and the commands that read them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import jobs
import reference
from embedcli.outputs import schema
from head_jobs import COUNT, arguments, assert_terms, compute_expected, prepare, run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from prepare(tmp_path_factory)


@pytest.fixture(scope="module")
def expected(home: Path) -> dict[str, dict[str, Any]]:
    return compute_expected(home)


def test_a_sparse_output(home: Path, tmp_path: Path, expected: dict[str, dict[str, Any]]) -> None:
    output = tmp_path / "out.parquet"
    ended = run(home, output, "--heads", "sparse")
    assert ended.code == 3, ended.err
    table = pq.read_table(output)
    with_terms = [name for name, vectors in expected.items() if vectors["sparse"]]
    assert table.column("id").to_pylist() == with_terms
    for row in table.to_pylist():
        assert_terms(row["embedding"], expected[row["id"]]["sparse"])
    space = json.loads(table.schema.metadata[b"embedcli"])
    assert (space["kind"], space["heads"], space["pooling"], space["normalize"]) == ("sparse", ["sparse"], "max", False)
    rejects = [json.loads(line) for line in (tmp_path / "out.parquet.rejects.jsonl").read_text().splitlines()]
    assert [reject["id"] for reject in rejects] == [name for name in expected if name not in with_terms]
    assert {f"r{COUNT - 2}", f"r{COUNT - 1}"} <= {reject["id"] for reject in rejects} < expected.keys()


@pytest.mark.parametrize("ending", ["parquet", "npy"])
def test_a_multi_vector_output(home: Path, tmp_path: Path, expected: dict[str, dict[str, Any]], ending: str) -> None:
    output = tmp_path / f"out.{ending}"
    ended = run(home, output, "--heads", "multi_vector")
    assert ended.code == 0, ended.err
    wanted = [vectors["multi_vector"] for vectors in expected.values()]
    if ending == "npy":
        found = np.load(output)
    else:
        table = pq.read_table(output)
        offsets, found = schema.token_vectors_from_table(table)
        assert np.diff(offsets).tolist() == [len(vectors) for vectors in wanted]
        space = json.loads(table.schema.metadata[b"embedcli"])
        assert (space["kind"], space["heads"], space["normalize"]) == ("multi_vector", ["multi_vector"], True)
    np.testing.assert_allclose(found, np.concatenate(wanted), atol=1e-4)


@pytest.mark.parametrize("head", ["sparse", "multi_vector"])
def test_a_killed_run_goes_on_to_the_same_bytes(home: Path, tmp_path: Path, head: str) -> None:
    output = tmp_path / "out.parquet"
    process = subprocess.Popen(jobs.command(*arguments(home, output, "--heads", head)), stderr=subprocess.DEVNULL)
    jobs.wait_for(lambda: len(list((tmp_path / "out.parquet.parts").glob("part-*.arrow"))) >= 2, process)
    process.kill()
    process.wait()
    assert not output.exists()
    refused = run(home, output)
    assert refused.code == 2
    assert f"--heads ({head}, now dense)" in refused.err
    assert run(home, output, "--heads", head).code in (0, 3)
    assert run(home, tmp_path / "again.parquet", "--heads", head).code in (0, 3)
    assert output.read_bytes() == (tmp_path / "again.parquet").read_bytes()


def test_a_head_is_another_job_and_another_vector_space(home: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    assert run(home, output).code == 0
    assert run(home, output, "--heads", "dense").code == 0
    refused = run(home, output, "--heads", "sparse")
    assert refused.code == 2
    assert "--heads (dense, now sparse)" in refused.err
    updated = run(home, output, "--heads", "sparse", "--update")
    assert updated.code == 2
    assert "another space" in updated.err


def test_sparse_outputs_are_searched_verified_and_updated(
    home: Path, tmp_path: Path, expected: dict[str, dict[str, Any]]
) -> None:
    output = tmp_path / "out.parquet"
    assert run(home, output, "--heads", "sparse").code == 3
    found = jobs.run("search", output, reference.samples()[8], "-k", 1, "--json", "--device", "cpu")
    assert found.code == 0, found.err
    query = expected["r8"]["sparse"]
    scores = {
        name: sum(weight * query.get(token, 0) for token, weight in vectors["sparse"].items())
        for name, vectors in expected.items()
    }
    nearest = json.loads(found.out)[0]
    assert nearest["id"] == max(scores, key=lambda name: scores[name])
    assert nearest["score"] == pytest.approx(max(scores.values()), abs=1e-3)
    verified = jobs.run("verify", output, home / "in.jsonl", "--device", "cpu")
    assert verified.code == 0, verified.out + verified.err
    rows = [json.loads(line) for line in (home / "in.jsonl").read_text().splitlines()]
    rows[3]["text"] = "another word"
    changed = jobs.write_jsonl(tmp_path / "in.jsonl", rows)
    flags = arguments(home, output, "--heads", "sparse", "--update")[3:]
    assert jobs.run("encode", changed, output, *flags).code == 3
    assert jobs.run("encode", changed, tmp_path / "fresh.parquet", *flags[:-1]).code == 3
    read = [pq.read_table(path).column("embedding").to_pylist() for path in (output, tmp_path / "fresh.parquet")]
    assert read[0] == read[1]


def test_the_python_api(home: Path, expected: dict[str, dict[str, Any]]) -> None:
    import embedcli

    with embedcli.load(home / "bge-m3", heads="sparse", device="cpu", offline=True) as model:
        vectors = model.encode(reference.samples()[:3])
    for number in range(3):
        wanted = expected[f"r{number}"]["sparse"]
        assert set(np.flatnonzero(vectors[number]).tolist()) == wanted.keys()
    given: list[Any] = ["multi_vector", ["multi_vector"]]
    for heads in given:
        with embedcli.load(home / "bge-m3", heads=heads, device="cpu", offline=True) as model:
            found = model.encode(reference.samples()[:3])
        for number in range(3):
            np.testing.assert_allclose(found[number], expected[f"r{number}"]["multi_vector"], atol=1e-4)
    with pytest.raises(embedcli.UsageError, match="gives a text several vectors"):
        embedcli.load(home / "bge-m3", heads=["dense", "sparse"], offline=True)


@pytest.mark.parametrize(
    ("value", "hint"),
    [("spars", "did you mean sparse?"), ("dense,dense", "use e.g."), ("", "choose from dense, sparse, multi_vector")],
)
def test_values_that_are_no_heads(home: Path, tmp_path: Path, value: str, hint: str) -> None:
    ended = run(home, tmp_path / "out.parquet", "--heads", value)
    assert ended.code == 2
    assert hint in ended.err

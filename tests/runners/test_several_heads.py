"""Jobs with several heads of BGE-M3: a column for each, in every format, and the commands that read one of them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import head_models
import jobs
from embedcli.core.errors import UsageError
from embedcli.core.row_vectors import as_dense
from embedcli.outputs.dataset import open_dataset
from head_jobs import COUNT, arguments, assert_terms, compute_expected, prepare, run

HEADS = "dense,sparse,multi_vector"
COLUMNS = {"dense": "embedding", "sparse": "embedding_sparse", "multi_vector": "embedding_multi_vector"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from prepare(tmp_path_factory)


@pytest.fixture(scope="module")
def expected(home: Path) -> dict[str, dict[str, Any]]:
    return compute_expected(home)


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    """An output with the vectors of all heads."""
    ended = run(home, home / "whole.parquet", "--heads", HEADS, "--keep", "n")
    assert ended.code == 0, ended.err
    return home / "whole.parquet"


def assert_rows(rows: list[dict[str, Any]], expected: dict[str, dict[str, Any]], atol: float = 1e-4) -> None:
    """Check all vectors of all rows, as they are in JSON."""
    assert [row["id"] for row in rows] == list(expected)
    for row, wanted in zip(rows, expected.values(), strict=True):
        np.testing.assert_allclose(row["embedding"], wanted["dense"], atol=atol)
        assert_terms(row["embedding_sparse"], wanted["sparse"], atol)
        np.testing.assert_allclose(row["embedding_multi_vector"], wanted["multi_vector"], atol=atol)


def read_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".arrow":
        return list(pa.ipc.open_file(str(path)).read_all().to_pylist())
    if path.suffix == ".lance":
        import lance

        return list(lance.dataset(str(path)).to_table().to_pylist())
    return list(pq.read_table(path).to_pylist())


@pytest.mark.parametrize("ending", ["parquet", "arrow", "jsonl", "lance"])
def test_every_format_has_a_column_for_each_head(
    home: Path, tmp_path: Path, expected: dict[str, dict[str, Any]], ending: str
) -> None:
    output = tmp_path / f"out.{ending}"
    ended = run(home, output, "--heads", HEADS)
    assert ended.code == 0, ended.err
    rows = read_rows(output)
    assert_rows(rows, expected)
    names = ["id", *COLUMNS.values(), "n_tokens", "truncated", "text_hash"]
    assert list(rows[0]) == names


def test_the_metadata_describe_each_head(whole: Path) -> None:
    schema_of = pq.read_schema(whole)
    space = json.loads(schema_of.metadata[b"embedcli"])
    assert space["heads"] == HEADS.split(",")
    assert (space["pooling"], space["normalize"], space["dim"], "kind" in space) == ("cls", True, 32, False)
    assert len(space["columns"]["embedding_sparse"].pop("vocabulary")) == 32
    assert space["columns"] == {
        "embedding": {"heads": ["dense"], "dim": 32, "pooling": "cls", "normalize": True},
        "embedding_sparse": {
            "heads": ["sparse"], "kind": "sparse", "dim": 900, "pooling": "max", "normalize": False,
        },
        "embedding_multi_vector": {
            "heads": ["multi_vector"], "kind": "multi_vector", "dim": 32, "pooling": "none", "normalize": True,
        },
    }  # fmt: skip


def test_settings_of_a_kind_belong_to_its_column(home: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    ended = run(home, output, "--heads", "sparse,multi_vector", "--top-k-terms", 2, "--pool-factor", 2)
    assert ended.code == 0, ended.err
    table = pq.read_table(output)
    assert table.column_names[1:3] == ["embedding", "embedding_multi_vector"]
    assert max(len(row["indices"]) for row in table.column("embedding").to_pylist()) == 2
    space = json.loads(table.schema.metadata[b"embedcli"])
    assert (space["kind"], space["top_k_terms"], "pool_factor" in space) == ("sparse", 2, False)
    assert space["columns"]["embedding_multi_vector"]["pool_factor"] == 2
    assert "top_k_terms" not in space["columns"]["embedding_multi_vector"]
    verified = jobs.run("verify", output, home / "in.jsonl", "--all", "--device", "cpu")
    assert verified.code == 0, verified.out + verified.err


def test_half_precision_is_that_of_all_columns(home: Path, tmp_path: Path, expected: dict[str, dict[str, Any]]) -> None:
    output = tmp_path / "out.parquet"
    assert run(home, output, "--heads", HEADS, "--precision", "float16").code == 0
    assert_rows(read_rows(output), expected, atol=3e-3)
    schema_of = pq.read_schema(output)
    assert schema_of.field("embedding").type.value_type == pa.float16()
    assert schema_of.field("embedding_sparse").type.field("values").type.value_type == pa.float16()
    assert schema_of.field("embedding_multi_vector").type.value_type.value_type == pa.float16()


def test_a_killed_run_of_several_heads_goes_on_to_the_same_bytes(home: Path, tmp_path: Path, whole: Path) -> None:
    output = tmp_path / "whole.parquet"
    flags = ("--heads", HEADS, "--keep", "n")
    process = subprocess.Popen(jobs.command(*arguments(home, output, *flags)), stderr=subprocess.DEVNULL)
    jobs.wait_for(lambda: len(list((tmp_path / "whole.parquet.parts").glob("part-*.arrow"))) >= 2, process)
    process.kill()
    process.wait()
    assert not output.exists()
    refused = run(home, output, "--heads", "sparse,dense,multi_vector", "--keep", "n")
    assert refused.code == 2
    assert "--heads (dense sparse multi_vector, now sparse dense multi_vector)" in refused.err
    assert run(home, output, *flags).code == 0
    assert output.read_bytes() == whole.read_bytes()


def test_workers_shards_and_folders(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, dict[str, Any]]
) -> None:
    from embedcli.readers import preview

    monkeypatch.setattr(preview, "JSONL_SPLIT_BYTES", 6000)
    flags = ("--heads", HEADS)
    assert run(home, f"{tmp_path}/plain/", "--part-size", 200_000, *flags).code == 0
    assert run(home, f"{tmp_path}/shards/", "--part-size", 200_000, "--shard", "1/2", *flags).code == 0
    assert run(home, f"{tmp_path}/shards/", "--part-size", 200_000, "--shard", "2/2", *flags).code == 0
    assert run(home, tmp_path / "workers.parquet", "--workers", 2, *flags).code == 0
    for name in ("plain", "shards"):
        listed = json.loads((tmp_path / name / "_manifest.json").read_text())["parts"]
        assert len(listed) > 2
        assert_rows([row for part in listed for row in read_rows(tmp_path / name / part)], expected)
    assert_rows(read_rows(tmp_path / "workers.parquet"), expected)
    found = jobs.run("verify", f"{tmp_path}/shards/", home / "in.jsonl", "--vector-column", "embedding_sparse")
    assert found.code == 0, found.out + found.err


def test_windows_and_stdout(home: Path, tmp_path: Path) -> None:
    assert (
        run(home, tmp_path / "out.parquet", "--heads", HEADS, "--overflow", "split", "--max-seq-length", 40).code == 0
    )
    rows = read_rows(tmp_path / "out.parquet")
    assert len(rows) > COUNT
    assert {len(row["embedding_multi_vector"]) for row in rows} <= set(range(1, 40))
    ended = run(home, "-", "--heads", HEADS, "--limit", 3)
    assert [list(json.loads(line))[1:4] for line in ended.out.splitlines()] == [list(COLUMNS.values())] * 3


def test_what_several_heads_refuse(home: Path, tmp_path: Path, whole: Path) -> None:
    npy = run(home, tmp_path / "out.npy", "--heads", "dense,multi_vector")
    assert npy.code == 2
    assert "a .npy output cannot be used with several heads" in npy.err
    binary = run(home, tmp_path / "out.parquet", "--heads", HEADS, "--precision", "binary")
    assert binary.code == 2
    assert "--precision binary makes no sense for the sparse vectors" in binary.err
    reused = run(home, tmp_path / "out.parquet", "--reuse", whole)
    assert reused.code == 2
    assert "they are those of the heads dense, sparse, multi_vector, and this job asks for dense" in reused.err
    named = jobs.write_jsonl(tmp_path / "in.jsonl", [{"id": 1, "text": "a", "embedding_sparse": 3}])
    flags = arguments(home, tmp_path / "kept.parquet", "--heads", HEADS, "--keep", "embedding_sparse")[2:]
    kept = jobs.run("encode", named, *flags)
    assert kept.code == 2
    assert "'embedding_sparse' cannot be kept" in kept.err
    assert jobs.run("encode", named, *flags[:-4], "--keep", "embedding_sparse").code == 0


@pytest.mark.parametrize("ending", ["parquet", "arrow", "jsonl", "lance"])
def test_each_column_is_read_by_its_name(
    home: Path, tmp_path: Path, expected: dict[str, dict[str, Any]], ending: str
) -> None:
    output = str(tmp_path / f"out.{ending}")
    assert run(home, output, "--heads", HEADS, "--keep", "n").code == 0
    dense = open_dataset(output)
    assert (dense.kind, dense.dim, dense.vector_space["heads"]) == ("dense", 32, ["dense"])
    assert "columns" not in dense.vector_space
    assert dense.kept_columns == ["n"]
    sparse = open_dataset(output, "embedding_sparse")
    assert (sparse.kind, sparse.dim, sparse.vector_space["heads"]) == ("sparse", 900, ["sparse"])
    found = np.concatenate([as_dense(sparse.block_vectors(block)) for block in sparse.read_blocks()])
    for row, wanted in zip(found, expected.values(), strict=True):
        assert {int(token) for token in np.flatnonzero(row)} == wanted["sparse"].keys()
    multi = open_dataset(output, "embedding_multi_vector")
    assert (multi.kind, multi.dim, multi.vector_space["heads"]) == ("multi_vector", 32, ["multi_vector"])
    tokens = np.concatenate([as_dense(multi.block_vectors(block)) for block in multi.read_blocks()])
    np.testing.assert_allclose(tokens, np.concatenate([row["multi_vector"] for row in expected.values()]), atol=1e-4)
    for name in ("nothing", "n"):
        with pytest.raises(UsageError, match=f"'{name}' is not a column of vectors"):
            open_dataset(output, name)


def test_commands_read_the_column_that_is_named(
    home: Path, tmp_path: Path, whole: Path, expected: dict[str, dict[str, Any]]
) -> None:
    for column in ("embedding", "embedding_multi_vector", "embedding_sparse"):
        verified = jobs.run("verify", whole, home / "in.jsonl", "--all", "--vector-column", column, "--device", "cpu")
        assert verified.code == 0, verified.out + verified.err
        described = json.loads(jobs.run("inspect", whole, "--vector-column", column, "--json").out)
        assert described["vector_column"] == column
        assert set(described["vector_columns"]) == set(COLUMNS.values())
    lacking = sum(not vectors["sparse"] for vectors in expected.values())
    assert (described["terms"]["empty_rows"], described["zero_rows"], lacking > 0) == (lacking, 0, True)
    assert described["norms"]["min"] > 0
    shown = jobs.run("inspect", whole, "--vector-column", "embedding_sparse").out
    assert re.search(rf"^without a term +{lacking} rows$", shown, re.MULTILINE)
    assert re.search("^damage +none: every vector is finite and not zero$", shown, re.MULTILINE)
    sparse = tmp_path / "sparse.parquet"
    assert run(home, sparse, "--heads", "sparse").code == 3
    columns = ("--vector-column", "embedding_sparse", "--vector-column", "embedding")
    compared = json.loads(jobs.run("compare", whole, sparse, *columns, "--json").out)[0]
    assert compared["cosine"]["min"] == pytest.approx(1)
    assert compared["shared_rows"] == pq.read_metadata(sparse).num_rows
    query = ("words of a text", "-k", 5, "--json", "--device", "cpu")
    alone = json.loads(jobs.run("search", sparse, *query).out)
    column = json.loads(jobs.run("search", whole, *query, "--vector-column", "embedding_sparse").out)
    assert [hit["id"] for hit in alone] == [hit["id"] for hit in column]
    assert [hit["score"] for hit in alone] == pytest.approx([hit["score"] for hit in column])
    found = json.loads(jobs.run("search", whole, *query, "--vector-column", "embedding_multi_vector").out)
    (words,) = head_models.compute_heads(home / "bge-m3", [query[0]])
    scores = [(words["multi_vector"] @ row["multi_vector"].T).max(axis=1).sum() for row in expected.values()]
    assert [hit["score"] for hit in found] == pytest.approx(sorted(scores, reverse=True)[:5], abs=1e-3)


def test_columns_of_one_output_are_fused(home: Path, whole: Path, tmp_path: Path) -> None:
    query = ("words of a text", "-k", 5, "--json", "--device", "cpu")
    columns = [word for name in COLUMNS.values() for word in ("--vector-column", name)]
    fused = jobs.run("search", whole, *query, *columns, "--fuse", "rrf")
    assert fused.code == 0, fused.err
    each = jobs.run("search", whole, whole, whole, *query, *columns, "--fuse", "rrf")
    assert json.loads(fused.out) == json.loads(each.out)
    scores: dict[str, float] = dict.fromkeys((f"r{number}" for number in range(COUNT)), 0.0)
    for column in columns[1::2]:
        flags = ("-k", COUNT, "--json", "--device", "cpu", "--vector-column", column)
        ranking = [hit["id"] for hit in json.loads(jobs.run("search", whole, query[0], *flags).out) if hit["score"]]
        for rank, name in enumerate(ranking, 1):
            scores[name] += 1 / (60 + rank)
    best = sorted(scores.values(), reverse=True)[:5]
    assert [hit["score"] for hit in json.loads(fused.out)] == pytest.approx(best, abs=1e-6)
    refused = jobs.run("search", whole, *query, *columns)
    assert refused.code == 2
    assert "need --fuse rrf" in refused.err
    many = jobs.run("search", whole, whole, *query, *columns, "--vector-column", "n", "--fuse", "rrf")
    assert many.code == 2
    assert "--vector-column is given 4 times for 2 outputs" in many.err


def test_damage_in_a_column_is_found(home: Path, tmp_path: Path, whole: Path) -> None:
    """Another vector of a head in one row: the vectors of the others are still right."""
    table = pq.read_table(whole)
    rows = table.column("embedding_sparse").to_pylist()
    rows[5]["values"] = rows[5]["values"][::-1]
    kind = table.schema.field("embedding_sparse")
    changed = table.set_column(2, kind, pa.array(rows, kind.type))
    pq.write_table(changed, tmp_path / "out.parquet")
    for column, code in (("embedding", 0), ("embedding_sparse", 1)):
        flags = ("--all", "--vector-column", column, "--device", "cpu")
        verified = jobs.run("verify", tmp_path / "out.parquet", home / "in.jsonl", *flags)
        assert verified.code == code, verified.out + verified.err
    assert len(rows[5]["values"]) > 1
    assert "r5" in verified.out


@pytest.mark.parametrize("heads", ["multi_vector", HEADS])
def test_a_plan_has_the_size_of_the_output(home: Path, tmp_path: Path, heads: str) -> None:
    options = ("--model", home / "bge-m3", "--offline", "--device", "cpu", "--json", "--heads", heads)
    planned = json.loads(jobs.run("plan", home / "in.jsonl", *options).out)
    assert planned["dim"] == head_models.DIM
    for ending, precision in (("parquet", "float32"), ("parquet", "int8"), ("arrow", "float32")):
        flags = ("--heads", heads, "--precision", precision, "--overwrite")
        assert run(home, tmp_path / f"out.{ending}", *flags).code == 0
        size = (tmp_path / f"out.{ending}").stat().st_size
        assert planned["output_bytes"][precision][ending] == pytest.approx(size, rel=0.25)
    assert ("npy" in planned["output_bytes"]["float32"]) == (heads != HEADS)


@pytest.mark.parametrize("heads", ["dense, sparse", ["dense", "sparse"]])
def test_the_python_api_writes_them(home: Path, tmp_path: Path, heads: Any) -> None:
    import embedcli

    flags = {"model": home / "bge-m3", "heads": heads, "device": "cpu", "offline": True, "limit": 3}
    embedcli.encode_file(home / "in.jsonl", tmp_path / "out.parquet", **flags)
    assert pq.read_schema(tmp_path / "out.parquet").names[1:3] == ["embedding", "embedding_sparse"]

"""Jobs with several heads of BGE-M3 that take over vectors of finished outputs, and those that store integers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
from embedcli.core import quantization
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.row_vectors import as_dense
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.outputs.dataset import open_dataset
from head_jobs import COUNT, arguments, prepare, run
from sparse_models import build_masked_lm

HEADS = ("--heads", "dense,sparse,multi_vector")
COLUMNS = ("embedding", "embedding_sparse", "embedding_multi_vector")
CHANGED, REMOVED = 11, 5


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from prepare(tmp_path_factory)


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    """An output with the vectors of all heads."""
    ended = run(home, home / "whole.parquet", *HEADS)
    assert ended.code == 0, ended.err
    return home / "whole.parquet"


def edit_rows(home: Path, folder: Path) -> Path:
    """A file of the rows without the first, with another text in one, an added row, and one with a repeated text."""
    rows = [json.loads(line) for line in (home / "in.jsonl").read_text().splitlines()][REMOVED:]
    rows[CHANGED]["text"] = "Another text, with its own vectors."
    again = {"id": "again", "text": rows[0]["text"], "n": 0}
    return jobs.write_jsonl(
        folder / "in.jsonl", [*rows, {"id": "new", "text": "Some words of a new row.", "n": 1}, again]
    )


def encode_file(home: Path, source: Path, output: object, *more: object) -> jobs.Ended:
    return jobs.run("encode", source, output, *arguments(home, "")[3:], *HEADS, *more)


def read_vectors(path: object, column: str) -> dict[str, Any]:
    """The vectors of each row in a column as they are stored, by its id; of sparse ones indices and weights."""
    output = open_dataset(str(path), column)
    found: dict[str, Any] = {}
    for block in output.read_blocks(["id"]):
        rows = [block.vectors[row : row + 1] for row in range(len(block))]
        found |= dict(zip(output.block_ids(block).to_pylist(), map(list_numbers, rows), strict=True))
    return found


def list_numbers(vectors: Any) -> Any:
    """The stored numbers of a row."""
    if isinstance(vectors, SparseVectors):
        return np.stack([vectors.indices, vectors.values])
    return np.array(vectors.values if isinstance(vectors, MultiVectors) else vectors)


@pytest.mark.parametrize("name", ["out.parquet", "out.arrow", "out.lance", "out/"])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_an_update_takes_over_the_vectors_of_all_heads(home: Path, tmp_path: Path, name: str, precision: str) -> None:
    output, flags = f"{tmp_path}/{name}", ("--precision", precision, "--report", tmp_path / "report.json")
    assert run(home, output, *HEADS, *flags).code == 0
    before = {column: read_vectors(output, column) for column in COLUMNS}
    source = edit_rows(home, tmp_path)
    ended = encode_file(home, source, output, *flags, "--update")
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "report.json").read_text())
    reused = COUNT - REMOVED - 1 + 1
    assert report["changes"] == {"added": 1, "changed": 1, "reused": reused, "removed": REMOVED}
    assert report["counters"]["sequences"] == 2
    ranges = ("--ranges-from", output) if precision == "int8" else ()
    fresh = f"{tmp_path}/fresh{name.removeprefix('out')}"
    assert encode_file(home, source, fresh, *flags, *ranges).code == 0
    for column in COLUMNS:
        after, computed = read_vectors(output, column), read_vectors(fresh, column)
        assert list(after) == list(computed)
        for key in before[column].keys() & after.keys() - {f"r{REMOVED + CHANGED}"}:
            assert after[key].tobytes() == before[column][key].tobytes()
        assert after["again"].tobytes() == after[f"r{REMOVED}"].tobytes()
        for key, vectors in computed.items():
            # Weights that were int8 are read as float32, in steps of less than 0.1.
            step = 1 if vectors.dtype == np.int8 else 0.1 if precision == "int8" else 1e-3
            np.testing.assert_allclose(after[key].astype(float), vectors.astype(float), atol=step)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_reused_vectors_give_the_bytes_of_a_job_without_reuse(home: Path, tmp_path: Path, precision: str) -> None:
    flags = ("--precision", precision)
    assert run(home, tmp_path / "old.parquet", *HEADS, *flags).code == 0
    report = ("--report", tmp_path / "report.json")
    ended = run(home, tmp_path / "out.parquet", *HEADS, *flags, "--reuse", tmp_path / "old.parquet", *report)
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "report.json").read_text())["counters"]["sequences"] == 0
    table, old = pq.read_table(tmp_path / "out.parquet"), pq.read_table(tmp_path / "old.parquet")
    assert table == old
    assert run(home, tmp_path / "out.parquet", *HEADS, *flags, "--overwrite").code == 0
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "old.parquet").read_bytes()


def test_each_head_has_ranges_of_its_own(home: Path, tmp_path: Path, whole: Path) -> None:
    output = tmp_path / "out.parquet"
    assert run(home, output, *HEADS, "--precision", "int8").code == 0
    space = json.loads(pq.read_schema(output).metadata[b"embedcli"])
    assert space["ranges"] == space["columns"]["embedding"]["ranges"]
    for column in COLUMNS:
        exact, stored = open_dataset(str(whole), column), open_dataset(str(output), column)
        (vectors,) = (exact.block_vectors(block) for block in exact.read_blocks())
        (ranges,) = quantization.compute_ranges_of(vectors)
        # All rows are in the sample, so that nothing is clipped.
        np.testing.assert_allclose(stored.require_ranges(), ranges, atol=1e-5)
        (found,) = (stored.block_vectors(block) for block in stored.read_blocks())
        difference = np.abs(as_dense(found) - as_dense(vectors))
        assert (difference <= quantization.quantization_step(ranges) * 0.51 + 1e-5).all()
        flags = ("--all", "--vector-column", column, "--device", "cpu", "--min-cosine", 0.99)
        verified = jobs.run("verify", output, home / "in.jsonl", *flags)
        assert verified.code == 0, verified.out + verified.err
    assert len(json.loads(jobs.run("search", output, "words of a text", "--json", "--device", "cpu").out)) == 10


def test_workers_share_the_ranges_of_all_heads(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedcli.readers import preview

    monkeypatch.setattr(preview, "JSONL_SPLIT_BYTES", 6000)
    flags = (*HEADS, "--precision", "int8")
    assert run(home, tmp_path / "alone.parquet", *flags).code == 0
    assert run(home, tmp_path / "workers.parquet", *flags, "--workers", 2).code == 0
    assert pq.read_table(tmp_path / "workers.parquet") == pq.read_table(tmp_path / "alone.parquet")


def test_ranges_of_other_heads_are_refused(home: Path, tmp_path: Path) -> None:
    two = tmp_path / "two.parquet"
    assert run(home, two, "--heads", "dense,sparse", "--precision", "int8").code == 0
    refused = run(home, tmp_path / "out.parquet", *HEADS, "--precision", "int8", "--ranges-from", two)
    assert refused.code == 2
    assert "has ranges for 2 columns of vectors, and this job writes 3" in refused.err
    other = run(home, tmp_path / "out.parquet", "--heads", "sparse,dense", "--precision", "int8", "--ranges-from", two)
    assert other.code == 2
    assert "has ranges for 32 dimensions, sparse ones share one" in other.err


def test_rows_without_any_term_have_ranges(home: Path, tmp_path: Path) -> None:
    """The sparse vectors of all rows are empty: their weights have no lowest and highest."""
    source = jobs.write_jsonl(tmp_path / "in.jsonl", [{"id": name, "text": name} for name in ("🙂", "🙂🙂")])
    ended = encode_file(home, source, tmp_path / "out.parquet", "--precision", "uint8")
    assert ended.code == 0, ended.err
    assert open_dataset(str(tmp_path / "out.parquet"), "embedding_sparse").require_ranges().tolist() == [[0.0], [0.0]]


def test_other_heads_and_models_are_named(home: Path, tmp_path: Path) -> None:
    """Before the model is loaded, and in words."""
    output = tmp_path / "out.parquet"
    assert run(home, output, "--heads", "dense,sparse").code == 0
    other = run(home, output, "--heads", "sparse,dense", "--update")
    assert other.code == 2
    assert "they are those of the heads dense, sparse, and this job asks for sparse, dense" in other.err
    own = run(home, output)
    assert "was made with other settings: --heads (dense sparse, now dense)\n" in own.err
    one = run(home, output, "--heads", "sparse")
    assert "was made with other settings: --heads (dense sparse, now sparse)\n" in one.err
    build_masked_lm(tmp_path / "dense")
    model = jobs.run("encode", home / "in.jsonl", output, "-m", tmp_path / "dense", "--offline", "--update")
    assert model.code == 2
    assert f"they are those of the model {home}/bge-m3" in model.err
    layer = home / "bge-m3" / "sparse_linear.pt"
    content = layer.read_bytes()
    layer.write_bytes((home / "bge-m3" / "colbert_linear.pt").read_bytes())
    version = run(home, output, "--heads", "dense,sparse", "--update")
    layer.write_bytes(content)
    assert version.code == 2
    assert f"another version of {home}/bge-m3 computed them, with the fingerprint" in version.err


def test_vectors_of_tokens_are_merged_by_the_head_that_has_them(home: Path, tmp_path: Path) -> None:
    refused = run(home, tmp_path / "out.parquet", "--heads", "dense", "--pool-factor", 2)
    assert refused.code == 2
    assert "--pool-factor is for vectors of tokens, and --heads dense has none" in refused.err
    assert "add multi_vector to --heads" in refused.err


def test_ranges_that_make_no_sense_are_refused(home: Path, tmp_path: Path) -> None:
    output, flags = tmp_path / "out.arrow", ("--heads", "dense,sparse", "--precision", "int8")
    assert run(home, output, *flags).code == 0
    with pa.ipc.open_file(str(output)) as file:
        table = file.read_all()
    space = json.loads(table.schema.metadata[b"embedcli"])
    space["columns"]["embedding_sparse"]["ranges"] = [[2.0], [1.0]]
    changed = table.replace_schema_metadata(table.schema.metadata | {b"embedcli": json.dumps(space).encode()})
    with pa.ipc.new_file(str(output), changed.schema) as writer:
        writer.write_table(changed)
    source = edit_rows(home, tmp_path)
    updated = jobs.run("encode", source, output, *arguments(home, "")[3:], *flags, "--update")
    named = run(home, tmp_path / "new.parquet", *flags, "--ranges-from", output)
    for ended in (updated, named):
        assert ended.code == 1
        assert "the ranges of its int8 vectors make no sense: a lowest value is above the highest" in ended.err

"""What `embedcli load` promises of sparse vectors and of vectors of tokens, for every database that holds them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import jobs
import multi_vector_models
from backends import BACKENDS, Backend
from embedcli.core.types import KIND_ADJECTIVES
from loads import check, drop, load, load_until, loaded, make_backend, names, read_rejects, rehearse, run
from sample_outputs import make_output, sparse_vectors, token_vectors

if TYPE_CHECKING:
    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import Precision, VectorKind

KINDS: tuple[VectorKind, ...] = ("sparse", "multi_vector")
WORDS = ("token", "vector", "query", "score", "table", "index", "row", "word")


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    yield from make_backend(request.param, tmp_path)


@pytest.fixture(params=sorted((name, kind) for name in BACKENDS for kind in KINDS if kind in BACKENDS[name].kinds))
def holder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Backend, VectorKind]]:
    """A database, and one of the kinds that it holds."""
    name, kind = request.param
    for made in make_backend(name, tmp_path):
        yield made, kind


@pytest.fixture(params=sorted(name for name, backend in BACKENDS.items() if "multi_vector" in backend.kinds))
def multi_vector_holder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    yield from make_backend(request.param, tmp_path)


def vectors_of(kind: VectorKind, rows: int, seed: int = 0) -> RowVectors:
    return sparse_vectors(rows, 1000, seed=seed) if kind == "sparse" else token_vectors(rows, 8, seed=seed)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_kept_or_refused(tmp_path: Path, backend: Backend, kind: VectorKind, precision: Precision) -> None:
    output = make_output(tmp_path / "out.parquet", vectors_of(kind, 30), ids=names(30), stored_as=precision)
    done = load(output, backend)
    if kind not in backend.kinds:
        assert done.code == 2
        assert f"does not hold {KIND_ADJECTIVES[kind]} vectors" in done.err
        return
    assert done.code == 0, done.err
    assert check(output, backend).code == 0
    assert load(output, backend).counts == (0, 30)


def test_only_changed_rows_are_sent_and_sync_deletes(tmp_path: Path, holder: tuple[Backend, VectorKind]) -> None:
    backend, kind = holder
    vectors = vectors_of(kind, 43)
    loaded(make_output(tmp_path / "out.parquet", vectors[:40], ids=names(40)), backend)
    changed = vectors[np.array([0, 2, 1, *range(3, 43)])]
    output = make_output(tmp_path / "out.parquet", changed, ids=names(43))
    done = check(output, backend)
    assert "3 rows missing, 2 of another version of the output: r40, r41, r42, r1, r2" in done.out
    assert load(output, backend).counts == (5, 38)
    assert check(output, backend).code == 0
    output = make_output(tmp_path / "out.parquet", changed[:30], ids=names(30))
    assert "deleted   13 rows" in load(output, backend, "--sync").err
    assert sorted(backend.ids()) == sorted(names(30))
    assert check(output, backend).code == 0


def test_two_kills_lose_and_repeat_nothing(tmp_path: Path, holder: tuple[Backend, VectorKind]) -> None:
    backend, kind = holder
    count = 200
    output = make_output(tmp_path / "out.parquet", vectors_of(kind, count), ids=names(count))
    calls = rehearse(output, backend)
    for part in (0.3, 0.5):
        assert load_until(int(calls * part), output, backend)
    done = load(output, backend)
    assert done.code == 0, done.err
    assert sum(done.counts) == count
    assert sorted(backend.ids()) == sorted(names(count))
    assert check(output, backend).code == 0


def test_another_space_is_refused_until_it_is_swapped_in(tmp_path: Path, holder: tuple[Backend, VectorKind]) -> None:
    backend, kind = holder
    output = loaded(make_output(tmp_path / "out.parquet", vectors_of(kind, 9), ids=names(9)), backend)
    space = {"model": "tests/other"}
    other = make_output(tmp_path / "new.parquet", vectors_of(kind, 9, seed=1), ids=names(9), space=space)
    done = load(other, backend)
    assert (done.code, "model is 'tests/made-up' there" in done.err) == (2, True)
    assert check(output, backend).code == 0
    assert load(other, backend, "--swap").code == 0
    assert check(other, backend).code == 0


def test_verify_finds_changed_vectors_of_tokens(tmp_path: Path, multi_vector_holder: Backend) -> None:
    vectors = token_vectors(20, 8)
    output = loaded(make_output(tmp_path / "out.parquet", vectors, ids=names(20)), multi_vector_holder)
    multi_vector_holder.change_vector("r7", vectors[8:9].values.tolist())
    done = check(output, multi_vector_holder)
    assert done.code == 1
    assert "1 with other values than the output: r7" in done.out


def test_rows_without_usable_vectors_are_rejected(tmp_path: Path, multi_vector_holder: Backend) -> None:
    vectors = token_vectors(4, 8)
    vectors.values[vectors.offsets[1], 2] = np.nan
    empty = vectors[np.array([0, 1, 2])]
    offsets = empty.offsets.copy()
    offsets[3:] = offsets[2]
    broken = type(vectors)(offsets, empty.values[: offsets[-1]])
    output = make_output(tmp_path / "out.parquet", broken, ids=["a", "b", "c"])
    assert load(output, multi_vector_holder).code == 3
    assert multi_vector_holder.ids() == ["a"]
    reasons = {reject["id"]: reject["reason"] for reject in read_rejects(output, multi_vector_holder)}
    assert reasons == {"b": "vector is not finite", "c": "row has no vectors"}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Outputs of a small multi-vector model, by precision, and one whose vectors have other lengths than 1."""
    folder = tmp_path_factory.mktemp("encoded")
    multi_vector_models.build_multi_vector(folder / "model", folder / "work")
    chance = np.random.default_rng(0)
    texts = [" ".join(chance.choice(WORDS, 1 + i % 7)) for i in range(300)]
    jobs.write_jsonl(folder / "in.jsonl", [{"id": f"r{i}", "text": text} for i, text in enumerate(texts)])
    options: dict[str, list[object]] = {name: ["--precision", name] for name in ("float32", "float16", "int8")}
    options["pooled"] = ["--pool-factor", 2]
    for name, more in options.items():
        done = run(
            "encode", folder / "in.jsonl", folder / f"{name}.parquet", "-m", folder / "model", "--keep", "text", *more
        )
        assert done.code == 0, done.err
    return {name: folder / f"{name}.parquet" for name in options}


@pytest.mark.parametrize("option", [[], ["--index"]], ids=["exact", "index"])
def test_search_finds_what_it_finds_in_the_output(
    multi_vector_holder: Backend, encoded: dict[str, Path], option: list[str]
) -> None:
    for name, output in encoded.items():
        drop(multi_vector_holder)
        done = load(output, multi_vector_holder, *option)
        if name == "pooled" and option and multi_vector_holder.module == "embedcli.databases.lancedb":
            assert (done.code, "those of this model have other lengths than 1" in done.err) == (2, True)
            continue
        assert done.code == 0, done.err
        for words in ("token score", "word row index table"):
            check_same_hits(output, multi_vector_holder, words, least=8 if option else 10)


def check_same_hits(output: Path, backend: Backend, words: str, *, least: int) -> None:
    """At least so many of the best ten rows by the file are found by the database; equal texts have equal scores."""
    options = (words, "-k", 10, "--json", "--show", "text")
    expected = json.loads(run("search", output, *options).out)
    done = run("search", backend.address, *options, "--table", "docs")
    assert done.code == 0, done.err
    found: list[dict[str, Any]] = json.loads(done.out)
    scores = [hit["score"] for hit in found]
    if least == len(expected):
        assert scores == pytest.approx([hit["score"] for hit in expected], abs=1e-5)
    assert sum(np.isclose(scores, hit["score"], atol=1e-5).any() for hit in expected) >= least
    assert [hit["rank"] for hit in found] == list(range(1, 11))
    refused = run("search", backend.address, *options, "--table", "docs", "--metric", "cosine")
    assert (refused.code, "is searched by maxsim" in refused.err) == (2, True)

"""Vectors of tokens are searched and compared by the MaxSim of sentence-transformers."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import multi_vector_models
from embedcli.analysis import similarities
from embedcli.analysis.compare import compare_outputs, read_vectors
from embedcli.analysis.derived import DerivedDataset
from embedcli.analysis.similarities import maxsim, normalize, row_cosines, score_rows
from embedcli.analysis.topk import search_vectors
from embedcli.core.errors import InputError, UsageError
from embedcli.core.multi_vectors import MultiVectors, concat_multi
from embedcli.core.ragged import offsets_of
from embedcli.core.types import Precision
from embedcli.outputs import dataset as dataset_module
from embedcli.outputs import writers
from embedcli.outputs.dataset import VectorDataset, open_dataset
from sample_outputs import make_output, sparse_vectors, token_vectors, unit_vectors

ROWS, DIM = 1000, 16


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A MultiVectorEncoder of sentence-transformers, for its `similarity`."""
    folder = tmp_path_factory.mktemp("multi-vector")
    return multi_vector_models.build_multi_vector(folder / "model", folder)


@pytest.fixture(scope="module")
def vectors() -> MultiVectors:
    return token_vectors(ROWS, DIM, most=40)


def rows_of(vectors: MultiVectors) -> list[Any]:
    """A tensor for each row, as MultiVectorEncoder returns them."""
    import torch

    return [torch.tensor(row) for row in np.split(vectors.values, vectors.offsets[1:-1])] if len(vectors) else []


def scores_of(encoder: Any, queries: MultiVectors, rows: MultiVectors) -> np.ndarray[Any, Any]:
    scores: np.ndarray[Any, Any] = encoder.similarity(rows_of(queries), rows_of(rows)).numpy()
    return scores


# Scores


@pytest.mark.parametrize("products", [1, 7, 1000, 1 << 30])
def test_scores_are_those_of_sentence_transformers(
    encoder: Any, vectors: MultiVectors, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a query, or all of them, does not fit the products that are held at a time."""
    monkeypatch.setattr(similarities, "MAX_PRODUCTS", products * 100)
    rows, queries = vectors.view_rows(0, 150), token_vectors(9, DIM, most=12, seed=4)
    scores = score_rows(queries, rows, "maxsim")
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, scores_of(encoder, queries, rows), atol=1e-5)


def test_vectors_that_point_away_from_a_query_have_negative_scores(encoder: Any) -> None:
    queries = MultiVectors(offsets_of([2]), np.array([[1, 0], [0, 2]], np.float32))
    rows = MultiVectors(offsets_of([1, 2]), np.array([[-1, -1], [-3, 0.5], [-1, -0.25]], np.float32))
    assert maxsim(queries, rows).tolist() == [[-3, 0]]
    np.testing.assert_allclose(maxsim(queries, rows), scores_of(encoder, queries, rows))


def test_rows_that_have_no_score_are_nan() -> None:
    values = np.array([[1, 0], [np.nan, 0], [0, 1]], np.float32)
    rows = MultiVectors(offsets_of([0, 1, 0, 1, 1, 0]), values)
    queries = MultiVectors(offsets_of([1, 2]), np.array([[1, 0], [0, 1], [1, 1]], np.float32))
    expected = [[np.nan, 1, np.nan, np.nan, 0, np.nan], [np.nan, 1, np.nan, np.nan, 2, np.nan]]
    np.testing.assert_array_equal(maxsim(queries, rows), expected)
    assert maxsim(queries, rows[:0]).shape == (2, 0)
    assert np.isnan(maxsim(queries, rows[:1])).all()


def test_the_similarity_of_rows_is_the_mean_maxsim_of_their_cosines(encoder: Any, vectors: MultiVectors) -> None:
    first, second = vectors.view_rows(0, 50), token_vectors(50, DIM, most=5, seed=8)
    longer = MultiVectors(second.offsets, second.values * 3)
    expected = encoder.similarity_pairwise(rows_of(first), rows_of(second), length_normalize=True).numpy()
    np.testing.assert_allclose(row_cosines(first, longer), expected, atol=1e-5)
    np.testing.assert_allclose(row_cosines(first, first), np.ones(50), atol=1e-6)
    lengths = np.linalg.norm(normalize(longer).values, axis=1)
    np.testing.assert_allclose(lengths, np.ones(len(lengths)), atol=1e-6)


# Search


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "uint8"])
@pytest.mark.parametrize("name", ["out.parquet", "out.arrow", "out.jsonl", "out.npy", "out.lance", "out.folder"])
def test_the_best_rows_are_those_of_sentence_transformers(
    tmp_path: Path,
    encoder: Any,
    vectors: MultiVectors,
    name: str,
    precision: Precision,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dataset_module, "BLOCK_BYTES", 100 << 10)
    output = open_dataset(str(make_output(tmp_path / name, vectors, stored_as=precision)))
    blocks = list(output.read_blocks())
    assert len(blocks) > 10
    restored = [output.block_vectors(block) for block in blocks]
    stored = concat_multi([part for part in restored if isinstance(part, MultiVectors)])
    queries = token_vectors(6, DIM, most=12, seed=5)
    hits = search_vectors(output, queries, 10)
    for hit, scores in zip(hits, scores_of(encoder, queries, stored), strict=True):
        expected = np.argsort(-scores, kind="stable")[:10]
        assert hit.rows.tolist() == expected.tolist()
        np.testing.assert_allclose(hit.scores, scores[expected], atol=1e-5)


def test_of_equal_scores_the_earlier_row_wins(tmp_path: Path) -> None:
    vectors = concat_multi([token_vectors(40, DIM), token_vectors(40, DIM)])
    output = open_dataset(str(make_output(tmp_path / "out.parquet", vectors)))
    assert search_vectors(output, vectors.view_rows(3, 4), 2)[0].rows.tolist() == [3, 43]


def test_other_metrics_and_other_vectors_are_refused(tmp_path: Path) -> None:
    output = open_dataset(str(make_output(tmp_path / "out.parquet", token_vectors(4, DIM))))
    query = token_vectors(1, DIM)
    with pytest.raises(
        UsageError, match=r"--metric cosine needs a vector for each row, and .*out\.parquet has one for"
    ):
        search_vectors(output, query, 1, "cosine")
    assert search_vectors(output, query, 1, "maxsim")[0].rows.tolist() == [0]
    for name, others in (("dense", unit_vectors(4, DIM)), ("sparse", sparse_vectors(4, DIM))):
        other = open_dataset(str(make_output(tmp_path / f"{name}.parquet", others)))
        with pytest.raises(UsageError, match=f"--metric maxsim needs a vector for each token, and .*{name}"):
            search_vectors(other, others[:1], 1, "maxsim")
        with pytest.raises(TypeError, match="differ in kind"):
            search_vectors(other, query, 1, "dot")


@pytest.mark.parametrize("name", ["out.parquet", "out.npy"])
def test_a_row_without_vectors_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "BLOCK_BYTES", 4096)
    lengths = [2] * 40
    lengths[33] = 0
    vectors = MultiVectors(offsets_of(lengths), unit_vectors(sum(lengths), DIM))
    output = open_dataset(str(make_output(tmp_path / name, vectors)))
    with pytest.raises(InputError, match=rf"{name}: row 34 \(id 33\) has no vectors"):
        search_vectors(output, token_vectors(1, DIM), 3)


def write_large(path: Path, rows: int, make_npy: Callable[..., Any] | None = None) -> VectorDataset:
    """An output of rows of 20 vectors of 32 dimensions, in row groups of 64 kB."""
    from embedcli.core.types import InputColumns
    from embedcli.outputs.multi_vector_npy import write_multi_vector_npy
    from embedcli.outputs.schema import OutputLayout, VectorField
    from sample_outputs import SPACE, encoded

    layout = OutputLayout(
        InputColumns("text", None, None, pa.int64(), {}), (VectorField("multi_vector", 32, "float16"),)
    )
    random = np.random.default_rng(1)

    def tables() -> Any:
        for _ in range(rows // 100):
            part = MultiVectors(offsets_of([20] * 100), random.standard_normal((2000, 32), np.float32))
            yield layout.build_table(encoded(part, None, pa.table({}), (), 20))

    metadata = {writers.SPACE_METADATA_KEY: {**SPACE, "dim": 32, "precision": "float16", "kind": "multi_vector"}}
    if path.suffix == ".npy":
        write_multi_vector_npy(tables(), str(path), layout, metadata, rows, rows * 20)
    else:
        form = writers.resolve_output_format(str(path), None)
        writers.OUTPUT_WRITERS[form](tables(), str(path), layout, metadata, rows)
    return open_dataset(str(path))


@pytest.mark.parametrize("ending", ["parquet", "arrow", "npy"])
def test_the_memory_of_a_search_does_not_grow_with_the_rows(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of numpy, which holds products and float32 vectors, and of Arrow, which holds what is read."""
    from embedcli.outputs import multi_vector_npy

    for module in (writers, multi_vector_npy):
        monkeypatch.setattr(module, "ROW_GROUP_BYTES", 128 << 10)
    monkeypatch.setattr(dataset_module, "BLOCK_BYTES", 256 << 10)
    monkeypatch.setattr(similarities, "MAX_PRODUCTS", 64 << 10)
    queries = token_vectors(4, 32, most=30)
    peaks = []
    for rows in (600, 6000):
        output = write_large(tmp_path / f"{rows}.{ending}", rows)
        assert output.vector_bytes == rows * 20 * 32 * 2
        held: list[int] = []

        def watch(columns: Any = (), read: Any = output.read_blocks, held: list[int] = held) -> Any:
            for block in read(columns):
                held.append(pa.total_allocated_bytes())
                yield block

        monkeypatch.setattr(output, "read_blocks", watch)
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        search_vectors(output, queries, 10)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(held) > rows / 200
        assert max(held) - before < 1 << 20
    assert peaks[1] < peaks[0] * 1.2 + 100_000
    assert peaks[1] < 2 << 20  # the vectors have 7.7 MB as they are stored


# Comparison


def test_vectors_are_read_in_the_order_that_was_asked_for(
    tmp_path: Path, vectors: MultiVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "BLOCK_BYTES", 100 << 10)
    output = open_dataset(str(make_output(tmp_path / "out.parquet", vectors)))
    wanted = np.array([999, 3, 250, 4])
    found = read_vectors(output, wanted)
    assert isinstance(found, MultiVectors)
    assert np.array_equal(found.values, vectors[wanted].values)
    assert np.array_equal(found.lengths, vectors.lengths[wanted])


def test_neighbours_of_two_outputs_overlap(tmp_path: Path, encoder: Any, vectors: MultiVectors) -> None:
    rows, k = 120, 5
    first = vectors.view_rows(0, rows)
    changed = concat_multi([first.view_rows(0, 60), token_vectors(60, DIM, most=30, seed=3)])
    ids = [f"r{i}" for i in range(rows)]
    one = open_dataset(str(make_output(tmp_path / "one.parquet", first, ids=ids)))
    other = open_dataset(str(make_output(tmp_path / "other.npy", changed, ids=ids, space={"model": "tests/other"})))
    same = compare_outputs(one, one, k=k, rows=50, moved=2, seed=0).as_json()
    assert same["overlap"] == {"mean": 1.0, "min": 1.0}
    assert same["cosine"]["min"] == pytest.approx(1, abs=1e-6)
    found = compare_outputs(one, other, k=k, rows=rows, moved=3, seed=0).as_json()
    nearest = []
    for side in (first, changed):
        scores = scores_of(encoder, side, side)
        np.fill_diagonal(scores, -np.inf)
        nearest.append(np.argsort(-scores, axis=1, kind="stable")[:, :k])
    expected = [len(set(a) & set(b)) / k for a, b in zip(*map(np.ndarray.tolist, nearest), strict=True)]
    assert found["overlap"]["mean"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert (found["first"]["kind"], found["first"]["bytes"]) == ("multi_vector", first.values.nbytes)
    assert {int(row["id"][1:]) >= 60 for row in found["moved"]} == {True}


def test_an_output_is_not_compared_with_one_of_another_kind(tmp_path: Path) -> None:
    output = open_dataset(str(make_output(tmp_path / "out.parquet", token_vectors(9, DIM))))
    for name, others in (("dense", unit_vectors(9, DIM)), ("sparse", sparse_vectors(9, DIM))):
        other = open_dataset(str(make_output(tmp_path / f"{name}.parquet", others)))
        with pytest.raises(UsageError, match=rf"out\.parquet has multi-vector vectors, .*{name}\.parquet {name} ones"):
            compare_outputs(output, other, k=5, rows=5, moved=1, seed=0)
        with pytest.raises(UsageError, match=rf"{name}\.parquet has {name} vectors, .*out\.parquet multi-vector ones"):
            compare_outputs(other, output, k=5, rows=5, moved=1, seed=0)


def test_the_output_with_more_vectors_queries_both(tmp_path: Path) -> None:
    full = token_vectors(150, DIM, most=30)
    kept = (np.arange(len(full.values)) - full.offsets[:-1][full.entry_rows]) < 3
    cut = MultiVectors(offsets_of(np.minimum(full.lengths, 3)), full.values[kept])
    first, second = (
        open_dataset(str(make_output(tmp_path / name, part)))
        for name, part in (("cut.parquet", cut), ("full.parquet", full))
    )
    there = compare_outputs(first, second, k=5, rows=100, moved=0, seed=0).as_json()["overlap"]
    back = compare_outputs(second, first, k=5, rows=100, moved=0, seed=0).as_json()["overlap"]
    assert there == back


def test_the_loss_of_a_precision_is_seen_without_encoding_again(tmp_path: Path, vectors: MultiVectors) -> None:
    part = vectors.view_rows(0, 200)
    output = open_dataset(str(make_output(tmp_path / "out.parquet", part)))
    stored = open_dataset(str(make_output(tmp_path / "int8.parquet", part, stored_as="int8")))
    derived = DerivedDataset(output, "int8")
    (mine,), (own,) = derived.read_blocks(), stored.read_blocks()
    assert np.array_equal(mine.vectors.values, own.vectors.values)  # type: ignore[union-attr]
    assert derived.vector_bytes == stored.vector_bytes == part.values.size
    found = compare_outputs(output, derived, k=5, rows=100, moved=1, seed=0).as_json()
    assert 0.9 < found["overlap"]["mean"] <= 1
    assert 0.99 < found["cosine"]["min"] < 1
    with pytest.raises(UsageError, match="has multi-vector vectors, which cannot be cut to fewer dimensions"):
        DerivedDataset(output, dim=4)
    with pytest.raises(UsageError, match="multi-vector vectors, which are not stored as binary") as refused:
        DerivedDataset(output, "binary")
    assert refused.value.hint == "choose one of float32, float16, int8, uint8"

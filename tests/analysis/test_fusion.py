"""Reciprocal rank fusion of the rankings of several outputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import jobs
from embedcli.analysis.fusion import fuse_rankings, match_all_rows
from embedcli.core.errors import UsageError
from embedcli.outputs.dataset import open_dataset
from sample_outputs import make_output, sparse_vectors, unit_vectors
from searchable import TEXTS, embedded, model_folder


def test_a_row_scores_the_sum_of_its_reciprocal_ranks() -> None:
    fused = fuse_rankings([np.array([4, 2, 9]), np.array([2, 7])], 3)
    assert fused.rows.tolist() == [2, 4, 7]
    assert fused.scores == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])


def test_of_equal_scores_the_earlier_row_wins() -> None:
    assert fuse_rankings([np.array([8, 3]), np.array([3, 8]), np.array([5])], 3).rows.tolist() == [3, 8, 5]


def test_rows_are_matched_by_id(tmp_path: Path) -> None:
    first = open_dataset(str(make_output(tmp_path / "a.parquet", unit_vectors(3, 4), ids=["x", "y", "z"])))
    other = open_dataset(str(make_output(tmp_path / "b.parquet", sparse_vectors(3, 9), ids=["z", "x", "y"])))
    assert match_all_rows(first, other).tolist() == [2, 0, 1]
    fewer = open_dataset(str(make_output(tmp_path / "c.parquet", unit_vectors(2, 4), ids=["x", "z"])))
    with pytest.raises(UsageError, match="do not have the same ids: of 3 and 2 rows 2 are in both"):
        match_all_rows(first, fewer)


def test_outputs_are_searched_together(tmp_path: Path) -> None:
    models = [model_folder(tmp_path / name, dim=dim) for name, dim in (("one", 24), ("two", 12))]
    paths = [embedded(tmp_path / f"{i}.parquet", model) for i, model in enumerate(models)]
    ended = jobs.run("search", *paths, "cat", "dog", "--fuse", "rrf", "-k", "4", "--json")
    assert ended.code == 0, ended.err
    hits = json.loads(ended.out)
    ranks: dict[str, float] = {}
    for path in paths:
        for hit in json.loads(jobs.run("search", path, "cat dog", "-k", len(TEXTS), "--json").out):
            ranks[hit["id"]] = ranks.get(hit["id"], 0) + 1 / (60 + hit["rank"])
    best = sorted(ranks, key=lambda id: (-ranks[id], int(id[1:])))[:4]
    assert [hit["id"] for hit in hits] == best
    assert [hit["score"] for hit in hits] == pytest.approx([ranks[id] for id in best], abs=1e-6)
    assert [hit["text"] for hit in hits] == [TEXTS[int(id[1:])] for id in best]
    assert hits[0]["query"] == "cat dog"


@pytest.mark.parametrize("query", ["cat " * 100, "cat\0dog"])
def test_a_query_that_no_file_can_be_named_is_not_taken_for_an_output(tmp_path: Path, query: str) -> None:
    path = embedded(tmp_path / "out.parquet", model_folder(tmp_path / "one"))
    ended = jobs.run("search", path, path, query, "--fuse", "rrf", "-k", 1, "--json")
    assert ended.code == 0, ended.err
    assert [hit["query"] for hit in json.loads(ended.out)] == [query]


def test_one_output_cannot_be_fused(tmp_path: Path) -> None:
    path = embedded(tmp_path / "out.parquet", model_folder(tmp_path / "one"))
    ended = jobs.run("search", path, "cat", "--fuse", "rrf")
    assert ended.code == 2
    assert "--fuse rrf needs two outputs" in ended.err

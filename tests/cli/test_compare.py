"""`embedcli compare`: cosines and neighbours equal what plain arithmetic over everything gives."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from embedcli.analysis.compare import read_vectors
from embedcli.analysis.similarities import normalize
from embedcli.cli import app
from embedcli.core import quantization
from embedcli.core.row_vectors import as_dense
from embedcli.core.types import Precision
from embedcli.outputs import dataset
from embedcli.outputs.dataset import open_dataset
from sample_outputs import FORMATS, PRECISIONS, make_output, unit_vectors

ROWS, DIM, K = 300, 32, 7
IDS = [f"r{i}" for i in range(ROWS)]


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["compare", *map(str, args)])
    return result.exit_code, result.stdout, result.stderr


def compared(*args: object) -> dict[str, Any]:
    code, out, err = run(*args, "--json", "-k", K)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)[0]
    return found


def neighbours(vectors: Any, queries: Any) -> list[set[int]]:
    scores = normalize(queries) @ normalize(vectors).T
    np.fill_diagonal(scores, -9)
    return [set(np.argsort(-row, kind="stable")[:K].tolist()) for row in scores]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "BLOCK_BYTES", 40 * DIM * 4)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_equal_to_itself_in_any_format(tmp_path: Path, name: str) -> None:
    vectors = unit_vectors(ROWS, DIM)
    first = make_output(tmp_path / "a.parquet", vectors, ids=IDS)
    found = compared(first, make_output(tmp_path / name, vectors, ids=IDS))
    assert found["cosine"]["min"] == pytest.approx(1, abs=1e-6)
    assert found["overlap"] == {"mean": 1, "min": 1}
    assert (found["shared_rows"], found["cosine_rows"], found["sampled_rows"]) == (ROWS, ROWS, ROWS)


def test_two_spaces_are_measured_row_by_row(tmp_path: Path) -> None:
    one = unit_vectors(ROWS, DIM)
    two = normalize(one + unit_vectors(ROWS, DIM, seed=4) * np.linspace(0, 2, ROWS, dtype=np.float32)[:, None])
    made = [make_output(tmp_path / "a.parquet", one, ids=IDS, kept={"text": IDS})]
    made.append(make_output(tmp_path / "b.parquet", two, ids=IDS, space={"model": "other"}))
    found = compared(*made, "--moved", 3)
    cosines = np.sum(one * two, axis=1)
    expected = {"min": cosines.min(), "p01": np.quantile(cosines, 0.01), "p05": np.quantile(cosines, 0.05)}
    expected |= {"median": np.median(cosines), "max": cosines.max()}
    assert found["cosine"] == pytest.approx(expected, abs=1e-5)
    shares = [len(a & b) / K for a, b in zip(neighbours(one, one), neighbours(two, two), strict=True)]
    assert found["overlap"]["mean"] == pytest.approx(np.mean(shares), abs=1e-6)
    assert found["overlap"]["min"] == pytest.approx(min(shares), abs=1e-6)
    assert sum(found["overlap_histogram"]) == sum(found["cosine_histogram"]["counts"]) == ROWS
    worst = np.argsort(cosines)[:3]
    assert [row["id"] for row in found["moved"]] == [f"r{i}" for i in worst]
    assert [row["similarity"] for row in found["moved"]] == pytest.approx(cosines[worst].tolist(), abs=1e-5)
    assert found["moved"][0]["text"] == f"r{worst[0]}"


@pytest.mark.parametrize("stored_as", PRECISIONS)
@pytest.mark.parametrize("finer_first", [True, False])
def test_a_coarser_file_is_asked_with_the_finer_vectors(
    tmp_path: Path, stored_as: Precision, finer_first: bool
) -> None:
    vectors = unit_vectors(ROWS, DIM)
    paths = [
        make_output(tmp_path / "a.parquet", vectors, ids=IDS),
        make_output(tmp_path / "b.parquet", vectors, ids=IDS, stored_as=stored_as),
    ]
    found = compared(*(paths if finer_first else paths[::-1]))
    ranges = quantization.compute_ranges(vectors)
    restored = quantization.dequantize(quantization.quantize(vectors, stored_as, ranges), stored_as, DIM, ranges)
    shares = [len(a & b) / K for a, b in zip(neighbours(vectors, vectors), neighbours(restored, vectors), strict=True)]
    assert found["overlap"]["mean"] == pytest.approx(np.mean(shares), abs=2 / ROWS)
    assert found["cosine"]["median"] == pytest.approx(
        np.median(np.sum(normalize(restored) * vectors, axis=1)), abs=1e-5
    )


def test_dimensions_may_differ(tmp_path: Path) -> None:
    one, two = unit_vectors(ROWS, DIM), unit_vectors(ROWS, 9, seed=3)
    found = compared(
        make_output(tmp_path / "a.parquet", one, ids=IDS),
        make_output(tmp_path / "b.parquet", two, ids=IDS),
        "--moved",
        2,
    )
    shares = [len(a & b) / K for a, b in zip(neighbours(one, one), neighbours(two, two), strict=True)]
    assert (found["cosine"], found["moved_by"]) == (None, "overlap")
    assert found["overlap"]["mean"] == pytest.approx(np.mean(shares), abs=1e-6)
    assert found["moved"][0]["similarity"] == pytest.approx(min(shares))


def test_rows_are_matched_by_id_whatever_their_order(tmp_path: Path) -> None:
    vectors = unit_vectors(ROWS, DIM)
    order = np.random.default_rng(2).permutation(ROWS)[:200]
    first = make_output(tmp_path / "a.parquet", vectors, ids=IDS)
    other = make_output(tmp_path / "b.npy", vectors[order], ids=[IDS[i] for i in order])
    found = compared(first, other)
    assert (found["shared_rows"], found["cosine_rows"]) == (200, 200)
    assert found["cosine"]["min"] == pytest.approx(1, abs=1e-6)
    assert found["overlap"] == {"mean": 1, "min": 1}
    code, _, err = run(first, other)
    assert code == 0
    assert "100 rows of" in err


def test_a_sample_is_drawn_by_its_seed(tmp_path: Path) -> None:
    one, two = unit_vectors(ROWS, DIM), unit_vectors(ROWS, DIM, seed=8)
    paths = make_output(tmp_path / "a.parquet", one, ids=IDS), make_output(tmp_path / "b.parquet", two, ids=IDS)
    found = [compared(*paths, "--rows", 20, "--seed", seed)["overlap_histogram"] for seed in (0, 1, 0)]
    assert found[0] == found[2] != found[1]
    assert sum(found[0]) == 20


def test_several_files_make_one_table(tmp_path: Path) -> None:
    vectors = unit_vectors(ROWS, DIM)
    paths = [make_output(tmp_path / f"{name}.parquet", vectors, ids=IDS, stored_as=name) for name in PRECISIONS]
    code, out, err = run(*paths)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0] == f"{paths[0]}: 300 rows, 32 dimensions, float32, 38.4 kB of vectors"
    assert lines[2].split() == [
        "other",
        "rows",
        "dim",
        "precision",
        "size",
        "cosine",
        "min",
        "5%",
        "median",
        "neighbours",
        "worst",
    ]
    assert [line.split()[3] for line in lines[3:8]] == list(PRECISIONS[1:])
    assert "\nneighbours kept\n" in out
    assert re.search(r"^ +10 of 10 +\d+  #", out, re.MULTILINE)
    assert "changed most, by cosine" in out


@pytest.mark.parametrize("stored_as", PRECISIONS)
def test_a_precision_is_tried_without_encoding_again(tmp_path: Path, stored_as: Precision) -> None:
    vectors = unit_vectors(ROWS, DIM)
    first = make_output(tmp_path / "a.parquet", vectors, ids=IDS, kept={"text": IDS})
    stored = compared(first, make_output(tmp_path / "b.npy", vectors, ids=IDS, stored_as=stored_as))
    tried = compared(first, "--precision", stored_as)
    assert tried["second"]["path"] == f"{first} as {stored_as}"
    assert {**tried["second"], "path": ""} == {**stored["second"], "path": ""}
    for name in ("cosine", "overlap", "overlap_histogram"):
        assert tried[name] == pytest.approx(stored[name], abs=1e-6)


def test_fewer_dimensions_are_tried_without_encoding_again(tmp_path: Path) -> None:
    vectors = unit_vectors(ROWS, DIM)
    first = make_output(tmp_path / "a.parquet", vectors, ids=IDS)
    stored = compared(first, make_output(tmp_path / "b.npy", normalize(vectors[:, :9]), ids=IDS))
    tried = compared(first, "--truncate-dim", 9)
    assert tried["second"]["path"] == f"{first} cut to 9"
    assert (tried["second"]["dim"], tried["cosine"]) == (9, None)
    assert tried["overlap"] == pytest.approx(stored["overlap"], abs=1e-6)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    a = make_output(tmp_path / "a.parquet", unit_vectors(5, 4), ids=list("abcde"))
    b = make_output(tmp_path / "b.parquet", unit_vectors(5, 4), ids=list("vwxyz"))
    c = make_output(tmp_path / "c.parquet", unit_vectors(5, 4), ids=list("abcdd"))
    assert (run(a)[0], "two outputs" in run(a)[2]) == (2, True)
    assert (run(a, "--truncate-dim", 5)[0], "cannot be truncated to 5" in run(a, "--truncate-dim", 5)[2]) == (2, True)
    assert (run(a, b)[0], "no row in common" in run(a, b)[2]) == (2, True)
    assert (run(a, c)[0], "has repeated ids" in run(a, c)[2]) == (2, True)
    table = pq.read_table(a)
    pq.write_table(table.append_column("window", pa.array([0] * 5, pa.int32())), tmp_path / "d.parquet")
    ended = run(a, tmp_path / "d.parquet")
    assert (ended[0], "has windows of rows, the other whole rows" in ended[2]) == (2, True)


@pytest.mark.parametrize("name", ["spread.png", "spread.svg"])
def test_the_spread_is_drawn(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    vectors = unit_vectors(ROWS, DIM)
    paths = [make_output(tmp_path / f"{name}.parquet", vectors, ids=IDS, stored_as=name) for name in PRECISIONS[:3]]
    code, _, err = run(*paths, "--plot", tmp_path / name)
    assert (code, f"plot written to {tmp_path / name}" in err) == (0, True)
    drawn = (tmp_path / name).read_bytes()
    assert drawn.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    run(*paths, "--plot", tmp_path / name)
    code, _, err = run(*paths, "--plot", tmp_path / "spread.gif")
    assert (code, "the extension must be one of .png, .svg, .pdf" in err) == (2, True)


def test_vectors_at_gives_them_in_the_order_asked_for(tmp_path: Path) -> None:
    vectors = unit_vectors(ROWS, DIM)
    made = open_dataset(str(make_output(tmp_path / "a.folder", vectors)))
    wanted = np.random.default_rng(0).integers(0, ROWS, 50)
    assert np.array_equal(as_dense(read_vectors(made, wanted)), vectors[wanted])

"""Sparse vectors are read back from every format as they were stored, in blocks, also from other programs' files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedcli.core.errors import InputError, UsageError
from embedcli.core.row_vectors import as_dense
from embedcli.core.sparse_vectors import SparseVectors, concat_sparse, sparsify
from embedcli.core.types import Precision
from embedcli.outputs import dataset as dataset_module
from embedcli.outputs.dataset import VectorDataset, holds_vectors, open_dataset
from sample_outputs import make_output, sparse_vectors, unit_vectors

ROWS, DIM = 700, 300
FORMATS = ("out.parquet", "out.arrow", "out.jsonl", "out.lance", "out.folder")


def read_all(output: VectorDataset, columns: tuple[str, ...] = ()) -> SparseVectors:
    blocks = list(output.read_blocks(columns))
    assert [block.first_row for block in blocks] == np.cumsum([0, *map(len, blocks)])[:-1].tolist()
    parts = [block.vectors for block in blocks if isinstance(block.vectors, SparseVectors)]
    assert len(parts) == len(blocks)
    return concat_sparse(parts)


def uneven_vectors(rows: int = ROWS) -> SparseVectors:
    """Rows of 1 to 40 terms."""
    random = np.random.default_rng(4)
    weights = random.uniform(0.1, 3, (rows, DIM)).astype(np.float32)
    weights[np.argsort(np.argsort(-weights, axis=1), axis=1) >= random.integers(1, 41, (rows, 1))] = 0
    return sparsify(weights)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("name", FORMATS)
def test_stored_vectors_are_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, precision: Precision
) -> None:
    vectors, ids = uneven_vectors(), [f"r{i}" for i in range(ROWS)]
    monkeypatch.setattr(dataset_module, "BLOCK_BYTES", 64 << 10)
    output = open_dataset(str(make_output(tmp_path / name, vectors, ids=ids, stored_as=precision)))
    assert (output.kind, output.dim, output.precision, output.rows) == ("sparse", DIM, precision, ROWS)
    read = read_all(output, ("id",))
    assert np.array_equal(read.offsets, vectors.offsets)
    assert np.array_equal(read.indices, vectors.indices)
    expected = vectors.values if precision == "float32" else vectors.values.astype(np.float16).astype(np.float32)
    assert np.array_equal(read.values, expected)
    assert [id for block in output.read_blocks(["id"]) for id in output.block_ids(block).to_pylist()] == ids
    assert holds_vectors(output.path)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
@pytest.mark.parametrize("name", FORMATS)
def test_weights_of_one_byte_are_read_as_float32(tmp_path: Path, name: str, precision: Precision) -> None:
    vectors = uneven_vectors()
    output = open_dataset(str(make_output(tmp_path / name, vectors, stored_as=precision)))
    assert output.ranges is not None
    low, high = output.ranges[:, 0]
    assert (low, high) == (vectors.values.min(), vectors.values.max())
    read = read_all(output)
    assert np.array_equal(read.indices, vectors.indices)
    assert read.values.dtype == np.float32
    assert np.abs(read.values - vectors.values).max() <= (high - low) / 255 * 0.51
    assert output.vector_bytes == pytest.approx(len(vectors.indices) * 5, rel=0.05)


@pytest.mark.parametrize("kind", ["sparse", "dense"])
@pytest.mark.parametrize(
    ("ranges", "problem"),
    [
        ([[0.5], [0.1]], "a lowest value is above the highest one, or not finite"),
        ([[0.1], [float("nan")]], "a lowest value is above the highest one, or not finite"),
        ([[0.1, 0.2, 0.3], [1, 2]], "they are not two lists of numbers"),
        ([[0.1] * 7, [1] * 7], "they are not two lists of"),
        ("text", "they are not two lists of numbers"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(tmp_path: Path, kind: str, ranges: Any, problem: str) -> None:
    vectors = sparse_vectors(4, 8) if kind == "sparse" else unit_vectors(4, 8)
    if isinstance(ranges, list) and len(ranges[0]) == 1 and kind == "dense":
        ranges = [side * 8 for side in ranges]
    path = make_output(tmp_path / "out.parquet", vectors, stored_as="int8")
    table = pq.read_table(path)
    space = json.loads(table.schema.metadata[b"embedcli"]) | {"ranges": ranges}
    pq.write_table(table.replace_schema_metadata({"embedcli": json.dumps(space)}), path)
    output = open_dataset(str(path))
    with pytest.raises(InputError) as caught:
        output.block_vectors(next(output.read_blocks()))
    assert caught.value.message.startswith(f"{path}: the ranges of its int8 vectors make no sense: {problem}")


def test_weights_of_one_byte_without_a_range_are_refused(tmp_path: Path) -> None:
    path = make_output(tmp_path / "out.parquet", sparse_vectors(4, 8), stored_as="int8")
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(UsageError, match="does not contain the ranges of its int8 vectors"):
        next(open_dataset(str(path)).read_blocks())


@pytest.mark.parametrize("name", FORMATS)
def test_a_block_holds_a_bounded_number_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(dataset_module, "BLOCK_BYTES", 100 << 10)
    vectors = sparse_vectors(ROWS, 2000, terms=400)
    output = open_dataset(str(make_output(tmp_path / name, vectors)))
    sizes = [len(block) for block in output.read_blocks()]
    assert max(sizes) * 400 * 8 <= 100 << 10
    assert abs(output.vector_bytes - ROWS * 400 * 8) < 1
    few = open_dataset(str(make_output(tmp_path / f"few.{name}", sparse_vectors(ROWS, DIM, terms=1))))
    assert max(len(block) for block in few.read_blocks()) == 100  # a row counts as 1 KB


@pytest.mark.parametrize("ending", ["parquet", "arrow", "jsonl"])
def test_the_dimensions_of_other_programs_files_are_counted(tmp_path: Path, ending: str) -> None:
    rows = [
        {"id": "a", "vector": {"indices": [7, 2], "values": [1.0, 0.5]}},
        {"id": "b", "vector": {"indices": [], "values": []}},
        {"id": "c", "vector": {"indices": [41], "values": [2.0]}},
    ]
    path = tmp_path / f"foreign.{ending}"
    write_rows(path, rows)
    output = open_dataset(str(path))
    assert (output.kind, output.dim, output.rows, output.schema.names) == ("sparse", 42, 3, ["id"])
    dense = as_dense(read_all(output))
    assert dense[0, [2, 7]].tolist() == [0.5, 1.0]
    assert dense[2, 41] == 2.0
    assert int(np.count_nonzero(dense)) == 3


def test_files_of_other_programs_share_their_dimensions(tmp_path: Path) -> None:
    for name, index in (("a", 3), ("b", 8)):
        write_rows(tmp_path / f"{name}.parquet", [{"id": name, "vector": {"indices": [index], "values": [1.0]}}])
    output = open_dataset(str(tmp_path))
    assert output.dim == 9
    assert as_dense(read_all(output)).nonzero()[1].tolist() == [3, 8]
    assert {block.vectors.shape[1] for block in output.read_blocks()} == {9}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    number = pa.struct({"indices": pa.list_(pa.int64()), "values": pa.list_(pa.float64())})
    table = pa.Table.from_pylist(rows, pa.schema({"id": pa.string(), "vector": number}))
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


DAMAGED_VECTORS = [
    ({"indices": [1, 2], "values": [1.0]}, "has more indices than values, or fewer"),
    ({"indices": [-1], "values": [1.0]}, "has an index outside of 0 to 3"),
    ({"indices": [1, None], "values": [1.0, 2.0]}, "has an index or a value that is null"),
    ({"indices": None, "values": [1.0]}, "is null"),
    (None, "is null"),
]


@pytest.mark.parametrize("ending", ["parquet", "arrow", "jsonl"])
@pytest.mark.parametrize(("vector", "problem"), DAMAGED_VECTORS)
def test_a_damaged_vector_is_refused_with_its_row(tmp_path: Path, ending: str, vector: Any, problem: str) -> None:
    path, good = tmp_path / f"foreign.{ending}", {"indices": [3], "values": [1.0]}
    rows = [{"id": "a", "vector": good}, {"id": "b", "vector": good}, {"id": "c", "vector": vector}]
    write_rows(path, rows)
    with pytest.raises(InputError) as caught:
        read_all(open_dataset(str(path)))
    assert caught.value.message == f"{path}: the vector of row 3 (id c) {problem}"
    assert "or write the file again with the program that made it" in caught.value.hint


@pytest.mark.parametrize("ending", ["parquet", "arrow", "jsonl"])
def test_damaged_vectors_are_kept_without_entries_on_demand(tmp_path: Path, ending: str) -> None:
    good = {"indices": [0, 3], "values": [1.0, 2.0]}
    vectors = [good, *(vector for damaged, _ in DAMAGED_VECTORS for vector in (damaged, good))]
    path = tmp_path / f"foreign.{ending}"
    write_rows(path, [{"id": str(i), "vector": vector} for i, vector in enumerate(vectors)])
    output = open_dataset(str(path))
    damage: dict[int, str] = {}
    for block in output.read_blocks(keep_damaged=True):
        assert isinstance(block.vectors, SparseVectors)
        for i, row in enumerate(as_dense(block.vectors).tolist(), block.first_row):
            assert row == ([1.0, 0, 0, 2.0] if i % 2 == 0 else [0] * 4)
        damage |= {block.first_row + row: problem for row, problem in block.vectors.damage.items()}
    assert damage == {2 * i + 1: problem for i, (_, problem) in enumerate(DAMAGED_VECTORS)}


def test_json_of_another_type_is_a_damaged_vector(tmp_path: Path) -> None:
    path = tmp_path / "foreign.jsonl"
    write_rows(path, [{"id": "a", "vector": {"indices": [3], "values": [1.0]}}])
    for value in ('"text"', '{"indices": ["x"], "values": [1.0]}', "[1.0]"):
        path.write_text(path.read_text("utf-8") + f'{{"id": "b", "vector": {value}}}\n', "utf-8")
    (block,) = open_dataset(str(path)).read_blocks(keep_damaged=True)
    assert isinstance(block.vectors, SparseVectors)
    assert block.vectors.lengths.tolist() == [1, 0, 0, 0]
    assert [problem.partition(":")[0] for problem in block.vectors.damage.values()] == [
        "does not have indices and values"
    ] * 3


def test_an_index_beyond_the_recorded_dimensions_is_refused(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out.jsonl", sparsify(np.eye(3, 5, dtype=np.float32)))
    output.write_text(output.read_text("utf-8").replace('"indices":[2]', '"indices":[5]'), "utf-8")
    with pytest.raises(InputError, match=r"row 3 .*has an index outside of 0 to 4"):
        read_all(open_dataset(str(output)))


def test_files_of_two_kinds_in_a_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    make_output(folder / "a.parquet", sparse_vectors(4, 8))
    make_output(folder / "b.parquet", unit_vectors(4, 8))
    with pytest.raises(InputError, match="some files have sparse vectors, others dense ones"):
        open_dataset(str(folder))


def test_a_file_without_rows_is_read(tmp_path: Path) -> None:
    for name in FORMATS[:3]:
        output = open_dataset(str(make_output(tmp_path / name, sparse_vectors(0, 8))))
        assert list(output.read_blocks()) == []


def test_what_needs_dense_vectors_says_so(tmp_path: Path) -> None:
    output = open_dataset(str(make_output(tmp_path / "out.parquet", sparse_vectors(4, 8))))
    with pytest.raises(UsageError, match="has sparse vectors, and a map needs dense ones"):
        output.require_dense("a map", "use a dense output")

"""Vectors of tokens are read back from every format as they were stored, in blocks, also from other programs' files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedcli.core import quantization
from embedcli.core.errors import InputError, UsageError
from embedcli.core.multi_vectors import MultiVectors, concat_multi
from embedcli.core.ragged import offsets_of
from embedcli.core.types import Precision
from embedcli.outputs import dataset as dataset_module
from embedcli.outputs.dataset import VectorDataset, holds_vectors, open_dataset
from sample_outputs import make_output, sparse_vectors, token_vectors, unit_vectors

ROWS, DIM = 300, 8
FORMATS = ("out.parquet", "out.arrow", "out.jsonl", "out.lance", "out.npy", "out.folder")
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "uint8")


def read_all(output: VectorDataset, columns: tuple[str, ...] = (), *, verify: bool = False) -> MultiVectors:
    """The stored vectors of all rows."""
    blocks = list(output.read_blocks(columns, verify=verify))
    assert [block.first_row for block in blocks] == np.cumsum([0, *map(len, blocks)])[:-1].tolist()
    assert [block.columns.num_rows for block in blocks] == [len(block) for block in blocks]
    parts = [block.vectors for block in blocks if isinstance(block.vectors, MultiVectors)]
    assert len(parts) == len(blocks)
    return concat_multi(parts)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", FORMATS)
def test_stored_vectors_are_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, precision: Precision
) -> None:
    vectors, ids = token_vectors(ROWS, DIM, most=40), [f"r{i}" for i in range(ROWS)]
    monkeypatch.setattr(dataset_module, "BLOCK_BYTES", 32 << 10)
    output = open_dataset(str(make_output(tmp_path / name, vectors, ids=ids, stored_as=precision)))
    assert (output.kind, output.dim, output.precision, output.rows) == ("multi_vector", DIM, precision, ROWS)
    assert output.schema.names == ["id", "n_tokens", "truncated", "text_hash"]
    size = vectors.values.size * output.dtype.itemsize
    # Lance and JSON lines do not say how many vectors they have: the first rows do.
    assert output.vector_bytes == pytest.approx(size, rel=0.2 if name.endswith(("jsonl", "lance")) else 1e-9)
    read = read_all(output, ("id",), verify=True)
    assert np.array_equal(read.offsets, vectors.offsets)
    expected = quantization.quantize(vectors.values, precision, output.ranges)
    assert read.values.dtype == expected.dtype
    assert np.array_equal(read.values, expected)
    assert [id for block in output.read_blocks(["id"]) for id in output.block_ids(block).to_pylist()] == ids
    for block in output.read_blocks():
        restored = output.block_vectors(block)
        assert isinstance(restored, MultiVectors)
        assert restored.values.dtype == np.float32
        own = vectors.view_rows(block.first_row, block.first_row + len(block))
        assert np.allclose(restored.values, own.values, atol={"float32": 0, "float16": 1e-3}.get(precision, 0.01))
    assert output.take_rows([7, 2], ["n_tokens"]) == [{"id": "r7", "n_tokens": 5}, {"id": "r2", "n_tokens": 5}]
    assert holds_vectors(output.path)


@pytest.mark.parametrize("name", FORMATS)
def test_a_block_is_bounded_in_bytes_whatever_the_rows_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Rows of 2 vectors, then of 200, and one alone that is larger than a block."""
    size = 16 << 10
    monkeypatch.setattr(dataset_module, "BLOCK_BYTES", size)
    lengths = [2] * 600 + [200] * 20 + [2000] + [3] * 50
    vectors = MultiVectors(offsets_of(lengths), unit_vectors(sum(lengths), DIM))
    output = open_dataset(str(make_output(tmp_path / name, vectors, stored_as="float16")))
    sizes = [(len(block), block.vectors.values.size * 4) for block in output.read_blocks()]  # type: ignore[union-attr]
    assert sum(rows for rows, _ in sizes) == len(lengths)
    assert max(size_ for rows, size_ in sizes if rows > 1) <= 2 * size
    assert max(rows for rows, _ in sizes) <= size // 1024
    assert np.array_equal(read_all(output).values, vectors.values.astype(np.float16))


def test_a_matrix_is_mapped_and_not_copied(tmp_path: Path) -> None:
    output = open_dataset(str(make_output(tmp_path / "out.npy", token_vectors(ROWS, DIM))))
    mapped = output.vector_files[0]._vectors  # type: ignore[attr-defined]
    assert isinstance(mapped, np.memmap)
    for block in output.read_blocks():
        vectors = output.block_vectors(block)
        assert isinstance(vectors, MultiVectors)
        assert np.shares_memory(vectors.values, mapped)


@pytest.mark.parametrize("name", FORMATS[:5])
def test_a_file_without_rows_is_read(tmp_path: Path, name: str) -> None:
    output = open_dataset(str(make_output(tmp_path / name, token_vectors(0, DIM))))
    assert list(output.read_blocks()) == []
    assert output.vector_bytes == 0


@pytest.mark.parametrize("name", FORMATS)
def test_rows_without_vectors_are_read_as_such(tmp_path: Path, name: str) -> None:
    vectors = MultiVectors(offsets_of([0, 2, 0, 1, 0]), unit_vectors(3, DIM))
    output = open_dataset(str(make_output(tmp_path / name, vectors)))
    read = read_all(output)
    assert read.lengths.tolist() == [0, 2, 0, 1, 0]
    assert np.allclose(read.values, vectors.values)


# Other programs' files

NUMBERS = (
    pa.list_(pa.list_(pa.float64())),
    pa.list_(pa.list_(pa.float32(), 2)),
    pa.large_list(pa.list_(pa.float16())),
)


def write_rows(path: Path, rows: list[Any], kind: pa.DataType = NUMBERS[0], name: str = "vector") -> None:
    table = pa.table({"id": [f"r{i}" for i in range(len(rows))], name: pa.array(rows, kind)})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), "utf-8")


@pytest.mark.parametrize("ending", ["parquet", "arrow", "jsonl"])
@pytest.mark.parametrize("kind", NUMBERS, ids=["doubles", "fixed", "large"])
def test_lists_of_lists_of_other_programs_are_read(tmp_path: Path, ending: str, kind: pa.DataType) -> None:
    rows = [[[1.0, 0.5], [2.0, 0.25]], [[0.0, 1.0]], [[3.0, 1.0], [4.0, 1.0], [5.0, 1.0]]]
    write_rows(tmp_path / f"foreign.{ending}", rows, kind)
    output = open_dataset(str(tmp_path / f"foreign.{ending}"))
    assert (output.kind, output.dim, output.rows, output.schema.names) == ("multi_vector", 2, 3, ["id"])
    read = read_all(output, ("id",))
    assert read.offsets.tolist() == [0, 2, 3, 6]
    assert read.values.tolist() == [number for row in rows for number in row]
    assert all(output.block_vectors(block).values.dtype == np.float32 for block in output.read_blocks())  # type: ignore[union-attr]


def test_slices_of_an_arrow_file_keep_their_own_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "BLOCK_BYTES", 2 << 10)
    rows = [[[float(i), j]] * (1 + i % 3) for i in range(50) for j in (0.0, 1.0)]
    write_rows(tmp_path / "foreign.arrow", rows)
    output = open_dataset(str(tmp_path / "foreign.arrow"))
    assert len(list(output.read_blocks())) > 10
    assert read_all(output).values.tolist() == [vector for row in rows for vector in row]


def test_lists_of_lists_under_another_name_are_not_vectors(tmp_path: Path) -> None:
    table = pa.table({"boxes": [[[1.0, 2.0]], [[3.0, 4.0]]], "v": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]})
    pq.write_table(table, tmp_path / "both.parquet")
    output = open_dataset(str(tmp_path / "both.parquet"))
    assert (output.kind, output.dim, output.schema.names) == ("dense", 3, ["boxes"])
    pq.write_table(table.drop_columns(["v"]), tmp_path / "boxes.parquet")
    assert not holds_vectors(str(tmp_path / "boxes.parquet"))
    with pytest.raises(UsageError, match="has no column of vectors; its columns are boxes"):
        open_dataset(str(tmp_path / "boxes.parquet"))


@pytest.mark.parametrize("ending", ["parquet", "arrow", "jsonl"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (None, "the vectors of a row are null"),
        ([[1.0, 2.0], None], "not all vectors have 2 numbers"),
        ([[1.0, 2.0], [1.0]], "not all vectors have 2 numbers"),
        ([[1.0, 2.0, 3.0]], "not all vectors have 2 numbers"),
    ],
)
def test_vectors_that_make_no_sense_are_refused(tmp_path: Path, ending: str, row: Any, message: str) -> None:
    path = tmp_path / f"foreign.{ending}"
    write_rows(path, [[[3.0, 1.0]], row])
    with pytest.raises(InputError) as caught:
        read_all(open_dataset(str(path)))
    expected = "not all rows are lists of vectors of 2 numbers" if ending == "jsonl" else message
    assert caught.value.message.endswith(f"{path.name}: {expected}")


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_null_in_a_vector_is_refused(tmp_path: Path, ending: str) -> None:
    write_rows(tmp_path / f"foreign.{ending}", [[[3.0, 1.0]], [[1.0, None]]])
    with pytest.raises(InputError, match="not all vectors have 2 numbers"):
        read_all(open_dataset(str(tmp_path / f"foreign.{ending}")))


def test_a_flat_list_among_lists_of_vectors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v.jsonl").write_text('{"vector": [[1, 2]]}\n{"vector": [1, 2]}\n', "utf-8")
    with pytest.raises(InputError, match="not all rows are lists of vectors of 2 numbers"):
        read_all(open_dataset(str(tmp_path / "v.jsonl")))


@pytest.mark.parametrize(("at", "offset"), [(2, 0), (2, 999), (1, -1), (4, 10**6)])
def test_damaged_offsets_are_refused(tmp_path: Path, at: int, offset: int) -> None:
    """Read by Arrow itself, such a file gives other rows' vectors, or reads beyond its end."""
    path = tmp_path / "foreign.arrow"
    write_rows(path, [[[1.0, 1.0]] * count for count in (3, 5, 2, 4)], NUMBERS[1])
    content, offsets = path.read_bytes(), np.array([0, 3, 8, 10, 14], np.int32)
    assert content.count(offsets.tobytes()) == 1
    damaged = offsets.copy()
    damaged[at] = offset
    path.write_bytes(content.replace(offsets.tobytes(), damaged.tobytes()))
    with pytest.raises(InputError, match=r"foreign\.arrow: it is not clear which vectors belong to a row"):
        read_all(open_dataset(str(path)))


# Matrices with their ids


def rewrite_places(path: Path, change: Callable[[list[int], list[int]], None]) -> None:
    ids = path.with_suffix(".ids.parquet")
    table = pq.read_table(ids)
    starts, lengths = (table.column(name).to_pylist() for name in ("start", "length"))
    change(starts, lengths)
    for name, values in (("start", starts), ("length", lengths)):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
    pq.write_table(table, ids)


def shift(starts: list[int], lengths: list[int]) -> None:
    starts[5] += 1


def overlap(starts: list[int], lengths: list[int]) -> None:
    lengths[5] += 1


def turn(starts: list[int], lengths: list[int]) -> None:
    lengths[5] = -lengths[5]


def lengthen(starts: list[int], lengths: list[int]) -> None:
    lengths[-1] += 1


def shorten(starts: list[int], lengths: list[int]) -> None:
    lengths[-1] = 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shift, "do not begin where those of the row before it end"),
        (overlap, "do not begin where those of the row before it end"),
        (turn, "do not begin where those of the row before it end"),
        (lengthen, "needs more than the [0-9,]+ vectors of this file"),
        (shorten, "knows the rows of [0-9,]+ of the [0-9,]+ vectors of this file"),
    ],
)
def test_places_that_do_not_fit_the_matrix_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    monkeypatch.setattr(dataset_module, "BLOCK_BYTES", 4096)
    path = make_output(tmp_path / "out.npy", token_vectors(ROWS, DIM))
    rewrite_places(path, change)
    with pytest.raises(InputError, match=rf"out\.npy: .*out\.ids\.parquet .*{message}"):
        read_all(open_dataset(str(path)))


def test_a_matrix_of_another_length_is_refused(tmp_path: Path) -> None:
    path = make_output(tmp_path / "out.npy", token_vectors(ROWS, DIM))
    np.save(path, np.load(path)[:-1])
    with pytest.raises(InputError, match="needs more than"):
        read_all(open_dataset(str(path)))


def test_columns_named_as_places_beside_dense_vectors_are_kept_columns(tmp_path: Path) -> None:
    kept = {"start": [5, 6, 7], "length": [1, 1, 1]}
    output = open_dataset(str(make_output(tmp_path / "out.npy", unit_vectors(3, DIM), kept=kept)))
    assert output.kind == "dense"
    assert output.kept_columns == ["start", "length"]


# Folders


def test_files_of_two_kinds_in_a_folder_are_refused(tmp_path: Path) -> None:
    for name, vectors in (("dense", unit_vectors(4, DIM)), ("sparse", sparse_vectors(4, DIM))):
        folder = tmp_path / name
        folder.mkdir()
        make_output(folder / "a.parquet", token_vectors(4, DIM))
        make_output(folder / "b.parquet", vectors)
        with pytest.raises(
            InputError, match=f"some files have (sparse|multi-vector) vectors, others (multi-vector|{name})"
        ):
            open_dataset(str(folder))


def test_files_of_different_dimensions_in_a_folder_are_refused(tmp_path: Path) -> None:
    make_output(tmp_path / "a.parquet", token_vectors(4, DIM))
    make_output(tmp_path / "b.parquet", token_vectors(4, DIM + 1))
    with pytest.raises(InputError, match=r"has 9 numbers \(float32\) per vector, other files have 8"):
        open_dataset(str(tmp_path))


def test_what_needs_dense_vectors_says_so(tmp_path: Path) -> None:
    output = open_dataset(str(make_output(tmp_path / "out.parquet", token_vectors(4, DIM))))
    with pytest.raises(UsageError, match="has multi-vector vectors, and a map needs dense ones"):
        output.require_dense("a map", "use a dense output")

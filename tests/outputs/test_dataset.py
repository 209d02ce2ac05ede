"""Outputs read back: each row once, in order, with its own columns, from every format and precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jobs
from embedcli.core import quantization
from embedcli.core.errors import InputError, UsageError
from embedcli.core.types import Precision
from embedcli.outputs import dataset
from embedcli.outputs.dataset import holds_vectors, open_dataset
from embedcli.outputs.parquet_pages import ThriftCompactReader
from embedcli.outputs.vector_columns import DenseColumn
from embedcli.outputs.vector_files import ParquetVectorFile
from sample_outputs import FORMATS, PRECISIONS, make_output, unit_vectors

ROWS, DIM = 1000, 24


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "BLOCK_BYTES", 64 * DIM * 4)


@pytest.mark.parametrize("stored_as", PRECISIONS)
@pytest.mark.parametrize("name", FORMATS)
def test_what_was_written_is_read_back(tmp_path: Path, name: str, stored_as: Precision) -> None:
    vectors = unit_vectors(ROWS, DIM)
    ids = [f"r{i}" for i in range(ROWS)]
    made = open_dataset(
        str(make_output(tmp_path / name, vectors, ids=ids, kept={"lang": ids[::-1]}, stored_as=stored_as))
    )
    assert (made.rows, made.dim, made.precision, made.id_name) == (ROWS, DIM, stored_as, "id")
    assert made.kept_columns == ["lang"]
    blocks = list(made.read_blocks(["id", "lang"]))
    assert [block.first_row for block in blocks] == list(np.cumsum([0, *map(len, blocks)])[:-1])
    assert [value for block in blocks for value in made.block_ids(block).to_pylist()] == ids
    assert [value for block in blocks for value in block.columns["lang"].to_pylist()] == ids[::-1]
    ranges = quantization.compute_ranges(vectors) if made.ranges is not None else None
    assert np.array_equal(
        np.concatenate([block.vectors for block in blocks]), quantization.quantize(vectors, stored_as, ranges)
    )
    restored = np.concatenate([made.block_as_float32(block) for block in blocks])
    assert restored.dtype == np.float32
    assert restored.shape == (ROWS, DIM)
    assert np.sum(restored * vectors, axis=1).min() > (0 if "binary" in stored_as else 0.9)


@pytest.mark.parametrize("stored_as", PRECISIONS)
@pytest.mark.parametrize("name", FORMATS)
def test_blocks_are_bounded_and_need_no_columns(tmp_path: Path, name: str, stored_as: Precision) -> None:
    made = open_dataset(str(make_output(tmp_path / name, unit_vectors(ROWS, DIM), stored_as=stored_as)))
    assert made.id_name == "row"
    sizes = [len(block) for block in made.read_blocks()]
    assert sum(sizes) == ROWS
    assert max(sizes) <= 64


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_taken_in_the_order_asked_for(tmp_path: Path, name: str) -> None:
    ids = [i * 10 for i in range(ROWS)]
    made = open_dataset(str(make_output(tmp_path / name, unit_vectors(ROWS, DIM), ids=ids, kept={"text": ids})))
    wanted = [999, 0, 333, 334, 667, 1]
    assert made.take_rows(wanted, ["text"]) == [{"id": row * 10, "text": row * 10} for row in wanted]
    assert made.take_rows([], ["text"]) == []


@pytest.mark.parametrize("ending", ["parquet", "arrow", "jsonl", "npy"])
def test_rows_of_a_file_that_has_only_vectors_have_their_numbers(tmp_path: Path, ending: str) -> None:
    table = pa.table({"embedding": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2))})
    path = tmp_path / f"v.{ending}"
    if ending == "parquet":
        pq.write_table(table, path)
    elif ending == "arrow":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    elif ending == "jsonl":
        path.write_text('{"embedding": [1, 2]}\n{"embedding": [3, 4]}\n', "utf-8")
    else:
        np.save(path, np.eye(2, dtype=np.float32))
    assert open_dataset(str(path)).take_rows([1, 0], []) == [{"id": 1}, {"id": 0}]


@pytest.mark.parametrize("name", FORMATS)
def test_an_output_of_zero_rows_is_an_output(tmp_path: Path, name: str) -> None:
    made = open_dataset(str(make_output(tmp_path / name, np.zeros((0, DIM), np.float32))))
    assert made.rows == 0
    assert list(made.read_blocks()) == []


@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 97), st.sampled_from(["NONE", "ZSTD"]))
def test_pages_hold_what_pyarrow_reads(
    tmp_path_factory: pytest.TempPathFactory, rows: int, dim: int, size: int, codec: str
) -> None:
    path = tmp_path_factory.mktemp("pages") / "v.parquet"
    vectors = unit_vectors(rows, dim)
    kind = pa.list_(pa.field("element", pa.float32(), nullable=False), dim)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind)
    table = pa.Table.from_arrays([column], schema=pa.schema([pa.field("embedding", kind, nullable=False)]))
    pq.write_table(
        table, path, compression=codec, use_dictionary=False, data_page_size=256, row_group_size=100,
        write_page_checksum=True,
    )  # fmt: skip
    read = ParquetVectorFile(str(path))
    assert read._pages(0, min(rows, 100), False) is not None
    slabs: list[Any] = [vectors for vectors, _ in read.read_blocks([], size, verify=True)]
    assert np.array_equal(np.concatenate(slabs), vectors)
    assert max(map(len, slabs)) <= size


def test_vectors_that_are_not_plain_are_read_the_long_way(tmp_path: Path) -> None:
    vectors = unit_vectors(ROWS, DIM)
    for name, table in {
        "list": pa.table({"embedding": pa.array(list(vectors), pa.list_(pa.float32()))}),
        "double": pa.table({"v": pa.array(list(vectors.astype(float)), pa.list_(pa.float64(), DIM))}),
        "rounded": pa.table({"vector": pa.array(list(vectors.round(1)), pa.list_(pa.float32(), DIM))}),
    }.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
        made = open_dataset(str(tmp_path / f"{name}.parquet"))
        read = np.concatenate([made.block_as_float32(block) for block in made.read_blocks()])
        assert np.allclose(read, vectors.round(1) if name == "rounded" else vectors, atol=1e-6)


def test_vectors_of_unequal_length_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"embedding": [[1.0, 2.0], [3.0]]}), tmp_path / "v.parquet")
    with pytest.raises(InputError, match="not all vectors have 2 numbers"):
        list(open_dataset(str(tmp_path / "v.parquet")).read_blocks())
    column = DenseColumn("v", np.dtype("float32"), 2, "x")
    with pytest.raises(InputError, match="not all vectors have 2 numbers"):
        column.to_vectors(pa.chunked_array([pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))]))


@pytest.mark.parametrize("name", FORMATS)
def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path, name: str) -> None:
    made = open_dataset(str(make_output(tmp_path / name, unit_vectors(3, DIM), kept={"lang": ["a", "b", "c"]})))
    with pytest.raises(UsageError, match=r"no column 'language'; it has row, n_tokens, .*lang"):
        list(made.read_blocks(["language"]))


def test_a_flipped_bit_is_noticed_when_asked_to_look(tmp_path: Path) -> None:
    path = make_output(tmp_path / "out.parquet", unit_vectors(ROWS, DIM))
    raw = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(1)
    raw[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 16
    path.write_bytes(raw)
    assert sum(len(block) for block in open_dataset(str(path)).read_blocks()) == ROWS
    with pytest.raises(InputError, match="vector column is damaged"):
        list(open_dataset(str(path)).read_blocks(verify=True))


@pytest.mark.parametrize(("name", "damaged"), [("out.parquet", "out.parquet"), ("out.npy", "out.ids.parquet")])
def test_a_flipped_bit_in_another_column_names_the_damaged_file(tmp_path: Path, name: str, damaged: str) -> None:
    made = make_output(tmp_path / name, unit_vectors(ROWS, DIM))
    path = tmp_path / damaged
    raw = bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(0)
    chunk = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "text_hash")
    raw[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 16
    path.write_bytes(raw)
    assert sum(len(block) for block in open_dataset(str(made)).read_blocks(["text_hash"])) == ROWS
    with pytest.raises(InputError, match=rf"{damaged}: the file is damaged: .*checksum") as caught:
        list(open_dataset(str(made)).read_blocks(["text_hash"], verify=True))
    assert caught.value.hint == "encode the rows again"


@pytest.mark.parametrize("name", ["out.parquet", "out.npy", "out.arrow"])
def test_a_cut_file_is_an_error_in_one_sentence(tmp_path: Path, name: str) -> None:
    path = make_output(tmp_path / name, unit_vectors(ROWS, DIM))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match="is damaged: "):
        open_dataset(str(path))


def test_files_with_and_without_vectors_are_distinguished(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": 1, "text": "x"}\n')
    (tmp_path / "in.csv").write_text("id,text\n1,x\n")
    (tmp_path / "empty.jsonl").write_text("")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "in.parquet")
    for name in ("in.jsonl", "in.csv", "in.parquet", "empty.jsonl"):
        assert not holds_vectors(str(tmp_path / name)), name
        with pytest.raises(UsageError, match=r"no vectors|no column of vectors|not a file of vectors"):
            open_dataset(str(tmp_path / name))
    for name in FORMATS:
        assert holds_vectors(str(make_output(tmp_path / name, unit_vectors(3, DIM)))), name


def test_a_foreign_file_has_no_space(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", unit_vectors(7, DIM))
    made = open_dataset(str(tmp_path / "v.npy"))
    assert (made.rows, made.dim, made.precision, made.vector_space) == (7, DIM, "float32", {})
    assert made.block_ids(next(made.read_blocks())).to_pylist() == list(range(7))
    assert made.take_rows([3], []) == [{"id": 3}]
    with pytest.raises(UsageError, match="does not name the model that made its vectors, which search needs"):
        made.require_vector_space("search")


def test_reduced_vectors_without_ranges_are_not_guessed(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones((2, DIM), np.int8))
    made = open_dataset(str(tmp_path / "v.npy"))
    with pytest.raises(UsageError, match="does not contain the ranges"):
        made.block_as_float32(next(made.read_blocks()))


def test_an_npy_whose_ids_have_another_count_is_refused(tmp_path: Path) -> None:
    path = make_output(tmp_path / "out.npy", unit_vectors(5, DIM))
    np.save(path, unit_vectors(4, DIM))
    with pytest.raises(InputError, match=r"has 4 rows, and .*out\.ids\.parquet has 5"):
        open_dataset(str(path))


def test_unfinished_and_incomplete_outputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out.parquet.parts").mkdir()
    with pytest.raises(UsageError, match=r"out\.parquet: not finished"):
        open_dataset(str(tmp_path / "out.parquet"))
    (tmp_path / "folder" / "_parts").mkdir(parents=True)
    with pytest.raises(UsageError, match="not finished"):
        open_dataset(str(tmp_path / "folder"))
    whole = make_output(tmp_path / "out.folder", unit_vectors(9, DIM))
    (whole / "part-00001.parquet").unlink()
    with pytest.raises(InputError, match=r"part-00001\.parquet: the file is missing"):
        open_dataset(str(whole))
    with pytest.raises(UsageError, match="no such file"):
        open_dataset(str(tmp_path / "nothing.parquet"))


def test_compact_protocol_fields() -> None:
    # 1: i32 -3; 2: binary "ab"; 5: struct {1: true, 3: i64 300}; 6: byte 7; 30 (long form): double
    raw = bytes([0x15, 5, 0x18, 2, 97, 98, 0x3C, 0x11, 0x26, 0xD8, 4, 0, 0x13, 7, 0x07, 60, *range(8), 0])
    assert ThriftCompactReader(raw).read_struct()[0] == {
        1: -3,
        2: b"ab",
        5: {1: True, 3: 300},
        6: 7,
        30: bytes(range(8)),
    }


def test_large_numbers_of_a_jsonl_output_can_be_read_back(tmp_path: Path) -> None:
    numbers = pa.array([1, 2**63 - 1, 2**64 - 1], pa.uint64())
    pq.write_table(pa.table({"id": numbers, "text": ["word1 word2"] * 3, "n": numbers}), tmp_path / "in.parquet")
    output, flags = tmp_path / "out.jsonl", ("-m", jobs.word_model(tmp_path), "--keep", "n")
    assert jobs.run("encode", tmp_path / "in.parquet", output, *flags).code == 0
    for command in (("inspect", output), ("search", output, "word1", "-k", "3")):
        done = jobs.run(*command)
        assert done.code == 0, done.err
    assert str(2**64 - 1) in done.out
    assert jobs.run("search", output, "word1", "-k", "3", "-o", tmp_path / "hits.parquet").code == 0
    assert sorted(map(int, pq.read_table(tmp_path / "hits.parquet")["id"].to_pylist())) == numbers.to_pylist()

"""Whole jobs of a multi-vector model: every format, interrupted and divided runs, and the same bytes each time."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
import multi_vector_models as built
import reference
from embedcli.core.multi_vectors import MultiVectors
from embedcli.outputs import dataset, schema

COUNT = 70


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, and rows of which some are alike, some empty and some long."""
    folder = tmp_path_factory.mktemp("multi-vector")
    built.build_multi_vector(folder / "model", folder)
    texts = [*reference.samples()[: COUNT - 4], "", "...", reference.samples()[0], "word " * 200]
    jobs.write_jsonl(folder / "in.jsonl", [{"id": f"r{i}", "text": text, "n": i} for i, text in enumerate(texts)])
    encoded = run(folder, folder / "whole.parquet", "--keep", "n")
    assert encoded.code == 3, encoded.err
    return folder


def arguments(home: Path, output: Any, *more: object) -> list[object]:
    flags = ("--model", home / "model", "--offline", "--device", "cpu", "--threads", 1, "--chunk-rows", 16, "--quiet")
    return ["encode", home / "in.jsonl", output, *flags, *more]


def run(home: Path, output: Any, *more: object) -> jobs.Ended:
    return jobs.run(*arguments(home, output, *more))


def expected(home: Path) -> list[Any]:
    """The vectors of each row of whole.parquet: float32 [tokens, dim]."""
    table = pq.read_table(home / "whole.parquet")
    offsets, vectors = schema.token_vectors_from_table(table)
    return np.split(vectors, offsets[1:-1])


def test_the_rows_are_those_of_sentence_transformers(home: Path) -> None:
    from sentence_transformers import MultiVectorEncoder

    table = pq.read_table(home / "whole.parquet")
    kind = pa.list_(pa.list_(pa.field("element", pa.float32(), nullable=False), built.DIM))
    assert table.schema.field("embedding").type.value_type == kind.value_type
    assert table.column_names == ["id", "embedding", "n_tokens", "truncated", "text_hash", "n"]
    texts = {row["id"]: row["text"] for row in map(json.loads, (home / "in.jsonl").read_text().splitlines())}
    model = MultiVectorEncoder(str(home / "model"), device="cpu", local_files_only=True)
    for name, vectors in zip(table.column("id").to_pylist(), expected(home), strict=True):
        np.testing.assert_allclose(vectors, model.encode_document(texts[name], convert_to_numpy=True), atol=1e-4)
    space = json.loads(table.schema.metadata[b"embedcli"])
    assert (space["kind"], space["dim"], space["task"], space["prompt"]) == (
        "multi_vector",
        built.DIM,
        "document",
        "[D] ",
    )


@pytest.mark.parametrize("ending", ["arrow", "jsonl", "npy", "lance"])
def test_every_format_holds_the_same_vectors(home: Path, tmp_path: Path, ending: str) -> None:
    output = tmp_path / f"out.{ending}"
    assert run(home, output, "--keep", "n").code == 3
    others = pq.read_table(home / "whole.parquet").drop_columns(["embedding"])
    found: list[Any]
    if ending == "arrow":
        table = pa.ipc.open_file(str(output)).read_all()
        found = [np.array(row, np.float32) for row in table.column("embedding").to_pylist()]
    elif ending == "jsonl":
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        found = [np.array(line["embedding"], np.float32) for line in lines]
        table = others.set_column(0, "id", [[line["id"] for line in lines]])
    elif ending == "lance":
        import lance

        table = lance.dataset(str(output)).to_table()
        found = [np.array(row, np.float32) for row in table.column("embedding").to_pylist()]
    else:
        table = pq.read_table(tmp_path / "out.ids.parquet")
        assert table.schema.field("start").type == pa.int64()
        assert table.schema.field("length").type == pa.int32()
        matrix = np.load(output, mmap_mode="r")
        places = zip(table.column("start").to_pylist(), table.column("length").to_pylist(), strict=True)
        found = [np.array(matrix[start : start + length]) for start, length in places]
        assert sum(map(len, found)) == len(matrix)
    assert table.column("id").to_pylist() == others.column("id").to_pylist()
    for mine, own in zip(found, expected(home), strict=True):
        np.testing.assert_allclose(mine, own, atol=1e-7)


@pytest.mark.parametrize(("precision", "dtype"), [("float16", np.float16), ("int8", np.int8)])
@pytest.mark.parametrize("ending", ["parquet", "npy", "jsonl", "arrow"])
def test_precisions(home: Path, tmp_path: Path, precision: str, dtype: Any, ending: str) -> None:
    from embedcli.core.quantization import dequantize

    output = tmp_path / f"out.{ending}"
    assert run(home, output, "--precision", precision).code == 3
    if ending == "npy":
        stored = np.load(output)
    elif ending == "jsonl":
        rows = [json.loads(line)["embedding"] for line in output.read_text().splitlines()]
        stored = np.concatenate([np.array(row, dtype) for row in rows])
    else:
        table = pq.read_table(output) if ending == "parquet" else pa.ipc.open_file(str(output)).read_all()
        stored = schema.token_vectors_from_table(table)[1]
    assert stored.dtype == dtype
    ranges = None
    if precision == "int8":
        space = jobs.run(
            "encode", home / "in.jsonl", tmp_path / "again.jsonl", *arguments(home, "")[3:], "--precision", "int8"
        )
        assert space.code == 3
        ranges = np.array(
            json.loads((tmp_path / "again.jsonl.space.json").read_text())["embedcli"]["ranges"], np.float32
        )
    restored = dequantize(stored, precision, built.DIM, ranges)  # type: ignore[arg-type]
    np.testing.assert_allclose(restored, np.concatenate(expected(home)), atol=0.01)


def test_row_groups_are_bounded_in_bytes(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedcli.outputs import multi_vector_npy, writers

    for module in (writers, multi_vector_npy):
        monkeypatch.setattr(module, "ROW_GROUP_BYTES", 20_000)
    assert run(home, tmp_path / "out.parquet").code == 3
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert 3 < file.metadata.num_row_groups < 20
    sizes = [file.read_row_group(i, ["embedding"]).nbytes for i in range(file.metadata.num_row_groups)]
    assert max(sizes) < 40_000
    assert run(home, tmp_path / "out.npy").code == 3
    assert len(np.load(tmp_path / "out.npy")) == sum(map(len, expected(home)))
    starts = pq.read_table(tmp_path / "out.ids.parquet").column("start").to_pylist()
    assert starts == np.cumsum([0, *map(len, expected(home))])[:-1].tolist()


@pytest.mark.parametrize("ending", ["parquet", "npy"])
def test_a_killed_run_goes_on_to_the_same_bytes(home: Path, tmp_path: Path, ending: str) -> None:
    output, many_chunks = tmp_path / f"out.{ending}", ("--chunk-rows", 1)
    process = subprocess.Popen(jobs.command(*arguments(home, output, *many_chunks)), stderr=subprocess.DEVNULL)
    staging = tmp_path / f"out.{ending}.parts"
    jobs.wait_for(lambda: len(list(staging.glob("part-*.arrow"))) >= 2, process)
    process.kill()
    process.wait()
    assert not output.exists()
    assert run(home, output, *many_chunks).code == 3
    assert run(home, tmp_path / f"again.{ending}", *many_chunks).code == 3
    for suffix in (f".{ending}", ".ids.parquet") if ending == "npy" else (f".{ending}",):
        assert (tmp_path / f"out{suffix}").read_bytes() == (tmp_path / f"again{suffix}").read_bytes()


def list_parts(folder: Path) -> list[Path]:
    """The files of a folder output, in the order of their rows."""
    return [folder / name for name in json.loads((folder / "_manifest.json").read_text())["parts"]]


def test_workers_and_shards_and_folders_give_the_same_rows(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedcli.readers import preview

    monkeypatch.setattr(preview, "JSONL_SPLIT_BYTES", 8000)
    assert run(home, f"{tmp_path}/plain/", "--part-size", 20_000).code == 3
    assert run(home, f"{tmp_path}/shards/", "--part-size", 20_000, "--shard", "1/2").code == 0
    assert run(home, f"{tmp_path}/shards/", "--part-size", 20_000, "--shard", "2/2").code == 3
    assert run(home, tmp_path / "workers.parquet", "--workers", 2).code == 3
    plain, shards = map(list_parts, (tmp_path / "plain", tmp_path / "shards"))
    assert len(plain) > 2
    names = pq.read_table(home / "whole.parquet").column("id").to_pylist()
    for paths in (plain, shards, [tmp_path / "workers.parquet"]):
        tables = [pq.read_table(path) for path in paths]
        assert [name for table in tables for name in table.column("id").to_pylist()] == names
        vectors = np.concatenate([schema.token_vectors_from_table(table)[1] for table in tables])
        np.testing.assert_allclose(vectors, np.concatenate(expected(home)), atol=1e-5)


def test_stdout(home: Path) -> None:
    ended = run(home, "-", "--to", "jsonl")
    assert ended.code == 3, ended.err
    rows = [json.loads(line) for line in ended.out.splitlines()]
    for row, vectors in zip(rows, expected(home), strict=True):
        np.testing.assert_allclose(np.array(row["embedding"]), vectors, atol=1e-6)


def test_windows_of_long_texts(home: Path, tmp_path: Path) -> None:
    assert run(home, tmp_path / "out.parquet", "--overflow", "split").code == 3
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.num_rows > len(expected(home))
    assert max(table.column("window").to_pylist()) > 1


def test_queries_have_one_width_and_an_identity_of_their_own(home: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    assert run(home, output, "--as", "query").code in (0, 3)
    offsets, _ = schema.token_vectors_from_table(pq.read_table(output))
    assert set(np.diff(offsets).tolist()) == {12}
    refused = run(home, output, "--as", "document")
    assert refused.code == 2, refused.err
    assert "--as (query, now document)" in refused.err
    assert run(home, output, "--as", "document", "--pool-factor", 2, "--overwrite").code == 3
    pooled, _ = schema.token_vectors_from_table(pq.read_table(output))
    assert pooled[-1] < sum(map(len, expected(home))) * 0.6
    assert "--pool-factor" in run(home, output).err


def test_names_of_kept_columns_that_the_ids_file_needs(home: Path, tmp_path: Path) -> None:
    jobs.write_jsonl(tmp_path / "in.jsonl", [{"id": 1, "text": "a", "start": 3}])
    ended = jobs.run("encode", tmp_path / "in.jsonl", tmp_path / "out.npy", *arguments(home, "")[3:], "--keep", "start")
    assert ended.code == 2
    assert "start" in ended.err


@pytest.mark.parametrize("pooling", [(), ("--pool-factor", 3)])
def test_the_planned_size_is_that_of_the_output(home: Path, tmp_path: Path, pooling: tuple[object, ...]) -> None:
    flags = ("--model", home / "model", "--offline", "--device", "cpu", "--json")
    for measured in ((), ("--measure-seconds", 0)):
        planned = json.loads(jobs.run("plan", home / "in.jsonl", *flags, *pooling, *measured).out)["output_bytes"]
        assert list(planned) == ["float32", "float16", "int8", "uint8"]
        assert run(home, tmp_path / "out.npy", *pooling, "--overwrite").code == 3
        files = [tmp_path / name for name in ("out.npy", "out.ids.parquet")]
        assert planned["float32"]["npy"] == pytest.approx(sum(file.stat().st_size for file in files), rel=0.2)


# Updates

CHANGED, ADDED, REMOVED = 11, 3, 5


@pytest.fixture
def place(home: Path, tmp_path: Path) -> Path:
    """A folder with the rows of `home` in in.jsonl, of which `edit` changes some."""
    (tmp_path / "in.jsonl").write_text((home / "in.jsonl").read_text())
    return tmp_path


def edit(place: Path) -> None:
    """Remove the first rows, change one, repeat the text of another, and add some."""
    rows = [json.loads(line) for line in (place / "in.jsonl").read_text().splitlines()][REMOVED:]
    rows[CHANGED]["text"] = "Another text, with its own vectors."
    added = [{"id": f"new{i}", "text": f"Some words of a new row {i}.", "n": i} for i in range(ADDED)]
    jobs.write_jsonl(place / "in.jsonl", [*rows, *added, {"id": "again", "text": rows[0]["text"], "n": 0}])


def encode_in(home: Path, place: Path, output: str, *more: object) -> jobs.Ended:
    """Encode place/in.jsonl to place/output."""
    flags = [flag for flag in arguments(home, "")[3:] if flag != "--quiet"]
    return jobs.run("encode", place / "in.jsonl", f"{place}/{output}", *flags, *more)


def stored_rows(path: Path) -> dict[str, Any]:
    """The vectors of each row of an output as they are stored, by its id, and the other columns under `columns`."""
    output = dataset.open_dataset(str(path))
    names = [name for name in output.schema.names if name not in ("start", "length")]
    blocks = list(output.read_blocks(names))
    found: dict[str, Any] = {"columns": pa.concat_tables([block.columns for block in blocks]).to_pylist()}
    for block in blocks:
        assert isinstance(block.vectors, MultiVectors)
        vectors = np.split(np.array(block.vectors.values), block.vectors.offsets[1:-1])
        found |= dict(zip(output.block_ids(block).to_pylist(), vectors, strict=True))
    return found


@pytest.mark.parametrize("name", ["out.parquet", "out.npy", "out.arrow", "out.lance", "out/"])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_an_update_copies_the_vectors_of_unchanged_rows(home: Path, place: Path, name: str, precision: str) -> None:
    flags = ("--keep", "n", "--precision", precision)
    assert encode_in(home, place, name, *flags).code == 3
    before = stored_rows(place / name)
    edit(place)
    ended = encode_in(home, place, name, *flags, "--update", "--report", place / "report.json")
    assert ended.code == 3, ended.err
    report = json.loads((place / "report.json").read_text())
    kept = len(before) - 1 - REMOVED - 1
    assert report["changes"] == {"added": ADDED, "changed": 1, "reused": kept + 1, "removed": REMOVED}
    assert report["counters"]["sequences"] == ADDED + 1
    after = stored_rows(place / name)
    for key in before.keys() & after.keys() - {"columns", f"r{REMOVED + CHANGED}"}:
        np.testing.assert_array_equal(after[key], before[key])
    np.testing.assert_array_equal(after["again"], after[f"r{REMOVED}"])
    fresh = "fresh/" if name == "out/" else f"fresh{Path(name).suffix}"
    ranges = ("--ranges-from", place / name) if precision == "int8" else ()
    assert encode_in(home, place, fresh, *flags, *ranges).code == 3
    whole = stored_rows(place / fresh)
    assert after["columns"] == whole["columns"]
    assert after.keys() == whole.keys()
    for key in whole.keys() - {"columns"}:
        assert after[key].dtype == whole[key].dtype
        np.testing.assert_allclose(
            after[key].astype(np.float32), whole[key].astype(np.float32), atol=1 if precision == "int8" else 1e-3
        )


def test_vectors_are_reused_from_another_output(home: Path, place: Path) -> None:
    assert encode_in(home, place, "old.npy").code == 3
    edit(place)
    ended = encode_in(home, place, "out.parquet", "--reuse", place / "old.npy")
    assert ended.code == 3, ended.err
    before, after = stored_rows(place / "old.npy"), stored_rows(place / "out.parquet")
    for key in before.keys() & after.keys() - {"columns", f"r{REMOVED + CHANGED}"}:
        np.testing.assert_array_equal(after[key], before[key])


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--as", "query"), "prompt was '[D] ', now '[Q] '"),
        (("--pool-factor", 2), "pool_factor was None, now 2"),
        (("--precision", "float16"), "precision was 'float32', now 'float16'"),
        (("--max-seq-length", 9), "max_seq_length was 40, now 9"),
    ],
)
def test_other_vectors_are_not_reused(home: Path, place: Path, flags: tuple[object, ...], reason: str) -> None:
    assert encode_in(home, place, "old.parquet").code == 3
    ended = encode_in(home, place, "out.parquet", "--reuse", place / "old.parquet", *flags)
    assert ended.code == 2
    assert reason in ended.err


def read_files(path: Path) -> dict[str, bytes]:
    """The files of an output, by the end of their name."""
    if path.is_dir():
        return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.is_file()}
    beside = path.with_name(f"{path.stem}.ids.parquet")
    return {file.name.removeprefix(path.stem): file.read_bytes() for file in (path, beside) if file.exists()}


@pytest.mark.parametrize("name", ["out.parquet", "out.npy", "out/"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_killed_update_goes_on_to_the_same_bytes(home: Path, place: Path, name: str, precision: str) -> None:
    flags = ("--precision", precision, "--chunk-rows", 1)
    again = f"again{name.removeprefix('out')}"
    for output in (name, again):
        assert encode_in(home, place, output, *flags).code == 3
    edit(place)
    before = read_files(place / name)
    words = [*arguments(home, "")[3:], *flags, "--update"]
    process = subprocess.Popen(
        jobs.command("encode", place / "in.jsonl", f"{place}/{name}", *words), stderr=subprocess.DEVNULL
    )
    staging = place / ("out/_parts" if name == "out/" else f"{name}.parts")
    jobs.wait_for(lambda: len(list(staging.glob("part-*.arrow"))) >= 3, process)
    process.kill()
    process.wait()
    assert read_files(place / name) == before
    for output in (name, again):
        assert encode_in(home, place, output, *flags, "--update").code == 3
    assert read_files(place / name) == read_files(place / again) != before

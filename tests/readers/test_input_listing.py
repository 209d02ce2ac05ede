"""Which files are inputs: subfolders, files that are reached twice, splits, and files that embedcli wrote itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedcli import readers
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from jobs import run, word_model, write_jsonl


def plan(folder: Path, *inputs: str, output: str = "-", **options: Any) -> tuple[list[str], str]:
    """The inputs of a job, as paths in the folder, and its notes."""
    found = readers.plan_inputs(Job(tuple(str(folder / name) for name in inputs), output, **options))
    paths = dict.fromkeys(input_split.path for input_split in found.splits)
    return [os.path.relpath(path, folder) for path in paths], " ".join(found.columns.notes).replace(f"{folder}/", "")


def write(folder: Path, *names: str) -> None:
    """Rows in files with these names; another number of rows, and so another content, in each."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / name, [{"id": f"{name}-{row}", "text": "word1"} for row in range(i + 1)])


def encode(folder: Path, *arguments: Any) -> str:
    """Run an encode command that succeeds; its messages."""
    word_model(folder)
    ended = run("encode", *arguments, "--model", folder / "words.txt", "--offline")
    assert ended.code == 0, ended.err
    return ended.err.replace(f"{folder}/", "")


# Folders


def test_a_folder_is_read_with_its_subfolders_but_without_hidden_ones(tmp_path: Path) -> None:
    data = ("data/b.jsonl", "data/a/2.jsonl", "data/a/10.jsonl", "data/c/_key=1/x.jsonl")
    write(tmp_path, *data, "data/_old/x.jsonl", "data/.cache/x.jsonl", "data/a/_x.jsonl", "data/a/.x.jsonl")
    assert plan(tmp_path, "data")[0] == ["data/a/2.jsonl", "data/a/10.jsonl", "data/b.jsonl", "data/c/_key=1/x.jsonl"]


def test_files_without_rows_are_named(tmp_path: Path) -> None:
    write(tmp_path, "data/a.jsonl")
    for name in ("README.md", ".gitattributes", "dataset_infos.json", "a.txt.md", "b.md"):
        (tmp_path / "data" / name).write_text("text")
    paths, notes = plan(tmp_path, "data")
    assert paths == ["data/a.jsonl"]
    assert "Files of data that hold no rows are not read: README.md, a.txt.md, b.md and 1 more." in notes


def test_loops_of_links_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path, "data/a/x.jsonl", "data/b/y.jsonl", "elsewhere/z.jsonl")
    (tmp_path / "data/a/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/0_link").symlink_to(tmp_path / "data/b")
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    paths, notes = plan(tmp_path, "data")
    assert paths == ["data/a/x.jsonl", "data/b/y.jsonl", "data/linked/z.jsonl"]
    assert "data/a/loop links to a folder that is read already" in notes
    assert "data/0_link links to a folder that is read already" in notes


# The same file twice


@pytest.mark.parametrize("again", ["./a.jsonl", "link.jsonl", "hard.jsonl", "*.jsonl", "data/../a.jsonl", "a.jsonl"])
def test_a_file_that_is_reached_twice_is_read_once(again: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "data/b.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    (tmp_path / "hard.jsonl").hardlink_to(tmp_path / "a.jsonl")
    found = readers.plan_inputs(Job((f"{tmp_path}/a.jsonl", f"{tmp_path}/data", f"{tmp_path}/{again}"), "-"))
    assert [input_split.path for input_split in found.splits] == [f"{tmp_path}/a.jsonl", f"{tmp_path}/data/b.jsonl"]
    reason = "named twice" if again in ("a.jsonl", "*.jsonl") else f"the same file as {tmp_path}/a.jsonl"
    assert f" is {reason}: it is read once" in found.columns.notes[0]


def test_links_to_one_file_in_two_partitions_are_two_inputs(tmp_path: Path) -> None:
    write(tmp_path, "blob.jsonl")
    for name in ("data/lang=fr", "data/lang=en"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.jsonl").symlink_to(tmp_path / "blob.jsonl")
    assert plan(tmp_path, "data")[0] == ["data/lang=en/a.jsonl", "data/lang=fr/a.jsonl"]


# Splits of a dataset


@pytest.mark.parametrize(
    ("names", "example"),
    [
        (["data/test-00000-of-00001.jsonl", "data/train-00000-of-00002.jsonl"], "hub/data/test*"),
        (["dev.jsonl", "train.jsonl"], "hub/dev*"),
        (["test/0.jsonl", "train/0.jsonl"], "hub/test"),
    ],
)
def test_several_splits_are_read_and_named(names: list[str], example: str, tmp_path: Path) -> None:
    write(tmp_path, *(f"hub/{name}" for name in names))
    paths, notes = plan(tmp_path, "hub")
    assert paths == [f"hub/{name}" for name in names]
    assert "has several splits, and all are read: " in notes
    assert "train (1 file). " in notes
    assert f"To read one, name it: '{example}'" in notes
    assert plan(tmp_path, example)[0] == [f"hub/{names[0]}"]


def test_words_that_only_begin_like_a_split_are_none(tmp_path: Path) -> None:
    write(tmp_path, "data/trainer.jsonl", "data/testimony.jsonl", "data/values.jsonl")
    assert "splits" not in plan(tmp_path, "data")[1]


def test_a_saved_dataset_has_only_the_files_that_its_state_names(tmp_path: Path) -> None:
    write(tmp_path, "saved/train/data-0.jsonl", "saved/train/cache-1.jsonl", "saved/test/data-0.jsonl")
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for split in ("train", "test"):
        state = {"_data_files": [{"filename": "data-0.jsonl"}], "_split": split}
        (tmp_path / "saved" / split / "state.json").write_text(json.dumps(state))
        (tmp_path / "saved" / split / "dataset_info.json").write_text("{}")
    paths, notes = plan(tmp_path, "saved")
    assert paths == ["saved/test/data-0.jsonl", "saved/train/data-0.jsonl"]
    assert "hold no rows are not read: dataset_dict.json, test/dataset_info.json" in notes
    assert f"test (1 file), train (1 file). To read one, name it: '{'saved/test'}'" in notes


def test_a_saved_dataset_is_encoded(tmp_path: Path) -> None:
    for split, count in (("train", 2), ("test", 1)):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        table = pa.table({"id": range(count), "text": ["word1"] * count})
        for name in ("data-00000-of-00001.arrow", "cache-1.arrow"):  # Arrow streams, as `save_to_disk` writes them
            with pa.ipc.new_stream(folder / name, table.schema) as out:
                out.write_table(table)
        (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert "test (1 file), train (1 file)" in encode(tmp_path, tmp_path / "saved", tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == [0, 0, 1]
    encode(tmp_path, tmp_path / "saved/train", tmp_path / "train.parquet")
    assert pq.read_table(tmp_path / "train.parquet")["id"].to_pylist() == [0, 1]


# Files of our own


@pytest.mark.parametrize("ending", ["parquet", "npy", "jsonl", "arrow"])
@pytest.mark.parametrize("given", ["data", "data/*"])
def test_files_of_earlier_jobs_are_not_inputs(given: str, ending: str, tmp_path: Path) -> None:
    write(tmp_path, "data/b.jsonl")
    (tmp_path / "data/embedcli.toml").write_text("")
    with (tmp_path / "data/bad.jsonl").open("w") as bad:
        bad.write('{"id": 1, "text": "word1"}\n{"id": 2}\n')
    word_model(tmp_path)
    ended = run(
        *("encode", tmp_path / "data/bad.jsonl", tmp_path / f"data/out.{ending}", "--model", tmp_path / "words.txt"),
        *("--keep", "text", "--report", tmp_path / "data/report.json"),
    )
    assert ended.code == 3, ended.err
    paths, notes = plan(tmp_path, given)
    assert paths == ["data/b.jsonl", "data/bad.jsonl"]
    assert "Files that embedcli wrote are not read: " in notes
    assert plan(tmp_path, f"data/out.{'ids.parquet' if ending == 'npy' else ending}")[0]  # named, it is an input
    (tmp_path / "data/b.jsonl").unlink()
    (tmp_path / "data/bad.jsonl").unlink()
    if ending == "npy":
        with pytest.raises(UsageError, match="was written by embedcli"):
            plan(tmp_path, given)
    else:  # a folder of outputs alone is read
        assert plan(tmp_path, given)[0] == [f"data/out.{ending}"]


def test_outputs_in_folders_are_not_inputs_unless_the_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path, "data/a.jsonl")
    encode(tmp_path, tmp_path / "data", f"{tmp_path}/data/out/", "--keep", "text")
    encode(tmp_path, tmp_path / "data", f"{tmp_path}/other.parquet")  # the output of the first job is left out
    assert pq.read_metadata(tmp_path / "other.parquet").num_rows == 1
    paths, notes = plan(tmp_path, "data")
    assert paths == ["data/a.jsonl"]
    assert "Files that embedcli wrote are not read: data/out/part-00000.parquet (output)." in notes
    assert plan(tmp_path, "data/out")[0] == ["data/out/part-00000.parquet"]
    assert "already" in encode(tmp_path, tmp_path / "data", f"{tmp_path}/data/out/", "--keep", "text")


@pytest.mark.parametrize("given", ["data", "data/**/*.parquet"])
@pytest.mark.parametrize("staging", ["out.parquet.parts", "out/_parts"])
def test_staging_folders_are_not_read(staging: str, given: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl")
    encode(tmp_path, tmp_path / "a.jsonl", tmp_path / "a.parquet", "--keep", "text")
    table = pq.read_table(tmp_path / "a.parquet").select(["id", "text"])
    for name in (f"data/{staging}/part-0.parquet", "data/user.parts/x.parquet"):
        (tmp_path / name).parent.mkdir(parents=True)
        pq.write_table(table, tmp_path / name)
    (tmp_path / "data" / staging / "_manifest.json").write_text("{}")
    paths, notes = plan(tmp_path, given)
    assert paths == ["data/user.parts/x.parquet"]
    assert ("unfinished outputs" in notes) == (given != "data" or "_parts" not in staging)


def test_a_table_made_of_an_output_is_an_input(tmp_path: Path) -> None:
    write(tmp_path, "data/a.jsonl")
    encode(tmp_path, tmp_path / "data", tmp_path / "data/out.parquet", "--keep", "text")
    pq.write_table(pq.read_table(tmp_path / "data/out.parquet").drop(["embedding"]), tmp_path / "data/made.parquet")
    assert plan(tmp_path, "data")[0] == ["data/a.jsonl", "data/made.parquet"]

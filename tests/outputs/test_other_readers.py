"""A folder output as it stands, opened by the tools that people point at folders of Parquet files.

Ray Data reads one in tests/runners/test_ray_runner.py, where a Ray runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedcli
import jobs

ROWS = 60


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder output of several parts, with a rejected row; beside them lie files that begin with an underscore."""
    home = tmp_path_factory.mktemp("readers")
    model = jobs.word_model(home)
    for k in range(3):
        made = [row | {"id": f"{k}-{row['id']}"} for row in jobs.rows(ROWS // 3, seed=k)]
        jobs.write_jsonl(home / f"in.{k}.jsonl", made if k else [*made, {"id": "bad", "text": None, "n": 1}])
    files = sorted(home.glob("in.*.jsonl"))
    folder = home / "out"
    asked = ("--model", model, "--keep", "n", "--text-column", "text", "--part-size", 30_000)
    assert jobs.run("encode", *files, f"{folder}/", *asked).code == 3
    parts = [f"part-0000{k}.parquet" for k in range(3)]
    assert sorted(path.name for path in folder.iterdir()) == ["_manifest.json", "_rejects.jsonl", *parts]
    return folder


Table = dict[str, list[Any]]


def by_pyarrow(dataset: Any, folder: Path) -> Table:
    return dict(dataset.dataset(folder).to_table().to_pydict())


def by_duckdb(duckdb: Any, folder: Path) -> Table:
    return dict(duckdb.sql(f"SELECT * FROM read_parquet('{folder}/*.parquet')").to_arrow_table().to_pydict())


def by_polars(polars: Any, folder: Path) -> Table:
    return dict(polars.scan_parquet(folder, hidden_file_prefix="_").collect().to_dict(as_series=False))


def by_pandas(pandas: Any, folder: Path) -> Table:
    return dict(pandas.read_parquet(folder).to_dict(orient="list"))


def by_datasets(datasets: Any, folder: Path) -> Table:
    datasets.disable_progress_bars()
    return dict(datasets.load_dataset(str(folder), split="train").to_dict())


READERS: dict[str, Callable[[Any, Path], Table]] = {
    "pyarrow.dataset": by_pyarrow,
    "duckdb": by_duckdb,
    "polars": by_polars,
    "pandas": by_pandas,
    "datasets": by_datasets,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("name", READERS)
def test_a_folder_output_is_readable_as_it_stands(
    output: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    table = READERS[name](pytest.importorskip(name, reason=f"{name} is not installed"), output)
    assert len(table["id"]) == ROWS
    assert dict(zip(table["id"], table["n"], strict=True)) == dict(zip(*by_jsonl(output, "n"), strict=True))
    vector = np.asarray(table["embedding"][table["id"].index("1-r7")], np.float32)
    assert np.array_equal(vector, expected(output, "1-r7"))


def by_jsonl(output: Path, name: str) -> tuple[list[str], list[Any]]:
    """The ids of the input's good rows, and one of their columns."""
    lines = [json.loads(line) for path in output.parent.glob("in.*.jsonl") for line in path.read_text().splitlines()]
    good = [row for row in lines if row["text"] is not None]
    return [row["id"] for row in good], [row[name] for row in good]


def expected(output: Path, wanted: str) -> Any:
    """The vector of a row by way of `embedcli.load`, which writes no file."""
    ids, texts = by_jsonl(output, "text")
    return embedcli.load(str(output.parent / "words.txt")).encode([texts[ids.index(wanted)]])[0]

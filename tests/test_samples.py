"""The three sample files hold the same rows, and the rows are as varied as their README says."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

Row = dict[str, str]


@pytest.fixture(scope="module")
def rows(sample_data: Path) -> list[Row]:
    lines = (sample_data / "texts.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_csv_holds_the_same_rows(rows: list[Row], sample_data: Path) -> None:
    with (sample_data / "texts.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == rows


def test_parquet_holds_the_same_rows_in_four_row_groups(rows: list[Row], sample_data: Path) -> None:
    file = pq.ParquetFile(sample_data / "texts.parquet")
    assert file.read().to_pylist() == rows
    assert file.num_row_groups == 4


def test_rows_are_whole_and_different(rows: list[Row]) -> None:
    assert [row["id"] for row in rows] == [f"r{number:03}" for number in range(1, len(rows) + 1)]
    assert all(value.strip() for row in rows for value in row.values())
    assert len({row["text"] for row in rows}) == len(rows)


def test_the_readme_counts_them_right(rows: list[Row], sample_data: Path) -> None:
    languages = Counter(row["lang"] for row in rows)
    readme = (sample_data / "README.md").read_text("utf-8")
    assert f"{len(rows)} short and long texts" in readme
    assert f"{languages['en']} rows are English, {languages['fr']} French, {languages['zh']} Chinese" in readme
    assert any("\n" in row["text"] and "," in row["text"] for row in rows)

"""LanceDB alone: what its errors say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import Backend
from loads import check, load, loaded, make_backend
from sample_outputs import make_output, unit_vectors


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Backend]:
    yield from make_backend("lancedb", tmp_path)


def test_errors_do_not_name_the_source_of_the_engine(tmp_path: Path, database: Backend) -> None:
    output = loaded(make_output(tmp_path / "out.parquet", unit_vectors(6, 8)), database)
    shutil.rmtree(tmp_path / "database/lake/docs.lance/data")
    for done in (load(output, database, "--sync"), check(output, database)):
        assert done.code == 1
        assert "Not found: " in done.err
        assert ".rs" not in done.err
        assert "hint: check the folder and the disk" in done.err

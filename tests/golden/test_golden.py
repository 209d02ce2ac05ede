"""Jobs leave behind what they left when record.json was made: files, metadata, rejects, reports, exit codes.

And jobs that an earlier version began, and that were stopped, are finished with what they had.
"""

from __future__ import annotations

import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record
from golden_cases import CASES, Case, run_case, run_command
from golden_inputs import write_inputs
from golden_staging import REPORT, STAGED, Staged, describe_finished, unpack
from snapshot import describe, differences, vectors_of, writers

RECORD = record.load()
# Bytes are compared where the libraries that write them are those of the record, and contents everywhere.
IS_EXACT = RECORD["writers"] == writers()
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    write_inputs(folder)
    return folder


def show(lines: list[str], messages: list[str]) -> str:
    return "\n".join([f"{len(lines)} differences from the record", *lines, "", "what embedcli said:", *messages])


def test_every_job_is_recorded() -> None:
    assert [case.name for case in CASES] == list(RECORD["jobs"])
    assert [staged.name for staged in STAGED] == list(RECORD["whole_runs"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_job_leaves_what_is_recorded(case: Case, inputs: Path, tmp_path: Path) -> None:
    ended, server = run_case(case, inputs, tmp_path / "job")
    found = describe(case, ended, server, tmp_path / "job", inputs)
    different = differences(RECORD["jobs"][case.name], found, exact=IS_EXACT)
    assert not different, show(different, [end.stderr for end in ended])
    if not case.is_exact:
        recorded = np.load(record.HERE / record.VECTORS)[case.name]
        np.testing.assert_allclose(vectors_of(tmp_path / "job"), recorded, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("staged", STAGED, ids=lambda staged: staged.name)
def test_a_job_that_an_earlier_version_began_is_finished(staged: Staged, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    unpack(record.HERE / "staging" / f"{staged.name}.tar.gz", folder)
    sealed = sealed_files(folder / "out" / "_parts")
    with chdir(folder):
        ended = run_command(staged.last)
    assert ended.exit_code in (0, 3), ended.stderr
    report: dict[str, Any] = json.loads((folder / REPORT).read_text())
    counts = report["rows"]
    assert report["damaged_parts"] == 0
    assert 0 < counts["this_run"] < counts["read"]
    assert counts["resumed"] > 0 or staged.is_sharded
    assert sealed.items() <= sealed_files(folder / "out").items()
    assert bool(sealed) == (staged.name in ("folder", "shards-folder"))
    different = differences(RECORD["whole_runs"][staged.name], describe_finished(folder), exact=IS_EXACT)
    assert not different, show(different, [ended.stderr])


def sealed_files(folder: Path) -> dict[str, tuple[int, int]]:
    """The Parquet files in a folder: inode and time of each, which a file that is written again does not keep."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(folder.glob("part-*.parquet"))}

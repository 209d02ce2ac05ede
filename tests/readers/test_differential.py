"""Random files in every format, encoding, quoting and compression: each row arrives once, with its own id and text."""

from __future__ import annotations

from pathlib import Path

import pytest

from differential import check_jobs
from jobs import word_model
from random_inputs import FORMATS


@pytest.mark.parametrize("kind", FORMATS)
def test_jobs_over_random_files_lose_and_invent_nothing(kind: str, tmp_path: Path) -> None:
    check_jobs(range(10), word_model(tmp_path), tmp_path, (kind,))

"""The table of architectures in docs/reference/models.md tells what happens."""

from __future__ import annotations

from pathlib import Path

import pytest

import architecture_checks
import architectures

ROOT = Path(__file__).resolve().parents[2]
ROWS = architecture_checks.rows_of((ROOT / "docs" / "reference" / "models.md").read_text("utf-8"))
# One of each kind: positions, token types, attention, padding side, pooling and what is refused.
CHECKED = (
    "albert",
    "bert, ColBERT",
    "bert, raw folder",
    "bert, reranker",
    "convbert",
    "deberta",
    "gpt2, padded on the left",
    "luke",
    "mobilebert",
    "nomic_bert",
    "qwen3",
)


def test_every_architecture_has_a_row() -> None:
    assert list(ROWS) == list(architectures.ARCHITECTURES)
    assert len(ROWS) >= 45


@pytest.mark.parametrize("name", CHECKED)
def test_the_row_tells_what_happens(name: str, tmp_path: Path) -> None:
    outcome = architecture_checks.check(name, tmp_path / "built")
    row = architecture_checks.row(name, outcome)
    assert architecture_checks.words(row) == architecture_checks.words(ROWS[name])

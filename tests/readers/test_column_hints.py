"""An input whose column of texts cannot be guessed: the hint names the option that fits what the header shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedcli import readers
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from jobs import run, word_model

CASES = (
    (
        "key;words, long;price\n1;word1 word2;3\n",
        "--delimiter ';'",
        ("--delimiter", ";", "--text-column", "words, long"),
    ),
    ("1,word1 word2\n2,word3\n", "--no-header", ("--no-header", "--text-column", "column1")),
)


@pytest.mark.parametrize(("content", "hint", "options"), CASES)
def test_the_dialect_is_suggested(content: str, hint: str, options: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content, "utf-8")
    command = ("encode", path, tmp_path / "out.parquet", "-m", word_model(tmp_path))
    wrong = run(*command, "--id-column", "")
    assert (wrong.code, hint in wrong.err) == (2, True), wrong.err
    assert run(*command, *options).code == 0


def test_rows_inside_an_object_are_taken_out_with_jq(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"data": [{"id": 1, "text": "word1"}]}\n', "utf-8")
    with pytest.raises(UsageError) as caught:
        readers.plan_inputs(Job(inputs=(str(path),), output="out.parquet"))
    assert """jq -c '.["data"][]' FILE""" in str(caught.value.hint)

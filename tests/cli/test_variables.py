"""EMBEDCLI_ variables: an unknown name is an error, and a bad value is blamed on its variable."""

from __future__ import annotations

import pytest

import jobs


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("EMBEDCLI_MODLE", "x", "EMBEDCLI_MODLE is not a variable of embedcli\nhint: did you mean EMBEDCLI_MODEL?"),
        ("EMBEDCLI_QQQQQ", "x", "EMBEDCLI_QQQQQ is not a variable of embedcli\nhint: remove it: unset EMBEDCLI_QQQQQ"),
        (
            "EMBEDCLI_BATCH_SIZE",
            "3",
            "EMBEDCLI_BATCH_SIZE is not a variable of embedcli\n"
            "hint: use EMBEDCLI_BATCH_TOKENS, 512 per text: EMBEDCLI_BATCH_TOKENS=1536",
        ),
        ("EMBEDCLI_LIMIT", "x", "EMBEDCLI_LIMIT: --limit 'x' is not a whole number"),
        ("EMBEDCLI_THREADS", "0", "EMBEDCLI_THREADS: --threads 0 is too small\nhint: give 1 or more"),
        ("EMBEDCLI_PRECISION", "int7", "EMBEDCLI_PRECISION: --precision 'int7' is not a valid choice\nhint: did you"),
        (
            "EMBEDCLI_DTYPE",
            "int8",
            "EMBEDCLI_DTYPE: --dtype 'int8' is not a valid choice\nhint: use --dtype bfloat16 for speed",
        ),
        ("EMBEDCLI_MAX_REJECTS", "many", "EMBEDCLI_MAX_REJECTS: --max-rejects 'many' is neither a number"),
    ],
)
def test_the_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(name, value)
    done = jobs.run("encode", "in.jsonl", "out.parquet")
    assert done.code == 2
    assert f"error: {said}" in done.err
    assert jobs.run("encode", "--help").code == 0


def test_an_option_on_the_command_line_is_not_blamed_on_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDCLI_LIMIT", "3")
    done = jobs.run("encode", "in.jsonl", "out.parquet", "--limit", "x")
    assert "error: --limit 'x' is not a whole number" in done.err

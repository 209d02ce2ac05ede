"""Validation of options: the same on the command line and from Python."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedcli
import jobs
from embedcli.core import job_options
from embedcli.core.errors import UsageError
from embedcli.core.job import Job

WRONG: dict[str, tuple[Any, str]] = {
    "precision": ("float8", "did you mean float32?"),
    "overflow": ("trunc", "did you mean truncate?"),
    "on_bad_row": ("skip", "choose from reject, fail"),
    "as_": ("q", "choose from query, document, none"),
    "normalize": ("yes", "give True or False"),
    "offline": (1, "give True or False"),
    "batch_tokens": (-5, "give 1 or more"),
    "limit": (0, "give 1 or more"),
    "workers": (True, "give a whole number"),
    "chunk_rows": (1.5, "give a whole number"),
    "split_overlap": (-1, "give 0 or more"),
    "threads": (2**64, f"give {2**53} or less"),
    "max_seconds": (0, "give a number of seconds above 0"),
    "request_timeout": (-1, "give a number of seconds above 0"),
    "min_weight": (-1, "give a weight above 0, such as 0.1, or leave --min-weight out"),
    "patience": (float("nan"), "give a number"),
    "revision": (3, "give a string"),
    "reuse": (5, "give a list"),
    "keep": ([1], "give a string"),
    "shard": ((3, 2), "use e.g. --shard 3/16"),
    "part_size": ("x", "use e.g. 256MB, 1GiB or a number of bytes"),
    "max_rejects": ("nan", "use e.g. 100 or 0.1%"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_from_python(name: str, tmp_path: Path) -> None:
    value, hint = WRONG[name]
    source = jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(3))
    with pytest.raises(UsageError, match=f"--{job_options.option_name(name)} ") as caught:
        embedcli.encode_file(source, tmp_path / "out.parquet", **{name: value})
    assert caught.value.hint == hint
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("--workers", "0", "--workers 0 is too small"),
        ("--split-overlap", "-1", "--split-overlap -1 is too small"),
        ("--rpm", "0", "--rpm 0 is too small"),
        ("--request-timeout", "0", "--request-timeout 0 is not above zero"),
        ("--num-cpus", "-1", "--num-cpus -1 is too small"),
        ("--part-size", "big", "--part-size big is not a size"),
    ],
)
def test_wrong_values_are_refused_on_the_command_line(name: str, value: str, text: str, tmp_path: Path) -> None:
    source = jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(3))
    result = jobs.run("encode", source, tmp_path / "out.parquet", name, value)
    assert result.code == 2
    assert text in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("command", ["verify", "compare", "plot"])
def test_a_seed_below_zero_is_refused(command: str) -> None:
    result = jobs.run(command, "a.parquet", "b.html", "--seed", "-1")
    assert result.code == 2
    assert "--seed -1 is too small" in result.err
    assert "give 0 or more" in result.err


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("keep", "title", ("title",)),
        ("keep", ["a", "b"], ("a", "b")),
        ("reuse", Path("old.parquet"), ("old.parquet",)),
        ("part_size", "1.5kB", 1500),
        ("part_size", "1KiB", 1024),
        ("part_size", 5000, 5000),
        ("max_rejects", 5, "5"),
        ("max_rejects", " 0.1 % ", "0.1%"),
        ("shard", "3/16", (3, 16)),
        ("shard", (3, 16), (3, 16)),
        ("limit", np.int64(7), 7),
        ("max_seconds", 3, 3.0),
        ("cache_dir", Path("models"), "models"),
        ("normalize", None, None),
        ("max_rejects", None, None),
    ],
)
def test_values_are_accepted_as_people_write_them(name: str, value: Any, expected: Any) -> None:
    converted = job_options.validate_option(name, value)
    assert (converted, type(converted)) == (expected, type(expected))


def test_a_job_of_defaults_is_allowed() -> None:
    plain = {f.name: f.default for f in dataclasses.fields(Job) if f.default is not dataclasses.MISSING}
    assert job_options.validate_options(plain) == plain


def test_every_bound_belongs_to_an_option() -> None:
    assert {*job_options.MINIMUM_VALUES, *job_options.POSITIVE_OPTIONS, *job_options.TEXT_PARSERS} <= set(
        job_options.job_field_types()
    )

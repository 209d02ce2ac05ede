"""Jobs of a small BGE-M3 on rows of which some have no term."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import head_models
import jobs
import reference

COUNT = 60


def prepare(factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The model and rows with an id each in a folder: the last two have only unknown words.

    Until the fixture ends that yields from this, networks are compiled into a cache of its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDCLI_CACHE", str(factory.mktemp("cache")))
        yield write_inputs(factory.mktemp("heads"))


def write_inputs(folder: Path) -> Path:
    head_models.build_bge_m3(folder / "bge-m3")
    texts = [*reference.samples()[: COUNT - 2], "🙂", "🙂🙂"]
    jobs.write_jsonl(folder / "in.jsonl", [{"id": f"r{i}", "text": text, "n": i} for i, text in enumerate(texts)])
    return folder


def compute_expected(home: Path) -> dict[str, dict[str, Any]]:
    """The vectors of each row by its id."""
    rows = [json.loads(line) for line in (home / "in.jsonl").read_text().splitlines()]
    found = head_models.compute_heads(home / "bge-m3", [row["text"] for row in rows])
    return {row["id"]: vectors for row, vectors in zip(rows, found, strict=True)}


def arguments(home: Path, output: Any, *more: object) -> list[object]:
    flags = ("--model", home / "bge-m3", "--offline", "--device", "cpu", "--threads", 1, "--chunk-rows", 16, "--quiet")
    return ["encode", home / "in.jsonl", output, *flags, *more]


def run(home: Path, output: Any, *more: object) -> jobs.Ended:
    return jobs.run(*arguments(home, output, *more))


def as_terms(vector: dict[str, list[Any]]) -> dict[int, float]:
    assert vector["indices"] == sorted(set(vector["indices"]))
    return dict(zip(vector["indices"], vector["values"], strict=True))


def assert_terms(vector: Any, wanted: dict[int, float], atol: float = 1e-4) -> None:
    terms = as_terms(vector)
    assert terms.keys() == wanted.keys()
    np.testing.assert_allclose([terms[token] for token in wanted], list(wanted.values()), atol=atol)

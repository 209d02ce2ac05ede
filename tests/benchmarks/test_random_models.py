"""Transformers with random weights: their sizes, the lengths of their rows, and the table of all of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import embedcli
import models
import random_models
from embedcli.benchmark import text_tables
from embedcli.benchmark.compare import BenchRequest
from embedcli.benchmark.model_flops import read_transformer_shape
from embedcli.benchmark.statistics import TransformerShape
from embedcli.core.errors import UsageError
from embedcli.core.job import Job

LAYERS, WIDTH = 2, 24


@pytest.fixture(scope="module")
def words() -> Path:
    """A model whose tokenizer is borrowed."""
    return models.folder("all-MiniLM-L6-v2-shape")


@pytest.fixture(scope="module")
def network(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_models.create_random_model(tmp_path_factory.mktemp("networks") / "tiny", words, LAYERS, WIDTH)


def test_a_network_is_a_model_of_its_size(network: Path) -> None:
    between = 4 * WIDTH
    layer = 4 * (WIDTH * WIDTH + WIDTH) + 2 * WIDTH * between + between + WIDTH + 4 * WIDTH
    assert read_transformer_shape(network) == TransformerShape(LAYERS * layer, LAYERS, WIDTH)
    with embedcli.load(str(network), engine="torch") as model:
        vectors = model.encode(["a text", "and another one"])
    assert vectors.shape == (2, WIDTH)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("kind", random_models.ROW_KINDS, ids=lambda kind: kind.name)
def test_rows_have_the_tokens_that_were_asked_for(kind: random_models.RowKind, network: Path) -> None:
    lengths = kind.lengths(40)
    tokenizer = random_models.load_tokenizer(network)
    tokenizer.no_padding()
    texts = random_models.TextGenerator.for_model(network).generate(lengths)
    assert [len(tokenizer.encode(text).ids) for text in texts] == lengths.tolist()
    assert lengths.max() <= random_models.MAX_TOKENS
    assert len(set(texts)) == len(texts)


def test_mixed_rows_are_spread_out() -> None:
    lengths = random_models.draw_mixed_lengths(10_000)
    assert 70 < np.median(lengths) < 90
    assert 0.01 < (lengths == random_models.MAX_TOKENS).mean() < 0.04


def test_longer_rows_are_fewer(network: Path) -> None:
    short, _, long = (random_models.count_rows_for(kind, network, 1e10) for kind in random_models.ROW_KINDS)
    assert short > 20 * long > 20 * random_models.MIN_ROWS
    assert random_models.count_rows_for(random_models.ROW_KINDS[0], network, 1.0) == random_models.MIN_ROWS
    assert random_models.count_rows_for(random_models.ROW_KINDS[0], network, 1e30) == random_models.MAX_ROWS


def figures(**more: Any) -> dict[str, Any]:
    both = {"rows_per_second": 1234.5, "tokens_per_second": 98765.4, "lowest_cosine": 1.0, "others_share": None}
    return {**both, "encode_ratio": {"median": 2.5}, "share_of_matrix_product": 0.42, **more}


def comparison(rows: int) -> dict[str, Any]:
    """What a comparison gives, as far as the table looks at it."""
    ours = figures(device_idle_share=0.01, encode_seconds=2.0, stage_seconds={"tokenize": 0.5, "forward": 2.0})
    return {
        "machine": {"processor": "p", "cores": 1, "memory_gb": 1, "system": "s", "python": "3", "versions": {}},
        "input": {"rows": rows},
        "baseline": "theirs 32",
        "contenders": {"embedcli torch bf16": ours, "theirs 32": figures()},
        "matrix_product_gflops": {"bfloat16": 989_500.0},
    }


def test_the_program_measures_every_size_and_kind(
    words: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[BenchRequest] = []
    created: list[tuple[Path, int, int]] = []

    def copy_network(folder: Path, *arguments: Any) -> Path:
        created.append(arguments)
        return Path(shutil.copytree(network, folder))

    def record_request(request: BenchRequest, notify: Any) -> dict[str, Any]:
        requests.append(request)
        return comparison(len(Path(request.job.inputs[0]).read_text().splitlines()))

    monkeypatch.setattr(random_models, "run_comparison", record_request)
    monkeypatch.setattr(random_models, "create_random_model", copy_network)
    flags = ["-m", str(words), "--rows", "30", "--rounds", "2", "--threads", "1", "--json", str(tmp_path / "made.json")]
    done = CliRunner().invoke(random_models.app, ["--sizes", "small, large", *flags])
    assert done.exit_code == 0, done.output
    sizes = json.loads((tmp_path / "made.json").read_text())["shapes"]
    assert [(name, *kinds) for name, kinds in sizes.items()] == [(name, "short", "mixed", "long") for name in sizes]
    assert list(sizes) == ["small", "large"]
    assert {(one.rounds, one.rows, one.peers, one.few, one.job.threads) for one in requests} == {
        (2, None, False, False, 1)
    }
    assert all(one.arguments[:2] == ("--model", one.job.model) != ("--model", str(words)) for one in requests)
    assert not any(Path(one.job.model).exists() for one in requests)
    assert created == [(words, 6, 384), (words, 24, 1024)]
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= text_tables.WIDTH
    assert sum("network, " in line for line in lines) == 6
    assert "large long   tokenize 25%, forward 100%" in lines


def test_a_size_that_is_none(words: Path) -> None:
    request = BenchRequest(Job((), "-", model=str(words)))
    with pytest.raises(UsageError, match="no such size") as raised:
        random_models.measure(["small", "huge"], request, lambda model, rows: request, print)
    assert raised.value.hint == "choose from small, base, large"


def test_rows_are_not_taken(words: Path) -> None:
    """They are generated."""
    done = CliRunner().invoke(random_models.app, ["in.jsonl", "--sizes", "small", "-m", str(words)])
    assert done.exit_code == 2
    assert "in.jsonl" in done.stderr

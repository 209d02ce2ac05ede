"""The program that measures int8: its algebra is exact, its rounding better than the nearest, its figures complete."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import int8_recipes
import small_bench


def test_compensated_rounding_moves_the_outputs_less_than_the_nearest_integers() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((500, 8)) @ rng.standard_normal((8, 96)) + 0.1 * rng.standard_normal((500, 96))
    weights = rng.standard_normal((32, 96))
    scales = np.abs(weights).max(axis=1, keepdims=True) / int8_recipes.LARGEST
    compensated = int8_recipes.round_compensated(weights, scales, inputs.T @ inputs / len(inputs))
    assert np.abs(compensated).max() <= int8_recipes.LARGEST
    assert (compensated == np.rint(compensated)).all()
    nearest = np.rint(weights / scales)
    errors = [np.square(inputs @ (rounded * scales - weights).T).mean() for rounded in (compensated, nearest)]
    assert errors[0] < errors[1] / 2


def test_neighbours_are_those_of_other_rows() -> None:
    angles = np.arange(30, dtype=np.float32) / 40
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    nearest = int8_recipes.find_nearest(vectors, np.array([0, 15]))
    assert set(nearest[0]) == set(range(1, 11))
    assert set(nearest[1]) == {*range(10, 15), *range(16, 21)}
    assert int8_recipes.mean_overlap(vectors, vectors, np.arange(30)) == 1


def test_recipes_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without activations in int8 the rows hardly move, also when inputs are centred and scaled: that is exact."""
    small_bench.write_inputs(tmp_path)
    kept = int8_recipes.LAYERS[2:]
    recipes = {
        "smoothed": int8_recipes.Recipe(0, True, True, kept),
        "none": int8_recipes.Recipe(kept=int8_recipes.LAYERS),
    }
    monkeypatch.setattr(int8_recipes, "RECIPES", recipes)
    monkeypatch.setattr(int8_recipes, "CALIBRATION_ROWS", 20)
    target = tmp_path / "figures.json"
    words = [str(tmp_path / "in.jsonl"), "--rounds", "1", "--json", str(target)]
    done = CliRunner().invoke(int8_recipes.app, words)
    assert done.exit_code == 0, done.output
    smoothed, unchanged = json.loads(target.read_text())["recipes"]
    assert [smoothed["recipe"], unchanged["recipe"]] == ["smoothed", "none"]
    assert 0.99 < smoothed["lowest_cosine"] < 0.9999999
    assert unchanged["lowest_cosine"] > 0.999999
    assert unchanged["overlap"] > 0.99
    assert "| smoothed | " in done.stdout

"""The profile of the network: each linear layer is found, counted with its padding, and shown with its kernel."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import network_profile
import small_bench


@pytest.fixture
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    small_bench.write_inputs(tmp_path)
    monkeypatch.setattr(network_profile, "measure_best_gflops", lambda: 1000.0)
    target = tmp_path / "figures.json"
    done = CliRunner().invoke(network_profile.app, [str(tmp_path / "in.jsonl"), "--rounds", "1", "--json", str(target)])
    assert done.exit_code == 0, done.output
    assert "of best | kernels |" in done.stdout
    found: dict[str, Any] = json.loads(target.read_text())
    return found


def test_every_linear_layer_is_shown_with_its_speed_and_kernel(figures: dict[str, Any]) -> None:
    shares = sum(kind["share"] for kind in figures["operations"])
    linear = [kind for kind in figures["operations"] if kind["gflops"] is not None]
    assert shares == pytest.approx(1)
    assert {kind["operation"].split(",")[0] for kind in linear} == {
        "linear 384 x 384", "linear 384 x 1536", "linear 1536 x 384"
    }  # fmt: skip
    assert all(kind["kernels"] and kind["gflops"] > 0 for kind in linear)
    assert not any(kind["operation"].startswith("FullyConnected") for kind in figures["operations"])
    assert figures["best_gflops"] == 1000


class Node:
    """A node of OpenVINO's profile."""

    class Status:
        EXECUTED, NOT_RUN = range(2)

    class RealTime:
        def __init__(self, seconds: float) -> None:
            self.total_seconds = lambda: seconds

    def __init__(self, name: str, kind: str, seconds: float, status: int = 0) -> None:
        self.node_name, self.node_type, self.exec_type, self.status = name, kind, "kernel", status
        self.real_time = self.RealTime(seconds)


def test_operations_are_multiplications_and_additions_of_all_tokens() -> None:
    nodes = [
        Node("a", "FullyConnected", 2.0),
        Node("b", "Add", 1.0),
        Node("c", "Add", 3.0),
        Node("d", "Add", 9.0, Node.Status.NOT_RUN),
    ]
    collected: dict[str, network_profile.Operations] = defaultdict(network_profile.Operations)
    network_profile.add_up(collected, nodes, {"a": (4, 8)}, tokens=10)
    assert (collected["linear 4 x 8, kernel"].flop, collected["linear 4 x 8, kernel"].seconds) == (640, 2)
    assert (collected["Add"].flop, collected["Add"].seconds) == (0, 4)

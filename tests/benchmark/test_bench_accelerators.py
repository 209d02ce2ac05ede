"""Benchmarks on an accelerator: peaks with their source, a baseline in float16; run here with the CPU in its place."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import models
from embedcli.benchmark import compare, gpu_peaks, lineup, machine, text_tables, timed_process
from embedcli.benchmark import results as bench_results
from embedcli.benchmark.contenders import Lap, Ours, Result
from embedcli.benchmark.dataset import Rows
from embedcli.core.job import Job


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("NVIDIA H200", 989.5),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla T4", 65),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_peaks_are_found_by_the_drivers_names(name: str, half: float | None) -> None:
    found = gpu_peaks.peak(name)
    assert (found.half if found else None) == half
    assert found is None or found.source


class Named:
    """A contender that has a name and ran on the CPU, in the place of a card."""

    name = "embedcli torch f32"


@pytest.fixture
def as_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcli.encoders.torch.device.on_cpu", lambda job: False)


def subject() -> lineup.Subject:
    return lineup.subject(Job((), "", model=str(models.folder("gte-small")), engine="torch", device="cpu"), ())


@pytest.mark.usefixtures("as_a_card")
def test_the_baseline_computes_in_float16_and_float32_takes_part(tmp_path: Path) -> None:
    made = lineup.baseline(subject())
    assert (made.name, made.settings["dtype"]) == ("sentence-transformers f16", "float16")
    peers, _ = lineup.candidates(subject(), sys.executable, tmp_path, lambda line: None)
    assert ("sentence-transformers", "float32") in [(peer.name, peer.settings["dtype"]) for peer in peers]
    assert lineup.variants(subject()) == [Ours("embedcli", ())]


@pytest.fixture(scope="module")
def measured_once() -> Callable[..., Any]:
    """`compare.run`, which runs the program that measures at its first call only, and gives its result at each."""
    told: list[tuple[Any, str]] = []

    def run(command: list[str], log: Path) -> Any:
        if not told:
            told.append((timed_process.run(command, log), Path(command[2]).read_text()))
        (done, result), *_ = told
        Path(command[2]).write_text(result)
        return done

    return run


@pytest.mark.parametrize("known", [True, False])
def test_computing_is_compared_with_the_cards_peak(
    known: bool, tmp_path: Path, measured_once: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program that measures the card's own products is run for real."""
    monkeypatch.setattr(gpu_peaks, "peak", lambda name: gpu_peaks.Peak(2, 1, "a data sheet") if known else None)
    monkeypatch.setattr(compare, "run", measured_once)
    lap = Lap(1, 1, 1, 1, report={"space": {"device": "cpu"}})
    monkeypatch.setattr(compare.Bench, "lap", lambda *_: lap)
    fields = lineup.Field([Named()], lineup.baseline(subject()))  # type: ignore[list-item]
    rows = Rows(["a"], tmp_path, tmp_path, tmp_path)
    bench = compare.Bench(compare.Request(subject().job), subject(), rows, tmp_path, lambda line: None, fields)
    made = compare.accelerator(bench)
    assert made["name"] == "cpu"
    assert set(made["measured_gflops"]) == {"float32", "bfloat16", "float16"}
    assert min(made["measured_gflops"].values()) > 0
    peaks = {"float32": 1000, "bfloat16": 2000, "float16": 2000} if known else made["measured_gflops"]
    assert (bench.peaks, made["peak_gflops"]) == (peaks, peaks)
    assert ("a data sheet" in made["source"]) == known
    text = "\n".join(text_tables.on_machine(machine.describe() | {"accelerator": made}))
    assert "card      cpu" in text


@pytest.mark.usefixtures("as_a_card")
def test_fidelity_is_to_float32(tmp_path: Path) -> None:
    baseline = lineup.baseline(subject())
    exact = lineup.peer(subject(), "sentence-transformers", "sentence-transformers 32")
    fields = lineup.Field([Named()], baseline, [exact])  # type: ignore[list-item]
    rows = np.arange(2)
    ours = Result(rows, np.array([[1, 0], [0, 1]], np.float32))
    results = {
        Named.name: ours,
        exact.name: Result(rows, np.array([[1, 0], [0.6, 0.8]], np.float32)),
        baseline.name: ours,
    }
    measured = SimpleNamespace(field=fields, results=results)
    assert bench_results.fidelity(measured, Named()) == pytest.approx(0.8)  # type: ignore[arg-type]
    fields.peers.clear()
    assert bench_results.fidelity(measured, Named()) == pytest.approx(1)  # type: ignore[arg-type]

"""Comparisons on an accelerator: peaks with their source, a float16 baseline. The CPU stands in for it here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import models
from embedcli.benchmark import compare
from embedcli.benchmark.contenders import EmbedcliRun, RunVectors, Timing
from embedcli.benchmark.dataset import BenchDataset
from embedcli.benchmark.gpu_peaks import GpuPeak, find_peak
from embedcli.benchmark.lineup import (
    Lineup,
    MeasuredModel,
    choose_baseline,
    choose_embedcli_runs,
    configure_library,
    resolve_model,
)
from embedcli.benchmark.machine import describe_machine
from embedcli.benchmark.peers import find_peers
from embedcli.benchmark.results import compute_lowest_cosine
from embedcli.benchmark.text_tables import format_machine
from embedcli.benchmark.timed_process import run_measured
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
    found = find_peak(name)
    assert (found.half_tflops if found else None) == half
    assert found is None or found.source


class Named:
    """A contender with nothing but a name."""

    name = "embedcli torch f32"


@pytest.fixture
def pretend_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcli.encoders.torch.device.runs_on_cpu", lambda job: False)


def resolve_small_model() -> MeasuredModel:
    return resolve_model(Job((), "", model=str(models.folder("gte-small")), engine="torch", device="cpu"), ())


@pytest.mark.usefixtures("pretend_accelerator")
def test_the_baseline_computes_in_float16_and_float32_takes_part(tmp_path: Path) -> None:
    baseline = choose_baseline(resolve_small_model())
    assert (baseline.name, baseline.settings["dtype"]) == ("sentence-transformers f16", "float16")
    peers, missing = find_peers(resolve_small_model(), sys.executable, tmp_path, lambda line: None)
    assert ("sentence-transformers", "float32") in [(peer.name, peer.settings["dtype"]) for peer in peers]
    assert missing["light-embed"] == "it is measured on CPUs only"
    assert choose_embedcli_runs(resolve_small_model()) == [EmbedcliRun("embedcli", ())]


@pytest.fixture(scope="module")
def measured_once() -> Callable[..., Any]:
    """A `run_measured` that runs the measuring program on its first call only, and returns its result on each."""
    first: list[tuple[Any, str]] = []

    def run(command: list[str], log: Path) -> Any:
        if not first:
            first.append((run_measured(command, log), Path(command[2]).read_text()))
        (result, figures), *_ = first
        Path(command[2]).write_text(figures)
        return result

    return run


@pytest.mark.parametrize("known", [True, False])
def test_computing_is_compared_with_the_cards_peak(
    known: bool, tmp_path: Path, measured_once: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program that measures matrix products really runs."""
    monkeypatch.setattr(compare, "find_peak", lambda name: GpuPeak(2, 1, "a data sheet") if known else None)
    monkeypatch.setattr(compare, "run_measured", measured_once)
    timing = Timing(1, 1, 1, 1, report={"space": {"device": "cpu"}})
    monkeypatch.setattr(compare.BenchSession, "run", lambda *_: timing)
    lineup = Lineup([Named()], choose_baseline(resolve_small_model()))  # type: ignore[list-item]
    rows = BenchDataset(["a"], tmp_path, tmp_path, tmp_path)
    session = compare.BenchSession(
        compare.BenchRequest(resolve_small_model().job),
        resolve_small_model(),
        rows,
        tmp_path,
        lambda line: None,
        lineup,
    )
    figures = compare.measure_accelerator(session)
    assert figures["name"] == "cpu"
    assert set(figures["measured_gflops"]) == {"float32", "bfloat16", "float16"}
    assert min(figures["measured_gflops"].values()) > 0
    peaks = {"float32": 1000, "bfloat16": 2000, "float16": 2000} if known else figures["measured_gflops"]
    assert (session.peak_gflops, figures["peak_gflops"]) == (peaks, peaks)
    assert ("a data sheet" in figures["source"]) == known
    text = "\n".join(format_machine(describe_machine() | {"accelerator": figures}))
    assert "card      cpu" in text


@pytest.mark.usefixtures("pretend_accelerator")
def test_fidelity_is_to_float32(tmp_path: Path) -> None:
    baseline = choose_baseline(resolve_small_model())
    exact = configure_library(resolve_small_model(), "sentence-transformers", "sentence-transformers 32")
    lineup = Lineup([Named()], baseline, [exact])  # type: ignore[list-item]
    rows = np.arange(2)
    ours = RunVectors(rows, np.array([[1, 0], [0, 1]], np.float32))
    results = {
        Named.name: ours,
        exact.name: RunVectors(rows, np.array([[1, 0], [0.6, 0.8]], np.float32)),
        baseline.name: ours,
    }
    measured = SimpleNamespace(lineup=lineup, vectors=results)
    assert compute_lowest_cosine(measured, Named()) == pytest.approx(0.8)  # type: ignore[arg-type]
    lineup.peers.clear()
    assert compute_lowest_cosine(measured, Named()) == pytest.approx(1)  # type: ignore[arg-type]

"""Run the same rows through embedcli and other libraries, in turn, and compare the runs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedcli.benchmark.contenders import PROGRAMS, Contender, EmbedcliRun, PeerLibrary, RunFailed, Timing
from embedcli.benchmark.dataset import BenchDataset, write_dataset
from embedcli.benchmark.gpu_peaks import find_peak
from embedcli.benchmark.lineup import (
    Lineup,
    MeasuredModel,
    Notify,
    choose_baseline,
    choose_batch_size,
    choose_embedcli_runs,
    resolve_model,
)
from embedcli.benchmark.machine import describe_machine
from embedcli.benchmark.peers import find_peers
from embedcli.benchmark.results import Measurements, Timings, summarize
from embedcli.benchmark.timed_process import run_measured
from embedcli.core.errors import ModelError
from embedcli.core.job import Job
from embedcli.encoders.torch import device as torch_device


@dataclass(frozen=True)
class BenchRequest:
    """What to measure.

    Attributes:
        job: The inputs and the encoder.
        arguments: The encoder options of the job, as typed: measured processes receive them.
        rounds: Runs of each contender.
        rows: Use only the first rows; None for all.
        peers: Whether other libraries than the baseline take part.
        peer_python: The interpreter that has them; "" for this one.
        few: Whether a job of ten rows is measured, too.
    """

    job: Job
    arguments: tuple[str, ...] = ()
    rounds: int = 3
    rows: int | None = None
    peers: bool = True
    peer_python: str = ""
    few: bool = True


@dataclass
class BenchSession:
    """A comparison in progress. Every contender has its own folder for the results of its last run."""

    request: BenchRequest
    model: MeasuredModel
    dataset: BenchDataset
    folder: Path
    notify: Notify
    lineup: Lineup
    peak_gflops: Mapping[str, float] | None = None

    def run(self, contender: Contender, rows: Path) -> Timing:
        """Run a contender once, its results in its own folder.

        Raises:
            RunFailed: The process failed.
        """
        return contender.run(rows, self.folder_of(contender))

    def run_required(self, contender: Contender, rows: Path, folder: Path | None = None) -> Timing:
        """Run a contender without which nothing can be compared.

        Raises:
            ModelError: The process failed.
        """
        try:
            return contender.run(rows, folder or self.folder_of(contender))
        except RunFailed as error:
            raise ModelError(
                f"{contender.name} failed: {error}", "run it alone first: nothing can be compared without it"
            ) from error

    def folder_of(self, contender: Contender) -> Path:
        folder = self.folder / contender.name.replace(" ", "-")
        folder.mkdir(exist_ok=True)
        return folder


def run_comparison(request: BenchRequest, notify: Notify) -> dict[str, Any]:
    """Compare embedcli with the baseline and other libraries.

    Args:
        request: What to measure.
        notify: Receives one line of progress at a time.

    Returns:
        The figures that `--json` writes; docs/concepts/speed.md explains them.

    Raises:
        UsageError: There is nothing to compare with.
        ModelError: embedcli or the baseline failed.
    """
    machine = describe_machine()
    model = resolve_model(request.job, request.arguments)
    with tempfile.TemporaryDirectory(prefix="embedcli-bench-") as name:
        folder = Path(name)
        dataset = write_dataset(request.job, request.rows, folder)
        lineup = Lineup(choose_embedcli_runs(model), choose_baseline(model))
        session = BenchSession(request, model, dataset, folder, notify, lineup)
        prepare_contenders(session)
        if not torch_device.runs_on_cpu(request.job):
            machine["accelerator"] = measure_accelerator(session)
        timings, products = run_rounds(session)
        few_timings = run_few_rows(session) if request.few else {}
        vectors = {one.name: one.load_vectors(session.folder_of(one)) for one in lineup.contenders}
        input_names = [Path(path).name for path in request.job.inputs]
        return summarize(
            Measurements(machine, model, input_names, dataset.texts, lineup, timings, products, few_timings, vectors)
        )


# Preparation


def prepare_contenders(session: BenchSession) -> None:
    """Fill the caches with a ten-row run of each, name the variants of embedcli, choose other libraries."""
    lineup = session.lineup
    session.notify(f"{len(session.dataset.texts):,} rows; a ten-row run of each contender first, to fill the caches")
    lineup.embedcli_runs = name_embedcli_runs(session, lineup.embedcli_runs)
    if session.model.is_static or not torch_device.runs_on_cpu(session.request.job):
        lineup.baseline = choose_baseline_batch_size(session, lineup.baseline)
    session.run_required(lineup.baseline, session.dataset.first_rows)
    if not session.request.peers:
        return
    python = session.request.peer_python or lineup.baseline.python
    peers, lineup.missing = find_peers(session.model, python, session.folder, session.notify)
    for peer in peers:
        try:
            session.notify(f"{peer.name}: choosing its batch size")
            chosen = choose_batch_size(peer, session.dataset.sample_rows, session.folder_of(peer))
        except RunFailed as error:
            lineup.missing[peer.name] = f"it failed: {error}"
            continue
        if chosen.name != lineup.baseline.name:
            lineup.peers.append(chosen)


def choose_baseline_batch_size(session: BenchSession, baseline: PeerLibrary) -> PeerLibrary:
    """Give the baseline its fastest batch size on all rows."""
    try:
        return choose_batch_size(baseline, session.dataset.all_rows, session.folder_of(baseline))
    except RunFailed as error:
        raise ModelError(f"{baseline.name} cannot run this model: {error}", "choose a model that it can run") from error


def name_embedcli_runs(session: BenchSession, runs: Sequence[EmbedcliRun]) -> list[EmbedcliRun]:
    """Name each variant after the engine and number format that it chose, and drop duplicates."""
    named: dict[str, EmbedcliRun] = {}
    for run in runs:
        try:
            space = session.run(run, session.dataset.first_rows).report["space"]
        except RunFailed as error:
            if run is runs[0]:
                raise ModelError(f"embedcli could not encode ten rows: {error}", "try `embedcli encode`") from error
            session.lineup.missing[run.name] = str(error)
            continue
        parts = ("embedcli", space.get("engine"), abbreviate_dtype(space.get("dtype")))
        name = " ".join(str(part) for part in parts if part)
        named.setdefault(name, replace(run, name=name))
    return list(named.values())


def abbreviate_dtype(dtype: object) -> str:
    return {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}.get(str(dtype), "")


# Measurement


def run_rounds(session: BenchSession) -> tuple[Timings, list[Mapping[str, float]]]:
    """Run every contender once per round, in turn.

    Returns:
        The timings, and for each round the GFLOP/s by number format that computing is compared with: the peak of the
        accelerator, or the fastest matrix products of the processor, measured in the same round.
    """
    timings: Timings = {contender.name: [] for contender in session.lineup.contenders}
    products: list[Mapping[str, float]] = []
    for number in range(session.request.rounds):
        if not session.model.is_static:
            products.append(session.peak_gflops or measure_matrix_products(session))
        for contender in session.lineup.contenders:
            timing = session.run_required(contender, session.dataset.all_rows)
            timings[contender.name].append(timing)
            session.notify(f"round {number + 1} of {session.request.rounds}: {contender.name} {timing.seconds:.1f} s")
    return timings, products


def measure_accelerator(session: BenchSession) -> dict[str, Any]:
    """Measure the accelerator's matrix products, and set `peak_gflops` of the session.

    That is the peak of the data sheet if the accelerator is known, else the measured products.

    Returns:
        The accelerator as JSON: its name, both figures, and the source of the peak.
    """
    target = session.folder / "card.json"
    first = session.lineup.embedcli_runs[0]
    device = str(session.run(first, session.dataset.first_rows).report["space"]["device"])
    command = [session.lineup.baseline.python, str(PROGRAMS / "gpu_matmul.py"), str(target), device]
    result = run_measured(command, session.folder / "card.txt")
    if result.code:
        session.notify(f"the accelerator's matrix products could not be measured: {result.last_error_line}")
        return {"name": device}
    measured: dict[str, Any] = json.loads(target.read_text("utf-8"))
    peak = find_peak(measured["name"])
    session.peak_gflops = peak.gflops_by_dtype() if peak is not None else measured["products"]
    return {
        "name": measured["name"],
        "measured_gflops": measured["products"],
        "peak_gflops": session.peak_gflops,
        "source": peak.source if peak is not None else "measured with torch: its data sheet is not known",
    }


def measure_matrix_products(session: BenchSession) -> dict[str, float]:
    """Measure the processor's GFLOP/s by number format; empty if that fails."""
    target = session.folder / "products.json"
    threads = session.request.job.threads
    command = [
        session.lineup.baseline.python,
        str(PROGRAMS / "cpu_matmul.py"),
        str(target),
        *([str(threads)] if threads else []),
    ]
    result = run_measured(command, session.folder / "products.txt")
    if result.code:
        session.notify(f"the machine's matrix products could not be measured: {result.last_error_line}")
        return {}
    products: dict[str, float] = json.loads(target.read_text("utf-8"))
    return products


def run_few_rows(session: BenchSession) -> Timings:
    """Run a ten-row job of embedcli and of the baseline, in turn: what a start costs."""
    pair: list[Contender] = [session.lineup.embedcli_runs[0], session.lineup.baseline]
    folder = session.folder / "few"
    folder.mkdir()
    timings: Timings = {contender.name: [] for contender in pair}
    for _ in range(session.request.rounds):
        for contender in pair:
            timings[contender.name].append(session.run_required(contender, session.dataset.first_rows, folder))
    session.notify("ten-row jobs measured")
    return timings

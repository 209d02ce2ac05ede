"""The same rows through embedcli and through other libraries, in turn, and what the runs say about each other."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedcli.benchmark import gpu_peaks, machine
from embedcli.benchmark import lineup as fields
from embedcli.benchmark.contenders import PROGRAMS, Contender, Failed, Lap, Ours, Peer
from embedcli.benchmark.dataset import Rows, gather
from embedcli.benchmark.lineup import Field, Notify, Subject
from embedcli.benchmark.results import Laps, Measured, outcome
from embedcli.benchmark.timed_process import run
from embedcli.core.errors import ModelError
from embedcli.core.job import Job
from embedcli.encoders.torch import device as torch_device


@dataclass(frozen=True)
class Request:
    """What to measure: the job's inputs and encoder, `arguments` with the same encoder flags for measured processes.

    `few` is whether a job of ten rows is measured, too.
    """

    job: Job
    arguments: tuple[str, ...] = ()
    rounds: int = 3
    rows: int | None = None
    peers: bool = True
    peer_python: str = ""
    few: bool = True


@dataclass
class Bench:
    """A comparison under way. Every contender has a folder of its own for what its last run left."""

    request: Request
    subject: Subject
    rows: Rows
    folder: Path
    notify: Notify
    field: Field
    peaks: Mapping[str, float] | None = None

    def lap(self, contender: Contender, rows: Path) -> Lap:
        """One run, its results in the contender's own folder. Raises Failed."""
        return contender.lap(rows, self.home(contender))

    def sure(self, contender: Contender, rows: Path, folder: Path | None = None) -> Lap:
        """One run of what ran before, or must run. Raises ModelError."""
        try:
            return contender.lap(rows, folder or self.home(contender))
        except Failed as error:
            raise ModelError(
                f"{contender.name} failed: {error}", "run it alone first: nothing can be compared without it"
            ) from error

    def home(self, contender: Contender) -> Path:
        home = self.folder / contender.name.replace(" ", "-")
        home.mkdir(exist_ok=True)
        return home


def compare(request: Request, notify: Notify) -> dict[str, Any]:
    """All figures of one comparison, as `--json` writes them (docs/speed.md says what each is).

    Raises UsageError where there is nothing to compare, ModelError where embedcli or the baseline does not run.
    """
    where = machine.describe()
    subject = fields.subject(request.job, request.arguments)
    with tempfile.TemporaryDirectory(prefix="embedcli-bench-") as name:
        folder = Path(name)
        rows = gather(request.job, request.rows, folder)
        field = Field(fields.variants(subject), fields.baseline(subject))
        bench = Bench(request, subject, rows, folder, notify, field)
        prepare(bench)
        if not torch_device.on_cpu(request.job):
            where["accelerator"] = accelerator(bench)
        laps, products = measure(bench)
        few = measure_few(bench) if request.few else {}
        results = {contender.name: contender.result(bench.home(contender)) for contender in bench.field.every()}
        names = [Path(path).name for path in request.job.inputs]
        return outcome(Measured(where, subject, names, rows.texts, bench.field, laps, products, few, results))


# Getting ready


def prepare(bench: Bench) -> None:
    """Warm every cache with a ten-row run of each, name our variants, choose the peers and their batch sizes."""
    field = bench.field
    bench.notify(f"{len(bench.rows.texts):,} rows; a ten-row run of each first, to fill the caches")
    field.ours = named_variants(bench, field.ours)
    if bench.subject.static or not torch_device.on_cpu(bench.request.job):
        field.baseline = settled(bench, field.baseline)
    bench.sure(field.baseline, bench.rows.few)
    if not bench.request.peers:
        return
    python = bench.request.peer_python or field.baseline.python
    peers, field.missing = fields.candidates(bench.subject, python, bench.folder, bench.notify)
    for peer in peers:
        try:
            bench.notify(f"{peer.name}: choosing its batch size")
            chosen = fields.best_batch(peer, bench.rows.some, bench.home(peer))
        except Failed as error:
            field.missing[peer.name] = f"it failed: {error}"
            continue
        if chosen.name != field.baseline.name:
            field.peers.append(chosen)


def settled(bench: Bench, peer: Peer) -> Peer:
    """The baseline with its best batch size on all rows."""
    try:
        return fields.best_batch(peer, bench.rows.every, bench.home(peer))
    except Failed as error:
        raise ModelError(f"{peer.name} cannot run this model: {error}", "choose a model that it can run") from error


def named_variants(bench: Bench, ours: Sequence[Ours]) -> list[Ours]:
    """Our variants under what they turned out to be; one that turns out to be another is left out."""
    found: dict[str, Ours] = {}
    for variant in ours:
        try:
            space = bench.lap(variant, bench.rows.few).report["space"]
        except Failed as error:
            if variant is ours[0]:
                raise ModelError(f"embedcli could not encode ten rows: {error}", "try `embedcli encode`") from error
            bench.field.missing[variant.name] = str(error)
            continue
        name = " ".join(str(part) for part in ("embedcli", space.get("engine"), short(space.get("dtype"))) if part)
        found.setdefault(name, replace(variant, name=name))
    return list(found.values())


def short(dtype: object) -> str:
    return {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}.get(str(dtype), "")


# Measuring


def measure(bench: Bench) -> tuple[Laps, list[Mapping[str, float]]]:
    """Every contender once a round, in turn, and the machine's best matrix products in the same round."""
    laps: Laps = {contender.name: [] for contender in bench.field.every()}
    products: list[Mapping[str, float]] = []
    for number in range(bench.request.rounds):
        if not bench.subject.static:
            products.append(bench.peaks or matrix_products(bench))
        for contender in bench.field.every():
            laps[contender.name].append(bench.sure(contender, bench.rows.every))
            last = laps[contender.name][-1]
            bench.notify(f"round {number + 1} of {bench.request.rounds}: {contender.name} {last.seconds:.1f} s")
    return laps, products


def accelerator(bench: Bench) -> dict[str, Any]:
    """The card's name, its matrix products as measured, and its dense peak with its source where it is known.

    What computing is compared with is then that peak, in every round, else the measured products.
    """
    target = bench.folder / "card.json"
    device = str(bench.lap(bench.field.ours[0], bench.rows.few).report["space"]["device"])
    command = [bench.field.baseline.python, str(PROGRAMS / "card.py"), str(target), device]
    done = run(command, bench.folder / "card.txt")
    if done.code:
        bench.notify(f"the card's matrix products could not be measured: {done.last_words}")
        return {"name": device}
    made: dict[str, Any] = json.loads(target.read_text("utf-8"))
    known = gpu_peaks.peak(made["name"])
    bench.peaks = known.gflops() if known is not None else made["products"]
    source = known.source if known is not None else "measured with torch: the card is in no table here"
    return {"name": made["name"], "measured_gflops": made["products"], "peak_gflops": bench.peaks, "source": source}


def matrix_products(bench: Bench) -> dict[str, float]:
    """GFLOP/s by number format; empty where they cannot be measured."""
    target = bench.folder / "products.json"
    threads = bench.request.job.threads
    command = [
        bench.field.baseline.python,
        str(PROGRAMS / "matmul.py"),
        str(target),
        *([str(threads)] if threads else []),
    ]
    done = run(command, bench.folder / "products.txt")
    if done.code:
        bench.notify(f"the machine's matrix products could not be measured: {done.last_words}")
        return {}
    made: dict[str, float] = json.loads(target.read_text("utf-8"))
    return made


def measure_few(bench: Bench) -> Laps:
    """A ten-row job of ours and of the baseline, in turn: what a start costs. Its results land beside the others."""
    pair: list[Contender] = [bench.field.ours[0], bench.field.baseline]
    few = bench.folder / "few"
    few.mkdir()
    laps: Laps = {contender.name: [] for contender in pair}
    for _ in range(bench.request.rounds):
        for contender in pair:
            laps[contender.name].append(bench.sure(contender, bench.rows.few, few))
    bench.notify("ten-row jobs measured")
    return laps

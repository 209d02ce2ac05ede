"""The driver of several workers: missing shares go out, records come back, then the output is published."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

import numpy as np

from embedcli import checkpoint, storage
from embedcli.core.errors import UsageError
from embedcli.core.types import Outcome, Share
from embedcli.pipeline import calibration
from embedcli.runners import local
from embedcli.runners.completion import stopped
from embedcli.runners.context import Run, refuse_rejects
from embedcli.runners.job_identity import inputs_of, ranges_of, shares_of, starts_of, tell_idle
from embedcli.runners.worker import Done, Setup, Task, tasks_of, worker_devices


def run_shared(this: Run, ledger: checkpoint.Ledger) -> Outcome:
    """Every missing share is done by some worker; then the output is published."""
    refuse_streams(this)
    folder = ledger.target.folder
    every = shares_of(this.job, this.plan, folder=folder)
    shares = local.of_shard(every, this.job.shard)
    tell_idle(this, shares, every)
    left = ledger.begin_shares(shares, every, reread=local.rereading(this, ledger))
    compare_sealed(this, ledger, [share for share in left if share.index in ledger.sealed])
    this.read = sum(record.read for record in ledger.sealed.values())
    todo = [share for share in shares if share.index not in ledger.sealed]
    if todo:
        tasks = list(tasks_of(todo, starts_of(this, ledger.target.stage)))
        setup = Setup(this.job, replace(this.plan, pieces=()), ledger.job, ledger.view.name, this.loader)
        this.open_pieces = {piece.index for share in todo for piece in share.pieces}
        prepare_ranges(this, ledger)
        this.watch.begin(this.plan, this.meter)
        this.control.begun = True
        with closing(pool(this, setup, tasks)) as done:
            for one in done:
                take(this, ledger, one)
        if this.control.reason is not None:
            return stopped(this, ledger.totals())
    return local.publish_noted(this, ledger)


def pool(this: Run, setup: Setup, tasks: list[Task]) -> Generator[Done, None, None]:
    """The workers of the job's runner, at work."""
    if this.job.runner == "ray":
        from embedcli.runners import ray_runner

        return ray_runner.done_by_ray(this, setup, tasks)
    from embedcli.runners import multiprocess

    return multiprocess.done_by_processes(this, setup, tasks)


def take(this: Run, ledger: checkpoint.Ledger, one: Done) -> None:
    """Count a share that a worker has sealed."""
    ledger.receive(one.record)
    ledger.damaged += [f"share {one.record.index}"] * one.damaged
    this.read += one.read
    this.open_pieces -= {part.key[0] for part in one.record.parts}
    this.meter.add_worker(one.meter, len(worker_devices(this.job)), one_clock=this.job.runner == "processes")
    if one.usage is not None:
        had = this.usage or {}
        this.usage = {name: had.get(name, 0) + value for name, value in one.usage.items() if np.isscalar(value)}
    refuse_rejects(this.job.max_rejects, ledger.rejected, None)


def refuse_streams(this: Run) -> None:
    """UsageError for an input that only this process could read, and only once."""
    for path in inputs_of(this.plan):
        if storage.files_of(path).kind(path) == "stream":
            raise UsageError(
                f"{storage.where(path)}: is a pipe, which only one process can read",
                "write it to a file first, or use --runner local",
            )


def compare_sealed(this: Run, ledger: checkpoint.Ledger, shares: list[Share]) -> None:
    """ResumeError if inputs of sealed shares, which look other than they did, hold other rows."""
    pieces = [piece for share in shares for piece in share.pieces]
    if pieces:
        for _ in ledger.missing(this.chunks(pieces)):
            pass


def prepare_ranges(this: Run, ledger: checkpoint.Ledger) -> None:
    """Put the ranges of int8 and uint8 into the stage, where every worker finds them."""
    stage = ledger.target.stage
    if calibration.needed(this.job) and calibration.settled(this.job, stage) is None:
        first = replace(this, job=replace(this.job, device=worker_devices(this.job)[0]))
        with closing(first.load()) as encoder:
            ranges_of(first, encoder, stage, None)

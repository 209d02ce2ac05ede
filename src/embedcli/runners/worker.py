"""A worker: one encoder on one device, in a process of its own, that takes shares and seals them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from embedcli import __version__, checkpoint, encoders, readers, storage
from embedcli.checkpoint import Record
from embedcli.core.errors import EmbedcliError, OutputError
from embedcli.core.job import Job
from embedcli.core.types import Encoded, Plan, Share, Watch
from embedcli.outputs import target as output_target
from embedcli.pipeline.control import Control
from embedcli.pipeline.metrics import Meter
from embedcli.runners.context import Load, Run
from embedcli.runners.job_identity import layout_of, note_space, ranges_of, space_of, with_saved_dim


@dataclass(frozen=True)
class Setup:
    """What a worker must know of a job. It crosses process and machine borders, so it holds no open thing.

    `plan` has no pieces: they come with the shares. `view` names what the run saw of its inputs.
    `loader` is for tests and for encoders that are borrowed.
    """

    job: Job
    plan: Plan
    identity: Mapping[str, Any]
    view: str
    loader: Load | None = None
    version: str = __version__


@dataclass(frozen=True)
class Task:
    """A share and where its pieces start, for generated ids."""

    share: Share
    starts: Mapping[int, readers.Start] | None


@dataclass(frozen=True)
class Done:
    """A sealed share: its record, the reader's own count of its rows, and what the stages counted."""

    record: Record
    read: int
    meter: Meter
    usage: Mapping[str, Any] | None
    damaged: int = 0


class Worker:
    """Loads the encoder once; `work` then does one share after another. Close it."""

    def __init__(self, setup: Setup, watch: Watch, control: Control) -> None:
        refuse_other_version(setup)
        for path in setup.job.inputs:
            storage.masked(path)  # pieces come without the secrets of their addresses: here they are remembered
        self.watch, self.control = watch, control
        self.setup = setup
        target = output_target.target(setup.job.output, setup.job.to)
        self.ledger = checkpoint.Ledger(target, tolerant=setup.job.shard is not None)
        self.ledger.join(setup.identity, setup.view)
        self.run = self._run(setup.job)
        self.encoder = self.run.load()
        self.job = with_saved_dim(setup.job, self.encoder)
        # The driver has put the ranges into the stage: no worker sees the whole input.
        ranges = ranges_of(self.run, self.encoder, self.ledger.target.stage, None)
        self.layout = layout_of(self.job, setup.plan, self.encoder, ranges)
        self.space = space_of(self.job, self.encoder, ranges)
        note_space(self.ledger.target.stage, self.layout, self.space)

    def _run(self, job: Job) -> Run:
        setup = self.setup
        return Run(job, setup.plan, encoders.resolve(job), self.watch, self.control, Meter(), setup.loader)

    def work(self, task: Task) -> Done | None:
        """Encode a share into parts and seal it; None if the run is to stop, and then its parts stay for the next."""
        run = replace(self.run, job=self.job, meter=Meter(), read=0)
        before = len(self.ledger.damaged)
        chunks = run.chunks(task.share.pieces, task.starts)
        with closing(run.encode(self.ledger.missing(chunks), self.encoder)) as stream:  # type: ignore[type-var]
            for encoded in stream:
                with run.meter.stage("write"):
                    self.ledger.add(encoded, self.layout)
                self._tell(run, encoded)
        if self.control.reason is not None:
            return None
        with run.meter.stage("write"):
            record = self.ledger.seal(task.share, self.layout, self.space)
        refuse_imbalance(record, run)
        run.used(self.encoder)
        return Done(record, run.read, run.meter, run.usage, len(self.ledger.damaged) - before)

    def _tell(self, run: Run, encoded: Encoded) -> None:
        self.watch.progress(encoded.embedded, encoded.chunk.done_bytes)

    def close(self) -> None:
        self.encoder.close()


def refuse_imbalance(record: Record, run: Run) -> None:
    """OutputError unless every row that was read is in the record, with a vector or as a reject."""
    out = sum(part.rows + part.rejects for part in record.parts)
    if run.open_pieces or not record.read == run.read == out:
        raise OutputError(
            f"share {record.index}: {run.read} rows were read, {out} written; nothing was published",
            "this should never happen: please report it with the run report",
        )


def refuse_other_version(setup: Setup) -> None:
    if setup.version != __version__:
        raise EmbedcliError(
            f"this worker has embedcli {__version__}, the run was started by {setup.version}",
            "install the same version on every machine",
        )


def tasks_of(shares: list[Share], starts: Mapping[int, readers.Start] | None) -> Iterator[Task]:
    """The shares with the starts of their own pieces only."""
    for share in shares:
        yield Task(share, None if starts is None else {piece.index: starts[piece.index] for piece in share.pieces})


def worker_devices(job: Job) -> list[str]:
    """The device of each worker: those that --device lists, in turn, for --workers workers."""
    named = [name.strip() for name in job.device.split(",") if name.strip()] or ["auto"]
    return [named[i % len(named)] for i in range(job.workers or len(named))]

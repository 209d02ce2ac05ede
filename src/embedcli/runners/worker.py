"""A worker: one encoder on one device, in a process of its own, that takes shares and seals them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from embedcli import __version__, checkpoint, encoders, readers
from embedcli.checkpoint import PartitionRecord
from embedcli.core.errors import EmbedcliError, OutputError
from embedcli.core.job import Job
from embedcli.core.types import EncodedChunk, InputPlan, Partition, RunObserver
from embedcli.outputs import target as output_target
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.runners.context import EncoderLoader, RunContext, apply_saved_truncation
from embedcli.runners.job_identity import build_layout, build_vector_space, resolve_ranges, write_vector_space


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker must know of a job. It crosses process and machine borders, so it holds no open thing.

    `plan` has no pieces: they come with the shares. `view` names what the run saw of its inputs.
    `loader` is for tests and for encoders that are borrowed.
    """

    job: Job
    plan: InputPlan
    job_manifest: Mapping[str, Any]
    snapshot_name: str
    loader: EncoderLoader | None = None
    version: str = __version__


@dataclass(frozen=True)
class PartitionTask:
    """A share and where its pieces start, for generated ids."""

    partition: Partition
    split_starts: Mapping[int, readers.SplitStart] | None


@dataclass(frozen=True)
class PartitionResult:
    """A sealed share: its record, the reader's own count of its rows, and what the stages counted."""

    record: PartitionRecord
    rows_read: int
    metrics: MetricsCollector
    usage: Mapping[str, Any] | None
    damaged_parts: int = 0


class PartitionWorker:
    """Loads the encoder once; `work` then does one share after another. Close it."""

    def __init__(self, setup: WorkerSetup, watch: RunObserver, control: RunControl) -> None:
        check_worker_version(setup)
        self.observer, self.control = watch, control
        self.setup = setup
        target = output_target.resolve_target(setup.job.output, setup.job.to)
        self.ledger = checkpoint.Ledger(target, allow_changed_input=setup.job.shard is not None)
        self.ledger.join(setup.job_manifest, setup.snapshot_name)
        self.run = self._run(setup.job)
        self.encoder = self.run.load_encoder()
        self.job = apply_saved_truncation(setup.job, self.encoder)
        # The driver has put the ranges into the stage: no worker sees the whole input.
        ranges = resolve_ranges(self.run, self.encoder, self.ledger.target.staging_folder, None)
        self.layout = build_layout(self.job, setup.plan, self.encoder, ranges)
        self.space = build_vector_space(self.job, self.encoder, ranges)
        write_vector_space(self.ledger.target.staging_folder, self.layout, self.space)

    def _run(self, job: Job) -> RunContext:
        setup = self.setup
        return RunContext(
            job,
            setup.plan,
            encoders.resolve_model_files(job),
            self.observer,
            self.control,
            MetricsCollector(),
            setup.loader,
        )

    def process_partition(self, task: PartitionTask) -> PartitionResult | None:
        """Encode a share into parts and seal it; None if the run is to stop, and then its parts stay for the next."""
        run = replace(self.run, job=self.job, metrics=MetricsCollector(), rows_read=0)
        before = len(self.ledger.damaged_parts)
        chunks = run.read_chunks(task.partition.splits, task.split_starts)
        with closing(run.encode(self.ledger.skip_finished_chunks(chunks), self.encoder)) as stream:  # type: ignore[type-var]
            for encoded in stream:
                with run.metrics.time_stage("write"):
                    self.ledger.add_chunk(encoded, self.layout)
                self._tell(run, encoded)
        if self.control.reason is not None:
            return None
        with run.metrics.time_stage("write"):
            record = self.ledger.complete_partition(task.partition, self.layout, self.space)
        check_row_conservation(record, run)
        run.record_usage(self.encoder)
        return PartitionResult(record, run.rows_read, run.metrics, run.usage, len(self.ledger.damaged_parts) - before)

    def _tell(self, run: RunContext, encoded: EncodedChunk) -> None:
        self.observer.on_progress(encoded.embedded_rows, encoded.chunk.bytes_read)

    def close(self) -> None:
        self.encoder.close()


def check_row_conservation(record: PartitionRecord, run: RunContext) -> None:
    """OutputError unless every row that was read is in the record, with a vector or as a reject."""
    out = sum(part.rows + part.rejects for part in record.parts)
    if run.unfinished_splits or not record.rows_read == run.rows_read == out:
        raise OutputError(
            f"share {record.index}: {run.rows_read} rows were read, {out} written; nothing was published",
            "this should never happen: please report it with the run report",
        )


def check_worker_version(setup: WorkerSetup) -> None:
    if setup.version != __version__:
        raise EmbedcliError(
            f"this worker has embedcli {__version__}, the run was started by {setup.version}",
            "install the same version on every machine",
        )


def build_tasks(shares: list[Partition], starts: Mapping[int, readers.SplitStart] | None) -> Iterator[PartitionTask]:
    """The shares with the starts of their own pieces only."""
    for share in shares:
        yield PartitionTask(
            share, None if starts is None else {piece.index: starts[piece.index] for piece in share.splits}
        )


def assign_devices(job: Job) -> list[str]:
    """The device of each worker: those that --device lists, in turn, for --workers workers."""
    named = [name.strip() for name in job.device.split(",") if name.strip()] or ["auto"]
    return [named[i % len(named)] for i in range(job.workers or len(named))]

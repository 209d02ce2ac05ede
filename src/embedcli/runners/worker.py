"""A worker of a distributed run: one encoder on one device that encodes one partition after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from embedcli import __version__, checkpoint, encoders, readers
from embedcli.checkpoint import PartitionRecord
from embedcli.core.errors import EmbedcliError, OutputError
from embedcli.core.job import Job
from embedcli.core.types import InputPlan, Partition, RunObserver
from embedcli.outputs import target as output_target
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.runners.context import EncoderLoader, RunContext
from embedcli.runners.vector_space import write_vector_space


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs to join a run. It is sent to other processes and machines, so it holds nothing open.

    Attributes:
        job: The job as this worker runs it.
        plan: The input, without splits: they come with the partitions.
        job_manifest: The identity of the job, as the manifest in the staging folder holds it.
        snapshot_name: The name of the run's input snapshot.
        loader: Loads the encoder in place of `encoders.load_encoder`; for tests, and for encoders that are shared.
        version: The embedcli version of the run.
    """

    job: Job
    plan: InputPlan
    job_manifest: Mapping[str, Any]
    snapshot_name: str
    loader: EncoderLoader | None = None
    version: str = __version__


@dataclass(frozen=True)
class PartitionTask:
    """A partition, and where its splits start, for generated ids."""

    partition: Partition
    split_starts: Mapping[int, readers.SplitStart] | None


@dataclass(frozen=True)
class PartitionResult:
    """A completed partition.

    Attributes:
        record: The partition's record.
        rows_read: Rows that the reader has counted.
        metrics: The counters and timers of this partition.
        usage: What the encoder says that it has used so far.
        damaged_parts: Part files that were damaged and encoded again.
        resumed_rows: Rows of the partition that were in part files already.
    """

    record: PartitionRecord
    rows_read: int
    metrics: MetricsCollector
    usage: Mapping[str, Any] | None
    damaged_parts: int = 0
    resumed_rows: int = 0


class PartitionWorker:
    """Joins a run and loads the encoder once; then `process_partition` encodes one partition after another.

    Args:
        setup: What the worker needs to join the run.
        observer: Receives messages and progress.
        control: Tells when to stop.

    Raises:
        EmbedcliError: The run has another version of embedcli, or its staging folder cannot be seen from here.
    """

    def __init__(self, setup: WorkerSetup, observer: RunObserver, control: RunControl) -> None:
        check_worker_version(setup)
        job = setup.job
        target = output_target.resolve_target(job.output, job.to)
        self.ledger = checkpoint.Ledger(target, allow_changed_input=job.shard is not None)
        self.ledger.join(setup.job_manifest, setup.snapshot_name)
        self.ledger.snapshot = replace(self.ledger.snapshot, states=setup.plan.file_stats)
        model_files = encoders.resolve_model_files(job)
        self.run = RunContext(job, setup.plan, model_files, observer, control, MetricsCollector(), setup.loader)
        self.encoder = self.run.load_encoder()
        # The counters of the partition in progress.
        self.metrics = self.run.metrics
        # No worker reads the whole input: the coordinator has written the quantization ranges to the staging folder.
        self.layout, self.vector_space = self.run.describe_output(self.encoder, target.staging_folder)
        write_vector_space(target.staging_folder, self.layout, self.vector_space)

    def process_partition(self, task: PartitionTask) -> PartitionResult | None:
        """Encode a partition and write its record.

        Returns:
            The result; None if the run was stopped. The part files written so far stay for the next run.
        """
        run = replace(self.run, metrics=MetricsCollector(), rows_read=0)
        self.metrics = run.metrics
        damaged_before = len(self.ledger.damaged_parts)
        chunks = run.read_chunks(task.partition.splits, task.split_starts)
        missing_chunks = run.skip_finished_chunks(chunks, self.ledger)
        with closing(run.encode(missing_chunks, self.encoder)) as encoded_chunks:  # type: ignore[type-var]
            for encoded in encoded_chunks:
                with run.metrics.time_stage("write"):
                    self.ledger.add_chunk(encoded, self.layout)
                run.metrics.progress.written_rows += encoded.embedded_rows
                run.report_progress()
        if run.control.reason is not None:
            return None
        with run.metrics.time_stage("write"):
            record = self.ledger.complete_partition(task.partition, self.layout, self.vector_space)
        check_row_conservation(record, run)
        run.record_usage(self.encoder)
        damaged_parts = len(self.ledger.damaged_parts) - damaged_before
        resumed_rows = run.metrics.progress.resumed_rows
        return PartitionResult(record, run.rows_read, run.metrics, run.usage, damaged_parts, resumed_rows)

    def close(self) -> None:
        self.encoder.close()


def check_row_conservation(record: PartitionRecord, run: RunContext) -> None:
    """Raise OutputError unless every row that was read is in the partition's record, with a vector or as a reject."""
    written = sum(part.rows + part.rejects for part in record.parts)
    if run.unfinished_splits or not record.rows_read == run.rows_read == written:
        raise OutputError(
            f"partition {record.index}: {run.rows_read} rows were read, {written} written; nothing was published",
            "this should never happen: please report it with the run report",
        )


def check_worker_version(setup: WorkerSetup) -> None:
    """Raise EmbedcliError if the run was started by another version of embedcli."""
    if setup.version != __version__:
        raise EmbedcliError(
            f"this worker has embedcli {__version__}, the run was started by {setup.version}",
            "install the same version on every machine",
        )


def build_tasks(
    partitions: list[Partition], starts: Mapping[int, readers.SplitStart] | None
) -> Iterator[PartitionTask]:
    """Yield a task for each partition, with the starts of its own splits only."""
    for partition in partitions:
        own_starts = None if starts is None else {split.index: starts[split.index] for split in partition.splits}
        yield PartitionTask(partition, own_starts)


def share_server_limits(job: Job, workers: int) -> Job:
    """Return the job with an equal part of what all workers together may ask of a server, at least 1 each."""
    limits = {"rpm": job.rpm, "tpm": job.tpm, "max_concurrency": job.max_concurrency}
    shares: dict[str, Any] = {name: max(1, limit // workers) for name, limit in limits.items() if limit is not None}
    return replace(job, **shares)


def assign_devices(job: Job) -> list[str]:
    """Return the device of each worker: those of --device in turn, for --workers workers."""
    devices = [name.strip() for name in job.device.split(",") if name.strip()] or ["auto"]
    return [devices[i % len(devices)] for i in range(job.workers or len(devices))]

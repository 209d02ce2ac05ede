"""Coordinate several workers: hand out missing partitions, collect their records, publish the output."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

import numpy as np

from embedcli import checkpoint, storage
from embedcli.core.errors import UsageError
from embedcli.core.types import Partition, RunResult
from embedcli.pipeline import calibration
from embedcli.runners import local
from embedcli.runners.context import RunContext, check_max_rejects
from embedcli.runners.job_identity import input_paths
from embedcli.runners.partitioning import plan_partitions, select_shard, warn_idle_workers
from embedcli.runners.worker import PartitionResult, PartitionTask, WorkerSetup, assign_devices, build_tasks


def encode_with_workers(run: RunContext, ledger: checkpoint.Ledger) -> RunResult:
    """Have workers encode every missing partition, then publish the output.

    Args:
        run: The running job.
        ledger: The output's ledger, in which the job has begun.
    """
    reject_stream_inputs(run)
    run.observer.on_phase("checking finished work")
    missing = find_missing_partitions(run, ledger)
    if missing:
        stage_ranges(run, ledger)
        tasks = list(build_tasks(missing, run.load_split_starts(ledger.target.staging_folder)))
        plan = replace(run.plan, splits=())
        setup = WorkerSetup(run.job, plan, ledger.job, ledger.snapshot.name, run.load_encoder_override)
        run.unfinished_splits = {split.index for partition in missing for split in partition.splits}
        run.observer.on_phase("starting the workers")
        run.control.has_started = True
        with closing(start_workers(run, setup, tasks)) as results:
            for result in results:
                record_partition_done(run, ledger, result)
        run.end_embedding("finishing the last rows")
        if run.control.reason is not None:
            return local.stop(run, ledger, [split for partition in missing for split in partition.splits])
    return local.publish_completed(run, ledger)


def reject_stream_inputs(run: RunContext) -> None:
    """Raise UsageError for a pipe: only one process can read it, and only once."""
    for path in input_paths(run.plan):
        if storage.get_file_system(path).kind(path) == "stream":
            raise UsageError(
                f"{storage.format_location(path)}: is a pipe, which only one process can read",
                "write it to a file first, or use --runner local",
            )


def find_missing_partitions(run: RunContext, ledger: checkpoint.Ledger) -> list[Partition]:
    """Return the partitions of this run that are not completed, and count the rows of those that are.

    Raises:
        ResumeError: The input of a completed partition has changed.
    """
    all_partitions = plan_partitions(run.job, run.plan, is_folder=ledger.target.is_folder)
    own_partitions = select_shard(all_partitions, run.job.shard)
    warn_idle_workers(run, own_partitions, all_partitions)
    reader = local.make_partition_reader(run, ledger)
    to_read = ledger.begin_partitions(own_partitions, all_partitions, states=run.plan.file_stats, read_again=reader)
    # The input files of these have other stats than when they were completed.
    splits = [split for partition in to_read if partition.index in ledger.completed for split in partition.splits]
    if splits:
        for _ in ledger.skip_finished_chunks(run.read_chunks(splits)):
            pass
    run.rows_read = sum(record.rows_read for record in ledger.completed.values())
    return [partition for partition in own_partitions if partition.index not in ledger.completed]


def stage_ranges(run: RunContext, ledger: checkpoint.Ledger) -> None:
    """Write the quantization ranges of int8 and uint8 to the staging folder, where every worker finds them."""
    staging_folder = ledger.target.staging_folder
    if calibration.needs_ranges(run.job) and not calibration.choose_known_ranges(run.job, staging_folder):
        one_device = replace(run, job=replace(run.job, device=assign_devices(run.job)[0]))
        with closing(one_device.load_encoder()) as encoder:
            one_device.resolve_ranges(encoder, staging_folder)


def start_workers(
    run: RunContext, setup: WorkerSetup, tasks: list[PartitionTask]
) -> Generator[PartitionResult, None, None]:
    """Start the workers of the job's runner and yield the partitions as they are completed."""
    if run.job.runner == "ray":
        from embedcli.runners import ray_runner

        return ray_runner.run_on_ray(run, setup, tasks)
    from embedcli.runners import multiprocess

    return multiprocess.run_on_processes(run, setup, tasks)


def record_partition_done(run: RunContext, ledger: checkpoint.Ledger, result: PartitionResult) -> None:
    """Count a partition that a worker has completed.

    Raises:
        TooManyRejectsError: There are more rejects than --max-rejects.
    """
    record = result.record
    ledger.add_completed_partition(record, result.resumed_rows)
    ledger.damaged_parts += [f"partition {record.index}"] * result.damaged_parts
    run.rows_read += result.rows_read
    run.unfinished_splits -= {part.key[0] for part in record.parts}
    workers = run.worker_count or len(assign_devices(run.job))
    run.metrics.add_worker(result.metrics, workers, one_clock=run.job.runner == "processes")
    if result.usage is not None:
        usage = run.usage or {}
        run.usage = {name: usage.get(name, 0) + value for name, value in result.usage.items() if np.isscalar(value)}
    check_max_rejects(run.job.max_rejects, ledger.rejected_rows, None, ledger)

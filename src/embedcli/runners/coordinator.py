"""The driver of several workers: missing shares go out, records come back, then the output is published."""

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
from embedcli.runners.completion import stopped_result
from embedcli.runners.context import RunContext, check_max_rejects
from embedcli.runners.job_identity import (
    input_paths,
    load_split_starts,
    plan_partitions,
    resolve_ranges,
    warn_idle_workers,
)
from embedcli.runners.worker import PartitionResult, PartitionTask, WorkerSetup, assign_devices, build_tasks


def run_with_workers(run: RunContext, ledger: checkpoint.Ledger) -> RunResult:
    """Every missing share is done by some worker; then the output is published."""
    reject_stream_inputs(run)
    folder = ledger.target.is_folder
    every = plan_partitions(run.job, run.plan, folder=folder)
    shares = local.select_shard(every, run.job.shard)
    warn_idle_workers(run, shares, every)
    left = ledger.begin_partitions(shares, every, read_again=local.make_rereader(run, ledger))
    check_completed_partitions(run, ledger, [share for share in left if share.index in ledger.completed])
    run.rows_read = sum(record.rows_read for record in ledger.completed.values())
    todo = [share for share in shares if share.index not in ledger.completed]
    if todo:
        tasks = list(build_tasks(todo, load_split_starts(run, ledger.target.staging_folder)))
        setup = WorkerSetup(
            run.job, replace(run.plan, splits=()), ledger.job, ledger.snapshot.name, run.load_encoder_override
        )
        run.unfinished_splits = {piece.index for share in todo for piece in share.splits}
        stage_ranges(run, ledger)
        run.observer.on_start(run.plan, run.metrics)
        run.control.has_started = True
        with closing(start_workers(run, setup, tasks)) as done:
            for one in done:
                record_partition_done(run, ledger, one)
        if run.control.reason is not None:
            return stopped_result(run, ledger.totals())
    return local.publish_staged(run, ledger)


def start_workers(
    run: RunContext, setup: WorkerSetup, tasks: list[PartitionTask]
) -> Generator[PartitionResult, None, None]:
    """The workers of the job's runner, at work."""
    if run.job.runner == "ray":
        from embedcli.runners import ray_runner

        return ray_runner.run_on_ray(run, setup, tasks)
    from embedcli.runners import multiprocess

    return multiprocess.run_on_processes(run, setup, tasks)


def record_partition_done(run: RunContext, ledger: checkpoint.Ledger, one: PartitionResult) -> None:
    """Count a share that a worker has sealed."""
    ledger.add_completed_partition(one.record)
    ledger.damaged_parts += [f"partition {one.record.index}"] * one.damaged_parts
    run.rows_read += one.rows_read
    run.unfinished_splits -= {part.key[0] for part in one.record.parts}
    workers = run.worker_count or len(assign_devices(run.job))
    run.metrics.add_worker(one.metrics, workers, one_clock=run.job.runner == "processes")
    if one.usage is not None:
        had = run.usage or {}
        run.usage = {name: had.get(name, 0) + value for name, value in one.usage.items() if np.isscalar(value)}
    check_max_rejects(run.job.max_rejects, ledger.rejected_rows, None)


def reject_stream_inputs(run: RunContext) -> None:
    """UsageError for an input that only this process could read, and only once."""
    for path in input_paths(run.plan):
        if storage.get_file_system(path).kind(path) == "stream":
            raise UsageError(
                f"{storage.format_location(path)}: is a pipe, which only one process can read",
                "write it to a file first, or use --runner local",
            )


def check_completed_partitions(run: RunContext, ledger: checkpoint.Ledger, shares: list[Partition]) -> None:
    """ResumeError if inputs of sealed shares, which look other than they did, hold other rows."""
    pieces = [piece for share in shares for piece in share.splits]
    if pieces:
        for _ in ledger.skip_finished_chunks(run.read_chunks(pieces)):
            pass


def stage_ranges(run: RunContext, ledger: checkpoint.Ledger) -> None:
    """Put the ranges of int8 and uint8 into the stage, where every worker finds them."""
    stage = ledger.target.staging_folder
    if calibration.needs_ranges(run.job) and calibration.choose_known_ranges(run.job, stage) is None:
        first = replace(run, job=replace(run.job, device=assign_devices(run.job)[0]))
        with closing(first.load_encoder()) as encoder:
            resolve_ranges(first, encoder, stage, None)

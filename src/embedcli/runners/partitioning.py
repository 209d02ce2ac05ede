"""Divide the input of a job into partitions, and select those of a shard."""

from __future__ import annotations

import numpy as np

from embedcli import readers
from embedcli.core import quantization
from embedcli.core.counts import format_count
from embedcli.core.job import Job
from embedcli.core.types import InputPlan, Partition
from embedcli.outputs import target as output_target
from embedcli.runners.context import RunContext

# In a single-file output a partition has at most this many chunks: a worker that dies loses no more work.
CHUNKS_PER_PARTITION = 8
# An input of a few chunks is still divided into this many partitions, if it has enough splits.
MIN_PARTITIONS = 32
# Folder outputs are divided before the model is loaded, assuming vectors of this many dimensions.
ASSUMED_DIM = 384


def plan_partitions(job: Job, plan: InputPlan, *, is_folder: bool) -> list[Partition]:
    """Divide the splits of a plan into partitions, the same for every runner and number of workers.

    Args:
        job: The job, with its rows per chunk resolved.
        plan: The input.
        is_folder: Whether the output is a folder: a partition then has about --part-size bytes of vectors, and
            otherwise a few chunks.
    """
    if is_folder:
        itemsize = np.dtype(quantization.STORAGE_DTYPES[job.precision]).itemsize
        bytes_per_row = quantization.stored_width(ASSUMED_DIM, job.precision) * itemsize
        return readers.group_into_partitions(plan, max(1, job.part_size // bytes_per_row))
    rows = min(CHUNKS_PER_PARTITION * (job.chunk_rows or 1), sum(plan.rows_per_split) // MIN_PARTITIONS)
    return readers.group_into_partitions(plan, max(1, rows))


def select_shard(partitions: list[Partition], shard: tuple[int, int] | None) -> list[Partition]:
    """Return the partitions of shard K of N, K from 1: every N-th, so that shards have about equal work."""
    if shard is None:
        return partitions
    number, count = shard
    return [partition for partition in partitions if partition.index % count == number - 1]


def warn_idle_workers(run: RunContext, own_partitions: list[Partition], all_partitions: list[Partition]) -> None:
    """Notify the user if there are fewer partitions than workers or shards."""
    if run.job.shard is not None and not own_partitions:
        who = "this shard"
    elif run.job.shard is not None and len(all_partitions) < run.job.shard[1]:
        who = "some shards"
    elif len(all_partitions) < (run.job.workers or 1):
        who = "some workers"
    else:
        return
    if output_target.resolve_target(run.job.output, run.job.to).is_folder:
        how = "a smaller --part-size gives more"
    else:
        how = "JSONL is split every 16 MiB, Parquet by row groups, other files not at all"
    count = format_count(len(all_partitions), "partition")
    run.observer.notify(f"{who} will have nothing to do: the input is divided into {count}; {how}")

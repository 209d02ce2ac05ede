"""Encode rows to an output on disk in this process: all of them, or those of one shard."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from embedcli import checkpoint
from embedcli.core.encoder import BaseEncoder
from embedcli.core.types import Chunk, InputSplit, Partition, RunResult
from embedcli.outputs.schema import OutputLayout
from embedcli.outputs.target import FinishedOutput
from embedcli.runners.canaries import check_reused_canaries
from embedcli.runners.changed_inputs import check_inputs_unchanged
from embedcli.runners.completion import finished_result, nothing_to_do, published_result
from embedcli.runners.context import RunContext, check_max_rejects, check_max_removed
from embedcli.runners.finished_jobs import remember_finished_job
from embedcli.runners.partitioning import plan_partitions, select_shard, warn_idle_workers
from embedcli.runners.vector_space import read_vector_space, write_vector_space

if TYPE_CHECKING:
    from embedcli.outputs import reuse


def encode_locally(run: RunContext, ledger: checkpoint.Ledger, finished: FinishedOutput | None) -> RunResult:
    """Encode every missing chunk, then publish the output.

    Args:
        run: The running job.
        ledger: The output's ledger, in which the job has begun.
        finished: The output that --update replaces.
    """
    job, target = run.job, ledger.target
    has_partitions = target.is_folder or job.shard is not None
    partitions = plan_partitions(job, run.plan, is_folder=target.is_folder) if has_partitions else []
    run.observer.on_phase("checking finished work")
    splits = find_missing_splits(run, ledger, partitions) if partitions else list(run.plan.splits)
    if partitions and not splits:
        return publish_completed(run, ledger)
    reused = find_reused_outputs(run, ledger, finished)
    with closing(run.load_encoder()) as encoder, tempfile.TemporaryDirectory(prefix="embedcli-") as folder:
        layout, vector_space = run.describe_output(encoder, target.staging_folder, finished if job.update else None)
        if partitions:
            write_vector_space(target.staging_folder, layout, vector_space)
        check_reused_canaries(vector_space, job.reuse)
        store = open_reuse_store(reused, layout, folder, ledger.job.get("max_seq_length"))
        encode_missing_chunks(run, ledger, encoder, splits, layout, vector_space, store)
        run.record_usage(encoder)
        if run.control.reason is not None:
            return stop(run, ledger, splits)
        ledger.complete_ready_partitions(layout, vector_space)
        return check_and_publish(run, ledger, layout, vector_space, store)


def find_missing_splits(run: RunContext, ledger: checkpoint.Ledger, partitions: list[Partition]) -> list[InputSplit]:
    """Return the input splits of this run that must be read, and count the rows of completed partitions."""
    job = run.job
    own_partitions = select_shard(partitions, job.shard)
    warn_idle_workers(run, own_partitions, partitions)
    to_read = ledger.begin_partitions(
        own_partitions,
        partitions,
        states=run.plan.file_stats,
        skip_unchanged=not (job.update or job.reuse),
        read_again=make_partition_reader(run, ledger),
    )
    skipped = ledger.completed.keys() - {partition.index for partition in to_read}
    run.rows_read += sum(ledger.completed[index].rows_read for index in skipped)
    return [split for partition in to_read for split in partition.splits]


def make_partition_reader(run: RunContext, ledger: checkpoint.Ledger) -> Callable[[Partition], Iterator[Chunk]] | None:
    """Return a function that reads a completed partition again, to compare it with inputs that have changed.

    None for a whole run: it refuses changed inputs, and its user can choose --update or --overwrite, which shards do
    not have.
    """
    if run.job.shard is None:
        return None
    separate_run = replace(run, rows_read=0)

    def read_partition(partition: Partition) -> Iterator[Chunk]:
        starts = separate_run.load_split_starts(ledger.target.staging_folder)
        return separate_run.read_chunks(partition.splits, starts)

    return read_partition


def find_reused_outputs(
    run: RunContext, ledger: checkpoint.Ledger, finished: FinishedOutput | None
) -> list[reuse.ReusedOutput]:
    """Find the outputs whose vectors --update and --reuse may take over, before the model is loaded."""
    job = run.job
    paths = [*([job.output] if job.update and finished is not None else []), *job.reuse]
    if not paths:
        return []
    from embedcli.outputs import reuse

    return reuse.find_reusable_outputs(paths, ledger.job)


def open_reuse_store(
    found: list[reuse.ReusedOutput], layout: OutputLayout, folder: str, limit: int | None
) -> reuse.ReuseStore | None:
    """Open the vectors of finished outputs; None without any."""
    if not found:
        return None
    from embedcli.outputs import reuse

    return reuse.load_store(found, layout, folder, limit)


def encode_missing_chunks(
    run: RunContext,
    ledger: checkpoint.Ledger,
    encoder: BaseEncoder,
    splits: list[InputSplit],
    layout: OutputLayout,
    vector_space: dict[str, Any],
    store: reuse.ReuseStore | None,
) -> None:
    """Encode the chunks without a part file, write theirs, and complete the partitions that have all of them."""
    starts = run.load_split_starts(ledger.target.staging_folder) if run.job.shard else None
    run.start_embedding(splits, run.rows_read)
    chunks: Iterator[Chunk] = run.read_chunks(splits, starts)
    if store is not None:
        chunks = store.mark_seen(chunks)
    missing_chunks = run.skip_finished_chunks(chunks, ledger)
    with closing(run.encode(missing_chunks, encoder, store)) as encoded_chunks:  # type: ignore[type-var]
        for encoded in encoded_chunks:
            with run.metrics.time_stage("write"):
                changes = store.count_changes(encoded) if store is not None else None
                ledger.add_chunk(encoded, layout, changes)
                if encoded.chunk.is_last:
                    ledger.complete_ready_partitions(layout, vector_space)
            run.on_chunk_written(encoded, ledger.rejected_rows, ledger)
    run.end_embedding("finishing the last rows")


def stop(run: RunContext, ledger: checkpoint.Ledger, splits: list[InputSplit]) -> RunResult:
    """Return the result of a run that was stopped: its totals are those of the part files on disk.

    Args:
        run: The running job.
        ledger: The output's ledger.
        splits: The input splits that the run reads.
    """
    ledger.count_staged_parts(splits)
    return run.stopped_result(ledger.totals(), ledger.rows_written)


def publish_completed(run: RunContext, ledger: checkpoint.Ledger) -> RunResult:
    """Publish completed partitions without loading the model; a shard without partitions just ends."""
    if run.job.shard is not None and not ledger.completed:
        return shard_result(run, ledger, ledger.totals(), {})
    layout, vector_space = read_vector_space(ledger.target.staging_folder)
    return check_and_publish(run, ledger, layout, vector_space, None)


def check_and_publish(
    run: RunContext,
    ledger: checkpoint.Ledger,
    layout: OutputLayout,
    vector_space: dict[str, Any],
    store: reuse.ReuseStore | None,
) -> RunResult:
    """Check that no row is missing, then publish the output; a shard leaves that to the merge.

    Raises:
        OutputError: Rows are missing, an input has changed while it was read, or writing failed.
        TooManyRejectsError: There are more rejects than --max-rejects.
        TooManyRemovedError: The output that it would replace has more rows, by more than --max-removed.
    """
    totals = ledger.totals()
    run.check_row_conservation(totals)
    check_inputs_unchanged(run, ledger)
    if run.job.shard is not None:
        return shard_result(run, ledger, totals, vector_space)
    check_max_rejects(run.job.max_rejects, totals["rejects"], run.rows_read, ledger)
    check_max_removed(run.job.max_removed, ledger.target, totals["rows"])
    changes = None
    if store is not None:
        changes = ledger.changes()
        changes["removed"] += store.count_removed()
        store.close()
    run.observer.on_phase("publishing the output")
    with run.metrics.time_stage("write"):
        ledger.publish(layout, vector_space)
    result = published_result(totals, vector_space, ledger.target)
    found_again = replace(nothing_to_do(result), resumed_rows=totals["read"])
    remember_finished_job(run.job, run.plan, run.model_files, ledger.target, found_again)
    return replace(
        result,
        resumed_rows=run.rows_read - ledger.rows_written,
        damaged_parts=len(ledger.damaged_parts),
        changes=changes,
    )


def shard_result(
    run: RunContext, ledger: checkpoint.Ledger, totals: dict[str, int], vector_space: dict[str, Any]
) -> RunResult:
    """Return the result of one shard; the caller merges the shards if it was the last."""
    number, count = run.job.shard or (1, 1)
    result = finished_result(totals, vector_space, "this shard")
    return replace(
        result,
        reason=f"shard {number}/{count}: {result.reason}",
        resumed_rows=run.rows_read - ledger.rows_written,
        damaged_parts=len(ledger.damaged_parts),
    )

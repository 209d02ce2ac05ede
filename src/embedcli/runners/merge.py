"""Merge the shards of an output when none is missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from embedcli import checkpoint, storage
from embedcli.core.errors import OutputError, OutputLocked, UsageError
from embedcli.core.types import OutputFormat, RunResult
from embedcli.outputs import target as output_target
from embedcli.outputs.schema import OutputLayout
from embedcli.outputs.target import OutputTarget
from embedcli.runners.completion import already_finished_result, published_result
from embedcli.runners.context import RunContext, check_max_rejects
from embedcli.runners.partitioning import plan_partitions
from embedcli.runners.vector_space import read_vector_space


def merge_if_last_shard(run: RunContext, target: OutputTarget, shard_result: RunResult) -> RunResult:
    """Merge the shards if no partition is missing.

    Args:
        run: The run of a shard, which has ended and released its lock.
        target: The output.
        shard_result: The shard's result.

    Returns:
        The result of the merge, or the shard's with a note on what remains to be done.
    """
    count = len(plan_partitions(run.job, run.plan, is_folder=target.is_folder))
    missing = len(set(range(count)) - checkpoint.list_completed_partitions(target.staging_folder))
    command = f"embedcli merge {target.output}"
    if missing:
        note = f"{missing} of {count} partitions are missing: the last shard to finish merges; or run: {command}"
        return replace(shard_result, reason=f"{shard_result.reason}; {note}")
    try:
        merged = merge_shards(run.job.output, run.job.to, run.job.max_rejects)
    except OutputLocked:
        note = f"another shard is still running and merges when it ends; or run: {command}"
        return replace(shard_result, reason=f"{shard_result.reason}; {note}")
    return replace(
        merged,
        resumed_rows=shard_result.resumed_rows,
        damaged_parts=shard_result.damaged_parts,
        usage=shard_result.usage,
    )


def merge_shards(output: str, to: OutputFormat | None = None, max_rejects: str | None = None) -> RunResult:
    """Publish an output whose shards are all done.

    Args:
        output: The output's path.
        to: Its format; by default the one that the shards have.
        max_rejects: The value of --max-rejects.

    Raises:
        OutputError: Partitions are missing, or the input has changed between the shards.
        OutputLocked: A shard is still running.
        TooManyRejectsError: There are more rejects than `max_rejects`.
        UsageError: There is neither an output nor unfinished work.
    """
    target = output_target.find_existing_target(output, to)
    if not storage.exists(target.staging_folder):
        return find_merged_result(target)
    ledger = checkpoint.Ledger(target)
    ledger.acquire()
    try:
        if is_published(ledger):
            ledger.staging.remove()
            return find_merged_result(target)
        totals, layout, vector_space = load_shards(ledger)
        check_max_rejects(max_rejects, totals["rejects"], totals["read"], ledger)
        ledger.publish(layout, vector_space)
    finally:
        ledger.release()
    return published_result(totals, vector_space, target)


def is_published(ledger: checkpoint.Ledger) -> bool:
    """Whether the output has been published, and only removing the staging folder was interrupted."""
    finished = output_target.read_finished_output(ledger.target)
    return finished is not None and ledger.staging.read_manifest() in ({}, finished.job_manifest.get("job"))


def find_merged_result(target: OutputTarget) -> RunResult:
    """Return the result of an output that has been merged before; UsageError if there is none."""
    finished = output_target.read_finished_output(target)
    if finished is None:
        raise UsageError(f"{storage.format_location(target.output)}: nothing to merge", "run encode with --shard first")
    return already_finished_result(finished, target)


def load_shards(ledger: checkpoint.Ledger) -> tuple[dict[str, int], OutputLayout, dict[str, Any]]:
    """Load all completed partitions into the ledger.

    Returns:
        The totals, the columns and the vector space of the output.

    Raises:
        OutputError: Partitions are missing, or the input has changed between them.
    """
    output = storage.format_location(ledger.target.output)
    layout, vector_space = read_vector_space(ledger.target.staging_folder)
    missing, count = ledger.load_completed_partitions()
    if not count:
        raise OutputError(
            f"{storage.format_location(ledger.target.staging_folder)} has no completed partitions",
            "run encode with --shard first",
        )
    if missing:
        numbers = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise OutputError(
            f"{output}: {len(missing)} of {count} partitions are missing ({numbers})",
            "run `embedcli encode --shard K/N` for them first: partition I belongs to shard K = I % N + 1",
        )
    totals = ledger.totals()
    if totals["read"] != totals["rows"] + totals["rejects"]:
        raise OutputError(
            f"{output}: rows are missing from the completed partitions", "this should never happen: please report it"
        )
    return totals, layout, vector_space

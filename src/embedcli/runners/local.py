"""One process, one device: rows to an output on disk, all of them or one shard, or to stdout."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from embedcli import checkpoint
from embedcli.core.types import Chunk, EncodedChunk, InputSplit, Partition, RunResult
from embedcli.outputs import reuse, writers
from embedcli.outputs import target as output_target
from embedcli.outputs.schema import OutputLayout
from embedcli.runners.completion import finished_result, save_finished_fingerprint, stopped_result
from embedcli.runners.context import TOTAL_KEYS, RunContext, apply_saved_truncation, check_max_rejects
from embedcli.runners.job_identity import (
    build_layout,
    build_vector_space,
    load_split_starts,
    plan_partitions,
    read_vector_space,
    resolve_ranges,
    warn_idle_workers,
    write_vector_space,
)


def run_local(run: RunContext, ledger: checkpoint.Ledger, done: output_target.FinishedOutput | None) -> RunResult:
    """Every missing chunk is encoded; then the output is published, if no other shard is missing."""
    job = run.job
    shares = (
        plan_partitions(job, run.plan, folder=ledger.target.is_folder) if ledger.target.is_folder or job.shard else []
    )
    pieces = find_missing_splits(run, ledger, shares)
    if shares and not pieces:
        return publish_staged(run, ledger)
    with closing(run.load_encoder()) as encoder, tempfile.TemporaryDirectory(prefix="embedcli-") as folder:
        job = apply_saved_truncation(job, encoder)
        ranges = resolve_ranges(run, encoder, ledger.target.staging_folder, done if job.update else None)
        space, layout = build_vector_space(job, encoder, ranges), build_layout(job, run.plan, encoder, ranges)
        if shares:
            write_vector_space(ledger.target.staging_folder, layout, space)
        store = open_reuse_store(run, ledger, layout, done, folder)
        run.observer.on_start(run.plan, run.metrics)
        starts = load_split_starts(run, ledger.target.staging_folder) if job.shard else None
        chunks: Iterator[Chunk] = run.read_chunks(pieces, starts)
        chunks = store.mark_seen(chunks) if store is not None else chunks
        with closing(run.encode(ledger.skip_finished_chunks(chunks), encoder, store)) as stream:  # type: ignore[type-var]
            for encoded in stream:
                with run.metrics.time_stage("write"):
                    ledger.add_chunk(encoded, layout, store.change_counts.pop(encoded.chunk.key) if store else None)
                    if shares and encoded.chunk.is_last:
                        ledger.complete_ready_partitions(layout, space)
                run.on_chunk_written(encoded, ledger.rejected_rows)
        run.record_usage(encoder)
        if run.control.reason is not None:
            return stopped_result(run, ledger.totals())
        if shares:
            ledger.complete_ready_partitions(layout, space)
        return check_and_publish(run, ledger, layout, space, store)


def find_missing_splits(run: RunContext, ledger: checkpoint.Ledger, shares: list[Partition]) -> list[InputSplit]:
    """The pieces that must be read: all, but for shares that are sealed already or other shards'."""
    job = run.job
    if not shares:
        return list(run.plan.splits)
    mine = select_shard(shares, job.shard)
    warn_idle_workers(run, mine, shares)
    left = ledger.begin_partitions(
        mine, shares, skip_unchanged=not (job.update or job.reuse), read_again=make_rereader(run, ledger)
    )
    known = {share.index for share in left}
    run.rows_read += sum(record.rows_read for index, record in ledger.completed.items() if index not in known)
    return [piece for share in left for piece in share.splits]


def make_rereader(run: RunContext, ledger: checkpoint.Ledger) -> Callable[[Partition], Iterator[Chunk]] | None:
    """How a shard compares what it has sealed with inputs that look different now; None for a whole run.

    A whole run refuses a changed input, with ways out that shards have not: they do anew what differs.
    """
    if run.job.shard is None:
        return None
    apart = replace(run, rows_read=0)
    return lambda share: apart.read_chunks(share.splits, load_split_starts(apart, ledger.target.staging_folder))


def select_shard(shares: list[Partition], shard: tuple[int, int] | None) -> list[Partition]:
    """The shares of shard k of n, k from 1: every n-th, so that shards are about equal whatever the order of inputs."""
    if shard is None:
        return shares
    number, of = shard
    return [share for share in shares if share.index % of == number - 1]


def check_and_publish(
    run: RunContext,
    ledger: checkpoint.Ledger,
    layout: OutputLayout,
    space: dict[str, Any],
    store: reuse.ReuseStore | None,
) -> RunResult:
    """Check that no row is missing, then give the output its name."""
    totals = ledger.totals()
    run.check_row_conservation(totals)
    if run.job.shard is not None:
        return shard_result(run, ledger, totals, space)
    check_max_rejects(run.job.max_rejects, totals["rejects"], run.rows_read)
    changes = None
    if store is not None:
        changes = ledger.changes() | {"removed": store.count_removed()}
        store.close()
    with run.metrics.time_stage("write"):
        ledger.publish(layout, space)
    save_finished_fingerprint(ledger.target, run.plan)
    outcome = finished_result(totals, space, tuple(ledger.target.list_files()))
    return replace(
        outcome,
        resumed_rows=run.rows_read - ledger.rows_written,
        damaged_parts=len(ledger.damaged_parts),
        changes=changes,
    )


def publish_staged(run: RunContext, ledger: checkpoint.Ledger) -> RunResult:
    """Publish what was encoded before, no model loaded; a shard that has nothing to do ends as it is."""
    if run.job.shard is not None and not ledger.completed:
        return shard_result(run, ledger, ledger.totals(), {})
    layout, space = read_vector_space(ledger.target.staging_folder)
    return check_and_publish(run, ledger, layout, space, None)


def shard_result(
    run: RunContext, ledger: checkpoint.Ledger, totals: dict[str, int], space: dict[str, Any]
) -> RunResult:
    """What one shard has done; the caller merges if it was the last."""
    number, of = run.job.shard or (1, 1)
    outcome = finished_result(totals, space)
    return replace(
        outcome,
        reason=f"shard {number}/{of}: {outcome.reason}",
        resumed_rows=run.rows_read - ledger.rows_written,
        damaged_parts=len(ledger.damaged_parts),
    )


def open_reuse_store(
    run: RunContext,
    ledger: checkpoint.Ledger,
    layout: OutputLayout,
    done: output_target.FinishedOutput | None,
    folder: str,
) -> reuse.ReuseStore | None:
    """The vectors that --update and --reuse may take over; None without either."""
    job = run.job
    paths = [*([job.output] if job.update and done is not None else []), *job.reuse]
    return reuse.load_store(paths, ledger.job, layout, folder) if paths else None


# stdout


def run_to_stdout(run: RunContext) -> RunResult:
    """Rows to stdout as they are done: nothing to resume, rejects as JSON lines among the notes on stderr."""
    job = run.job
    kind = writers.resolve_output_format(job.output, job.to)
    totals = dict.fromkeys(TOTAL_KEYS, 0)
    with closing(run.load_encoder()) as encoder:
        job = apply_saved_truncation(job, encoder)
        ranges = resolve_ranges(run, encoder, None, None)
        space = build_vector_space(job, encoder, ranges)
        sink = writers.StdoutWriter(
            kind, build_layout(job, run.plan, encoder, ranges), {writers.SPACE_METADATA_KEY: space}
        )
        run.observer.on_start(run.plan, run.metrics)
        with closing(run.encode(run.read_chunks(), encoder)) as stream:  # type: ignore[type-var]
            for encoded in stream:
                with run.metrics.time_stage("write"):
                    sink.write(encoded)
                rejects = add_to_totals(totals, encoded)
                for line in rejects:
                    run.observer.notify("rejected " + line.decode().rstrip("\n"))
                run.on_chunk_written(encoded, totals["rejects"])
        sink.close()
        run.record_usage(encoder)
    if run.control.reason is not None:
        return replace(stopped_result(run, totals, "stdout holds only the rows so far"), usage=run.usage)
    run.check_row_conservation(totals)
    check_max_rejects(job.max_rejects, totals["rejects"], totals["read"])
    return replace(finished_result(totals, space), usage=run.usage)


def add_to_totals(totals: dict[str, int], encoded: EncodedChunk) -> list[bytes]:
    """Add a chunk to the totals; its rejects as JSON lines."""
    rejects = sorted((*encoded.chunk.rejects, *encoded.rejects), key=lambda reject: reject.line)
    totals["read"] += encoded.chunk.rows_read
    totals["rejects"] += len(rejects)
    totals["rows"] += encoded.embedded_rows
    totals["tokens"] += int(encoded.n_tokens.sum())
    totals["truncated"] += int(encoded.is_truncated.sum())
    totals["lost_tokens"] += encoded.lost_tokens
    return [checkpoint.reject_to_json_line(reject) for reject in rejects]

"""One process, one device: rows to an output on disk, all of them or one shard, or to stdout."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from embedcli import checkpoint, encoders
from embedcli.core.types import Chunk, Encoded, Outcome, Piece, Share
from embedcli.outputs import reuse, writers
from embedcli.outputs import target as output_target
from embedcli.outputs.schema import Layout
from embedcli.runners.completion import ended, remember, stopped
from embedcli.runners.context import TOTALS, Run, refuse_rejects
from embedcli.runners.job_identity import (
    layout_of,
    note_space,
    noted_space,
    ranges_of,
    shares_of,
    space_of,
    starts_of,
    tell_idle,
    with_saved_dim,
)


def run_local(this: Run, ledger: checkpoint.Ledger, done: output_target.Finished | None) -> Outcome:
    """Every missing chunk is encoded; then the output is published, if no other shard is missing."""
    job = this.job
    shares = shares_of(job, this.plan, folder=ledger.target.folder) if ledger.target.folder or job.shard else []
    pieces = missing_pieces(this, ledger, shares)
    if shares and not pieces:
        return publish_noted(this, ledger)
    with closing(this.load()) as encoder, tempfile.TemporaryDirectory(prefix="embedcli-") as folder:
        job = this.job = with_saved_dim(job, encoder)
        ranges = ranges_of(this, encoder, ledger.target.stage, done if job.update else None)
        space, layout = space_of(job, encoder, ranges), layout_of(job, this.plan, encoder, ranges)
        if shares:
            note_space(ledger.target.stage, layout, space)
        store = store_of(this, ledger, layout, done, folder)
        this.watch.begin(this.plan, this.meter)
        starts = starts_of(this, ledger.target.stage) if job.shard else None
        chunks: Iterator[Chunk] = this.chunks(pieces, starts)
        chunks = store.see(chunks) if store is not None else chunks
        with closing(this.encode(ledger.missing(chunks), encoder, store)) as stream:  # type: ignore[type-var]
            for encoded in stream:
                with this.meter.stage("write"):
                    ledger.add(encoded, layout, store.counts.pop(encoded.chunk.key) if store else None)
                    if shares and encoded.chunk.last:
                        ledger.seal_ready(layout, space)
                this.wrote(encoded, ledger.rejected)
        this.used(encoder)
        if this.control.reason is not None:
            return stopped(this, ledger.totals())
        if shares:
            ledger.seal_ready(layout, space)
        return publish(this, ledger, layout, space, store)


def missing_pieces(this: Run, ledger: checkpoint.Ledger, shares: list[Share]) -> list[Piece]:
    """The pieces that must be read: all, but for shares that are sealed already or other shards'."""
    job = this.job
    if not shares:
        return list(this.plan.pieces)
    mine = of_shard(shares, job.shard)
    tell_idle(this, mine, shares)
    left = ledger.begin_shares(mine, shares, unread=not (job.update or job.reuse), reread=rereading(this, ledger))
    known = {share.index for share in left}
    this.read += sum(record.read for index, record in ledger.sealed.items() if index not in known)
    return [piece for share in left for piece in share.pieces]


def rereading(this: Run, ledger: checkpoint.Ledger) -> Callable[[Share], Iterator[Chunk]] | None:
    """How a shard compares what it has sealed with inputs that look different now; None for a whole run.

    A whole run refuses a changed input, with ways out that shards have not: they do anew what differs.
    """
    if this.job.shard is None:
        return None
    apart = replace(this, read=0)
    return lambda share: apart.chunks(share.pieces, starts_of(apart, ledger.target.stage))


def of_shard(shares: list[Share], shard: tuple[int, int] | None) -> list[Share]:
    """The shares of shard k of n, k from 1: every n-th, so that shards are about equal whatever the order of inputs."""
    if shard is None:
        return shares
    number, of = shard
    return [share for share in shares if share.index % of == number - 1]


def publish(
    this: Run, ledger: checkpoint.Ledger, layout: Layout, space: dict[str, Any], store: reuse.Store | None
) -> Outcome:
    """Check that no row is missing, then give the output its name."""
    totals = ledger.totals()
    this.balance(totals)
    if this.job.shard is not None:
        return shard_ended(this, ledger, totals, space)
    refuse_rejects(this.job.max_rejects, totals["rejects"], this.read)
    changes = None
    if store is not None:
        changes = ledger.changes() | {"removed": store.removed()}
        store.close()
    with this.meter.stage("write"):
        ledger.close(layout, space)
    remember(ledger.target, this.plan)
    outcome = ended(totals, space, tuple(ledger.target.files()))
    return replace(
        outcome, resumed_rows=this.read - sum(ledger.added), damaged_parts=len(ledger.damaged), changes=changes
    )


def publish_noted(this: Run, ledger: checkpoint.Ledger) -> Outcome:
    """Publish what was encoded before, no model loaded; a shard that has nothing to do ends as it is."""
    if this.job.shard is not None and not ledger.sealed:
        return shard_ended(this, ledger, ledger.totals(), {})
    layout, space = noted_space(ledger.target.stage)
    return publish(this, ledger, layout, space, None)


def shard_ended(this: Run, ledger: checkpoint.Ledger, totals: dict[str, int], space: dict[str, Any]) -> Outcome:
    """What one shard has done; the caller merges if it was the last."""
    number, of = this.job.shard or (1, 1)
    outcome = ended(totals, space)
    return replace(
        outcome,
        reason=f"shard {number}/{of}: {outcome.reason}",
        resumed_rows=this.read - sum(ledger.added),
        damaged_parts=len(ledger.damaged),
    )


def store_of(
    this: Run, ledger: checkpoint.Ledger, layout: Layout, done: output_target.Finished | None, folder: str
) -> reuse.Store | None:
    """The vectors that --update and --reuse may take over; None without either."""
    job = this.job
    paths = [*([job.output] if job.update and done is not None else []), *job.reuse]
    return reuse.open_store(paths, ledger.job, layout, folder) if paths else None


# stdout


def run_to_stdout(this: Run) -> Outcome:
    """Rows to stdout as they are done: nothing to resume, rejects as JSON lines among the notes on stderr."""
    job = this.job = replace(this.job, chunk_rows=this.job.chunk_rows or encoders.chunk_rows(this.job, this.files))
    kind = writers.output_format(job.output, job.to)
    totals = dict.fromkeys(TOTALS, 0)
    with closing(this.load()) as encoder:
        job = this.job = with_saved_dim(job, encoder)
        ranges = ranges_of(this, encoder, None, None)
        space = space_of(job, encoder, ranges)
        sink = writers.Stream(kind, layout_of(job, this.plan, encoder, ranges), {writers.SPACE_KEY: space})
        this.watch.begin(this.plan, this.meter)
        with closing(this.encode(this.chunks(), encoder)) as stream:  # type: ignore[type-var]
            for encoded in stream:
                with this.meter.stage("write"):
                    sink.write(encoded)
                rejects = count(totals, encoded)
                for line in rejects:
                    this.watch.line("rejected " + line.decode().rstrip("\n"))
                this.wrote(encoded, totals["rejects"])
        sink.close()
        this.used(encoder)
    if this.control.reason is not None:
        return stopped(this, totals, "stdout holds only the rows so far")
    this.balance(totals)
    refuse_rejects(job.max_rejects, totals["rejects"], totals["read"])
    return ended(totals, space)


def count(totals: dict[str, int], encoded: Encoded) -> list[bytes]:
    """Add a chunk to the totals; its rejects as JSON lines."""
    rejects = sorted((*encoded.chunk.rejects, *encoded.rejects), key=lambda reject: reject.line)
    totals["read"] += encoded.chunk.read
    totals["rejects"] += len(rejects)
    totals["rows"] += encoded.embedded
    totals["tokens"] += int(encoded.n_tokens.sum())
    totals["truncated"] += int(encoded.truncated.sum())
    totals["lost_tokens"] += encoded.lost_tokens
    return [checkpoint.reject_line(reject) for reject in rejects]

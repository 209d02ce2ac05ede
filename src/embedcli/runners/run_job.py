"""Which runner a job gets, and everything that is the same for all of them: plan, lock, refusals, merge."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from embedcli import checkpoint, encoders, readers, storage
from embedcli.core.errors import OutputError, UsageError
from embedcli.core.job import Job
from embedcli.core.types import MANIFEST, Outcome, OutputFormat, Watch
from embedcli.outputs import target as output_target
from embedcli.outputs.schema import Layout
from embedcli.runners import coordinator, local
from embedcli.runners.completion import ended, finished_before, nothing_to_do
from embedcli.runners.context import Load, Run, refuse_rejects
from embedcli.runners.job_identity import chunk_rows, job_identity, noted_space, shares_of

if TYPE_CHECKING:
    from embedcli.pipeline.control import Control
    from embedcli.pipeline.metrics import Meter

# Shards that start together take turns with the first look at the stage, for so long at most.
BEGIN_SECONDS = 60.0


def run(job: Job, watch: Watch, control: Control, meter: Meter, load: Load | None = None) -> Outcome:
    """Encode the job's rows into its output; whatever happens, what is done stays done.

    `load` makes the encoder in the place of `encoders.load`: one that gives the vectors the job's model would give.
    Raises the EmbedcliError of the stage that failed, as itself.
    """
    job = with_runner(job)
    storage.check_writable(job.output)
    plan = readers.plan(job)
    for note in plan.columns.notes:
        watch.line(note)
    this = Run(job, plan, encoders.resolve(job), watch, control, meter, load)
    outcome = local.run_to_stdout(this) if job.output == "-" else run_to_disk(this)
    return replace(outcome, usage=this.usage)


def with_runner(job: Job) -> Job:
    """The job with the runner that its flags mean. UsageError for flags that do not go together."""
    several = "," in job.device or (job.workers or 1) > 1
    if job.runner == "local" and several:
        job = replace(job, runner="processes")
    alone = job.runner == "local" and job.shard is None
    if alone:
        return job
    what = "--shard" if job.runner == "local" else f"--runner {job.runner}"
    refused = {
        "--update": job.update, "--reuse": bool(job.reuse), "--overwrite": job.overwrite and job.shard is not None,
        "--limit": job.limit is not None and job.runner != "local", "an output of -": job.output == "-",
        "an input of -": "-" in job.inputs,
    }  # fmt: skip
    for flag, given in refused.items():
        if given:
            raise UsageError(f"{flag} does not go together with {what}", HINTS.get(flag, "leave one of them out"))
    return job


HINTS = {
    "--overwrite": "it would throw away what other shards have done: remove the output first, or name another one",
    "--limit": "use --max-seconds",
    "an output of -": "write to a file or a folder/",
    "an input of -": "write the rows to a file first: stdin can be read only once, and only by this process",
}


def run_to_disk(this: Run) -> Outcome:
    """The run between taking the output's lock and giving it back."""
    job = this.job
    target = output_target.target(job.output, job.to)
    number = None if job.shard is None else "_lock-{}-of-{}".format(*job.shard)
    ledger = checkpoint.Ledger(target, tolerant=job.update or job.shard is not None, lock=number or checkpoint.LOCK)
    ledger.acquire()
    try:
        outcome = run_with(this, ledger)
    finally:
        ledger.release()
    if job.shard is None or outcome.exit_code not in (0, 3) or not storage.exists(target.stage):
        return outcome
    return merged_if_last(this, ledger, outcome)


def run_with(this: Run, ledger: checkpoint.Ledger) -> Outcome:
    done = None if this.job.overwrite else output_target.finished(ledger.target)
    job = this.job = replace(this.job, chunk_rows=chunk_rows(this, ledger, done))
    identity = job_identity(job, this.plan, this.files, ledger.target)
    if not job.update and output_target.replacing(ledger.target, identity):
        done = None
    if done is not None:
        outcome = nothing_to_do(this, identity, done, ledger)
        if outcome is not None:
            return outcome
    if job.shard is None:
        ledger.begin(identity, overwrite=job.overwrite)
        if job.overwrite:
            storage.write_bytes(storage.join(ledger.target.stage, output_target.REPLACING), b"{}")
    else:
        begin_in_turn(ledger, lambda: ledger.begin(identity, overwrite=False))
    return local.run_local(this, ledger, done) if job.runner == "local" else coordinator.run_shared(this, ledger)


def begin_in_turn(ledger: checkpoint.Ledger, begin: Callable[[], None]) -> None:
    """Only one shard at a time looks whether the stage is of this job, and clears it if it is of none."""
    patience = time.monotonic() + BEGIN_SECONDS
    while True:
        try:
            unlock = storage.lock(storage.join(ledger.target.stage, "_begin"), ledger.target.output)
        except OutputError:
            if time.monotonic() > patience:
                raise
            time.sleep(0.1)
        else:
            break
    try:
        begin()
    finally:
        unlock()


# Merging shards


def merged_if_last(this: Run, shard: checkpoint.Ledger, outcome: Outcome) -> Outcome:
    """The shard's own end, or, when no share is missing any more, that of the whole output."""
    count = len(shares_of(this.job, this.plan, folder=shard.target.folder))
    missing = len(set(range(count)) - checkpoint.sealed_shares(shard.target.stage))
    if missing:
        what_next = f"when all shards are done, the last one merges; or run: embedcli merge {shard.target.output}"
        return replace(outcome, reason=f"{outcome.reason}; {missing} of {count} shares are missing: {what_next}")
    try:
        whole = merge(this.job.output, this.job.to, this.job.max_rejects)
    except OutputError as error:
        if "another embedcli" in error.message:
            last = f"another shard is at work and merges when it ends; or run: embedcli merge {shard.target.output}"
            return replace(outcome, reason=f"{outcome.reason}; {last}")
        raise
    return replace(whole, resumed_rows=outcome.resumed_rows, damaged_parts=outcome.damaged_parts)


def merge(output: str, to: OutputFormat | None = None, max_rejects: str | None = None) -> Outcome:
    """Publish an output whose shards are all done. OutputError names missing shares, or a changed input."""
    target = output_target.begun(output, to)
    if not storage.exists(target.stage):
        return merged_before(target)
    ledger = checkpoint.Ledger(target)
    ledger.acquire()
    try:
        if published(ledger):
            ledger.remove_stage()
            return merged_before(target)
        totals, layout, space = gathered(ledger)
        refuse_rejects(max_rejects, totals["rejects"], totals["read"])
        ledger.close(layout, space)
    finally:
        ledger.release()
    return ended(totals, space, tuple(target.files()))


def published(ledger: checkpoint.Ledger) -> bool:
    """Whether the output of a stage is there, so that only its clearing up was cut short."""
    done = output_target.finished(ledger.target)
    begun = output_target.json_in(storage.join(ledger.target.stage, MANIFEST))
    return done is not None and begun in ({}, done.job.get("job"))


def merged_before(target: output_target.Target) -> Outcome:
    """The outcome where no stage is left: another has merged it. UsageError if there is no output either."""
    done = output_target.finished(target)
    if done is None:
        raise UsageError(f"{storage.where(target.output)}: nothing to merge", "run encode with --shard first")
    return finished_before(done)


def gathered(ledger: checkpoint.Ledger) -> tuple[dict[str, int], Layout, dict[str, Any]]:
    """The totals of all shares, how their rows are laid out, and their space. OutputError if shares are missing."""
    where = storage.where(ledger.target.output)
    layout, space = noted_space(ledger.target.stage)
    missing, count = ledger.gather()
    if not count:
        raise OutputError(
            f"{storage.where(ledger.target.stage)} holds no finished shares", "run encode with --shard first"
        )
    if missing:
        some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise OutputError(
            f"{where}: {len(missing)} of {count} shares are missing ({some})",
            "run `encode --shard K/N` for them first: share I is of shard K = I % N + 1",
        )
    totals = ledger.totals()
    if totals["read"] != totals["rows"] + totals["rejects"]:
        raise OutputError(f"{where}: rows are missing from the shares", "this should never happen: please report it")
    return totals, layout, space

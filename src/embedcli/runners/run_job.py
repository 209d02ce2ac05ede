"""Which runner a job gets, and everything that is the same for all of them: plan, lock, refusals, merge."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from embedcli import checkpoint, encoders, readers, storage
from embedcli.core.errors import OutputError, OutputLocked, UsageError
from embedcli.core.job import Job
from embedcli.core.types import MANIFEST_FILE, OutputFormat, RunObserver, RunResult
from embedcli.outputs import target as output_target
from embedcli.outputs.schema import OutputLayout
from embedcli.runners import coordinator, local
from embedcli.runners.completion import already_finished_result, check_finished_output, finished_result
from embedcli.runners.context import EncoderLoader, RunContext, check_max_rejects
from embedcli.runners.job_identity import build_job_identity, plan_partitions, read_vector_space, resolve_chunk_rows

if TYPE_CHECKING:
    from embedcli.pipeline.control import RunControl
    from embedcli.pipeline.metrics import MetricsCollector

# Shards that start together take turns with the first look at the stage, for so long at most.
BEGIN_TIMEOUT_SECONDS = 60.0


def execute_job(
    job: Job, watch: RunObserver, control: RunControl, meter: MetricsCollector, load: EncoderLoader | None = None
) -> RunResult:
    """Encode the job's rows into its output; whatever happens, what is done stays done.

    `load` makes the encoder in the place of `encoders.load`: one that gives the vectors the job's model would give.
    Raises the EmbedcliError of the stage that failed, as itself.
    """
    job = resolve_runner(job)
    storage.check_writable(job.output)
    plan = readers.plan_inputs(job)
    for note in plan.columns.notes:
        watch.notify(note)
    files = encoders.resolve_model_files(job)
    if job.output == "-":
        job = replace(job, chunk_rows=job.chunk_rows or encoders.default_chunk_rows(job, files))
        return local.run_to_stdout(RunContext(job, plan, files, watch, control, meter, load))
    return run_locked(RunContext(job, plan, files, watch, control, meter, load))


def resolve_runner(job: Job) -> Job:
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
            raise UsageError(
                f"{flag} does not go together with {what}", INCOMPATIBLE_FLAG_HINTS.get(flag, "leave one of them out")
            )
    return job


INCOMPATIBLE_FLAG_HINTS = {
    "--overwrite": "it would throw away what other shards have done: remove the output first, or name another one",
    "--limit": "use --max-seconds",
    "an output of -": "write to a file or a folder/",
    "an input of -": "write the rows to a file first: stdin can be read only once, and only by this process",
}


def run_locked(run: RunContext) -> RunResult:
    """The run between taking the output's lock and giving it back."""
    job = run.job
    target = output_target.resolve_target(job.output, job.to)
    number = None if job.shard is None else "_lock-{}-of-{}".format(*job.shard)
    ledger = checkpoint.Ledger(
        target, allow_changed_input=job.update or job.shard is not None, lock=number or checkpoint.LOCK_FILE
    )
    ledger.acquire()
    try:
        done = None if job.overwrite else output_target.read_finished_output(target)
        run = replace(run, job=replace(job, chunk_rows=resolve_chunk_rows(run, ledger, done)))
        outcome = replace(run_with_ledger(run, ledger, done), usage=run.usage)
    finally:
        ledger.release()
    if job.shard is None or outcome.exit_code not in (0, 3) or not storage.exists(target.staging_folder):
        return outcome
    return merge_if_last_shard(run, ledger, outcome)


def run_with_ledger(run: RunContext, ledger: checkpoint.Ledger, done: output_target.FinishedOutput | None) -> RunResult:
    job = run.job
    identity = build_job_identity(job, run.plan, run.model_files, ledger.target)
    if not job.update and output_target.is_replacement_in_progress(ledger.target, identity):
        done = None
    if done is not None:
        outcome = check_finished_output(run, identity, done, ledger)
        if outcome is not None:
            return outcome
    if job.shard is None:
        ledger.begin(identity, overwrite=job.overwrite)
        if job.overwrite:
            storage.write_bytes(storage.join(ledger.target.staging_folder, output_target.REPLACING_FILE), b"{}")
    else:
        begin_exclusively(ledger, lambda: ledger.begin(identity, overwrite=False))
    return local.run_local(run, ledger, done) if job.runner == "local" else coordinator.run_with_workers(run, ledger)


def begin_exclusively(ledger: checkpoint.Ledger, begin: Callable[[], None]) -> None:
    """Only one shard at a time looks whether the stage is of this job, and clears it if it is of none."""
    patience = time.monotonic() + BEGIN_TIMEOUT_SECONDS
    while True:
        try:
            unlock = storage.acquire_lock(storage.join(ledger.target.staging_folder, "_begin"), ledger.target.output)
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


def merge_if_last_shard(run: RunContext, shard: checkpoint.Ledger, outcome: RunResult) -> RunResult:
    """The shard's own end, or, when no share is missing any more, that of the whole output."""
    count = len(plan_partitions(run.job, run.plan, folder=shard.target.is_folder))
    missing = len(set(range(count)) - checkpoint.list_completed_partitions(shard.target.staging_folder))
    if missing:
        what_next = f"when all shards are done, the last one merges; or run: embedcli merge {shard.target.output}"
        return replace(outcome, reason=f"{outcome.reason}; {missing} of {count} shares are missing: {what_next}")
    try:
        whole = merge_shards(run.job.output, run.job.to, run.job.max_rejects)
    except OutputLocked:
        last = f"another shard is at work and merges when it ends; or run: embedcli merge {shard.target.output}"
        return replace(outcome, reason=f"{outcome.reason}; {last}")
    return replace(whole, resumed_rows=outcome.resumed_rows, damaged_parts=outcome.damaged_parts, usage=outcome.usage)


def merge_shards(output: str, to: OutputFormat | None = None, max_rejects: str | None = None) -> RunResult:
    """Publish an output whose shards are all done. OutputError names missing shares, or a changed input."""
    target = output_target.find_existing_target(output, to)
    if not storage.exists(target.staging_folder):
        return find_merged_result(target)
    ledger = checkpoint.Ledger(target)
    ledger.acquire()
    try:
        if is_published(ledger):
            ledger.staging.remove()
            return find_merged_result(target)
        totals, layout, space = load_partition_records(ledger)
        check_max_rejects(max_rejects, totals["rejects"], totals["read"])
        ledger.publish(layout, space)
    finally:
        ledger.release()
    return finished_result(totals, space, tuple(target.list_files()))


def is_published(ledger: checkpoint.Ledger) -> bool:
    """Whether the output of a stage is there, so that only its clearing up was cut short."""
    done = output_target.read_finished_output(ledger.target)
    begun = output_target.read_json_or_empty(storage.join(ledger.target.staging_folder, MANIFEST_FILE))
    return done is not None and begun in ({}, done.job_manifest.get("job"))


def find_merged_result(target: output_target.OutputTarget) -> RunResult:
    """The outcome where no stage is left: another has merged it. UsageError if there is no output either."""
    done = output_target.read_finished_output(target)
    if done is None:
        raise UsageError(f"{storage.format_location(target.output)}: nothing to merge", "run encode with --shard first")
    return already_finished_result(done)


def load_partition_records(ledger: checkpoint.Ledger) -> tuple[dict[str, int], OutputLayout, dict[str, Any]]:
    """The totals of all shares, how their rows are laid out, and their space. OutputError if shares are missing."""
    where = storage.format_location(ledger.target.output)
    layout, space = read_vector_space(ledger.target.staging_folder)
    missing, count = ledger.load_completed_partitions()
    if not count:
        raise OutputError(
            f"{storage.format_location(ledger.target.staging_folder)} holds no finished shares",
            "run encode with --shard first",
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

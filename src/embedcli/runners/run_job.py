"""Run a job from beginning to end: plan the input, lock the output, resume, encode, publish."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from embedcli import checkpoint, encoders, readers, storage
from embedcli.core.counts import format_count
from embedcli.core.errors import EncodingStoppedError, ModelError, OutputLocked, UsageError
from embedcli.core.job import CSV_DEFAULTS, Job
from embedcli.core.types import RunObserver, RunResult
from embedcli.outputs import job_changes
from embedcli.outputs import target as output_target
from embedcli.outputs.target import FinishedOutput
from embedcli.runners.changed_inputs import with_remote_states
from embedcli.runners.completion import check_finished_output
from embedcli.runners.context import EncoderLoader, RunContext, describe_lost_chunk
from embedcli.runners.job_identity import build_job_identity, resolve_chunk_rows
from embedcli.runners.local import encode_locally

if TYPE_CHECKING:
    from embedcli.pipeline.control import RunControl
    from embedcli.pipeline.metrics import MetricsCollector

# How long a shard waits for another one that is beginning the same job.
BEGIN_TIMEOUT_SECONDS = 60.0
# What an unfinished --update may have read differently: these decide the rows, not their vectors.
ROW_KEYS = {
    "inputs", "format", "encoding", *CSV_DEFAULTS, "text_column", "id_column", "id_type", "template", "keep",
    "chunk_rows", "limit",
}  # fmt: skip
INCOMPATIBLE_FLAG_HINTS = {
    "--overwrite": "remove the output first or choose another one: it would discard the work of other shards",
    "--stop-after": "use --max-seconds",
    "an output of -": "write to a file or a folder/",
    "an input of -": "write the rows to a file first: stdin can be read only once, and only by this process",
}


def execute_job(
    job: Job,
    observer: RunObserver,
    control: RunControl,
    metrics: MetricsCollector,
    load_encoder: EncoderLoader | None = None,
) -> RunResult:
    """Encode the job's rows into its output. Finished chunks are kept whatever happens.

    Args:
        job: The job.
        observer: Receives messages and progress.
        control: Tells when to stop.
        metrics: Counts and times the run.
        load_encoder: Loads the encoder in place of `encoders.load_encoder`. It must return one with the vectors of the
            job's model.

    Raises:
        EmbedcliError: The error of the stage that failed.
    """
    job = resolve_runner(job)
    storage.check_writable(job.output)
    output_target.check_parent_folder(job.output, job.to)
    observer.on_phase("reading the inputs")
    plan = readers.plan_inputs(job)
    for note in plan.columns.notes:
        observer.notify(note)
    plan = with_remote_states(plan)
    observer.on_phase(f"reading the model {job.model}")
    model_files = encoders.resolve_model_files(job, observer)
    run = RunContext(job, plan, model_files, observer, control, metrics, load_encoder)
    if job.runner == "processes":
        from embedcli.runners.worker_advice import advise_on_workers

        advise_on_workers(job, model_files, observer)
    if job.output == "-":
        from embedcli.runners.stdout import encode_to_stdout

        run = run.with_chunk_rows(job.chunk_rows or encoders.default_chunk_rows(job, model_files))
        note_whole_chunks(run)
        return encode_to_stdout(run)
    return encode_to_output(run)


def resolve_runner(job: Job) -> Job:
    """Return the job with the runner that its flags imply.

    Raises:
        UsageError: The flags exclude each other.
    """
    if job.runner == "local" and ("," in job.device or (job.workers or 1) > 1):
        job = replace(job, runner="processes")
    if job.runner == "local" and job.shard is None:
        return job
    distribution, hint = describe_distribution(job)
    incompatible = {
        "--update": job.update,
        "--reuse": bool(job.reuse),
        "--overwrite": job.overwrite and job.shard is not None,
        "--stop-after": job.stop_after is not None and job.runner != "local",
        "an output of -": job.output == "-",
        "an input of -": "-" in job.inputs,
    }
    for flag, is_given in incompatible.items():
        if is_given:
            raise UsageError(
                f"{flag} cannot be used together with {distribution}",
                INCOMPATIBLE_FLAG_HINTS.get(flag, hint),
            )
    return job


def describe_distribution(job: Job) -> tuple[str, str]:
    """Return the option that divides a job among several processes, and a hint where it cannot be used."""
    if job.runner == "processes" and (job.workers or 1) > 1:
        return f"--workers {job.workers}", "leave --workers out: one process uses all processor cores"
    if job.runner == "processes" and "," in job.device:
        return f"--device {job.device}", "name one device"
    return "--shard" if job.runner == "local" else f"--runner {job.runner}", "leave one of them out"


def note_whole_chunks(run: RunContext) -> None:
    """Tell the user if --stop-after is not the end of a chunk."""
    stop_after, chunk_rows = run.job.stop_after, run.job.chunk_rows or 1
    if stop_after is not None and stop_after % chunk_rows:
        rows = format_count(math.ceil(stop_after / chunk_rows) * chunk_rows, "row")
        run.observer.notify(
            f"--stop-after {stop_after} stops at the end of a chunk, after {rows}; --chunk-rows makes chunks smaller"
        )


def encode_to_output(run: RunContext) -> RunResult:
    """Lock the output and encode into it; the last shard to finish then merges all of them."""
    job = run.job
    target = output_target.resolve_target(job.output, job.to)
    lock = checkpoint.LOCK_FILE if job.shard is None else "_lock-{}-of-{}".format(*job.shard)
    allow_changed_input = job.update or job.shard is not None
    ledger = checkpoint.Ledger(target, allow_changed_input=allow_changed_input, lock=lock)
    ledger.acquire()
    try:
        finished = None if job.overwrite else output_target.read_finished_output(target)
        run = run.with_chunk_rows(resolve_chunk_rows(job, run.model_files, ledger, finished))
        note_whole_chunks(run)
        result = replace(resume_and_encode(run, ledger, finished), usage=run.usage)
    finally:
        ledger.release()
    if job.shard is not None:
        run.observer.on_phase("merging the shards")
    if job.shard is None or result.exit_code not in (0, 3) or not storage.exists(target.staging_folder):
        return result
    from embedcli.runners.merge import merge_if_last_shard

    return merge_if_last_shard(run, target, result)


def resume_and_encode(run: RunContext, ledger: checkpoint.Ledger, finished: FinishedOutput | None) -> RunResult:
    """Begin or resume the job in the ledger and encode what is missing, unless the output is up to date."""
    job = run.job
    identity = build_job_identity(job, run.plan, run.model_files, ledger.target)
    if not job.update and output_target.is_replacement_in_progress(ledger.target, identity):
        finished = None
    if finished is not None:
        result = check_finished_output(run, identity, finished, ledger)
        if result is not None:
            return result
    if job.shard is None:
        starts_again = finished is not None and is_update_of_other_rows(run, ledger, identity)
        ledger.begin(identity, overwrite=job.overwrite or starts_again)
        if job.overwrite:
            storage.write_bytes(ledger.staging.join(output_target.REPLACING_FILE), b"{}")
    else:
        with begin_lock(ledger):
            ledger.begin(identity, overwrite=False)
    try:
        if job.runner == "local":
            return encode_locally(run, ledger, finished)
        from embedcli.runners.coordinator import encode_with_workers

        return encode_with_workers(run, ledger)
    except EncodingStoppedError:  # before the first row; afterwards the pipeline ends without an error
        if not run.control.stop_if_time_is_over():
            raise
        return run.stopped_result(ledger.totals(), ledger.rows_written)
    except ModelError as error:
        add_kept_rows_to_hint(error, run, ledger)
        raise


def add_kept_rows_to_hint(error: ModelError, run: RunContext, ledger: checkpoint.Ledger) -> None:
    """Say how many rows are finished, after which the same command goes on; workers may have finished more."""
    rows, hints = ledger.totals()["rows"], [error.hint] if error.hint else []
    if run.job.runner != "local":
        return
    if rows:
        hints.append(f"the same command goes on after {format_count(rows, 'finished row')}")
    elif run.metrics.progress.embedded_rows:
        hints.append(describe_lost_chunk(run.job.chunk_rows))
    error.hint = "; ".join(hints)


def is_update_of_other_rows(run: RunContext, ledger: checkpoint.Ledger, identity: dict[str, Any]) -> bool:
    """Whether an unfinished --update read other rows than this one, so that it is begun again; tells the user."""
    begun = ledger.staging.read_manifest()
    changed = job_changes.differing_keys(begun, json.loads(json.dumps(identity))) if begun else []
    if not run.job.update or not changed or not ROW_KEYS.issuperset(changed):
        return False
    run.observer.notify(
        f"the unfinished update of {storage.format_location(run.job.output)} is begun again, because "
        f"{', '.join(changed)} changed; the vectors of the finished output are kept"
    )
    return True


@contextmanager
def begin_lock(ledger: checkpoint.Ledger) -> Iterator[None]:
    """Let one shard at a time begin the job in the staging folder: it may have to discard the work of another job."""
    deadline = time.monotonic() + BEGIN_TIMEOUT_SECONDS
    while True:
        try:
            unlock = storage.acquire_lock(ledger.staging.join("_begin"), ledger.target.output)
        except OutputLocked:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            break
    try:
        yield
    finally:
        unlock()

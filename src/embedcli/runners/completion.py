"""How runs end: published, stopped, or with nothing to do."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedcli import checkpoint, storage
from embedcli.core.errors import ResumeError
from embedcli.core.types import InputPlan, RunResult
from embedcli.outputs import target as output_target
from embedcli.runners.context import TOTAL_KEYS, RunContext
from embedcli.runners.job_identity import input_paths

EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130


def finished_result(totals: dict[str, int], space: dict[str, Any], files: tuple[str, ...] = ()) -> RunResult:
    rejects = totals["rejects"]
    reason = f"{rejects} rows were rejected" if rejects else "all rows embedded"
    return RunResult(3 if rejects else 0, reason, totals, space, files)


def stopped_result(run: RunContext, totals: dict[str, int], what_next: str = "") -> RunResult:
    # With the flag, what is done would be forgotten.
    again = "run the same command without --overwrite" if run.job.overwrite else "run the same command again"
    what_next = what_next or f"{again} to go on"
    code = EXIT_INTERRUPTED if run.control.reason == "SIGINT" else EXIT_STOPPED
    return RunResult(code, f"stopped by {run.control.reason}: {what_next}", totals)


def check_finished_output(
    run: RunContext, identity: dict[str, Any], done: output_target.FinishedOutput, ledger: checkpoint.Ledger
) -> RunResult | None:
    """The output is finished, of this very job and input: leave it as it is. None if --update must look closer.

    Raises ResumeError if the job or the input has changed and the user did not say --update.
    """
    target = ledger.target
    if run.job.update and "-" in identity["inputs"]:
        return None  # stdin can be read only once
    try:
        output_target.check_job_unchanged(done.job_manifest.get("job", {}), identity, target.output, target)
        check_input_unchanged(run, done, ledger)
    except ResumeError:
        if run.job.update:
            run.rows_read = 0
            return None
        raise
    ledger.staging.remove()
    return replace(already_finished_result(done), resumed_rows=int(done.job_manifest["read"]))


def already_finished_result(done: output_target.FinishedOutput) -> RunResult:
    """The end of a run that finds its output finished: the exit code is that of the run that finished it."""
    outcome = finished_result({key: int(done.job_manifest[key]) for key in TOTAL_KEYS}, dict(done.vector_space))
    rejected = f"; {outcome.reason}" if outcome.exit_code else ""
    return replace(outcome, reason=f"nothing to do: the output is finished{rejected}")


def check_input_unchanged(run: RunContext, done: output_target.FinishedOutput, ledger: checkpoint.Ledger) -> None:
    """ResumeError unless the inputs still hold what the output was made from; read anew only if they look other."""
    if matches_finished_fingerprint(ledger.target, run.plan):
        return
    now = checkpoint.combine_hashes([checkpoint.hash_chunk(chunk) for chunk in run.read_chunks()])
    if now != done.source_hash:
        raise output_target.changed_input_error(
            ", ".join(input_paths(run.plan)[:3]), done.source_hash, now, ledger.target
        )
    save_finished_fingerprint(ledger.target, run.plan)


# What finished outputs looked like: only a shortcut, the content hash decides


def save_finished_fingerprint(target: output_target.OutputTarget, plan: InputPlan) -> None:
    """Note size and time of inputs and output, so that the next run of a finished job need not read them.

    The inputs' are those from before they were read: what came after is not in the output, and must show.
    """
    stamp = output_target.fingerprint_files(target, input_paths(plan), plan.file_stats)
    if stamp is not None:
        note = _note(target)
        with suppress(OSError):  # a torn note does not match and costs a reading of the input
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps(stamp), "utf-8")


def matches_finished_fingerprint(target: output_target.OutputTarget, plan: InputPlan) -> bool:
    """Whether inputs and output look as they did when this output was last found finished."""
    try:
        return bool(
            json.loads(_note(target).read_bytes())
            == output_target.fingerprint_files(target, input_paths(plan), plan.file_stats)
        )
    except (OSError, ValueError):
        return False


def _note(target: output_target.OutputTarget) -> Path:
    from embedcli.core.cache_dir import user_cache_folder

    place = os.path.realpath(target.output) if storage.is_local(target.output) else target.output
    return user_cache_folder() / "finished" / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"

"""Results of finished runs, and the check whether a finished output still matches the job and its input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from embedcli import checkpoint
from embedcli.core.errors import ResumeError
from embedcli.core.types import RejectSummary, RunResult
from embedcli.outputs import target as output_target
from embedcli.outputs.duplicate_ids import count_duplicate_ids
from embedcli.outputs.job_changes import check_job_unchanged, is_update_possible
from embedcli.runners.context import TOTAL_KEYS, RunContext, describe_rejected_rows
from embedcli.runners.finished_jobs import matches_finished_fingerprint, remember_finished_job
from embedcli.runners.job_identity import input_paths


def finished_result(totals: dict[str, int], vector_space: dict[str, Any], source: str = "the input") -> RunResult:
    """Return the result of a run that has read all rows.

    Args:
        totals: The counts of `TOTAL_KEYS`.
        vector_space: The vector space metadata.
        source: What has been read.
    """
    rejects = totals["rejects"]
    if rejects:
        reason = f"{describe_rejected_rows(rejects)} rejected"
    else:
        reason = "all rows embedded" if totals["read"] else f"{source} has no rows"
    return RunResult(3 if rejects else 0, reason, totals, vector_space)


def published_result(
    totals: dict[str, int], vector_space: dict[str, Any], target: output_target.OutputTarget
) -> RunResult:
    """Return the result of a run that has published its output, with the rejects of all runs of the job."""
    result = finished_result(totals, vector_space)
    return replace(
        result,
        files=tuple(target.list_files()),
        reject_summary=summarize_rejects(totals, target),
        duplicate_ids=count_duplicate_ids(target, totals["rows"]),
    )


def summarize_rejects(totals: dict[str, int], target: output_target.OutputTarget) -> RejectSummary | None:
    """Count the rejects of a finished output; None without any."""
    return checkpoint.summarize_rejects_file(target) if totals["rejects"] else None


def already_finished_result(finished: output_target.FinishedOutput, target: output_target.OutputTarget) -> RunResult:
    """Return the result of a run whose output was finished before, with the exit code of the run that finished it."""
    totals = {key: int(finished.job_manifest[key]) for key in TOTAL_KEYS}
    result = finished_result(totals, dict(finished.vector_space))
    return nothing_to_do(replace(result, reject_summary=summarize_rejects(totals, target)))


def nothing_to_do(result: RunResult) -> RunResult:
    """Return the result of a run that finds what another run has published with `result`."""
    rejected = f"; {result.reason}" if result.exit_code else ""
    reason = f"nothing to do: the output is finished{rejected}"
    return RunResult(result.exit_code, reason, result.totals, result.vector_space, reject_summary=result.reject_summary)


def check_finished_output(
    run: RunContext, identity: dict[str, Any], finished: output_target.FinishedOutput, ledger: checkpoint.Ledger
) -> RunResult | None:
    """Compare a finished output with the job and its input.

    Args:
        run: The running job.
        identity: The job's identity.
        finished: The finished output.
        ledger: The output's ledger; its staging folder is removed if there is nothing to do.

    Returns:
        The result if the output is up to date; None if --update has to look at the rows.

    Raises:
        ResumeError: The job or the input has changed, and the user did not ask for --update.
    """
    target = ledger.target
    if run.job.update and "-" in identity["inputs"]:
        return None  # stdin can be read only once
    try:
        check_job_unchanged(finished.job_manifest.get("job", {}), identity, "made", target)
        check_input_unchanged(run, finished, ledger)
    except ResumeError:
        if run.job.update:
            run.rows_read = 0
            return None
        raise
    result = replace(already_finished_result(finished, target), resumed_rows=int(finished.job_manifest["read"]))
    remember_finished_job(run.job, run.plan, run.model_files, target, result)
    ledger.staging.remove()
    return result


def check_input_unchanged(run: RunContext, finished: output_target.FinishedOutput, ledger: checkpoint.Ledger) -> None:
    """Check that the inputs hold the rows that a finished output was made from.

    They are only read if their size or modification time has changed since the output was last found finished.

    Raises:
        ResumeError: The rows have changed.
    """
    if matches_finished_fingerprint(ledger.target, run.plan):
        return
    run.observer.on_phase("comparing the inputs with the finished output")
    source_hash = checkpoint.combine_hashes([checkpoint.hash_chunk(chunk) for chunk in run.read_chunks()])
    if source_hash != finished.source_hash:
        paths = ", ".join(input_paths(run.plan)[:3])
        made_by = finished.job_manifest.get("job", {})
        raise output_target.changed_input_error(
            paths,
            finished.source_hash,
            source_hash,
            ledger.target,
            can_update=is_update_possible(made_by, made_by, ledger.target),
        )

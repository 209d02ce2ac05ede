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
from embedcli.core.types import Outcome, Plan
from embedcli.outputs import target as output_target
from embedcli.runners.context import TOTALS, Run
from embedcli.runners.job_identity import inputs_of

STOPPED = 75
INTERRUPTED = 130


def ended(totals: dict[str, int], space: dict[str, Any], files: tuple[str, ...] = ()) -> Outcome:
    rejects = totals["rejects"]
    reason = f"{rejects} rows were rejected" if rejects else "all rows embedded"
    return Outcome(3 if rejects else 0, reason, totals, space, files)


def stopped(this: Run, totals: dict[str, int], what_next: str = "") -> Outcome:
    # With the flag, what is done would be forgotten.
    again = "run the same command without --overwrite" if this.job.overwrite else "run the same command again"
    what_next = what_next or f"{again} to go on"
    code = INTERRUPTED if this.control.reason == "SIGINT" else STOPPED
    return Outcome(code, f"stopped by {this.control.reason}: {what_next}", totals)


def nothing_to_do(
    this: Run, identity: dict[str, Any], done: output_target.Finished, ledger: checkpoint.Ledger
) -> Outcome | None:
    """The output is finished, of this very job and input: leave it as it is. None if --update must look closer.

    Raises ResumeError if the job or the input has changed and the user did not say --update.
    """
    target = ledger.target
    if this.job.update and "-" in identity["inputs"]:
        return None  # stdin can be read only once
    try:
        output_target.refuse_changed(done.job.get("job", {}), identity, target.output, target)
        refuse_changed_input(this, done, ledger)
    except ResumeError:
        if this.job.update:
            this.read = 0
            return None
        raise
    ledger.remove_stage()
    return replace(finished_before(done), resumed_rows=int(done.job["read"]))


def finished_before(done: output_target.Finished) -> Outcome:
    """The end of a run that finds its output finished: the exit code is that of the run that finished it."""
    outcome = ended({key: int(done.job[key]) for key in TOTALS}, dict(done.space))
    rejected = f"; {outcome.reason}" if outcome.exit_code else ""
    return replace(outcome, reason=f"nothing to do: the output is finished{rejected}")


def refuse_changed_input(this: Run, done: output_target.Finished, ledger: checkpoint.Ledger) -> None:
    """ResumeError unless the inputs still hold what the output was made from; read anew only if they look other."""
    if seen_before(ledger.target, this.plan):
        return
    now = checkpoint.joined_hash([checkpoint.source_hash(chunk) for chunk in this.chunks()])
    if now != done.source_hash:
        raise output_target.changed_input(", ".join(inputs_of(this.plan)[:3]), done.source_hash, now, ledger.target)
    remember(ledger.target, this.plan)


# What finished outputs looked like: only a shortcut, the content hash decides


def remember(target: output_target.Target, plan: Plan) -> None:
    """Note size and time of inputs and output, so that the next run of a finished job need not read them.

    The inputs' are those from before they were read: what came after is not in the output, and must show.
    """
    stamp = output_target.stamp(target, inputs_of(plan), plan.seen)
    if stamp is not None:
        note = _note(target)
        with suppress(OSError):  # a torn note does not match and costs a reading of the input
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps(stamp), "utf-8")


def seen_before(target: output_target.Target, plan: Plan) -> bool:
    """Whether inputs and output look as they did when this output was last found finished."""
    try:
        return bool(json.loads(_note(target).read_bytes()) == output_target.stamp(target, inputs_of(plan), plan.seen))
    except (OSError, ValueError):
        return False


def _note(target: output_target.Target) -> Path:
    from embedcli.core.cache_dir import cache_home

    place = os.path.realpath(target.output) if storage.is_local(target.output) else target.output
    return cache_home() / "finished" / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"

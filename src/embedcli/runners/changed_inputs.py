"""Notice inputs that change while a run reads them, before anything is published."""

from __future__ import annotations

from dataclasses import replace

from embedcli import checkpoint, storage
from embedcli.checkpoint import Ledger
from embedcli.core.errors import OutputError
from embedcli.core.types import InputPlan
from embedcli.outputs.target import OutputTarget
from embedcli.runners.context import RunContext
from embedcli.runners.job_identity import input_paths

# What changes whenever the content does. `ctime_ns` and `inode` also change when it does not: the content decides.
CONTENT_KEYS = ("size", "mtime_ns", "version")


def with_remote_states(plan: InputPlan) -> InputPlan:
    """Return the plan with the states of its inputs in object stores, which planning does not ask for."""
    remote = [path for path in input_paths(plan) if path not in plan.file_stats and not storage.is_local(path)]
    return replace(plan, file_stats={**plan.file_stats, **storage.file_states(remote)}) if remote else plan


def check_inputs_unchanged(run: RunContext, ledger: Ledger) -> None:
    """Check at the end of a whole run that its inputs are what they were at its beginning.

    Files with the same size and modification time but another inode or time of change are read again and compared with
    what was encoded. A shard leaves that to its records, which the merge compares.

    Raises:
        OutputError: An input has changed; nothing was published.
    """
    if run.job.shard is not None:
        return
    before = {path: state for path, state in run.plan.file_stats.items() if state}
    now = storage.file_states(list(before))
    touched = [path for path, state in before.items() if state != now[path]]
    for path in touched:
        if any(before[path].get(key) != now[path].get(key) for key in CONTENT_KEYS):
            raise changed_while_reading_error(path, ledger.target)
    if touched and not has_same_content(run, ledger):
        raise changed_while_reading_error(touched[0], ledger.target)


def has_same_content(run: RunContext, ledger: Ledger) -> bool:
    """Whether the inputs, read again, are what the part files were encoded from."""
    if not all(run.plan.file_stats.get(path) for path in input_paths(run.plan)):
        return False  # a stream can be read only once
    hashes = [checkpoint.hash_chunk(chunk) for chunk in replace(run, rows_read=0).read_chunks()]
    return hashes == [part.source_hash for part in ledger.all_parts()]


def changed_while_reading_error(path: str, target: OutputTarget) -> OutputError:
    # JSONL outputs cannot be updated.
    overwrite = "run the same command again with --overwrite once nothing writes to the input"
    update = "run the same command again with --update once nothing writes to the input"
    return OutputError(
        f"{storage.format_location(path)} has changed while it was read; nothing was published, and the encoded rows "
        f"are kept in {storage.format_location(target.staging_folder)}",
        overwrite if target.format == "jsonl" else update,
    )

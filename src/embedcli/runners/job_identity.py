"""The identity of a job: everything that decides the rows and vectors of its output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedcli import checkpoint, encoders
from embedcli.core.job import Job
from embedcli.core.types import InputPlan
from embedcli.outputs import target as output_target

if TYPE_CHECKING:
    from embedcli.models.files import ModelFiles


def resolve_chunk_rows(
    job: Job, files: ModelFiles | None, ledger: checkpoint.Ledger, finished: output_target.FinishedOutput | None
) -> int:
    """Return the user's choice of rows per chunk, else that of the interrupted or finished run, else the encoder's."""
    if job.chunk_rows:
        return job.chunk_rows
    recorded = ledger.staging.read_manifest().get("chunk_rows")
    if not recorded and finished is not None:
        recorded = finished.job_manifest.get("job", {}).get("chunk_rows")
    return (None if job.overwrite else recorded) or encoders.default_chunk_rows(job, files)


def build_job_identity(
    job: Job, plan: InputPlan, files: ModelFiles | None, target: output_target.OutputTarget
) -> dict[str, Any]:
    """Return everything that decides the output's rows and vectors, as the manifest records it."""
    columns = plan.columns
    identity: dict[str, Any] = {
        "text_column": columns.text_column,
        "id_column": columns.id_column,
        "id_type": str(columns.id_type),
        "keep": {name: str(arrow_type) for name, arrow_type in columns.kept_types.items()},
        # Names without folders: the content is compared by hash, and the inputs may be moved.
        "inputs": [Path(path).name for path in input_paths(plan)],
    }
    if target.is_folder:
        identity |= {"part_size": job.part_size, "to": target.format}
    return {**job.identity(), **identity, **encoders.encoder_identity(job, files)}


def input_paths(plan: InputPlan) -> list[str]:
    """Return the paths of the input files, each once, in order."""
    return list(dict.fromkeys(split.path for split in plan.splits))

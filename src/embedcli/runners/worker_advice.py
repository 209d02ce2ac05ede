"""Tell users of --workers where one process does the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedcli.core.cpu import count_usable_cores
from embedcli.encoders.torch.device import runs_on_cpu

if TYPE_CHECKING:
    from embedcli.core.job import Job
    from embedcli.core.types import RunObserver
    from embedcli.models.files import ModelFiles


def advise_on_workers(job: Job, files: ModelFiles | None, observer: RunObserver) -> None:
    """Notify the user if one process would do what --workers asks several for.

    Args:
        job: The job.
        files: The model's files; None for a hosted model.
        observer: Gets the note.
    """
    if job.runner != "processes" or (job.workers or 1) == 1:
        return
    if files is None:
        observer.notify(
            "--workers is not needed for a hosted model: one process sends as many requests at once as its server "
            "allows, and keeps --rpm and --tpm for all of them"
        )
    elif files.kind != "static" and job.threads is None and runs_on_cpu(job):
        observer.notify(
            f"--workers is seldom faster on a CPU: one process uses all {count_usable_cores()} cores, and loads the "
            "model once"
        )

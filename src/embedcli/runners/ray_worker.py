"""The worker's side of a Ray cluster: an actor that does share after share, and what it takes over from the driver."""

from __future__ import annotations

import os
import pickle
import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from embedcli import checkpoint, storage
from embedcli.core.errors import ModelError
from embedcli.core.types import RunObserver
from embedcli.outputs import target as output_target
from embedcli.pipeline.control import RunControl
from embedcli.runners.multiprocess import picklable_error
from embedcli.runners.worker import PartitionResult, PartitionTask, PartitionWorker, WorkerSetup, check_worker_version

RESUME_HINT = "run the same command again to go on: what is done stays done"
# A share may lose so many workers: machines go at any time, but a share that takes each with it must end.
MAX_WORKER_DEATHS = 4
# Choices of the driver's user that hold for the workers too. Keys are none of them: each machine has its own.
SHARED_ENVIRONMENT = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")


@dataclass(frozen=True)
class DriverContext:
    """What workers take over from the driver: where relative paths begin, settings, and the run's own name."""

    working_directory: str = field(default_factory=os.getcwd)
    environment: dict[str, str] = field(
        default_factory=lambda: {name: os.environ[name] for name in SHARED_ENVIRONMENT if name in os.environ}
    )
    run_id: str = field(default_factory=lambda: secrets.token_hex(4))


class RayWorker(RunObserver):
    """One worker as Ray runs it. It sends errors back as values, so that each reaches the user as itself."""

    def __init__(self, setup: WorkerSetup, place: DriverContext, seconds: float | None) -> None:
        os.environ.update(place.environment)
        with suppress(OSError):  # only relative paths need it, and they are then reported as not found
            os.chdir(place.working_directory)
        self.setup, self.run = setup, place.run_id
        self.control = RunControl(None, seconds)
        self.notes: list[str] = []
        self.worker: PartitionWorker | None = None

    def notify(self, text: str) -> None:
        self.notes.append(text)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do the task of one dataset row. The encoder is loaded with the first.

        Task and answer are pickled by us: Ray would try each as an Arrow value first, and complain.
        """
        answer: dict[str, Any] = {
            "done": None,
            "error": None,
            "traceback": "",
            "stopped": None,
            "host": platform.node(),
        }
        try:
            answer["done"] = self._work(pickle.loads(row["task"]))  # noqa: S301  made by the driver of this very run
            answer["stopped"] = self.control.reason
        except Exception as error:  # noqa: BLE001  raised by the driver
            answer["error"], answer["traceback"] = picklable_error(error)
        notes, self.notes = self.notes, []
        return {"task": row["task"], "answer": pickle.dumps(answer | {"notes": notes})}

    def _work(self, task: PartitionTask) -> PartitionResult | None:
        if self.control.reason is not None:
            return None
        check_worker_version(self.setup)
        with self._tried(task.partition.index):
            if self.worker is None:
                self.worker = PartitionWorker(self.setup, self, self.control)
            return self.worker.process_partition(task)

    @contextmanager
    def _tried(self, share: int) -> Iterator[None]:
        """Leave a mark in the stage while a share is worked on; ModelError if too many are there of dead workers.

        Ray itself would give a share to one worker after the other, for ever.
        """
        target = output_target.resolve_target(self.setup.job.output, self.setup.job.to)
        if self.worker is None:  # no mark in a folder that is not the run's
            checkpoint.Ledger(target).join(self.setup.job_manifest)
        marks = [
            storage.join(target.staging_folder, f"try-{self.run}-{share:06d}-{i}") for i in range(MAX_WORKER_DEATHS)
        ]
        mark = next((mark for mark in marks if not storage.exists(mark)), None)
        if mark is None:
            raise ModelError(
                f"{MAX_WORKER_DEATHS} workers died while they worked on share {share}",
                "lower --batch-tokens, or reserve more by --num-cpus, if memory ran out; " + RESUME_HINT,
            )
        storage.write_bytes(mark, b"")
        try:
            yield
        finally:
            storage.remove(mark)

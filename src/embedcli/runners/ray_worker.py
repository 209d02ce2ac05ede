"""A worker on a Ray cluster: an actor that loads the encoder once and encodes one partition after another."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass, field

from embedcli.core.errors import EncodingStoppedError
from embedcli.core.progress import ProgressCounts
from embedcli.core.types import RunObserver
from embedcli.pipeline.control import RunControl
from embedcli.runners.multiprocess import picklable_error
from embedcli.runners.worker import PartitionResult, PartitionTask, PartitionWorker, WorkerSetup

# Choices of the driver's user that apply to the workers too. API keys are not among them: each machine has its own.
SHARED_ENVIRONMENT = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")


@dataclass(frozen=True)
class DriverContext:
    """What workers take over from the driver: the folder that relative paths start from, and environment variables."""

    folder: str = field(default_factory=os.getcwd)
    environment: dict[str, str] = field(
        default_factory=lambda: {name: os.environ[name] for name in SHARED_ENVIRONMENT if name in os.environ}
    )


@dataclass(frozen=True)
class WorkerResponse:
    """What a worker returns for a partition: its result, or an error, or neither if the run has to stop."""

    notes: list[str]
    result: PartitionResult | None = None
    stop_reason: str | None = None
    error: BaseException | None = None
    traceback: str = ""
    host: str = field(default_factory=platform.node)


class RayWorker(RunObserver):
    """One worker as Ray runs it. Errors are returned as values, so that the driver can raise each as itself."""

    def __init__(self, setup: WorkerSetup, context: DriverContext, seconds: float | None) -> None:
        os.environ.update(context.environment)
        with suppress(OSError):  # only relative paths need the folder, and they are then reported as not found
            os.chdir(context.folder)
        self.setup = setup
        self.control = RunControl(None, seconds)
        self.notes: list[str] = []
        self.worker: PartitionWorker | None = None
        self.partition: int | None = None
        self.counts: ProgressCounts | None = None

    def notify(self, text: str) -> None:
        self.notes.append(text)

    def on_progress(self, counts: ProgressCounts) -> None:
        self.counts = counts

    def read_progress(self, partition: int) -> ProgressCounts | None:
        """Return the counts of a partition while it is encoded. Called while `encode_partition` runs."""
        return self.counts if self.partition == partition else None

    def wait_until_started(self) -> None:
        """Return as soon as Ray has placed and started this actor."""

    def encode_partition(self, task: PartitionTask) -> WorkerResponse:
        """Encode a partition; the first call also loads the encoder."""
        notes = self.notes = []
        try:
            return WorkerResponse(notes, self._encode(task), self.control.reason)
        except Exception as error:  # noqa: BLE001  raised by the driver
            if isinstance(error, EncodingStoppedError) and self.control.stop_if_time_is_over():
                return WorkerResponse(notes, None, self.control.reason)
            cause, text = picklable_error(error)
            return WorkerResponse(notes, error=cause, traceback=text)

    def _encode(self, task: PartitionTask) -> PartitionResult | None:
        if self.control.reason is not None:
            return None
        if self.worker is None:
            self.worker = PartitionWorker(self.setup, self, self.control)
        self.counts, self.partition = None, task.partition.index
        return self.worker.process_partition(task)

"""The progress of a run with several workers, as one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from embedcli.core.progress import ProgressCounts

if TYPE_CHECKING:
    from embedcli.runners.context import RunContext
    from embedcli.runners.worker import PartitionTask


class WorkerProgress:
    """Adds up what the workers of a run have done, and tells its observer.

    Args:
        run: The running job; its `rows_read` are those that earlier runs finished.
        tasks: The partitions that the workers encode.
    """

    def __init__(self, run: RunContext, tasks: Iterable[PartitionTask]) -> None:
        self._run = run
        self._splits = [split for task in tasks for split in task.partition.splits]
        self._finished_rows = run.rows_read
        self._finished = ProgressCounts()
        self._running: dict[int, ProgressCounts] = {}
        self._has_started = False

    def start(self) -> None:
        """A worker has loaded its encoder: rows start to flow. Only the first call counts."""
        if not self._has_started:
            self._has_started = True
            self._run.start_embedding(self._splits, self._finished_rows)

    def update(self, partition: int, counts: ProgressCounts) -> None:
        """Take over the counts of a partition that a worker is encoding."""
        self._running[partition] = counts
        self._report()

    def finish(self, partition: int, counts: ProgressCounts) -> None:
        """Take over the last counts of a finished partition."""
        self._running.pop(partition, None)
        self._finished.add(counts)
        self._report()

    def discard(self, partition: int) -> None:
        """Forget a partition whose worker has died: the next worker counts its rows again."""
        self._running.pop(partition, None)

    def _report(self) -> None:
        self.start()
        total = ProgressCounts()
        for counts in (self._finished, *self._running.values()):
            total.add(counts)
        self._run.metrics.progress = total
        self._run.metrics.rows = total.written_rows
        self._run.report_progress()

"""One spawned process per device. Shares go out one at a time, so that a fast device comes back sooner for more.

Only shares, records and sentences cross the pipes, no vectors: each worker writes its own parts. A worker that dies
has its share done once more by another; a worker that fails with a sentence for the user ends the run with it.
"""

from __future__ import annotations

import multiprocessing
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any

from embedcli.core.cpu import count_usable_cores
from embedcli.core.errors import EmbedcliError, ModelError, first_line
from embedcli.core.job import Job
from embedcli.core.startup import block_pandas_import
from embedcli.core.types import RunObserver
from embedcli.pipeline.control import RunControl
from embedcli.runners.context import RunContext
from embedcli.runners.worker import PartitionResult, PartitionTask, PartitionWorker, WorkerSetup, assign_devices

# One thread at a time takes the script away and puts it back.
MAIN_MODULE_LOCK = threading.Lock()
# How long the parent waits before it looks whether it is to stop.
POLL_SECONDS = 0.2
# A share is tried so often: once, and once more elsewhere.
MAX_ATTEMPTS = 2


class WorkerTracebackError(Exception):
    """The traceback of a worker, shown as the cause of its error here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


# In the worker


class _Telling(RunObserver):
    """The worker's Watch: sentences and progress go to the parent."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, *message: Any) -> None:
        with self._lock, suppress(BrokenPipeError):
            self._pipe.send(message)

    def notify(self, text: str) -> None:
        self.send("line", text)

    def on_progress(self, rows: int, bytes_read: int) -> None:
        self.send("progress", rows, bytes_read)


def serve_tasks(pipe: Connection, setup: WorkerSetup, seconds: float | None) -> None:
    """A worker process: takes tasks from the pipe until it is told that there are no more, or the parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent gets them too, and tells
    block_pandas_import()
    telling, control = _Telling(pipe), RunControl(None, seconds)
    inbox: queue.SimpleQueue[PartitionTask | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, inbox, control), name="listener", daemon=True).start()
    try:
        worker = PartitionWorker(setup, telling, control)
        telling.send("ready")
        while (task := inbox.get()) is not None:
            done = worker.process_partition(task)
            telling.send("stopped", control.reason) if done is None else telling.send("done", done)
            if done is None:
                break
        worker.close()
    except BaseException as error:  # noqa: BLE001  the parent raises it
        telling.send("failed", *picklable_error(error))


def _listen(pipe: Connection, inbox: queue.SimpleQueue[PartitionTask | None], control: RunControl) -> None:
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            control.stop("the end of the parent process")
            inbox.put(None)
            return
        if isinstance(message, str):
            control.stop(message)
            message = None
        inbox.put(message)


def picklable_error(error: BaseException) -> tuple[BaseException, str]:
    """An error that can cross to the parent, and its traceback as text."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  our own error, a moment old
    except Exception:  # noqa: BLE001  whatever it is, it cannot travel
        return RuntimeError(f"{type(error).__name__}: {error}"), text
    return error, text


# In the parent


@contextmanager
def without_main_module() -> Iterator[None]:
    """Processes that start in here do not run the caller's script again, as spawned ones do.

    A worker needs nothing of it, and it may begin the same job again, or have come from stdin.
    """
    with MAIN_MODULE_LOCK:
        script = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = script


@dataclass
class _Process:
    """A worker as the parent sees it."""

    process: Any
    pipe: Connection
    device: str
    task: PartitionTask | None = None
    is_ready: bool = False
    is_over: bool = False

    def assign(self, task: PartitionTask | None) -> None:
        self.task = task
        with suppress(BrokenPipeError, OSError):  # a dead worker is noticed by its end of the pipe
            self.pipe.send(task)

    def request_stop(self, reason: str) -> None:
        with suppress(BrokenPipeError, OSError):
            self.pipe.send(reason)


class WorkerPool:
    """The workers of a run. `done` yields what they finish; `close` leaves no process behind."""

    def __init__(
        self, run: RunContext, setup: WorkerSetup, tasks: list[PartitionTask], seconds: float | None = None
    ) -> None:
        self.this, self.setup, self.seconds = run, setup, seconds
        self.waiting = deque(tasks)
        self.attempts: dict[int, int] = {}
        self.rows_by_worker = 0
        self.notified: set[str] = set()
        devices = assign_devices(run.job)[: len(tasks)]
        self.jobs = [worker_job(run.job, device, len(devices)) for device in devices]
        self.workers = [self._start(job) for job in self.jobs]

    def _start(self, job: Job) -> _Process:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=serve_tasks, args=(theirs, replace(self.setup, job=job), self.seconds), name="worker", daemon=True
        )
        with without_main_module():
            process.start()
        theirs.close()
        return _Process(process, ours, job.device)

    def iterate_results(self) -> Iterator[PartitionResult]:
        asked = False
        while any(not worker.is_over for worker in self.workers):
            if self.this.control.stop_event.is_set() and not asked:
                asked = True
                self.waiting.clear()
                for worker in self.workers:
                    worker.request_stop(self.this.control.reason or "the parent")
            pipes = {worker.pipe: worker for worker in self.workers if not worker.is_over}
            for pipe in wait(list(pipes), timeout=POLL_SECONDS):
                one = self._hear(pipes[pipe])  # type: ignore[index]
                if one is not None:
                    yield one

    def _hear(self, worker: _Process) -> PartitionResult | None:
        try:
            kind, *rest = worker.pipe.recv()
        except (EOFError, OSError):
            self._died(worker)
            return None
        self.this.metrics.last_heartbeat = time.monotonic()
        match kind:
            case "line":
                self._line(rest[0])
            case "progress":
                self.rows_by_worker += rest[0]
                self.this.metrics.rows += rest[0]
                self.this.observer.on_progress(self.rows_by_worker, 0)
            case "ready" | "done":
                worker.is_ready = True
                worker.assign(self.waiting.popleft() if self.waiting else None)
            case "stopped":
                self.waiting.clear()
                worker.task = None
                self.this.control.reason = self.this.control.reason or rest[0]
            case "failed":
                self._failed(worker, *rest)
        return rest[0] if kind == "done" else None

    def _line(self, text: str) -> None:
        """All workers have the same to say when they start: once is enough."""
        if text not in self.notified:
            self.notified.add(text)
            self.this.observer.notify(text)

    def _died(self, worker: _Process) -> None:
        worker.is_over = True
        worker.process.join()
        code = worker.process.exitcode
        if self.this.control.stop_event.is_set() or (worker.task is None and worker.is_ready and code == 0):
            return
        how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
        error = ModelError(
            f"a worker on {worker.device} died ({how})",
            "lower --workers or --batch-tokens if memory ran out, then run the same command again to go on",
        )
        self._again(worker, error)

    def _failed(self, worker: _Process, error: BaseException, text: str) -> None:
        """A worker's exception: the user's to mend if it is one of ours, else the share is tried once more."""
        worker.is_over = True
        error.__cause__ = WorkerTracebackError(text)
        if isinstance(error, EmbedcliError) or not worker.is_ready:
            raise error
        self._again(worker, error)

    def _again(self, worker: _Process, error: BaseException) -> None:
        index = -1 if worker.task is None else worker.task.partition.index
        self.attempts[index] = self.attempts.get(index, 1) + 1
        if self.attempts[index] > MAX_ATTEMPTS:
            raise error
        what = "it is started again" if worker.task is None else f"share {index} is done by another"
        self.this.observer.notify(f"{first_line(error)}; {what}")
        if worker.task is not None:
            self.waiting.appendleft(worker.task)
        at = self.workers.index(worker)
        self.workers[at] = self._start(self.jobs[at])

    def close(self) -> None:
        """End every worker that is still there, at once: what it has written stays, half a part is none."""
        for worker in self.workers:
            if worker.process.is_alive():
                worker.process.kill()
            worker.process.join()
            worker.pipe.close()


def run_on_processes(
    run: RunContext, setup: WorkerSetup, tasks: list[PartitionTask]
) -> Generator[PartitionResult, None, None]:
    """What workers on this machine make of the tasks, in the order in which they are done."""
    pool = WorkerPool(run, setup, tasks, run.control.remaining_seconds())
    try:
        yield from pool.iterate_results()
    finally:
        pool.close()


def worker_job(job: Job, device: str, workers: int) -> Job:
    """The job as one of several workers on this machine does it: its own device, its share of the processors."""
    threads = job.threads or max(1, count_usable_cores() // workers)
    return replace(job, device=device, threads=threads, runner="local", workers=None, max_seconds=None)

"""Run a job in one spawned process per device.

Workers get one partition at a time, so that fast devices process more of them. Only partitions, records and messages
cross the pipes, no vectors: each worker writes its own part files. The partition of a worker that dies is given to
another one. An EmbedcliError in a worker ends the run.
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
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any

from embedcli.core.cpu import count_usable_cores
from embedcli.core.errors import EmbedcliError, EncodingStoppedError, ModelError, first_line
from embedcli.core.job import Job
from embedcli.core.progress import ProgressCounts
from embedcli.core.signals import STOP_SIGNALS
from embedcli.core.startup import block_pandas_import
from embedcli.core.types import RunObserver
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.runners.context import RunContext
from embedcli.runners.worker import (
    PartitionResult,
    PartitionTask,
    PartitionWorker,
    WorkerSetup,
    assign_devices,
    share_server_limits,
)
from embedcli.runners.worker_progress import WorkerProgress

# Guards sys.modules["__main__"] while it is replaced.
MAIN_MODULE_LOCK = threading.Lock()
# How often the parent checks whether it should stop.
POLL_SECONDS = 0.2
# How often a worker tells its progress: more than people can see would only keep the parent busy.
PROGRESS_SECONDS = 0.2
NO_PARTITION = -1
# A partition that fails is tried once more, by another worker.
MAX_ATTEMPTS = 2


class WorkerTracebackError(Exception):
    """The traceback of a worker's error, shown as the cause of the error in the parent."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


# In the worker


class PipeObserver(RunObserver):
    """Sends messages and progress of a worker to the parent."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self.partition = NO_PARTITION
        self._progress = self._sent_progress = (NO_PARTITION, ProgressCounts())

    def send(self, *message: Any) -> None:
        with self._lock, suppress(BrokenPipeError):
            self._pipe.send(message)

    def notify(self, text: str) -> None:
        self.send("line", text)

    def on_progress(self, counts: ProgressCounts) -> None:
        self._progress = self.partition, counts

    def send_progress(self) -> None:
        """Send the counts of the partition in progress, if they have changed."""
        partition, counts = self._progress
        progress = partition, ProgressCounts(**vars(counts))
        if progress != self._sent_progress:
            self._sent_progress = progress
            self.send("progress", *progress)

    def send_progress_forever(self) -> None:
        """Send the counts now and then, until the process ends."""
        while True:
            time.sleep(PROGRESS_SECONDS)
            self.send_progress()


def serve_tasks(pipe: Connection, setup: WorkerSetup, max_seconds: float | None) -> None:
    """Run a worker process: handle the tasks from the pipe until there are no more, or the parent is gone.

    Args:
        pipe: The worker's end of the pipe.
        setup: What the worker needs to join the run.
        max_seconds: Time left for the run; None without a limit.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent gets them too, and passes them on
    block_pandas_import()
    observer, control = PipeObserver(pipe), RunControl(None, max_seconds)
    inbox: queue.SimpleQueue[PartitionTask | None] = queue.SimpleQueue()
    threading.Thread(target=_receive_tasks, args=(pipe, inbox, control), name="listener", daemon=True).start()
    try:
        worker = PartitionWorker(setup, observer, control)
        observer.send("ready")
        threading.Thread(target=observer.send_progress_forever, name="progress", daemon=True).start()
        while (task := inbox.get()) is not None:
            observer.partition = task.partition.index
            result = worker.process_partition(task)
            if result is None:
                observer.send_progress()
                observer.send("stopped", control.reason, worker.metrics)
                break
            observer.send("done", result)
        worker.close()
    except EncodingStoppedError as error:  # while the model was loaded
        if control.stop_if_time_is_over():
            observer.send("stopped", control.reason, MetricsCollector())
        else:
            observer.send("failed", *picklable_error(error))
    except BaseException as error:  # noqa: BLE001  the parent raises it
        observer.send("failed", *picklable_error(error))


def _receive_tasks(pipe: Connection, inbox: queue.SimpleQueue[PartitionTask | None], control: RunControl) -> None:
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
    """Return an error that can be pickled, and its traceback as text."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  an error of this process
    except Exception:  # noqa: BLE001  pickling can raise anything
        return RuntimeError(f"{type(error).__name__}: {error}"), text
    return error, text


# In the parent


@contextmanager
def without_main_module() -> Iterator[None]:
    """Keep processes that are spawned inside this block from running the caller's script again.

    Workers do not need it, and it may start the same job again, or have been read from stdin.
    """
    with MAIN_MODULE_LOCK:
        script = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = script


@contextmanager
def block_stop_signals() -> Iterator[None]:
    """Keep signals from processes that are started inside this block: the parent gets them too, and passes them on.

    A signal to the whole process group, such as Ctrl-C, would otherwise end a worker that still imports its modules.
    Windows cannot block signals.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        # multiprocessing starts this process before its first worker, and then unblocks SIGINT and SIGTERM.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@dataclass
class WorkerProcess:
    """A worker as the parent sees it."""

    process: Any
    pipe: Connection
    device: str
    task: PartitionTask | None = None
    is_ready: bool = False
    has_stopped: bool = False
    is_over: bool = False

    def assign(self, task: PartitionTask | None) -> None:
        self.task = task
        with suppress(BrokenPipeError, OSError):  # a dead worker is noticed when its pipe is read
            self.pipe.send(task)

    def request_stop(self, reason: str) -> None:
        with suppress(BrokenPipeError, OSError):
            self.pipe.send(reason)


class WorkerPool:
    """The worker processes of a run; `close` ends all of them.

    Args:
        run: The running job.
        setup: What a worker needs to join the run.
        tasks: The partitions to encode.
        max_seconds: Time left for the run; None without a limit.
    """

    def __init__(
        self, run: RunContext, setup: WorkerSetup, tasks: list[PartitionTask], max_seconds: float | None = None
    ) -> None:
        self.run, self.setup, self.max_seconds = run, setup, max_seconds
        self.waiting = deque(tasks)
        self.attempts: dict[int, int] = {}
        self.progress = WorkerProgress(run, tasks)
        self.notified: set[str] = set()
        devices = assign_devices(run.job)[: len(tasks)]
        self.jobs = [worker_job(run.job, device, len(devices)) for device in devices]
        self.workers = [self._start(job) for job in self.jobs]

    def _start(self, job: Job) -> WorkerProcess:
        context = multiprocessing.get_context("spawn")
        parent_pipe, worker_pipe = context.Pipe()
        arguments = (worker_pipe, replace(self.setup, job=job), self.max_seconds)
        process = context.Process(target=serve_tasks, args=arguments, name="worker", daemon=True)
        with without_main_module(), block_stop_signals():
            process.start()
        worker_pipe.close()
        return WorkerProcess(process, parent_pipe, job.device)

    def iterate_results(self) -> Iterator[PartitionResult]:
        """Yield the completed partitions until every worker has ended."""
        is_stop_requested = False
        while any(not worker.is_over for worker in self.workers):
            if self.run.control.stop_event.is_set() and not is_stop_requested:
                is_stop_requested = True
                self.waiting.clear()
                for worker in self.workers:
                    worker.request_stop(self.run.control.reason or "the parent")
            pipes = {worker.pipe: worker for worker in self.workers if not worker.is_over}
            for pipe in wait(list(pipes), timeout=POLL_SECONDS):
                result = self._handle_message(pipes[pipe])  # type: ignore[index]
                if result is not None:
                    yield result

    def _handle_message(self, worker: WorkerProcess) -> PartitionResult | None:
        try:
            kind, *rest = worker.pipe.recv()
        except (EOFError, OSError):
            self._handle_death(worker)
            return None
        self.run.metrics.last_heartbeat = time.monotonic()
        match kind:
            case "line":
                self._notify_once(rest[0])
            case "progress":
                self._update_progress(worker, *rest)
            case "ready" | "done":
                self.progress.start()
                if kind == "done":
                    self.progress.finish(rest[0].record.index, rest[0].metrics.progress)
                worker.is_ready = True
                worker.assign(self.waiting.popleft() if self.waiting else None)
            case "stopped":
                self.waiting.clear()
                worker.task, worker.has_stopped = None, True
                reason, metrics = rest
                self.run.control.reason = self.run.control.reason or reason
                self.run.metrics.add_worker(metrics, len(self.workers), one_clock=True)
            case "failed":
                self._handle_error(worker, *rest)
        return rest[0] if kind == "done" else None

    def _update_progress(self, worker: WorkerProcess, partition: int, counts: ProgressCounts) -> None:
        """Take over the progress of a worker, unless the message has been overtaken by the end of its partition."""
        if worker.task is not None and worker.task.partition.index == partition:
            self.progress.update(partition, counts)

    def _notify_once(self, text: str) -> None:
        """Pass on a message, unless another worker has sent the same."""
        if text not in self.notified:
            self.notified.add(text)
            self.run.observer.notify(text)

    def _handle_death(self, worker: WorkerProcess) -> None:
        worker.is_over = True
        worker.process.join()
        code = worker.process.exitcode
        is_finished = worker.has_stopped or (worker.task is None and worker.is_ready and code == 0)
        if self.run.control.stop_event.is_set() or is_finished:
            return
        how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
        error = ModelError(
            f"a worker on {worker.device} died ({how})",
            "lower --workers or --batch-tokens if memory ran out, then run the same command again to go on",
        )
        self._retry(worker, error)

    def _handle_error(self, worker: WorkerProcess, error: BaseException, traceback_text: str) -> None:
        """Raise a worker's error if it is meant for the user, else try its partition once more."""
        worker.is_over = True
        error.__cause__ = WorkerTracebackError(traceback_text)
        if isinstance(error, EmbedcliError) or not worker.is_ready:
            raise error
        self._retry(worker, error)

    def _retry(self, worker: WorkerProcess, error: BaseException) -> None:
        index = -1 if worker.task is None else worker.task.partition.index
        self.attempts[index] = self.attempts.get(index, 1) + 1
        if self.attempts[index] > MAX_ATTEMPTS:
            raise error
        action = "it is started again" if worker.task is None else f"partition {index} is encoded by another worker"
        self.run.observer.notify(f"{first_line(error)}; {action}")
        if worker.task is not None:
            self.progress.discard(index)
            self.waiting.appendleft(worker.task)
        position = self.workers.index(worker)
        self.workers[position] = self._start(self.jobs[position])

    def close(self) -> None:
        """Kill every worker that is still running; its finished part files stay."""
        for worker in self.workers:
            if worker.process.is_alive():
                worker.process.kill()
            worker.process.join()
            worker.pipe.close()


def run_on_processes(
    run: RunContext, setup: WorkerSetup, tasks: list[PartitionTask]
) -> Generator[PartitionResult, None, None]:
    """Encode partitions in worker processes on this machine, and yield them as they are completed."""
    pool = WorkerPool(run, setup, tasks, run.control.remaining_seconds())
    try:
        yield from pool.iterate_results()
    finally:
        pool.close()


def worker_job(job: Job, device: str, workers: int) -> Job:
    """Return the job as one of several workers runs it: on one device, with an equal part of the processor cores."""
    threads = job.threads or max(1, count_usable_cores() // workers)
    job = replace(job, device=device, threads=threads, runner="local", workers=None, max_seconds=None)
    return share_server_limits(job, workers)

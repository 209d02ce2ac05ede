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

from embedcli.core.cpu import cores
from embedcli.core.errors import EmbedcliError, ModelError
from embedcli.core.job import Job
from embedcli.core.startup import light_arrow
from embedcli.core.types import Watch
from embedcli.pipeline.control import Control
from embedcli.runners.context import Run
from embedcli.runners.worker import Done, Setup, Task, Worker, worker_devices

# One thread at a time takes the script away and puts it back.
SCRIPT = threading.Lock()
# How long the parent waits before it looks whether it is to stop.
LOOK_SECONDS = 0.2
# A share is tried so often: once, and once more elsewhere.
TRIES = 2


class WorkerTraceback(Exception):
    """The traceback of a worker, shown as the cause of its error here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


# In the worker


class _Telling(Watch):
    """The worker's Watch: sentences and progress go to the parent."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, *message: Any) -> None:
        with self._lock, suppress(BrokenPipeError):
            self._pipe.send(message)

    def line(self, text: str) -> None:
        self.send("line", text)

    def progress(self, rows: int, done_bytes: int) -> None:
        self.send("progress", rows, done_bytes)


def serve(pipe: Connection, setup: Setup, seconds: float | None) -> None:
    """A worker process: takes tasks from the pipe until it is told that there are no more, or the parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent gets them too, and tells
    light_arrow()
    telling, control = _Telling(pipe), Control(None, seconds)
    inbox: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, inbox, control), name="listener", daemon=True).start()
    try:
        worker = Worker(setup, telling, control)
        telling.send("ready")
        while (task := inbox.get()) is not None:
            done = worker.work(task)
            telling.send("stopped", control.reason) if done is None else telling.send("done", done)
            if done is None:
                break
        worker.close()
    except BaseException as error:  # noqa: BLE001  the parent raises it
        telling.send("failed", *portable(error))


def _listen(pipe: Connection, inbox: queue.SimpleQueue[Task | None], control: Control) -> None:
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


def portable(error: BaseException) -> tuple[BaseException, str]:
    """An error that can cross to the parent, and its traceback as text."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  our own error, a moment old
    except Exception:  # noqa: BLE001  whatever it is, it cannot travel
        return RuntimeError(f"{type(error).__name__}: {error}"), text
    return error, text


# In the parent


@contextmanager
def no_script() -> Iterator[None]:
    """Processes that start in here do not run the caller's script again, as spawned ones do.

    A worker needs nothing of it, and it may begin the same job again, or have come from stdin.
    """
    with SCRIPT:
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
    task: Task | None = None
    ready: bool = False
    over: bool = False

    def give(self, task: Task | None) -> None:
        self.task = task
        with suppress(BrokenPipeError, OSError):  # a dead worker is noticed by its end of the pipe
            self.pipe.send(task)

    def ask_to_stop(self, reason: str) -> None:
        with suppress(BrokenPipeError, OSError):
            self.pipe.send(reason)


class Pool:
    """The workers of a run. `done` yields what they finish; `close` leaves no process behind."""

    def __init__(self, this: Run, setup: Setup, tasks: list[Task], seconds: float | None = None) -> None:
        self.this, self.setup, self.seconds = this, setup, seconds
        self.waiting = deque(tasks)
        self.tries: dict[int, int] = {}
        self.rows = 0
        self.told: set[str] = set()
        devices = worker_devices(this.job)[: len(tasks)]
        self.jobs = [job_of(this.job, device, len(devices)) for device in devices]
        self.workers = [self._start(job) for job in self.jobs]

    def _start(self, job: Job) -> _Process:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=serve, args=(theirs, replace(self.setup, job=job), self.seconds), name="worker", daemon=True
        )
        with no_script():
            process.start()
        theirs.close()
        return _Process(process, ours, job.device)

    def done(self) -> Iterator[Done]:
        asked = False
        while any(not worker.over for worker in self.workers):
            if self.this.control.now.is_set() and not asked:
                asked = True
                self.waiting.clear()
                for worker in self.workers:
                    worker.ask_to_stop(self.this.control.reason or "the parent")
            pipes = {worker.pipe: worker for worker in self.workers if not worker.over}
            for pipe in wait(list(pipes), timeout=LOOK_SECONDS):
                one = self._hear(pipes[pipe])  # type: ignore[index]
                if one is not None:
                    yield one

    def _hear(self, worker: _Process) -> Done | None:
        try:
            kind, *rest = worker.pipe.recv()
        except (EOFError, OSError):
            self._died(worker)
            return None
        self.this.meter.beat = time.monotonic()
        match kind:
            case "line":
                self._line(rest[0])
            case "progress":
                self.rows += rest[0]
                self.this.meter.rows += rest[0]
                self.this.watch.progress(self.rows, 0)
            case "ready" | "done":
                worker.ready = True
                worker.give(self.waiting.popleft() if self.waiting else None)
            case "stopped":
                self.waiting.clear()
                worker.task = None
                self.this.control.reason = self.this.control.reason or rest[0]
            case "failed":
                self._failed(worker, *rest)
        return rest[0] if kind == "done" else None

    def _line(self, text: str) -> None:
        """All workers have the same to say when they start: once is enough."""
        if text not in self.told:
            self.told.add(text)
            self.this.watch.line(text)

    def _died(self, worker: _Process) -> None:
        worker.over = True
        worker.process.join()
        code = worker.process.exitcode
        if self.this.control.now.is_set() or (worker.task is None and worker.ready and code == 0):
            return
        how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
        error = ModelError(
            f"a worker on {worker.device} died ({how})",
            "lower --workers or --batch-tokens if memory ran out, then run the same command again to go on",
        )
        self._again(worker, error)

    def _failed(self, worker: _Process, error: BaseException, text: str) -> None:
        """A worker's exception: the user's to mend if it is one of ours, else the share is tried once more."""
        worker.over = True
        error.__cause__ = WorkerTraceback(text)
        if isinstance(error, EmbedcliError) or not worker.ready:
            raise error
        self._again(worker, error)

    def _again(self, worker: _Process, error: BaseException) -> None:
        index = -1 if worker.task is None else worker.task.share.index
        self.tries[index] = self.tries.get(index, 1) + 1
        if self.tries[index] > TRIES:
            raise error
        what = "it is started again" if worker.task is None else f"share {index} is done by another"
        self.this.watch.line(f"{str(error).splitlines()[0]}; {what}")
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


def done_by_processes(this: Run, setup: Setup, tasks: list[Task]) -> Generator[Done, None, None]:
    """What workers on this machine make of the tasks, in the order in which they are done."""
    pool = Pool(this, setup, tasks, this.control.remaining())
    try:
        yield from pool.done()
    finally:
        pool.close()


def job_of(job: Job, device: str, workers: int) -> Job:
    """The job as one of several workers on this machine does it: its own device, its share of the processors."""
    threads = job.threads or max(1, cores() // workers)
    return replace(job, device=device, threads=threads, runner="local", workers=None, max_seconds=None)

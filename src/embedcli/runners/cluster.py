"""A Ray cluster: shares are the dataset, a stateful actor per worker loads the encoder once and does share after share.

Parts go straight to the shared output; only records come back. Ray restarts actors that die and gives their share to
another; what they had written of it stays in the stage and is taken over.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import threading
import traceback
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from embedcli.contracts import EmbedcliError, UsageError
from embedcli.meter import Control
from embedcli.runners.processes import LOOK_SECONDS, TRIES, WorkerTraceback
from embedcli.runners.running import Run
from embedcli.runners.work import Done, Setup, Task, Worker

CONNECT = "is the cluster up, and is the address right? ray://HEAD:10001, HEAD:6379, or auto on one of its machines"


class Actor:
    """One worker as Ray runs it. It sends errors back as values, so that each reaches the user as itself."""

    def __init__(self, setup: Setup, seconds: float | None) -> None:
        self.setup = setup
        self.control = Control(None, seconds)
        self.notes: list[str] = []
        self.worker: Worker | None = None

    def line(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, plan: Any, meter: Any) -> None:
        pass

    def progress(self, rows: int, done_bytes: int) -> None:
        pass

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do the task of one dataset row. The encoder is loaded with the first.

        Task and answer are pickled by us: Ray would try each as an Arrow value first, and complain.
        """
        task: Task = pickle.loads(row["task"])  # noqa: S301  made by the driver of this very run
        answer: dict[str, Any] = {"done": None, "error": None, "traceback": "", "stopped": None}
        try:
            if self.worker is None:
                self.worker = Worker(self.setup, self, self.control)
            answer["done"] = self.worker.work(task)
            answer["stopped"] = self.control.reason
        except Exception as error:  # noqa: BLE001  raised by the driver
            answer["error"], answer["traceback"] = error, traceback.format_exc()
        notes, self.notes = self.notes, []
        return {"task": row["task"], "answer": pickle.dumps(answer | {"notes": notes})}


def done_by_ray(this: Run, setup: Setup, tasks: list[Task]) -> Generator[Done, None, None]:
    """What actors of a Ray cluster make of the tasks, in the order in which they are done."""
    ray = started(this)
    told: set[str] = set()
    try:
        for attempt in range(TRIES):
            again = []
            for row in rows_of(this, setup, tasks):
                answer = pickle.loads(row["answer"])  # noqa: S301  made by a worker of this very run
                for note in [note for note in answer["notes"] if note not in told]:
                    told.add(note)
                    this.watch.line(note)
                if answer["done"] is not None:
                    this.meter.rows += sum(part.rows for part in answer["done"].record.parts)
                    yield answer["done"]
                    this.watch.progress(this.meter.rows, 0)
                elif answer["stopped"] is not None:
                    this.control.reason = this.control.reason or answer["stopped"]
                elif answer["error"] is not None:
                    refuse(answer, last=attempt == TRIES - 1)
                    again.append(pickle.loads(row["task"]))  # noqa: S301  our own
            if this.control.reason is not None or not again:
                return
            this.watch.line(f"{len(again)} shares failed and are done once more")
            tasks = again
    finally:
        if this.job.ray_address is None:
            ray.shutdown()


def refuse(answer: dict[str, Any], *, last: bool) -> None:
    """Raise an error that trying again does not mend."""
    error = answer["error"]
    if last or isinstance(error, EmbedcliError):
        error.__cause__ = WorkerTraceback(answer["traceback"])
        raise error


def started(this: Run) -> Any:
    """The ray module, connected to the cluster of --ray-address, or to one of this machine alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
    except ImportError:
        raise UsageError("--runner ray needs Ray Data", "pip install 'embedcli[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init(
                address=this.job.ray_address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False
            )
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            where = this.job.ray_address or "this machine"
            raise UsageError(f"no Ray cluster at {where}: {str(error).splitlines()[0]}", CONNECT) from error
    quiet_progress()
    return ray


def quiet_progress() -> None:
    """Ray Data's own bars and notes stay away from stderr: the run has its own."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with suppress(AttributeError):
        context.enable_operator_progress_bars = False


def rows_of(this: Run, setup: Setup, tasks: list[Task]) -> Iterator[dict[str, Any]]:
    """Answers as they come. They are waited for in a thread, so that a signal is not."""
    import ray.data

    workers = min(this.job.workers or cluster_workers(this), len(tasks))
    setup = replace(setup, job=replace(this.job, runner="local", workers=None, threads=threads_of(this)))
    data = ray.data.from_items([{"task": pickle.dumps(task)} for task in tasks], override_num_blocks=len(tasks)).map(
        Actor,  # type: ignore[arg-type]
        fn_constructor_args=(setup, this.control.remaining()),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=this.job.num_cpus or 1,
        num_gpus=this.job.num_gpus or 0,
    )
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def wait() -> None:
        try:
            for row in data.iter_rows():
                inbox.put(row)
            inbox.put(None)
        except BaseException as error:  # noqa: BLE001  raised where the answers are read
            inbox.put(error)

    threading.Thread(target=wait, name="ray", daemon=True).start()
    while not this.control.now.is_set():
        try:
            row = inbox.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            continue
        if row is None:
            return
        if isinstance(row, BaseException):
            raise EmbedcliError(
                f"the Ray cluster failed: {type(row).__name__}: {first_line(row)}",
                "what is done stays done: run the same command again to go on",
            ) from row
        yield row


def first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")[:300]


def threads_of(this: Run) -> int:
    return this.job.threads or max(1, int(this.job.num_cpus or 1))


def cluster_workers(this: Run) -> int:
    """As many workers as the cluster has room for now."""
    import ray

    found = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus = found.get("CPU", 1) / (this.job.num_cpus or 1)
    gpus = found.get("GPU", 0) / this.job.num_gpus if this.job.num_gpus else cpus
    return max(1, int(min(cpus, gpus)))

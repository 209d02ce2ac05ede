"""A Ray cluster: shares are the dataset, a stateful actor per worker loads the encoder once and does share after share.

Parts go straight to the shared output; only records come back. Ray restarts actors that die and gives their share to
another; what they had written of it stays in the stage and is taken over.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import queue
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from embedcli.core.errors import EmbedcliError, UsageError
from embedcli.core.job import Job
from embedcli.runners.context import RunContext
from embedcli.runners.multiprocess import MAX_ATTEMPTS, POLL_SECONDS, WorkerTracebackError
from embedcli.runners.ray_worker import RESUME_HINT, DriverContext, RayWorker
from embedcli.runners.worker import PartitionResult, PartitionTask, WorkerSetup

A = TypeVar("A")
CONNECT_HINT = "start the cluster, or check the address: HEAD:6379, or auto on one of its machines"
# A head that is up answers at once, and a driver is let in within seconds; Ray itself would try for minutes.
REACH_TIMEOUT_SECONDS = 10.0
CONNECT_TIMEOUT_SECONDS = 60.0
# Workers end the chunk in hand after --max-seconds; the driver waits so much longer for them.
STOP_GRACE_SECONDS = 60.0
# So many shares for each worker are many: the last one is an eighth of its work at most.
MANY_PARTITIONS_PER_WORKER = 8
# What a cluster of this machine alone holds of our objects: tasks and records, no rows and no vectors.
OBJECT_STORE_BYTES = 100 << 20
ANSI_COLORS = re.compile(r"\x1b\[[0-9;]*m")


def run_on_ray(
    run: RunContext, setup: WorkerSetup, tasks: list[PartitionTask]
) -> Generator[PartitionResult, None, None]:
    """What actors of a Ray cluster make of the tasks, in the order in which they are done."""
    ray = import_ray(run)
    ours = not ray.is_initialized()
    over = threading.Event()
    # Ray prints to stdout what its daemons say of workers that died, whatever it was told of logs.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        try:
            if ours:
                connect_to_ray(run, ray, over)
            if not run.control.stop_event.is_set():
                yield from run_on_ray_workers(run, setup, tasks)
        finally:
            if ours:
                ray.shutdown()
            over.set()


def run_on_ray_workers(
    run: RunContext, setup: WorkerSetup, tasks: list[PartitionTask]
) -> Generator[PartitionResult, None, None]:
    """The same, once Ray is there. Shares that failed for no reason of the user's are done once more."""
    told: set[str] = set()
    for attempt in range(MAX_ATTEMPTS):
        again: list[PartitionTask] = []
        with closing(iterate_answers(run, setup, tasks)) as rows:
            for row in rows:
                answer = pickle.loads(row["answer"])  # noqa: S301  made by a worker of this very run
                notify_once(run, answer["notes"], told)
                if answer["done"] is not None:
                    run.metrics.rows += sum(part.rows for part in answer["done"].record.parts)
                    yield answer["done"]
                    run.observer.on_progress(run.metrics.rows, 0)
                elif answer["error"] is not None:
                    raise_permanent_error(run, answer, last=attempt == MAX_ATTEMPTS - 1)
                    again.append(pickle.loads(row["task"]))  # noqa: S301  our own
                else:
                    run.control.reason = run.control.reason or answer["stopped"]
        if run.control.reason is not None or not again:
            return
        run.observer.notify(f"{len(again)} shares failed and are done once more")
        tasks = again


def notify_once(run: RunContext, notes: list[str], told: set[str]) -> None:
    """All workers have the same to say when they start: once is enough."""
    for note in notes:
        if note not in told:
            told.add(note)
            run.observer.notify(note)


def raise_permanent_error(run: RunContext, answer: dict[str, Any], *, last: bool) -> None:
    """Raise an error that trying again does not mend."""
    error = answer["error"]
    error.__cause__ = WorkerTracebackError(answer["traceback"])
    if last or isinstance(error, EmbedcliError):
        if answer["host"] != platform.node():
            run.observer.notify(f"the error is of the worker on {answer['host']}")
        raise error


# Connecting


def import_ray(run: RunContext) -> Any:
    """The ray module, told to be quiet and to report nothing to anyone. UsageError without it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError("--runner ray needs Ray Data", "pip install 'embedcli[ray]'") from None
    if "," in run.job.device:
        raise UsageError(
            f"--device {run.job.device} does not go together with --runner ray",
            "use --num-gpus 1 --workers N: Ray gives each worker a device of its own",
        )
    for name in ("ray", "ray.data"):  # the run has bars and notes of its own
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return ray


def connect_to_ray(run: RunContext, ray: Any, over: threading.Event) -> None:
    """Join the cluster of --ray-address or RAY_ADDRESS, or start one of this machine alone; not if the run is to stop.

    It is done in a thread, as Ray would take over SIGTERM in this one; the thread stays until the run is over, as
    what Ray starts on Linux ends with the thread that started it.
    """
    address = run.job.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    where = "this machine" if address == "local" else address

    def joined() -> Iterator[Any]:
        with filter_log_level_line():
            ray.init(**options)
        yield
        over.wait()

    try:
        check_reachable(address)
        for _ in iterate_in_thread(run, joined, CONNECT_TIMEOUT_SECONDS):
            return
    except EmbedcliError:
        raise
    except Exception as error:
        raise UsageError(f"no Ray cluster at {where}: {summarize_ray_error(error)}", CONNECT_HINT) from error
    if not run.control.stop_event.is_set():
        raise UsageError(
            f"no Ray cluster at {where}: nothing there answered in {CONNECT_TIMEOUT_SECONDS:.0f} s", CONNECT_HINT
        )


@contextmanager
def filter_log_level_line() -> Iterator[None]:
    """stderr without the line in which Ray's core repeats its log level; all else is shown when the block ends."""
    shown = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(shown, 2)
            os.close(shown)
            kept.seek(0)
            os.write(2, b"".join(line for line in kept if b"Set ray log level" not in line))


def check_reachable(address: str) -> None:
    """OSError if nobody listens at HOST:PORT; UsageError for an address of Ray's client, which runs no datasets."""
    if address.startswith("ray://"):
        raise UsageError(
            f"--ray-address {address}: is an address for Ray's client, which Ray Data does not work through",
            "run embedcli on a machine of the cluster, for example by ray job submit, with --ray-address auto",
        )
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), REACH_TIMEOUT_SECONDS).close()


def iterate_in_thread(
    run: RunContext, make: Callable[[], Iterable[A]], seconds: float | None, halt: Callable[[], None] | None = None
) -> Generator[A, None, None]:
    """What `make()` holds, waited for in a thread, so that a signal is not. Ends when the run is to, or time is up.

    `halt` makes the thread end; without it, the thread is left behind.
    """
    inbox: queue.SimpleQueue[tuple[A | None, BaseException | None]] = queue.SimpleQueue()

    def fill() -> None:
        try:
            for item in make():
                inbox.put((item, None))
            inbox.put((None, StopIteration()))
        except BaseException as error:  # noqa: BLE001  raised where the items are read
            inbox.put((None, error))

    thread = threading.Thread(target=fill, name="ray", daemon=True)
    thread.start()
    try:
        until = None if seconds is None else time.monotonic() + seconds
        while not run.control.stop_event.is_set() and (until is None or time.monotonic() < until):
            run.metrics.last_heartbeat = (
                time.monotonic()
            )  # Ray notices workers that are gone: a long share is no stage that hangs
            with suppress(queue.Empty):
                item, error = inbox.get(timeout=POLL_SECONDS)
                if isinstance(error, StopIteration):
                    return
                if error is not None:
                    raise error
                yield item  # type: ignore[misc]
    finally:
        if halt is not None:
            halt()
            thread.join(REACH_TIMEOUT_SECONDS)


# The dataset


def iterate_answers(
    run: RunContext, setup: WorkerSetup, tasks: list[PartitionTask]
) -> Generator[dict[str, Any], None, None]:
    """Answers as they come: a row of the dataset is a share, and a block, so that a worker that dies costs one."""
    import ray.data

    check_worker_fits(run)
    run.worker_count = min(run.job.workers or count_cluster_workers(run), len(tasks))
    job = replace(run.job, workers=run.worker_count)
    left = run.control.remaining_seconds()
    workers_job = replace(job, runner="local", workers=None, threads=threads_per_worker(run), max_seconds=None)
    data = ray.data.from_items([{"task": pickle.dumps(task)} for task in tasks], override_num_blocks=len(tasks)).map(
        RayWorker,  # type: ignore[arg-type]
        fn_constructor_args=(replace(setup, job=workers_job), DriverContext(), left),
        compute=ray.data.ActorPoolStrategy(
            size=job.workers, max_tasks_in_flight_per_actor=partitions_in_flight(len(tasks), job)
        ),
        num_cpus=job.num_cpus or 1,
        num_gpus=job.num_gpus or 0,
    )
    answers = iterate_in_thread(
        run, data.iter_rows, None if left is None else left + STOP_GRACE_SECONDS, partial(stop_dataset, data)
    )
    came = 0
    with closing(answers):
        while (row := next_answer(answers)) is not None:
            came += 1
            yield row
    if came < len(tasks):
        run.control.reason = run.control.reason or "--max-seconds"


def partitions_in_flight(tasks: int, job: Job) -> int:
    """How many shares a worker is given at a time: two where shares are many, so that one is a small part of the work.

    The second saves a worker the 0.15 s in which Ray notices that it is idle; but at the end a slow worker sits on a
    share that another would begin.
    """
    return 2 if tasks >= MANY_PARTITIONS_PER_WORKER * (job.workers or 1) else 1


def next_answer(answers: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
    try:
        return next(answers, None)
    except Exception as error:
        raise dataset_error(error) from error


def stop_dataset(data: Any) -> None:
    """End the execution of a dataset, from another thread than the one that waits for its rows.

    Ray ends the whole process, exit code 1, when one of its threads asks it for more after `ray.shutdown`.
    """
    end = getattr(data, "_synchronize_progress_bar", None)
    if end is not None:
        with suppress(Exception):
            end()


def dataset_error(error: BaseException) -> EmbedcliError:
    """What the end of a whole dataset means for the user."""
    if "No module named 'embedcli'" in str(error):
        return UsageError(
            "a machine of the cluster lacks embedcli", "install the same version, with the same extras, on all of them"
        )
    return EmbedcliError(f"the Ray cluster failed: {type(error).__name__}: {summarize_ray_error(error)}", RESUME_HINT)


def summarize_ray_error(error: BaseException) -> str:
    """The line of an error that says most: Ray's have tracebacks of workers inside, the cause at the end."""
    lines = [ANSI_COLORS.sub("", line).strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"[\w.]+Error: ", line)]
    return (causes[-1:] or lines[:1] or [type(error).__name__])[0][:300]


def threads_per_worker(run: RunContext) -> int:
    return run.job.threads or max(1, int(run.job.num_cpus or 1))


def worker_resources(run: RunContext) -> dict[str, float]:
    """What a worker reserves, in Ray's words."""
    return {"CPU": run.job.num_cpus or 1, **({"GPU": run.job.num_gpus} if run.job.num_gpus else {})}


def count_cluster_workers(run: RunContext) -> int:
    """As many workers as the cluster has room for now."""
    import ray

    found = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, int(min(found.get(name, 0) / wanted for name, wanted in worker_resources(run).items())))


def check_worker_fits(run: RunContext) -> None:
    """UsageError if no machine can hold a worker; on a cluster, where machines may still come, a note."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if any(
        all(machine.get(name, 0) >= wanted for name, wanted in worker_resources(run).items()) for machine in machines
    ):
        return
    wanted = " and ".join(f"{count:g} {name}" for name, count in worker_resources(run).items())
    if not (run.job.ray_address or os.environ.get("RAY_ADDRESS")):
        raise UsageError(f"this machine has no {wanted} for a worker", "lower --num-cpus or --num-gpus")
    run.observer.notify(f"no machine of the cluster has {wanted} for a worker yet: waiting for one")

"""Run partitions on a Ray cluster: a pool of actors, each of which loads the encoder once.

Actors write part files straight to the shared output; only records come back to the driver. A partition whose worker
dies is given to another one, which keeps the chunks that are already written.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from typing import Any

from embedcli.core.errors import EmbedcliError, ModelError, UsageError, first_line
from embedcli.core.job import Job
from embedcli.runners.context import RunContext
from embedcli.runners.multiprocess import MAX_ATTEMPTS, POLL_SECONDS, WorkerTracebackError
from embedcli.runners.ray_worker import DriverContext, RayWorker, WorkerResponse
from embedcli.runners.worker import PartitionResult, PartitionTask, WorkerSetup, share_server_limits
from embedcli.runners.worker_progress import WorkerProgress

RESUME_HINT = "run the same command again to continue: finished work is kept"
CONNECT_HINT = "start the cluster, or check the address: HEAD:6379, or auto on one of its machines"
# A head that is up accepts at once, and a driver is let in within seconds; Ray itself would try for minutes.
REACH_TIMEOUT_SECONDS = 10.0
CONNECT_TIMEOUT_SECONDS = 60.0
# Workers finish their current chunk after --max-seconds; the driver waits this much longer for them.
STOP_GRACE_SECONDS = 60.0
# One that encodes a partition, and one that asks how far it is.
CALLS_PER_ACTOR = 2
# Machines come and go, so a partition may lose this many workers; one that kills each of them has to end the run.
MAX_DEATHS = 4
# Object store of a cluster that is started on this machine: it holds tasks and records, never rows or vectors.
OBJECT_STORE_BYTES = 100 << 20


def run_on_ray(
    run: RunContext, setup: WorkerSetup, tasks: list[PartitionTask]
) -> Generator[PartitionResult, None, None]:
    """Encode partitions with actors of a Ray cluster.

    Args:
        run: The running job; `run.worker_count` is set to the number of actors.
        setup: What every worker has to know about the job.
        tasks: The partitions to encode.

    Yields:
        Finished partitions, in the order in which they are finished.

    Raises:
        EmbedcliError: The error of a worker, as itself; or a failure of the cluster.
    """
    ray = import_ray(run.job)
    # Ray prints messages about dead workers to stdout, whatever `log_to_driver` says.
    with open(os.devnull, "w") as devnull, redirect_stdout(devnull):
        if ray.is_initialized():
            yield from encode_with_actors(run, setup, tasks)
            return
        with connect_to_ray(run, ray):
            if not run.control.stop_event.is_set():
                yield from encode_with_actors(run, setup, tasks)


def encode_with_actors(
    run: RunContext, setup: WorkerSetup, tasks: list[PartitionTask]
) -> Generator[PartitionResult, None, None]:
    """Yield finished partitions, once this process is connected to Ray."""
    import ray

    try:
        check_worker_fits(run)
        run.worker_count = workers = min(run.job.workers or count_fitting_workers(run.job), len(tasks))
        with closing(ActorPool(run, setup, tasks, workers)) as pool:
            yield from pool.results()
    except ray.exceptions.RayError as error:
        what = f"the Ray cluster failed: {type(error).__name__}: {first_line(error)}"
        raise EmbedcliError(what, RESUME_HINT) from error


class ActorPool:
    """Actors that encode one partition at a time each. Close it.

    Only actors that Ray has started get partitions: those that wait for room (for an autoscaler, say) delay nobody.
    """

    def __init__(self, run: RunContext, setup: WorkerSetup, tasks: list[PartitionTask], workers: int) -> None:
        import ray

        self.run, self.ray = run, ray
        self.queue = deque(tasks)
        self.actors: list[Any] = []
        self.idle: list[Any] = []
        # Calls that have not returned: the actor, and its partition or None while it starts.
        self.calls: dict[Any, tuple[Any, PartitionTask | None]] = {}
        self.progress = WorkerProgress(run, tasks)
        self.progress_calls: dict[Any, tuple[Any, int]] = {}
        self.deaths: Counter[int] = Counter()
        self.errors: Counter[int] = Counter()
        self.shown_notes: set[str] = set()
        threads = run.job.threads or max(1, int(run.job.num_cpus or 1))
        job = replace(run.job, runner="local", workers=None, threads=threads, max_seconds=None)
        job = share_server_limits(job, workers)
        self.setup, self.context = replace(setup, job=job), DriverContext()
        self.actor_class: Any = ray.remote(RayWorker).options(
            num_cpus=run.job.num_cpus or 1,
            num_gpus=run.job.num_gpus or 0,
            scheduling_strategy="SPREAD",
            max_concurrency=CALLS_PER_ACTOR,
        )
        for _ in range(workers):
            self._start_actor()

    def results(self) -> Iterator[PartitionResult]:
        """Yield finished partitions until all are finished or the run has to stop."""
        control, left = self.run.control, self.run.control.remaining_seconds()
        deadline = math.inf if left is None else time.monotonic() + left + STOP_GRACE_SECONDS
        while self.queue or any(task for _, task in self.calls.values()):
            self._give_out()
            returned, _ = self.ray.wait(list(self.calls), timeout=POLL_SECONDS)
            # Ray notices dead workers: a long partition is not a hang.
            self.run.metrics.last_heartbeat = time.monotonic()
            if time.monotonic() > deadline:
                control.reason = control.reason or "--max-seconds"
                return
            if control.stop_event.is_set():
                return
            for call in returned:
                result = self._take_result(call)
                if result is not None:
                    self._give_out()  # first, so that the worker does not wait for the caller
                    self.progress.finish(result.record.index, result.metrics.progress)
                    yield result
            self._read_progress()

    def _read_progress(self) -> None:
        """Take over the progress that the workers have reported, and ask those without a pending request."""
        if self.progress_calls:
            answered, _ = self.ray.wait(list(self.progress_calls), num_returns=len(self.progress_calls), timeout=0)
            for call in answered:
                _, index = self.progress_calls.pop(call)
                with suppress(self.ray.exceptions.RayError):  # the partition's own call reports what happened
                    counts = self.ray.get(call)
                    if counts is not None and any(
                        task and task.partition.index == index for _, task in self.calls.values()
                    ):
                        self.progress.update(index, counts)
        asked = {actor for actor, _ in self.progress_calls.values()}
        for actor, task in self.calls.values():
            if task is not None and actor not in asked:
                self.progress_calls[actor.read_progress.remote(task.partition.index)] = actor, task.partition.index

    def _start_actor(self) -> None:
        actor = self.actor_class.remote(self.setup, self.context, self.run.control.remaining_seconds())
        self.actors.append(actor)
        self.calls[actor.wait_until_started.remote()] = actor, None

    def _give_out(self) -> None:
        while self.queue and self.idle:
            actor, task = self.idle.pop(), self.queue.popleft()
            self.calls[actor.encode_partition.remote(task)] = actor, task

    def _take_result(self, call: Any) -> PartitionResult | None:
        """The partition that a call has finished, if any; its actor becomes idle or is replaced."""
        actor, task = self.calls.pop(call)
        try:
            response: WorkerResponse | None = self.ray.get(call)
        except (self.ray.exceptions.RayActorError, self.ray.exceptions.ObjectLostError) as error:
            self._handle_death(error, actor, task)
            return None
        if response is None or task is None:
            self.idle.append(actor)
            return None
        self._show(response.notes)
        if response.error is not None:
            self._handle_error(response, response.error, actor, task)
            return None
        if response.stop_reason is not None:
            self.run.control.reason = self.run.control.reason or response.stop_reason
            self.queue.clear()
        self.idle.append(actor)
        return response.result

    def _handle_death(self, error: Any, actor: Any, task: PartitionTask | None) -> None:
        """Retry the partition of a worker that died, unless it has lost too many."""
        if isinstance(error, self.ray.exceptions.RayActorError) and error.actor_init_failed:
            raise UsageError(
                f"a machine of the cluster lacks embedcli or one of its packages: {str(error).splitlines()[-1]}",
                "install the same version, with the same extras, on all of them",
            ) from error
        if task is not None:
            self.deaths[task.partition.index] += 1
            if self.deaths[task.partition.index] >= MAX_DEATHS:
                raise ModelError(
                    f"{MAX_DEATHS} workers died while they encoded partition {task.partition.index}",
                    f"lower --batch-tokens, or reserve more with --num-cpus, if memory ran out; {RESUME_HINT}",
                ) from error
        self._replace(actor, task, "a worker died")

    def _handle_error(self, response: WorkerResponse, error: BaseException, actor: Any, task: PartitionTask) -> None:
        """Raise an error that a retry cannot fix; after any other, retry the partition once in a new process."""
        self.errors[task.partition.index] += 1
        error.__cause__ = WorkerTracebackError(response.traceback)
        if isinstance(error, EmbedcliError) or self.errors[task.partition.index] >= MAX_ATTEMPTS:
            if response.host != platform.node():
                self.run.observer.notify(f"the error was raised by the worker on {response.host}")
            raise error
        self._replace(actor, task, f"a worker failed ({type(error).__name__}: {first_line(error)})")

    def _replace(self, actor: Any, task: PartitionTask | None, reason: str) -> None:
        """Start another actor, and put the partition first in the queue."""
        self.ray.kill(actor)
        self.actors.remove(actor)
        self._start_actor()
        if task is None:
            self.run.observer.notify(f"{reason} while it started; another one is started")
        else:
            self.progress.discard(task.partition.index)
            self.queue.appendleft(task)
            self.run.observer.notify(f"{reason}; partition {task.partition.index} is encoded by another one")

    def _show(self, notes: list[str]) -> None:
        """All workers say the same things when they start: once is enough."""
        for note in notes:
            if note not in self.shown_notes:
                self.shown_notes.add(note)
                self.run.observer.notify(note)

    def close(self) -> None:
        """Stop all actors at once: what they have written stays. No reference outlives the connection."""
        for actor in self.actors:
            self.ray.kill(actor)
        self.actors, self.idle, self.calls, self.progress_calls = [], [], {}, {}


# Connecting


def import_ray(job: Job) -> Any:
    """Import Ray without its logs and usage statistics.

    Raises:
        UsageError: Ray is not installed, or --device lists several devices.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UsageError("--runner ray needs Ray", "pip install 'embedcli[ray]'") from None
    if "," in job.device:
        raise UsageError(
            f"--device {job.device} does not go together with --runner ray",
            "use --num-gpus 1 --workers N: Ray gives each worker a device of its own",
        )
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # the run has its own messages
    return ray


@contextmanager
def connect_to_ray(run: RunContext, ray: Any) -> Iterator[None]:
    """Join the cluster of --ray-address or RAY_ADDRESS, or start one on this machine; leave it at the end.

    One thread connects, waits and disconnects. In the main thread Ray would replace the handler of SIGTERM; on Linux,
    the processes that Ray starts end with the thread that started them; and `ray.shutdown` must not run before
    `ray.init` has returned. The block also runs if the run has to stop before there is a connection.

    Raises:
        UsageError: There is no cluster at the address.
    """
    address = run.job.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    where = "this machine" if address == "local" else address
    connected, finished, errors = threading.Event(), threading.Event(), []

    def hold_connection() -> None:
        try:
            check_reachable(address)
            ray.init(**options)
            connected.set()
            finished.wait()
        except Exception as error:  # noqa: BLE001  raised by the main thread
            errors.append(error)
        finally:
            ray.shutdown()
            connected.set()

    thread = threading.Thread(target=hold_connection, name="ray-connection", daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + CONNECT_TIMEOUT_SECONDS
        while not (connected.wait(POLL_SECONDS) or run.control.stop_event.is_set()):
            restore_sigterm_handler()
            run.metrics.last_heartbeat = time.monotonic()
            if time.monotonic() > deadline:
                raise UsageError(
                    f"no Ray cluster at {where}: no response within {CONNECT_TIMEOUT_SECONDS:g} s", CONNECT_HINT
                )
        for error in errors:
            if isinstance(error, EmbedcliError):
                raise error
            raise UsageError(f"no Ray cluster at {where}: {first_line(error)}", CONNECT_HINT) from error
        restore_sigterm_handler()
        yield
    finally:
        finished.set()
        deadline = time.monotonic() + CONNECT_TIMEOUT_SECONDS
        while connected.is_set() and thread.is_alive() and time.monotonic() < deadline:
            thread.join(POLL_SECONDS)
            restore_sigterm_handler()


def restore_sigterm_handler() -> None:
    """Install Python's handler of SIGTERM again after Ray's core has replaced it, and stop the alarm of Ray's own.

    Ray's own prints a stack trace, calls Python's, and sets an alarm that aborts the process (signal 6) if it has not
    ended 3 s after SIGTERM; after `ray.shutdown`, there is no handler at all.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
        signal.alarm(0)


def check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT, UsageError for an address of the Ray client."""
    if address.startswith("ray://"):
        raise UsageError(
            f"--ray-address {address}: embedcli does not work through Ray's client",
            "run embedcli on a machine of the cluster, for example by ray job submit, with --ray-address auto",
        )
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), REACH_TIMEOUT_SECONDS).close()


# Resources


def required_resources(job: Job) -> dict[str, float]:
    """What a worker reserves, by Ray's names."""
    return {"CPU": job.num_cpus or 1, **({"GPU": job.num_gpus} if job.num_gpus else {})}


def count_fitting_workers(job: Job) -> int:
    """The number of workers that the cluster has room for now, at least 1."""
    import ray

    available = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, int(min(available.get(name, 0) / amount for name, amount in required_resources(job).items())))


def check_worker_fits(run: RunContext) -> None:
    """Raise UsageError if this machine cannot hold a worker; on a cluster, which may still grow, show a note."""
    import ray

    required = required_resources(run.job)
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if any(all(machine.get(name, 0) >= amount for name, amount in required.items()) for machine in machines):
        return
    amounts = " and ".join(f"{amount:g} {name}" for name, amount in required.items())
    if not (run.job.ray_address or os.environ.get("RAY_ADDRESS")):
        raise UsageError(f"this machine has no {amounts} for a worker", "lower --num-cpus or --num-gpus")
    run.observer.notify(f"no machine of the cluster has {amounts} for a worker yet: waiting for one")

"""A real Ray of two nodes on this machine: the same rows, vectors and files, whatever dies in the middle."""

from __future__ import annotations

import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
import ray_loads
from embedcli import checkpoint, readers, runners, storage
from embedcli.checkpoint import input_snapshot
from embedcli.cli import entrypoint
from embedcli.core.errors import EncodingStoppedError, ModelError, OutputError, UsageError
from embedcli.core.job import Job
from embedcli.core.types import Partition, RunResult
from embedcli.outputs import target as output_target
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.runners import ray_runner
from embedcli.runners.context import RunContext
from embedcli.runners.ray_worker import DriverContext, RayWorker
from embedcli.runners.worker import PartitionTask, WorkerSetup

pytestmark = [
    pytest.mark.skipif(not find_spec("ray"), reason="Ray is not installed: pip install 'embedcli[ray]'"),
    # Ray warns of settings that it makes itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
]

# No web page, no autoscaler, and logs stay in their files.
NODE: dict[str, Any] = {
    "num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False, "include_log_monitor": False,
    "no_monitor": True,
}  # fmt: skip
# A node is missed after three seconds, not after a quarter of a minute. A busy machine must not lose one sooner: Ray
# aborts the driver on a node that is taken for dead.
ALERT = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 10}

# The largest piece of the inputs, a CSV file: what one worker can lose at most.
ABOUT_A_SHARE = 200


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    """A Ray of two nodes with one processor each, and this process as its driver."""
    import ray
    from ray.cluster_utils import Cluster

    paths = [str(Path(__file__).parents[1] / "support"), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))  # where workers find the loaders
        made = Cluster(initialize_head=True, head_node_args={**NODE, "_system_config": ALERT})
        made.add_node(**NODE)
        ray.init(address=made.address, log_to_driver=False, logging_level=logging.CRITICAL)
        yield made
        ray.shutdown()
        made.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of three formats, with bad rows, and the model."""
    folder = tmp_path_factory.mktemp("ray")
    jobs.mixed_inputs(folder)
    return folder


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_loads.small_pieces(lambda module, name, value: monkeypatch.setattr(f"{module}.{name}", value))


def job_of(home: Path, output: Path | str, **values: Any) -> Job:
    asked: dict[str, Any] = {"chunk_rows": 16, "text_column": "text", "part_size": 4000, "runner": "ray", "workers": 2}
    return Job(jobs.mixed_paths(home), str(output), model=str(home / "words.txt"), **(asked | values))


def run(job: Job, load: Any = None, watch: jobs.Silent | None = None) -> RunResult:
    return runners.execute_job(
        job, watch or jobs.Silent(), RunControl(job.limit, job.max_seconds), MetricsCollector(), load
    )


def held(output: str | Path) -> dict[str, bytes]:
    """Every file of a folder, but for the logs of loaders."""
    return {file.name: file.read_bytes() for file in Path(output).iterdir() if file.is_file()}


@pytest.fixture(scope="module")
def whole(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The folder output of a run in this process."""
    output = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        ray_loads.small_pieces(lambda module, name, value: patch.setattr(f"{module}.{name}", value))
        assert run(job_of(home, f"{output}/", runner="local", workers=None)).exit_code == 3
    return held(output)


def log_of(folder: Path) -> str:
    """A folder for what loaders say."""
    (folder / "log").mkdir()
    return str(folder / "log")


def rows_in(whole: dict[str, bytes]) -> int:
    return sum(pq.read_metadata(pa.BufferReader(data)).num_rows for name, data in whole.items() if "part-" in name)


# One law for all runners


@pytest.mark.usefixtures("two_nodes")
@pytest.mark.parametrize(
    ("name", "ids", "precision"), [("out/", "generated", "int8"), ("out.parquet", "id", "float32")]
)
def test_the_output_is_the_same_to_the_byte(
    home: Path, tmp_path: Path, name: str, ids: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ids == "generated":
        monkeypatch.setattr("embedcli.readers.columns.ID_COLUMN_NAMES", ())
    made = []
    for runner in ("local", "ray"):
        (tmp_path / runner).mkdir()
        output = f"{tmp_path}/{runner}/{name}"
        workers = None if runner == "local" else 2
        outcome = run(job_of(home, output, runner=runner, workers=workers, precision=precision))
        assert (outcome.exit_code, outcome.totals["rejects"]) == (3, 3)
        made.append(held(output if name == "out/" else tmp_path / runner))
    assert made[0] == made[1]
    assert len(made[0]) > 5 or name != "out/"


@pytest.mark.usefixtures("two_nodes")
def test_ray_data_reads_a_folder_output_as_it_stands(
    whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, data in whole.items():
        (tmp_path / name).write_bytes(data)
    pytest.importorskip("pandas", reason="Ray Data is not installed: pip install 'ray[data]'")
    import ray.data

    # Ray starts 32 processes that look at the ends of files, unless it is told.
    monkeypatch.setenv("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
    rows = ray.data.read_parquet(str(tmp_path)).take_all()
    parts = [pq.read_table(pa.BufferReader(data)) for name, data in whole.items() if "part-" in name]
    wanted = {row["id"]: row["embedding"] for part in parts for row in part.to_pylist()}
    assert len(rows) == len(wanted)
    assert {row["id"]: list(row["embedding"]) for row in rows} == wanted


# What dies in the middle


@pytest.mark.usefixtures("two_nodes")
def test_a_worker_that_is_killed_costs_one_chunk(home: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    log = log_of(tmp_path)
    assert run(job_of(home, f"{tmp_path}/out/"), ray_loads.DiesOnce(log)).exit_code == 3
    assert held(tmp_path / "out") == whole
    assert Path(log, "died").exists()
    assert ray_loads.loads(Path(log)) == 3
    assert ray_loads.rows_done(Path(log)) <= rows_in(whole) + ABOUT_A_SHARE


def test_a_node_that_goes(two_nodes: Any, home: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    log = log_of(tmp_path)
    (lost,) = two_nodes.worker_nodes
    ended: list[RunResult | BaseException] = []

    def drive() -> None:
        try:
            ended.append(run(job_of(home, f"{tmp_path}/out/"), ray_loads.Waits(log, node=lost.node_id)))
        except BaseException as error:  # noqa: BLE001  the test looks at it
            ended.append(error)

    driver = threading.Thread(target=drive, daemon=True)
    driver.start()
    waited_for(lambda: bool(list(Path(log).glob("waits-*"))) or not driver.is_alive())
    two_nodes.remove_node(lost, allow_graceful=False)
    driver.join(jobs.PATIENCE)
    two_nodes.add_node(**NODE)
    assert [getattr(one, "exit_code", one) for one in ended] == [3]
    assert held(tmp_path / "out") == whole


def waited_for(condition: Callable[[], bool]) -> None:
    with subprocess.Popen(["sleep", str(jobs.PATIENCE)]) as clock:
        jobs.wait_for(condition, clock)
        clock.kill()


def driver_command(loader: str, log: str, cluster: Any, home: Path, tmp_path: Path) -> list[str]:
    """A driver as a command of its own."""
    fixed = [sys.executable, ray_loads.__file__, loader, log, cluster.address]
    return [*fixed, f"{tmp_path}/out/", str(home / "words.txt"), *jobs.mixed_paths(home)]


def test_dead_workers_are_reported_on_stderr_only(two_nodes: Any, home: Path, tmp_path: Path) -> None:
    command = driver_command("DiesOnce", log_of(tmp_path), two_nodes, home, tmp_path)
    driver = subprocess.run(command, capture_output=True, check=False, timeout=jobs.PATIENCE)
    assert (driver.returncode, driver.stdout) == (3, b"")
    assert b"a worker died; partition" in driver.stderr
    assert [line for line in driver.stderr.splitlines() if not line.startswith(b"20")] == []


@pytest.fixture
def halfway(two_nodes: Any, home: Path, tmp_path: Path) -> Iterator[Any]:
    """A driver in a process of its own, whose two workers have done shares and now wait."""
    log = log_of(tmp_path)
    command = driver_command("Waits", log, two_nodes, home, tmp_path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as own:
        try:
            jobs.wait_for(lambda: len(list(Path(log).glob("waits-*"))) == 2, own)
            yield own
        finally:
            own.kill()


def sealed(tmp_path: Path) -> int:
    """How many shares of the stage are done."""
    return len(
        checkpoint.list_completed_partitions(output_target.resolve_target(f"{tmp_path}/out/", None).staging_folder)
    )


def test_a_driver_that_is_killed(halfway: Any, home: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    halfway.kill()
    halfway.wait()
    done = sealed(tmp_path)
    assert done >= 2
    waited_for(lambda: not waiting_workers(tmp_path))
    left = tmp_path / "left"
    left.mkdir()
    local = run(job_of(home, f"{tmp_path}/out/", runner="local", workers=None), ray_loads.Loader(str(left)))
    assert local.exit_code == 3
    assert local.resumed_rows >= done
    assert ray_loads.rows_done(left) < rows_in(whole)
    assert held(tmp_path / "out") == whole


def waiting_workers(tmp_path: Path) -> list[int]:
    """The workers that said that they wait, and are still there."""
    said = [int(path.name.split("-")[1]) for path in (tmp_path / "log").glob("waits-*")]
    return [pid for pid in said if Path(f"/proc/{pid}").exists()]


def test_sigterm_keeps_what_is_done(halfway: Any, home: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    done = sealed(tmp_path)
    halfway.send_signal(signal.SIGTERM)
    out, err = halfway.communicate(timeout=jobs.PATIENCE)
    assert halfway.returncode == 75, err.decode()
    assert out == b""
    assert "run the same command again" in err.decode()
    assert [line for line in err.splitlines() if not line.startswith(b"20")] == []
    waited_for(lambda: not waiting_workers(tmp_path))
    left = tmp_path / "left"
    left.mkdir()
    again = run(job_of(home, f"{tmp_path}/out/", workers=1), ray_loads.Loader(str(left)))
    assert again.exit_code == 3
    assert again.resumed_rows >= done >= 2
    assert ray_loads.rows_done(left) < rows_in(whole)
    assert held(tmp_path / "out") == whole


@pytest.mark.usefixtures("two_nodes")
def test_max_seconds(home: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    outcome = run(job_of(home, f"{tmp_path}/out/", max_seconds=0.001, workers=1))
    assert (outcome.exit_code, outcome.reason) == (75, "stopped by --max-seconds: run the same command again to go on")
    assert run(job_of(home, f"{tmp_path}/out/", runner="local", workers=None)).exit_code == 3
    assert held(tmp_path / "out") == whole


# Errors of workers


@pytest.mark.usefixtures("two_nodes")
def test_an_error_for_the_user_is_raised_as_itself(home: Path, tmp_path: Path) -> None:
    asked = ("--model", home / "words.txt", "--on-bad-row", "fail", "--part-size", 4000)
    ended = jobs.run("encode", *jobs.mixed_paths(home), f"{tmp_path}/out/", *asked, "--runner", "ray", "--workers", 1)
    assert ended.code == 1
    assert ended.out == ""
    assert f"error: {home}/in.a.jsonl:8: " in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.usefixtures("two_nodes")
def test_an_unexpected_error(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, watch = log_of(tmp_path), jobs.Silent()
    with pytest.raises(ZeroDivisionError) as raised:
        run(job_of(home, f"{tmp_path}/out/", workers=1), ray_loads.Fails(log), watch)
    assert ray_loads.loads(Path(log)) == 2
    assert sum("a worker failed (ZeroDivisionError: a batch of nothing)" in line for line in watch.lines) == 1
    monkeypatch.setenv(entrypoint.VERBOSE_VARIABLE, "1")
    assert entrypoint.report_error(raised.value) == 1
    shown = capsys.readouterr().err
    assert "in at_tokenize" in shown
    assert "error: unexpected ZeroDivisionError: a batch of nothing" in shown


@pytest.mark.usefixtures("two_nodes")
def test_a_partition_that_kills_each_worker(home: Path, tmp_path: Path) -> None:
    log = log_of(tmp_path)
    with pytest.raises(ModelError, match=f"{ray_runner.MAX_DEATHS} workers died while they encoded partition 0"):
        run(job_of(home, f"{tmp_path}/out/", workers=1), ray_loads.Dies(log))
    assert ray_loads.loads(Path(log)) == ray_runner.MAX_DEATHS


@pytest.mark.usefixtures("two_nodes")
def test_machines_without_embedcli(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loader(ray_loads.Loader):
        __module__ = "only_on_the_driver"
        __qualname__ = "Loader"

    module = ModuleType(Loader.__module__)
    monkeypatch.setattr(module, "Loader", Loader, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(UsageError, match=r"lacks embedcli or .*: .*No module named 'only_on_the_driver'") as raised:
        run(job_of(home, f"{tmp_path}/out/"), Loader(str(tmp_path)))
    assert raised.value.hint == "install the same version, with the same extras, on all of them"


@pytest.fixture
def worker(home: Path, tmp_path: Path) -> tuple[RayWorker, PartitionTask]:
    """A worker in this process, and a partition, for a run whose staging folder exists."""
    job = job_of(home, f"{tmp_path}/out/", runner="local", workers=None)
    ledger = checkpoint.Ledger(output_target.resolve_target(job.output, None))
    storage.make_folder(ledger.target.staging_folder)
    ledger.begin({"chunk_rows": 16}, overwrite=False)
    plan = readers.plan_inputs(job)
    share = Partition(0, plan.splits)
    view = input_snapshot.take_snapshot([share])
    input_snapshot.write_snapshot(ledger.target.staging_folder, view)
    setup = WorkerSetup(job, plan, ledger.job, view.name)
    return RayWorker(setup, DriverContext(), None), PartitionTask(share, None)


def test_a_worker_of_another_version(worker: Any) -> None:
    one, task = worker
    one.setup = replace(one.setup, version="0.0.0")
    error = one.encode_partition(task).error
    assert "the run was started by 0.0.0" in error.message
    assert error.hint == "install the same version on every machine"


def test_an_output_that_workers_do_not_share(worker: Any, tmp_path: Path) -> None:
    one, task = worker
    stage = Path(output_target.resolve_target(f"{tmp_path}/out/", None).staging_folder)
    shutil.rmtree(stage)
    error = one.encode_partition(task).error
    assert isinstance(error, OutputError)
    assert "cannot be seen from this machine" in error.message
    assert "that all machines share" in error.hint
    assert not stage.exists()


def test_a_worker_returns_its_record(worker: Any) -> None:
    one, task = worker
    response = one.encode_partition(task)
    assert response.error is None
    assert response.result.rows_read == 903


def test_a_worker_that_waits_for_a_server_stops_after_max_seconds(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, task = worker

    def wait_in_vain(run: Any) -> None:
        raise EncodingStoppedError("stopped while requests were waiting")

    monkeypatch.setattr(RunContext, "load_encoder", wait_in_vain)
    assert isinstance(one.encode_partition(task).error, EncodingStoppedError)
    one.control.deadline = 0.0
    response = one.encode_partition(task)
    assert (response.result, response.error, response.stop_reason) == (None, None, "--max-seconds")


def test_no_new_partition_begins_after_max_seconds(worker: Any) -> None:
    one, task = worker
    one.control.reason = "--max-seconds"
    response = one.encode_partition(task)
    assert (response.result, response.stop_reason, one.worker) == (None, "--max-seconds", None)


# Addresses


def this_run(**values: Any) -> Any:
    return SimpleNamespace(
        job=Job(("in",), "out", runner="ray", **values),
        control=RunControl(),
        observer=jobs.Silent(),
        metrics=MetricsCollector(),
    )


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("ray://127.0.0.1:10001", "Ray's client"),
        ("somewhere", "Invalid address format"),
    ],
)
def test_an_address_where_no_cluster_is(address: str, says: str) -> None:
    def init(address: str, **_: Any) -> None:
        raise ValueError(f"Invalid address format: {address}")

    ray = SimpleNamespace(init=init, shutdown=lambda: None)
    with pytest.raises(UsageError, match=says) as raised, ray_runner.connect_to_ray(this_run(ray_address=address), ray):
        pass
    assert address in raised.value.message
    assert raised.value.hint


@pytest.fixture
def slow_ray() -> Iterator[Any]:
    """A Ray that connects when `answer` is set, with the order in which it was called."""
    answer, calls = threading.Event(), queue.SimpleQueue[str]()

    def init(**_: Any) -> None:
        answer.wait()
        calls.put("connected")

    yield SimpleNamespace(init=init, shutdown=lambda: calls.put("shutdown"), answer=answer, calls=calls)
    answer.set()


def test_an_address_where_something_else_listens(monkeypatch: pytest.MonkeyPatch, slow_ray: Any) -> None:
    monkeypatch.setattr(ray_runner, "CONNECT_TIMEOUT_SECONDS", 0.01)
    monkeypatch.setattr(ray_runner, "check_reachable", lambda address: None)
    run = this_run(ray_address="127.0.0.1:80")
    with pytest.raises(UsageError, match="no response within"), ray_runner.connect_to_ray(run, slow_ray):
        pass


def test_a_stop_while_connecting(slow_ray: Any) -> None:
    """Ray is never shut down while it connects, and the alarm of its handler of SIGTERM does not abort the process."""
    this = this_run()
    this.control.stop("SIGTERM")
    signal.alarm(jobs.PATIENCE)
    with ray_runner.connect_to_ray(this, slow_ray):
        assert slow_ray.calls.empty()
    assert slow_ray.calls.empty()
    assert signal.alarm(0) == 0
    slow_ray.answer.set()
    assert [slow_ray.calls.get(timeout=jobs.PATIENCE) for _ in range(2)] == ["connected", "shutdown"]


def test_a_second_signal_while_connecting_ends_without_the_alarm(slow_ray: Any) -> None:
    """Ray's handler of the first one has set the alarm; the second one raises."""

    def connect() -> None:
        with ray_runner.connect_to_ray(this_run(), slow_ray):
            signal.alarm(jobs.PATIENCE)
            raise KeyboardInterrupt

    slow_ray.answer.set()
    with pytest.raises(KeyboardInterrupt):
        connect()
    assert signal.alarm(0) == 0


@pytest.mark.usefixtures("two_nodes")
def test_no_room_for_a_worker(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this machine has no 1 CPU and 3 GPU"):
        run(job_of(home, f"{tmp_path}/out/", num_gpus=3))
    with pytest.raises(UsageError, match="does not go together with --runner ray"):
        run(job_of(home, f"{tmp_path}/out/", device="cuda:0,cuda:1"))


@pytest.mark.usefixtures("two_nodes")
def test_workers_without_room_do_not_delay_others(
    home: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster may be too small for all workers, or still grow."""
    monkeypatch.setattr(ray_runner, "STOP_GRACE_SECONDS", 1)
    log = log_of(tmp_path)
    outcome = run(job_of(home, f"{tmp_path}/out/", workers=4, max_seconds=jobs.PATIENCE / 5), ray_loads.Loader(log))
    assert outcome.exit_code == 3
    assert ray_loads.loads(Path(log)) <= 2
    assert held(tmp_path / "out") == whole


# As a command


def test_this_machine_alone(home: Path, tmp_path: Path) -> None:
    """Only data on stdout, only sentences of ours on stderr, and nothing left running."""
    asked = ("--model", home / "words.txt", "--runner", "ray", "--workers", 1, "--progress", "plain")
    arguments = (*jobs.mixed_paths(home), tmp_path / "out.parquet", *asked, "--text-column", "text")
    ended = jobs.run_apart("encode", *arguments, RAY_TEST_FOLDER=str(tmp_path))
    assert ended.code == 3, ended.err
    assert ended.out == ""
    assert [line for line in ended.err.splitlines() if not line.startswith("20")] == []
    waited_for(lambda: not processes_with(f"RAY_TEST_FOLDER={tmp_path}"))


def processes_with(setting: str) -> set[int]:
    """Processes that have a setting in their environment: those of one cluster, whatever else runs here."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            settings = (folder / "environ").read_bytes()
        except OSError:
            continue
        if setting.encode() in settings.split(b"\0"):
            found.add(int(folder.name))
    return found

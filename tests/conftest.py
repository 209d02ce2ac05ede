"""What every test may count on: no network beyond this machine, no caches and no settings of the user."""

from __future__ import annotations

import functools
import ipaddress
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import typer.testing
from hypothesis import settings

from embedcli.core.signals import STOP_SIGNALS

# Hundreds of processes are started: each would compile the program's modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Programs that are started ignore a signal that their parent ignores, as it is under nohup.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

MEMORY = Path("/dev/shm")
ROOM = 4 << 30


def in_memory() -> bool:
    """Whether there is a file system in memory with room for what tests write, and programs may run there."""
    if sys.platform == "win32":
        return False
    try:
        status = os.statvfs(MEMORY)
    except OSError:
        return False
    return os.access(MEMORY, os.W_OK) and not status.f_flag & os.ST_NOEXEC and shutil.disk_usage(MEMORY).free > ROOM


# Every output is synced to disk, part by part: in memory that costs nothing, and is the same call. Nothing stays there;
# with TMPDIR set, what tests write lies there, and stays. A short name: sockets lie there too, and theirs are limited.
if "PYTEST_XDIST_WORKER" not in os.environ and "TMPDIR" not in os.environ and in_memory():
    WRITTEN = tempfile.TemporaryDirectory(prefix="t-", dir=MEMORY, ignore_cleanup_errors=True)
    os.environ["TMPDIR"] = tempfile.tempdir = WRITTEN.name

# The caches must be chosen before the first test module imports a library that reads them. The processes of one
# run share them: the first that needs a compiled model compiles it for all.
SHARED = "TESTS_OF_EMBEDCLI_CACHES"
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHES = tempfile.TemporaryDirectory(prefix="embedcli-tests-")
    os.environ[SHARED] = CACHES.name
OWN = {
    "EMBEDCLI_CACHE": str(Path(os.environ[SHARED], "embedcli")),
    "HF_HOME": str(Path(os.environ[SHARED], "huggingface")),
    "HF_HUB_OFFLINE": "1",
}
for name in [name for name in os.environ if name.startswith(("EMBEDCLI_", "HF_", "MAKE", "MFLAGS", "OPENAI_"))]:
    del os.environ[name]
os.environ.update(OWN)

# The same examples on every run, and no clock: a slow machine is not an error.
settings.register_profile("tests", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("tests")

# The program's commands are made of their functions once, not at every call: they do not change.
vars(typer.testing)["_get_command"] = functools.cache(typer.main.get_command)

ROOT = Path(__file__).resolve().parent.parent

# Files whose tests run one after the other in one process, as they share what is expensive there: here, PyTorch and
# the small models that it has loaded.
TOGETHER = (
    "test_openvino_encoder", "test_fidelity", "test_openvino_cache", "test_models_doc", "test_encoder_contract",
    "test_varlen_attention", "test_tokens", "test_topk", "test_bench_accelerators", "test_memory_budget",
)  # fmt: skip
# The slowest first, so that all processes end at about the same time.
SLOWEST = (
    "test_ray_runner", "test_compile", "test_runners", "test_faults", "test_object_store", "test_recipes",
    "test_bench_compare", "test_encode", "test_openvino_start",
)  # fmt: skip


def group_of(item: str) -> str:
    """What is not shared out among processes: the tests of a file, or of all files of TOGETHER."""
    name = Path(item.partition("::")[0]).stem
    return TOGETHER[0] if name in TOGETHER else name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: at for at, name in enumerate((TOGETHER[0], *SLOWEST))}
    items.sort(key=lambda item: order.get(group_of(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Like --dist loadfile, with the groups of `group_of` for files, in the order of collection."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for one test, without what other tests have compiled and measured of an equal model."""
    monkeypatch.setenv("EMBEDCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The folder with texts.jsonl, texts.csv and texts.parquet: the same 205 rows."""
    return ROOT / "sample_data"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that leaves the machine fails the test that tries it."""
    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))


def guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
    def stay_here(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(address[0]):
            pytest.fail(f"a test tried to reach {address[0]}")
        return connect(self, address)

    return stay_here


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    """Commands change the handlers of signals for the rest of their process."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)

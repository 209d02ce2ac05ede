"""What every test may count on: no network beyond this machine, no caches and no settings of the user."""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

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

ROOT = Path(__file__).resolve().parent.parent


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

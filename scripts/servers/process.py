"""Start a server on a free port, and stop it or kill it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from servers.table import RealServer

START_SECONDS = 180
SCRIPTS = str(Path(__file__).resolve().parents[1])
SETTINGS = {"PYTHONPATH": SCRIPTS, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}


class ServerProcess:
    """A server that runs while the context is entered. It keeps its port when it is started again."""

    def __init__(self, server: RealServer, programs: Path, model: Path, log: Path) -> None:
        """`programs`: the folder of the environment's programs. `log`: gets what the server prints."""
        self._server = server
        self._log = log
        self.port = find_free_port()
        self._command = server.build_command(programs, model, self.port)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        """The value for --base-url."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill(signal.SIGTERM)

    def start(self) -> None:
        """Start the server and wait until it is ready. Raises SystemExit with its last words if it does not."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env={**os.environ, **SETTINGS}, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            for path in (self._server.health_path, f"/v1{self._server.health_path}"):
                if is_ready(f"http://127.0.0.1:{self.port}{path}"):
                    return
            time.sleep(0.2)
        last_words = self._log.read_text("utf-8", "replace")[-2000:]
        self.kill(signal.SIGKILL)
        raise SystemExit(f"{self._server.name} was not ready within {START_SECONDS} s:\n{last_words}")

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the server and its children, and wait until it has ended."""
        process, self._process = self._process, None
        if process is None:
            return
        for each in (number, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, each)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                continue
            return


def find_free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_ready(url: str) -> bool:
    """Whether a request of the URL succeeds."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True

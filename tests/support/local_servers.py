"""Servers of databases that tests start on a free port of this machine."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Sequence

import jobs


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def start_server(command: Sequence[str], port: int) -> subprocess.Popen[bytes]:
    """Start a server, and return when it takes connections."""
    server = subprocess.Popen(list(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + jobs.PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return server
        except ConnectionRefusedError:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline
            time.sleep(0.05)


def stop_server(server: subprocess.Popen[bytes]) -> None:
    """End a server, and wait for it."""
    server.terminate()
    server.wait()

"""Azurite and gcp-storage-emulator as processes of their own, and plain clients for what tests put and find there."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

BUCKET = "data"
ACCOUNT = "devstoreaccount1"
# Azurite's well-known key.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"
# Prints its port and exits when its stdin closes, so it cannot outlive the tests.
# pyarrow keeps a download open while it requests a range: a server with one thread would never respond to that.
EMULATOR = """
import http.server, logging, os, sys
http.server.HTTPServer = http.server.ThreadingHTTPServer
from gcp_storage_emulator.server import create_server
logging.disable(logging.CRITICAL)
server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="data")
server.start()
print(server._api._httpd.socket.getsockname()[1], flush=True)
sys.stdin.read()
os._exit(0)
"""
# Node exits when its stdin closes as well.
AZURITE = (
    "process.stdin.resume(); process.stdin.on('end', () => process.exit(0)); "
    "process.argv.splice(1, 1); require(process.argv[1])"
)


@dataclass(frozen=True)
class Cloud:
    """A running server with one bucket or container, `data`. `environment` is what a command needs to find it."""

    scheme: str
    environment: dict[str, str]
    put: Callable[[str, bytes], None]
    get: Callable[[str], bytes]
    list_names: Callable[[], list[str]]
    # Settings that reach no server, and wrong credentials, each with the secret that no message may show.
    unreachable: dict[str, str]
    wrong: list[tuple[dict[str, str], str]]

    def address(self, key: str) -> str:
        return f"{self.scheme}://{BUCKET}/{key}"

    def names(self, prefix: str) -> list[str]:
        """Every object whose name begins with the prefix."""
        return sorted(name for name in self.list_names() if name.startswith(prefix))


@contextmanager
def run_server(scheme: str) -> Iterator[Cloud]:
    """A server until the block ends; the test is skipped where it is not installed."""
    with {"az": run_azurite, "gs": run_gcs_emulator}[scheme]() as cloud:
        yield cloud


@contextmanager
def run_gcs_emulator() -> Iterator[Cloud]:
    if importlib.util.find_spec("gcp_storage_emulator") is None:
        pytest.skip("gs:// is tested with gcp-storage-emulator: pip install gcp-storage-emulator")
    with run_until_stdin_closes([sys.executable, "-c", EMULATOR]) as process:
        assert process.stdout is not None
        address = f"http://127.0.0.1:{int(process.stdout.readline())}"
        # The emulator accepts everyone, so the wrong settings are those without it.
        wrong = {"STORAGE_EMULATOR_HOST": "", "GOOGLE_APPLICATION_CREDENTIALS": os.devnull}
        unreachable = {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"}
        yield Cloud("gs", {"STORAGE_EMULATOR_HOST": address}, *gcs_functions(address), unreachable, [(wrong, "s3cr3t")])


def gcs_functions(address: str) -> tuple[Callable[[str, bytes], None], Callable[[str], bytes], Callable[[], list[str]]]:
    """put, get and list_names, by the JSON API."""

    def ask(path: str, data: bytes | None = None) -> bytes:
        with urllib.request.urlopen(urllib.request.Request(address + path, data=data)) as answer:
            return bytes(answer.read())

    def put(key: str, data: bytes) -> None:
        ask(f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(key, safe='')}", data)

    def get(key: str) -> bytes:
        return ask(f"/storage/v1/b/{BUCKET}/o/{quote(key, safe='')}?alt=media")

    def list_names() -> list[str]:
        return [item["name"] for item in json.loads(ask(f"/storage/v1/b/{BUCKET}/o")).get("items", [])]

    return put, get, list_names


@contextmanager
def run_azurite() -> Iterator[Cloud]:
    program = shutil.which("azurite-blob") or os.environ.get("AZURITE_BLOB")
    if importlib.util.find_spec("adlfs") is None:
        pytest.skip("az:// needs the extra azure: pip install 'embedcli[azure]'")
    if program is None:
        pytest.skip("az:// is tested with Azurite: npm install --global azurite, or AZURITE_BLOB=.../azurite-blob")
    port = free_port()
    options = ["--inMemoryPersistence", "--blobHost", "127.0.0.1", "--blobPort", str(port), "--skipApiVersionCheck",
               "--disableTelemetry", "--silent"]  # fmt: skip
    with run_until_stdin_closes(["node", "-e", AZURITE, "-", str(Path(program).resolve()), *options]) as process:
        wait_for_port(port, process)
        wrong = [
            ({CONNECTION: connection_string(port, "d3JvbmctczNjcjN0")}, "d3JvbmctczNjcjN0"),
            ({CONNECTION: connection_string(port, "n0t-base64")}, "n0t-base64"),
            ({CONNECTION: "n0-s3cr3t"}, "n0-s3cr3t"),
        ]
        found = connection_string(port)
        yield Cloud("az", {CONNECTION: found}, *azure_functions(found), {CONNECTION: connection_string(9)}, wrong)


def connection_string(port: int, key: str = KEY) -> str:
    return (
        f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};"
        f"BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT};"
    )


def azure_functions(
    connection: str,
) -> tuple[Callable[[str, bytes], None], Callable[[str], bytes], Callable[[], list[str]]]:
    """put, get and list_names, by Azure's own client."""
    from azure.storage.blob import ContainerClient

    client: Any = ContainerClient.from_connection_string(connection, BUCKET)
    client.create_container()

    def put(key: str, data: bytes) -> None:
        client.upload_blob(key, data, overwrite=True)

    def get(key: str) -> bytes:
        return bytes(client.download_blob(key).readall())

    return put, get, lambda: [str(name) for name in client.list_blob_names()]


@contextmanager
def run_until_stdin_closes(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that ends when its stdin is closed, at the end of the block."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert process.poll() is None, "the server ended at once"
            assert time.monotonic() < until, "the server never answered"
            time.sleep(0.05)

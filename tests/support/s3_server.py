"""An S3 server as a process of its own (moto), and a client for what tests put there and find there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

BUCKET = "data"
# Prints its port and exits when its stdin closes, so it cannot outlive the tests.
SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Store:
    """A running server. `environment` is what a command needs to find it."""

    environment: dict[str, str]
    fs: Any

    def put(self, key: str, data: bytes) -> str:
        """Put an object; return its address."""
        with self.fs.open_output_stream(f"{BUCKET}/{key}", compression=None) as out:
            out.write(data)
        return f"s3://{BUCKET}/{key}"

    def get(self, key: str) -> bytes:
        with self.fs.open_input_stream(f"{BUCKET}/{key}", compression=None) as source:
            return bytes(source.read())

    def names(self, prefix: str) -> list[str]:
        """List the objects whose names begin with the prefix, without the empty ones that stand for folders."""
        import pyarrow.fs as pafs

        folder, _, _ = f"{BUCKET}/{prefix}".rpartition("/")
        found = self.fs.get_file_info(pafs.FileSelector(folder, recursive=True, allow_not_found=True))
        names = [info.path.removeprefix(f"{BUCKET}/") for info in found if info.type == pafs.FileType.File]
        return sorted(name for name in names if name.startswith(prefix))

    def remove(self, key: str) -> None:
        self.fs.delete_file(f"{BUCKET}/{key}")


@contextmanager
def run_server() -> Iterator[Store]:
    """A server with one bucket, `data`, until the block ends."""
    import pyarrow.fs as pafs

    process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = f"127.0.0.1:{int(process.stdout.readline())}"
        fs = pafs.S3FileSystem(
            access_key="key", secret_key="secret", region="us-east-1", scheme="http", endpoint_override=address,
            allow_bucket_creation=True, allow_bucket_deletion=True,
        )  # fmt: skip
        fs.create_dir(BUCKET)
        yield Store(environment(address), fs)
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def environment(address: str) -> dict[str, str]:
    """Credentials and the endpoint, as a user sets them."""
    return {
        "AWS_ENDPOINT_URL": f"http://{address}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }

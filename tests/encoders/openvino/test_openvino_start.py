"""A start with a compiled model imports no PyTorch, and no start opens a network connection."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import models

SUPPORT = Path(__file__).parents[2] / "support"
MODEL = "all-MiniLM-L6-v2-shape"
HEAVY = {"torch", "transformers", "sentence_transformers", "huggingface_hub"}
LOAD = """
import sys
from embedcli import encoders
from embedcli.core.job import Job
job = Job(inputs=(), output="", model=sys.argv[1], device="auto")
encoder = encoders.load_encoder(job, notify=lambda line: print(line, file=sys.stderr))
tokens = encoder.tokenize(["ten rows"] * 10)
import numpy as np
assert encoder.collect(encoder.forward(tokens, np.arange(10))).shape == (10, 32)
assert encoder.vector_space()["engine"] == "openvino"
encoder.close()
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""
OUT_OF_MEMORY = """
import resource, sys
import numpy as np
from embedcli import encoders
from embedcli.core.job import Job
from embedcli.core.errors import DeviceOutOfMemoryError
from embedcli.encoders.tokenize.fast import build_tokens
def rows(count, length):
    return build_tokens([[7] * length] * count, np.full(count, length, np.int32)), np.arange(count)
encoder = encoders.load_encoder(Job(inputs=(), output="", model=sys.argv[1], device="cpu"))
small, large = rows(3, 9), rows(20_000, 256)
before = encoder.collect(encoder.forward(*small))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (int(sys.argv[2]) << 20),) * 2)
for _ in range(2):
    try:
        encoder.collect(encoder.forward(*large))
    except DeviceOutOfMemoryError:
        print("out of memory")
np.testing.assert_allclose(encoder.collect(encoder.forward(*small)), before, atol=1e-6)
"""
# As sitecustomize.py: Python runs it before anything else, also in processes that a library starts.
RECORD_CONNECTIONS = """
import os, sys
def record(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto") or event.startswith("urllib."):
        with open(os.environ["ATTEMPTS"], "a") as stream:
            stream.write(f"{event} {arguments}\\n")
        raise OSError("no network in this test")
sys.addaudithook(record)
"""


@cache
def run(folder: Path, *argv: str, code: str = LOAD) -> tuple[str, str, str]:
    """Run code with its home and cache in `folder`; stdout, stderr and the attempted connections."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(RECORD_CONNECTIONS)
    attempts = folder / "attempts"
    attempts.write_text("")
    # Libraries turn their telemetry off by themselves on a continuous-integration machine.
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    process = subprocess.run(
        [sys.executable, "-c", code, str(models.folder(MODEL)), *argv],
        env={
            **environment,
            "HOME": str(folder),
            "EMBEDCLI_CACHE": str(folder / "cache"),
            "PYTHONPATH": os.pathsep.join([str(folder), str(SUPPORT)]),
            "ATTEMPTS": str(attempts),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout, process.stderr, attempts.read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("start")


def test_converting_opens_no_connection_and_prints_nothing(folder: Path) -> None:
    """Also with --verbose in sys.argv, which the converter takes for its own option."""
    out, err, attempts = run(folder, "--verbose")
    assert "compiling" in err
    assert "torch" in err.splitlines()[-1].split()
    assert attempts == ""
    assert out == ""


def test_a_later_start_imports_no_pytorch_and_opens_no_connection(folder: Path) -> None:
    run(folder, "--verbose")
    out, err, attempts = run(folder)
    assert "compiling" not in err
    assert set(err.splitlines()[-1].split()) & HEAVY == set()
    assert {"openvino", "tokenizers"} <= set(err.splitlines()[-1].split())
    assert attempts == ""
    assert out == ""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
@pytest.mark.parametrize("megabytes", ["40", "300"])
def test_a_batch_that_does_not_fit_can_be_tried_smaller(folder: Path, megabytes: str) -> None:
    """Not enough memory for its arrays (82 MB), or enough for those but not for the network."""
    run(folder, "--verbose")
    out, _, _ = run(folder, megabytes, code=OUT_OF_MEMORY)
    assert out == "out of memory\n" * 2


def test_connections_are_recorded(folder: Path) -> None:
    """A plain import of OpenVINO connects to Intel. If that changes, embedcli needs no guard any more."""
    _, _, attempts = run(folder, code="import openvino")
    assert "connect" in attempts or "getaddrinfo" in attempts or "urllib" in attempts

"""What a download of a model tells its observer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hub_server

SIZE = 3_000_000
PROGRAM = """
import json, sys
from pathlib import Path
from embedcli.core.types import RunObserver
from embedcli.models import hub

class Told(RunObserver):
    def __init__(self): self.phases, self.bytes = [], []
    def on_phase(self, text): self.phases.append(text)
    def on_download(self, done, total): self.bytes.append((done, total))

told = Told()
folder = hub.download_snapshot("ann/small", None, Path(sys.argv[1]), observer=told)
print(json.dumps([told.phases, told.bytes, (folder / "model.safetensors").stat().st_size]))
"""


def test_a_download_tells_its_bytes_and_draws_nothing(tmp_path: Path) -> None:
    repository = hub_server.ModelRepository()
    repository.commit({"config.json": b"{}", "model.safetensors": bytes(SIZE)}, "main")
    with hub_server.running({}, frozenset(), {"ann/small": repository}) as hub:
        environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", **hub.environment}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "hub")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    phases, told, size = json.loads(done.stdout)
    assert phases == ["downloading ann/small"]
    assert size == SIZE
    counts = [count for count, _ in told]
    assert counts == sorted(counts)
    assert counts[-1] >= SIZE
    assert all(total is None or count <= total for count, total in told)

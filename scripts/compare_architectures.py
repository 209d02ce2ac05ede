"""Embed texts with every architecture of tests/support/architectures.py; write the table in docs/reference/models.md.

    python scripts/compare_architectures.py [--only NAME ...] [--processes 2] [--json results.json]

Each model runs in a process of its own with a memory limit, on both engines and, one row at a time, in
sentence-transformers. With --only the results are printed and the document stays as it is. All take a few minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
import architecture_checks  # noqa: E402
import architectures  # noqa: E402

DOCUMENT = ROOT / "docs" / "reference" / "models.md"
MEMORY_BYTES = 12 << 30
SECONDS = 180


def main() -> int:
    """Run the models; return 1 if a vector differs or a process ends early."""
    options = read_options()
    names = options.only or list(architectures.ARCHITECTURES)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EMBEDCLI_CACHE"] = f"{folder}/cache"
        import_libraries()
        outcomes = run_all(names, Path(folder), options.processes)
    if options.json:
        options.json.write_text(json.dumps(outcomes, indent=1, ensure_ascii=False), "utf-8")
    if not options.only:
        text = DOCUMENT.read_text("utf-8")
        DOCUMENT.write_text(architecture_checks.with_table(text, outcomes), "utf-8")
    return int(any(one.get("died") or "differ" in architecture_checks.row(name, one) for name, one in outcomes.items()))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(architectures.ARCHITECTURES), metavar="NAME")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def import_libraries() -> None:
    """Import once what every process needs; one thread, because a process with more must not be copied."""
    import sentence_transformers  # noqa: F401
    import torch

    torch.set_num_threads(1)


def run_all(names: list[str], folder: Path, processes: int) -> dict[str, Any]:
    """The outcome of each model by name, in the order of `names`."""
    waiting, running, outcomes = list(names), dict[int, tuple[str, float]](), dict[str, Any]()
    while waiting or running:
        while waiting and len(running) < processes:
            name = waiting.pop(0)
            running[start(name, folder)] = (name, time.monotonic())
        stop_late_processes(running)
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            time.sleep(0.05)
            continue
        name, _ = running.pop(pid)
        outcomes[name] = read_outcome(folder / f"{list(architectures.ARCHITECTURES).index(name)}.json", status)
        print(architecture_checks.row(name, outcomes[name]), flush=True)
    return {name: outcomes[name] for name in names}


def start(name: str, folder: Path) -> int:
    """Start the process of one model; return its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        number = list(architectures.ARCHITECTURES).index(name)
        outcome = architecture_checks.check(name, folder / str(number))
        place = folder / f"{number}.json"
        place.write_text(json.dumps(outcome), "utf-8")
        code = 0
    finally:
        os._exit(code)


def stop_late_processes(running: dict[int, tuple[str, float]]) -> None:
    for pid, (_, started) in running.items():
        if time.monotonic() - started > SECONDS:
            os.kill(pid, signal.SIGKILL)


def read_outcome(place: Path, status: int) -> dict[str, Any]:
    if place.is_file():
        outcome: dict[str, Any] = json.loads(place.read_text("utf-8"))
        return outcome
    late = f"stopped after {SECONDS} seconds"
    return {"died": late if status == signal.SIGKILL else f"the process ended with status {status}"}


if __name__ == "__main__":
    sys.exit(main())

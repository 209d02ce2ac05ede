"""Kill `embedcli encode` with SIGKILL at random moments, resume, and compare with an uninterrupted run, byte by byte.

    python scripts/kill_test.py --kills 1000 [--seed 1]

Each run resumes the same job from what the previous kill left. When a run finishes, its output and rejects must equal
the reference, and no other file may be left. Exits with 1 at the first difference.
"""

from __future__ import annotations

import argparse
import collections
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = 400
CHUNK_ROWS = 64
INPUTS = 4
# Every kind of staging: one file merged at the end, a folder finished partition by partition, several workers.
OUTPUTS: dict[str, tuple[str, ...]] = {
    "out.parquet": (),
    "out/": ("--part-size", "20kB"),
    "out.npy": (),
    "workers/": ("--part-size", "20kB", "--workers", "2"),
    "out.jsonl": (),
}


def main() -> int:
    """Kill until the requested number is reached; print which stages were hit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_inputs(home, options.rows, generator)
        hits: collections.Counter[str] = collections.Counter()
        finished = 0
        references = {output: run_reference(home, output) for output in OUTPUTS}
        while sum(hits.values()) < options.kills:
            output = list(OUTPUTS)[finished % len(OUTPUTS)]
            seconds, files = references[output]
            hits.update(kill_until_finished(home, output, seconds, generator, options.kills - sum(hits.values())))
            compare(home, output, files)
            finished += 1
    where = ", ".join(f"{stage} {count}" for stage, count in sorted(hits.items()))
    print(
        f"{sum(hits.values())} kills survived ({where}); {finished} outputs equal to an uninterrupted run, 0 rows lost"
    )
    return 0


def make_inputs(home: Path, count: int, generator: random.Random) -> None:
    """Write word vectors and rows, some of them invalid, to `home`."""
    words = [f"word{i}" for i in range(WORDS)]
    numbers = [" ".join(f"{generator.gauss(0, 1):.4f}" for _ in range(32)) for _ in words]
    vectors = [f"{word} {values}" for word, values in zip(words, numbers, strict=True)]
    (home / "words.txt").write_text(f"{WORDS} 32\n" + "\n".join(vectors) + "\n")
    rows = [
        f'{{"id": "r{i}", "text": "{" ".join(generator.choices(words, k=generator.randint(1, 60)))}"}}'
        if i % 97
        else "{bad json"
        for i in range(count)
    ]
    each = -(-count // INPUTS)
    for i in range(INPUTS):
        (home / f"in-{i}.jsonl").write_text("\n".join(rows[i * each : (i + 1) * each]) + "\n")


def encode_command(home: Path, output: str) -> list[str]:
    """The command line of the job; its small chunks give many moments to interrupt."""
    inputs = [str(home / f"in-{i}.jsonl") for i in range(INPUTS)]
    python = [sys.executable, "-m", "embedcli", "encode", *inputs, f"{home}/{output}", *OUTPUTS[output]]
    return [*python, "-m", str(home / "words.txt"), "--chunk-rows", str(CHUNK_ROWS), "-q", "--progress", "none"]


def run_reference(home: Path, output: str) -> tuple[float, dict[str, bytes]]:
    """Run once without a kill; return the seconds it took and the bytes of its files, which are then removed."""
    started = time.perf_counter()
    done = subprocess.run(encode_command(home, output), check=False)
    seconds = time.perf_counter() - started
    if done.returncode != 3:
        raise SystemExit(f"the uninterrupted run ended with exit code {done.returncode}, not 3 (some rows rejected)")
    files = read_outputs(home)
    remove_outputs(home)
    return seconds, files


def kill_until_finished(
    home: Path, output: str, seconds: float, generator: random.Random, max_kills: int
) -> collections.Counter[str]:
    """Kill and run again until a run finishes; it is killed at most `max_kills` times. Return where the kills hit."""
    hits: collections.Counter[str] = collections.Counter()
    while True:
        with subprocess.Popen(encode_command(home, output)) as process:
            if sum(hits.values()) < max_kills:
                try:
                    process.wait(generator.uniform(0, seconds * 1.1))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    hits[find_stage(home, output)] += 1
                    continue
            if process.wait() in (0, 3):
                return hits
        raise SystemExit(f"a resumed run ended with exit code {process.returncode}")


def find_stage(home: Path, output: str) -> str:
    """Which stage the run was in, judged by its files."""
    folder = output.endswith("/")
    stage = home / output / "_parts" if folder else home / f"{output}.parts"
    if any(name.startswith(f".{output}") for name in list_outputs(home)):
        return "merging"
    if not stage.exists():
        return "published" if list_outputs(home) else "starting"
    if folder and any(name.startswith(f"{output}part-") for name in list_outputs(home)):
        return "publishing"
    return "writing parts" if any(stage.glob("part-*")) or any(stage.glob("share-*")) else "starting"


def list_outputs(home: Path) -> list[str]:
    """List every file except the inputs."""
    names = (path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file())
    return sorted(name for name in names if name != "words.txt" and not name.startswith("in-"))


def read_outputs(home: Path) -> dict[str, bytes]:
    return {name: (home / name).read_bytes() for name in list_outputs(home)}


def remove_outputs(home: Path) -> None:
    for name in list_outputs(home):
        (home / name).unlink()


def compare(home: Path, output: str, files: dict[str, bytes]) -> None:
    """Exit unless exactly the reference's files are there, with its bytes; then remove them."""
    now = read_outputs(home)
    if now.keys() != files.keys():
        raise SystemExit(f"{output}: files {sorted(now)}, expected {sorted(files)}")
    for name, data in files.items():
        if now[name] != data:
            raise SystemExit(f"{name} differs from the uninterrupted run's")
    remove_outputs(home)


if __name__ == "__main__":
    sys.exit(main())

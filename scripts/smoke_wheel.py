"""Try the installed wheel as a user would, from an empty folder: smoke_wheel.py SAMPLE_DATA.

Run it with `python -I` in an environment that has the wheel and none of the development packages.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DEVELOPMENT = ("hypothesis", "importlinter", "mypy", "pytest", "ruff")
PROGRAM = Path(sys.executable).with_name("embedcli")


def main(samples: str) -> None:
    folder = Path(samples).resolve()
    check_installation()
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        run("--help")
        outputs = {source.suffix: encode(source) for source in sorted(folder.glob("texts.*"))}
        check_output(outputs[".jsonl"], folder / "texts.jsonl")
        check_same(outputs)
        expect(not list(Path().rglob("*.rejects.jsonl")), "the sample rows are all good")
    print(f"wheel {importlib.metadata.version('embedcli')}: {', '.join(outputs)} give the same vectors")


def expect(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"wheel smoke test: expected that {what}")


def check_installation() -> None:
    """The wheel itself is what runs, typed and licensed, and no development package is near."""
    found = importlib.util.find_spec("embedcli")
    package = Path(found.origin).parent if found and found.origin else Path()
    expect(package.is_relative_to(sys.prefix), f"embedcli comes from {sys.prefix}, not {package}")
    expect((package / "py.typed").exists(), "py.typed is in the wheel")
    expect(Path(sys.prefix, "share", "man", "man1", "embedcli.1").exists(), "the man page is in the wheel")
    metadata = importlib.metadata.metadata("embedcli")
    expect(metadata["License-Expression"] == "Apache-2.0", "the wheel says its licence")
    near = [name for name in DEVELOPMENT if importlib.util.find_spec(name)]
    expect(not near, f"no development package is installed, but found {near}")


def run(*arguments: str) -> None:
    """Run the console script offline, with no hub cache; compiled models are cached while the environment lives."""
    own = {"HF_HOME": str(Path.cwd() / "hf"), "EMBEDCLI_CACHE": str(Path(sys.prefix, "cache")), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([PROGRAM, *arguments], env={**os.environ, **own}, capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"embedcli {' '.join(arguments)} succeeds, but exit {done.returncode}:\n{done.stderr}")


def encode(source: Path) -> pa.Table:
    output = f"{source.suffix[1:]}.parquet"
    run("encode", str(source), output, "--progress", "none")
    return pq.read_table(output)


def check_output(table: pa.Table, source: Path) -> None:
    """Each row once and in order, unit vectors of the default model, and the space in the metadata."""
    lines = source.read_text("utf-8").splitlines()
    expect(table["id"].to_pylist() == [json.loads(line)["id"] for line in lines], "ids come out as they went in")
    kind = table.schema.field("embedding").type
    expect(
        pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float32(), f"vectors are float32 lists, not {kind}"
    )
    expect(kind.list_size == 384, f"the default model has 384 columns, not {kind.list_size}")
    norms = np.linalg.norm(vectors(table), axis=1)
    expect(bool(np.all(np.abs(norms - 1) < 1e-4)), "vectors have length 1")
    space: dict[str, Any] = json.loads(table.schema.metadata[b"embedcli"])
    expect(bool(space.get("model")), "the output names its model")


def check_same(outputs: dict[str, pa.Table]) -> None:
    """JSONL, CSV and Parquet of the same rows give the same ids and, within 1e-5, the same vectors."""
    expect(set(outputs) == {".csv", ".jsonl", ".parquet"}, f"three sample files, but found {sorted(outputs)}")
    first = outputs[".jsonl"]
    for suffix, table in outputs.items():
        expect(table["id"].to_pylist() == first["id"].to_pylist(), f"{suffix} has the ids of .jsonl")
        worst = float(np.abs(vectors(table) - vectors(first)).max())
        expect(worst < 1e-5, f"{suffix} has the vectors of .jsonl, but they differ by {worst}")


def vectors(table: pa.Table) -> np.ndarray[Any, np.dtype[np.float32]]:
    """float32 [rows, dim]."""
    column = table["embedding"].combine_chunks()
    flat: np.ndarray[Any, np.dtype[np.float32]] = column.flatten().to_numpy()
    return flat.reshape(len(column), -1)


if __name__ == "__main__":
    main(*sys.argv[1:])

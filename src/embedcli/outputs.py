"""An output path: its files, what a finished one says of itself, and when it belongs to another job."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedcli import sinks
from embedcli.contracts import OutputFormat, ResumeError

MANIFEST = "_manifest.json"


@dataclass(frozen=True)
class Target:
    """An output path as the user gave it, and what follows from it."""

    output: str
    kind: OutputFormat
    folder: bool

    @property
    def stage(self) -> Path:
        return Path(self.output) / "_parts" if self.folder else Path(self.output + ".parts")

    @property
    def rejects(self) -> Path:
        return Path(self.output) / "_rejects.jsonl" if self.folder else Path(self.output + ".rejects.jsonl")

    @property
    def marker(self) -> Path:
        """The file whose presence says that the output is finished."""
        return Path(self.output) / MANIFEST if self.folder else Path(self.output)

    def files(self) -> list[str]:
        return [str(self.marker)] if self.folder else sinks.companions(self.output, self.kind)


def target(output: str, to: OutputFormat | None) -> Target:
    return Target(output, sinks.output_format(output, to), output.endswith("/") or Path(output).is_dir())


# Refusals


def refuse_changed(old: Mapping[str, Any], new: Mapping[str, Any], where: str, output: str) -> None:
    """ResumeError naming the first key that differs, its old and its new value, and the ways out."""
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            raise ResumeError(
                f"{output} belongs to another job ({where}): "
                f"{key} was {_short(old.get(key))}, now {_short(new.get(key))}",
                "use --overwrite to start again, --update to keep the vectors of unchanged rows, or another output",
            )


def changed_input(path: str, old: str, new: str, output: str) -> ResumeError:
    return ResumeError(
        f"{path} has changed since {output} was begun: its rows had the hash {old[:12]}, now {new[:12]}",
        "use --overwrite to start again, or --update to keep the vectors of unchanged rows",
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:197] + "..."


# Finished outputs


@dataclass(frozen=True)
class Finished:
    """What a finished output says of itself."""

    space: Mapping[str, Any]
    job: Mapping[str, Any]

    @property
    def source_hash(self) -> str:
        return str(self.job.get("source_hash", ""))


def finished(target: Target) -> Finished | None:
    """The record inside a finished output; None if there is no output; ResumeError if it is not one of ours."""
    if not target.marker.exists():
        return None
    foreign = ResumeError(
        f"{target.output} exists and does not say what made it", "use --overwrite to replace it, or another output"
    )
    try:
        raw = _metadata(target)
        return Finished(json.loads(raw[sinks.SPACE_KEY]), json.loads(raw[sinks.JOB_KEY]))
    except (OSError, ValueError, KeyError, TypeError):
        raise foreign from None


def _metadata(target: Target) -> dict[str, str]:
    if target.folder or target.kind == "jsonl":
        path = target.marker if target.folder else Path(sinks.space_path(target.output))
        return {key: json.dumps(value) for key, value in json.loads(path.read_bytes()).items()}
    if target.kind == "arrow":
        with pa.memory_map(target.output) as source:
            found = pa.ipc.open_file(source).schema.metadata or {}
    else:
        table = sinks.ids_path(target.output) if target.kind == "npy" else target.output
        found = pq.read_schema(table).metadata or {}
    return {key.decode(): value.decode() for key, value in found.items() if key.startswith(b"embedcli")}


def stamp(target: Target, inputs: Sequence[str]) -> dict[str, Any] | None:
    """Size and modification time of every input and of the output; None when an input is a stream."""
    try:
        files = [*inputs, str(target.marker)]
        return {path: [os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in files}
    except OSError:
        return None

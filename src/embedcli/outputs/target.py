"""An output path: its files, what a finished one says of itself, and when it belongs to another job."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedcli import storage
from embedcli.core.errors import EmbedcliError, InputError, ResumeError, UsageError
from embedcli.core.types import MANIFEST, PART_FILE, STAGE, OutputFormat
from embedcli.outputs import lance as lance_output
from embedcli.outputs import writers

# In a stage: the names of the files of the output that is being replaced.
REPLACED = "_replaced.json"
# In a stage: it was begun with --overwrite, to replace a finished output whatever that was made from.
REPLACING = "_replacing.json"


@dataclass(frozen=True)
class Target:
    """An output path as the user gave it, and what follows from it."""

    output: str
    kind: OutputFormat
    folder: bool

    @property
    def stage(self) -> str:
        """Where parts lie until the output is published."""
        return storage.join(self.output, STAGE) if self.folder else self.output + ".parts"

    @property
    def rejects(self) -> str:
        return storage.join(self.output, "_rejects.jsonl") if self.folder else self.output + ".rejects.jsonl"

    @property
    def marker(self) -> str:
        """The file whose presence says that the output is finished."""
        return storage.join(self.output, MANIFEST) if self.folder else self.output

    @property
    def record(self) -> str:
        """The file that holds what a finished output says of itself."""
        return self.marker if self.folder else writers.record_path(self.output, self.kind)

    def files(self) -> list[str]:
        return [self.marker] if self.folder else writers.companions(self.output, self.kind)

    def make_stage(self) -> None:
        """Make the staging folder; the folder it lies in must be there. OutputError if it is not."""
        with storage.os_errors(self.stage):
            storage.files_of(self.stage).make_folder(self.stage, parents=False)

    def sealed(self, name: str) -> str:
        """Where a finished file of a folder output waits: the stage, or its own place where nothing can be renamed."""
        return storage.join(self.stage if storage.is_local(self.output) else self.output, name)

    def published(self, name: str) -> str:
        """Where a file of a folder output is in the end."""
        return storage.join(self.output, name)

    def publish(self, names: Sequence[str]) -> None:
        """Move sealed files to their places; those that are there already stay."""
        if not storage.is_local(self.output):
            return
        for name in names:
            if storage.exists(self.sealed(name)):
                with storage.os_errors(self.published(name)):
                    os.replace(self.sealed(name), self.published(name))
        storage.sync_folder(self.output)


def target(output: str, to: OutputFormat | None) -> Target:
    kind = writers.output_format(output, to)
    if kind == "lance":
        return lance_target(output)
    return Target(output, kind, output.endswith("/") or storage.is_folder(output))


def begun(output: str, to: OutputFormat | None = None) -> Target:
    """The target of an output that was begun or finished before: a folder's format is the one it has."""
    found = target(output, to)
    if not found.folder or to is not None:
        return found
    for manifest in (storage.join(found.stage, MANIFEST), found.marker):
        made = json_in(manifest)
        job = made.get(writers.JOB_KEY, {}).get("job", made)
        if job.get("to"):
            return Target(output, job["to"], folder=True)
    return found


def own_parts(output: str) -> Callable[[str], bool]:
    """Whether a file of this name in a folder output is one that embedcli has made there, and may replace or remove.

    Those are the files that the finished output lists, those of an output that is being replaced, and those of shares
    that are sealed.
    """
    found = Target(output, "parquet", folder=True)
    listed = {*parts_of(json_in(found.marker)), *json_in(storage.join(found.stage, REPLACED)).get("names", ())}
    sealed = {int(name.split("-")[1]) for name in storage.names(found.stage, "share-")}

    def own(name: str) -> bool:
        made = re.match(PART_FILE, name)
        return name in listed or (made is not None and int(name[5:].partition("-")[0].partition(".")[0]) in sealed)

    return own


def parts_of(manifest: Mapping[str, Any]) -> set[str]:
    """The names of all files that the manifest of a finished folder output lists."""
    named = manifest.get("parts", ())
    beside = {record for name in named for record in (writers.ids_path(name), writers.space_path(name))}
    return {*named, *manifest.get("sizes", beside)}


def json_in(path: str) -> dict[str, Any]:
    """A manifest or note, {} where there is none, or a kill or a hand damaged it."""
    try:
        made = json.loads(storage.read_bytes(path))
    except (OSError, ValueError):
        return {}
    return made if isinstance(made, dict) else {}


def lance_target(output: str) -> Target:
    """A Lance dataset is a folder to the system and one file to us. UsageError where none can be made."""
    lance_output.require()
    if not storage.is_local(output):
        raise UsageError(
            f"{storage.where(output)}: Lance datasets are made on this machine only", "write to a folder, then copy it"
        )
    return Target(output.rstrip("/"), "lance", folder=False)


# Refusals


def refuse_changed(old: Mapping[str, Any], new: Mapping[str, Any], where: str, target: Target) -> None:
    """ResumeError naming the first key that differs, its old and its new value, and the ways out."""
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            raise ResumeError(
                f"{target.output} belongs to another job ({where}): "
                f"{key} was {_short(old.get(key))}, now {_short(new.get(key))}",
                f"use --overwrite to start again, {or_update(target)}or another output",
            )


def refuse_foreign(target: Target) -> None:
    """UsageError if a folder has files with the names of ours, and nothing in it says that we made them."""
    if not target.folder:
        return
    own = own_parts(target.output)
    names = [*storage.names(target.output, PART_FILE), *storage.folders(target.output, PART_FILE)]
    for name in [name for name in names if not own(name)][:1]:
        raise UsageError(
            f"{storage.where(target.published(name))}: a file of this name is there, "
            "and nothing says that embedcli made it",
            "choose another folder, or use --overwrite to replace it",
        )


def changed_input(path: str, old: str, new: str, target: Target) -> ResumeError:
    return ResumeError(
        f"{path} has changed since {target.output} was begun: its rows had the hash {old[:12]}, now {new[:12]}",
        f"use --overwrite to start again, {or_update(target)}or another output",
    )


def changed_cut(path: str, target: Target) -> ResumeError:
    return ResumeError(
        f"{path} has changed since {target.output} was begun: its rows lie at other places",
        f"use --overwrite to start again, {or_update(target)}or another output",
    )


def or_update(target: Target) -> str:
    """A way out that outputs of JSON lines do not have."""
    return "" if target.kind == "jsonl" else "--update to keep the vectors of unchanged rows, "


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
    """The record inside a finished output; None if there is no output; ResumeError if it is not one of ours.

    An output without its record, with a stage of ours, is one whose publishing was cut short: it is not finished.
    """
    if not storage.exists(target.marker):
        return None
    if not storage.exists(target.record) and storage.exists(storage.join(target.stage, MANIFEST)):
        return None
    foreign = ResumeError(
        f"{target.output} exists and does not say what made it", "use --overwrite to replace it, or another output"
    )
    try:
        raw = _metadata(target)
        made = Finished(json.loads(raw[writers.SPACE_KEY]), json.loads(raw[writers.JOB_KEY]))
        sizes = json.loads(raw.get("sizes", "{}"))
    except storage.StoreRefused:
        raise
    except (OSError, ValueError, KeyError, TypeError, InputError):
        raise foreign from None
    _refuse_incomplete(target, sizes)
    return made


def _refuse_incomplete(target: Target, sizes: Mapping[str, int]) -> None:
    """ResumeError if a file of a finished folder output is gone, or, on this machine, has another size."""
    there = set(storage.names(target.output, PART_FILE)) if sizes else set()
    for name, size in sizes.items():
        path = target.published(name)
        if name not in there or (storage.is_local(path) and storage.file_identity(path).get("size") != size):
            what = "is missing" if name not in there else "is not as it was written"
            raise ResumeError(
                f"{storage.where(path)}: a part of a finished output {what}",
                "put it back, or use --overwrite to make the output again",
            )


def _metadata(target: Target) -> dict[str, str]:
    path = target.record
    if target.folder or target.kind == "jsonl":
        return {key: json.dumps(value) for key, value in json.loads(storage.read_bytes(path)).items()}
    if target.kind == "lance":
        return readable(lance_output.opened(path).schema.metadata)
    with storage.open_seekable(path) as source:
        schema = pa.ipc.open_file(source).schema if target.kind == "arrow" else pq.read_schema(source)
        found = schema.metadata
    return readable(found)


def readable(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    """The key-value pairs that embedcli wrote."""
    found = metadata or {}
    return {key.decode(): value.decode() for key, value in found.items() if key.startswith(b"embedcli")}


def replacing(target: Target, job: Mapping[str, Any]) -> bool:
    """Whether an interrupted --overwrite of this very job is to go on: what it replaces is then not asked about."""
    begun = json_in(storage.join(target.stage, MANIFEST))
    return storage.exists(storage.join(target.stage, REPLACING)) and begun == json.loads(json.dumps(job))


def stamp(target: Target, inputs: Sequence[str], seen: Mapping[str, Mapping[str, int]]) -> dict[str, Any] | None:
    """Size and modification time of every input and of the output; None when an input is a stream.

    Those inputs that were `seen` are told as they were then, the others as they are now.
    """
    try:
        files = storage.identities((*(path for path in inputs if path not in seen), target.marker))
    except EmbedcliError:
        return None
    files |= {path: dict(seen[path]) for path in inputs if path in seen}
    return files if all(files.values()) else None

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
from embedcli.core.types import MANIFEST_FILE, PART_FILE_PATTERN, STAGING_FOLDER, OutputFormat
from embedcli.outputs import lance as lance_output
from embedcli.outputs import writers
from embedcli.outputs.schema import decode_metadata

# In a stage: the names of the files of the output that is being replaced.
REPLACED_FILE = "_replaced.json"
# In a stage: it was begun with --overwrite, to replace a finished output whatever that was made from.
REPLACING_FILE = "_replacing.json"


@dataclass(frozen=True)
class OutputTarget:
    """An output path as the user gave it, and what follows from it."""

    output: str
    format: OutputFormat
    is_folder: bool

    @property
    def staging_folder(self) -> str:
        """Where parts lie until the output is published."""
        return storage.join(self.output, STAGING_FOLDER) if self.is_folder else self.output + ".parts"

    @property
    def rejects_path(self) -> str:
        return storage.join(self.output, "_rejects.jsonl") if self.is_folder else self.output + ".rejects.jsonl"

    @property
    def marker_path(self) -> str:
        """The file whose presence says that the output is finished."""
        return storage.join(self.output, MANIFEST_FILE) if self.is_folder else self.output

    @property
    def metadata_path(self) -> str:
        """The file that holds what a finished output says of itself."""
        return self.marker_path if self.is_folder else writers.metadata_path(self.output, self.format)

    def list_files(self) -> list[str]:
        return [self.marker_path] if self.is_folder else writers.list_output_files(self.output, self.format)

    def make_staging_folder(self) -> None:
        """Make the staging folder; the folder it lies in must be there. OutputError if it is not."""
        with storage.translate_output_errors(self.staging_folder):
            storage.get_file_system(self.staging_folder).make_folder(self.staging_folder, parents=False)

    def staged_path(self, name: str) -> str:
        """Where a finished file of a folder output waits: the stage, or its own place where nothing can be renamed."""
        return storage.join(self.staging_folder if storage.is_local(self.output) else self.output, name)

    def published_path(self, name: str) -> str:
        """Where a file of a folder output is in the end."""
        return storage.join(self.output, name)

    def publish(self, names: Sequence[str]) -> None:
        """Move sealed files to their places; those that are there already stay."""
        if not storage.is_local(self.output):
            return
        for name in names:
            if storage.exists(self.staged_path(name)):
                with storage.translate_output_errors(self.published_path(name)):
                    os.replace(self.staged_path(name), self.published_path(name))
        storage.sync_folder(self.output)


def resolve_target(output: str, to: OutputFormat | None) -> OutputTarget:
    kind = writers.resolve_output_format(output, to)
    if kind == "lance":
        return resolve_lance_target(output)
    return OutputTarget(output, kind, output.endswith("/") or storage.is_folder(output))


def find_existing_target(output: str, to: OutputFormat | None = None) -> OutputTarget:
    """The target of an output that was begun or finished before: a folder's format is the one it has."""
    found = resolve_target(output, to)
    if not found.is_folder or to is not None:
        return found
    for manifest in (storage.join(found.staging_folder, MANIFEST_FILE), found.marker_path):
        made = read_json_or_empty(manifest)
        job = made.get(writers.JOB_METADATA_KEY, {}).get("job", made)
        if job.get("to"):
            return OutputTarget(output, job["to"], is_folder=True)
    return found


def own_file_matcher(output: str) -> Callable[[str], bool]:
    """Whether a file of this name in a folder output is one that embedcli has made there, and may replace or remove.

    Those are the files that the finished output lists, those of an output that is being replaced, and those of shares
    that are sealed.
    """
    found = OutputTarget(output, "parquet", is_folder=True)
    listed = {
        *list_manifest_files(read_json_or_empty(found.marker_path)),
        *read_json_or_empty(storage.join(found.staging_folder, REPLACED_FILE)).get("names", ()),
    }
    sealed = {int(name.split("-")[1]) for name in storage.list_files(found.staging_folder, "share-")}

    def own(name: str) -> bool:
        made = re.match(PART_FILE_PATTERN, name)
        return name in listed or (made is not None and int(name[5:].partition("-")[0].partition(".")[0]) in sealed)

    return own


def list_manifest_files(manifest: Mapping[str, Any]) -> set[str]:
    """The names of all files that the manifest of a finished folder output lists."""
    named = manifest.get("parts", ())
    beside = {record for name in named for record in (writers.ids_path(name), writers.space_path(name))}
    return {*named, *manifest.get("sizes", beside)}


def read_json_or_empty(path: str) -> dict[str, Any]:
    """A manifest or note, {} where there is none, or a kill or a hand damaged it."""
    try:
        made = json.loads(storage.read_bytes(path))
    except (OSError, ValueError):
        return {}
    return made if isinstance(made, dict) else {}


def resolve_lance_target(output: str) -> OutputTarget:
    """A Lance dataset is a folder to the system and one file to us. UsageError where none can be made."""
    lance_output.require_lance()
    if not storage.is_local(output):
        raise UsageError(
            f"{storage.format_location(output)}: Lance datasets are made on this machine only",
            "write to a folder, then copy it",
        )
    return OutputTarget(output.rstrip("/"), "lance", is_folder=False)


# Refusals


def check_job_unchanged(old: Mapping[str, Any], new: Mapping[str, Any], where: str, target: OutputTarget) -> None:
    """ResumeError naming the first key that differs, its old and its new value, and the ways out."""
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            raise ResumeError(
                f"{target.output} belongs to another job ({where}): "
                f"{key} was {_short(old.get(key))}, now {_short(new.get(key))}",
                f"use --overwrite to start again, {update_hint(target)}or another output",
            )


def check_no_foreign_files(target: OutputTarget) -> None:
    """UsageError if a folder has files with the names of ours, and nothing in it says that we made them."""
    if not target.is_folder:
        return
    own = own_file_matcher(target.output)
    names = [
        *storage.list_files(target.output, PART_FILE_PATTERN),
        *storage.list_folders(target.output, PART_FILE_PATTERN),
    ]
    for name in [name for name in names if not own(name)][:1]:
        raise UsageError(
            f"{storage.format_location(target.published_path(name))}: a file of this name is there, "
            "and nothing says that embedcli made it",
            "choose another folder, or use --overwrite to replace it",
        )


def changed_input_error(path: str, old: str, new: str, target: OutputTarget) -> ResumeError:
    return ResumeError(
        f"{path} has changed since {target.output} was begun: its rows had the hash {old[:12]}, now {new[:12]}",
        f"use --overwrite to start again, {update_hint(target)}or another output",
    )


def changed_splits_error(path: str, target: OutputTarget) -> ResumeError:
    return ResumeError(
        f"{path} has changed since {target.output} was begun: its rows lie at other places",
        f"use --overwrite to start again, {update_hint(target)}or another output",
    )


def update_hint(target: OutputTarget) -> str:
    """A way out that outputs of JSON lines do not have."""
    return "" if target.format == "jsonl" else "--update to keep the vectors of unchanged rows, "


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:197] + "..."


# Finished outputs


@dataclass(frozen=True)
class FinishedOutput:
    """What a finished output says of itself."""

    vector_space: Mapping[str, Any]
    job_manifest: Mapping[str, Any]

    @property
    def source_hash(self) -> str:
        return str(self.job_manifest.get("source_hash", ""))


def read_finished_output(target: OutputTarget) -> FinishedOutput | None:
    """The record inside a finished output; None if there is no output; ResumeError if it is not one of ours.

    An output without its record, with a stage of ours, is one whose publishing was cut short: it is not finished.
    """
    if not storage.exists(target.marker_path):
        return None
    if not storage.exists(target.metadata_path) and storage.exists(storage.join(target.staging_folder, MANIFEST_FILE)):
        return None
    foreign = ResumeError(
        f"{target.output} exists and does not say what made it", "use --overwrite to replace it, or another output"
    )
    try:
        metadata = _read_metadata(target)
        result = FinishedOutput(metadata[writers.SPACE_METADATA_KEY], metadata[writers.JOB_METADATA_KEY])
        sizes = metadata.get("sizes", {})
    except storage.ObjectStoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError, InputError):
        raise foreign from None
    _refuse_incomplete(target, sizes)
    return result


def _refuse_incomplete(target: OutputTarget, sizes: Mapping[str, int]) -> None:
    """ResumeError if a file of a finished folder output is gone, or, on this machine, has another size."""
    there = set(storage.list_files(target.output, PART_FILE_PATTERN)) if sizes else set()
    for name, size in sizes.items():
        path = target.published_path(name)
        if name not in there or (storage.is_local(path) and storage.file_identity(path).get("size") != size):
            what = "is missing" if name not in there else "is not as it was written"
            raise ResumeError(
                f"{storage.format_location(path)}: a part of a finished output {what}",
                "put it back, or use --overwrite to make the output again",
            )


def _read_metadata(target: OutputTarget) -> dict[str, Any]:
    path = target.metadata_path
    if target.is_folder or target.format == "jsonl":
        return dict(json.loads(storage.read_bytes(path)))
    if target.format == "lance":
        return decode_metadata(lance_output.open_lance_dataset(path).schema.metadata)
    with storage.open_seekable(path) as source:
        schema = pa.ipc.open_file(source).schema if target.format == "arrow" else pq.read_schema(source)
        return decode_metadata(schema.metadata)


def is_replacement_in_progress(target: OutputTarget, job: Mapping[str, Any]) -> bool:
    """Whether an interrupted --overwrite of this very job is to go on: what it replaces is then not asked about."""
    begun = read_json_or_empty(storage.join(target.staging_folder, MANIFEST_FILE))
    return storage.exists(storage.join(target.staging_folder, REPLACING_FILE)) and begun == json.loads(json.dumps(job))


def fingerprint_files(
    target: OutputTarget, inputs: Sequence[str], seen: Mapping[str, Mapping[str, int]]
) -> dict[str, Any] | None:
    """Size and modification time of every input and of the output; None when an input is a stream.

    Those inputs that were `seen` are told as they were then, the others as they are now.
    """
    try:
        files = storage.file_identities((*(path for path in inputs if path not in seen), target.marker_path))
    except EmbedcliError:
        return None
    files |= {path: dict(seen[path]) for path in inputs if path in seen}
    return files if all(files.values()) else None

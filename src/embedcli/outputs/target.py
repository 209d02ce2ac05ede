"""An output path: its files, its staging folder, its metadata, and checks against other jobs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedcli import storage
from embedcli.core.constants import MANIFEST_FILE, PART_FILE_PATTERN, STAGING_FOLDER
from embedcli.core.errors import EmbedcliError, InputError, ResumeError, UsageError
from embedcli.core.types import OutputFormat
from embedcli.outputs import lance as lance_output
from embedcli.outputs import writers
from embedcli.outputs.schema import decode_metadata

# In a staging folder: the names of the files of the output that is being replaced.
REPLACED_FILE = "_replaced.json"
# In a staging folder: marks a run with --overwrite, which replaces a finished output of any job.
REPLACING_FILE = "_replacing.json"
# Files of a folder that is not for one output alone. Other names may be there before a run: hidden files, files of
# jobs (`_SUCCESS`), run reports and logs.
FOREIGN_NAME_PATTERN = r"(?![._])(?!.*\.(json|log)\Z)"
# The part of a hint that suggests --update.
UPDATE_HINT = "--update to keep the vectors of unchanged rows, "


@dataclass(frozen=True)
class OutputTarget:
    """An output path as the user gave it, its format, and the paths derived from it."""

    output: str
    format: OutputFormat
    is_folder: bool

    @property
    def staging_folder(self) -> str:
        """Folder of the part files until the output is published."""
        return storage.join(self.output, STAGING_FOLDER) if self.is_folder else self.output + ".parts"

    @property
    def rejects_path(self) -> str:
        return storage.join(self.output, "_rejects.jsonl") if self.is_folder else self.output + ".rejects.jsonl"

    @property
    def unpublished_rejects_path(self) -> str:
        """The rejects of a run that --max-rejects has ended."""
        if self.is_folder:
            return storage.join(self.output, "_unpublished-rejects.jsonl")
        return self.output + ".unpublished-rejects.jsonl"

    @property
    def marker_path(self) -> str:
        """The file whose existence marks the output as finished."""
        return storage.join(self.output, MANIFEST_FILE) if self.is_folder else self.output

    @property
    def metadata_path(self) -> str:
        """The file that holds the metadata of a finished output."""
        return self.marker_path if self.is_folder else writers.metadata_path(self.output, self.format)

    def list_files(self) -> list[str]:
        return [self.marker_path] if self.is_folder else writers.list_output_files(self.output, self.format)

    def list_published_files(self) -> list[str]:
        """List all files of a finished output, those that its manifest names included."""
        names = list_manifest_files(read_json_or_empty(self.marker_path)) if self.is_folder else ()
        return [*self.list_files(), *map(self.published_path, sorted(names))]

    def make_staging_folder(self) -> None:
        """Create the staging folder. Raises OutputError if its parent folder does not exist."""
        with storage.translate_output_errors(self.staging_folder):
            storage.get_file_system(self.staging_folder).make_folder(self.staging_folder, parents=False)

    @property
    def has_staged_files(self) -> bool:
        """Whether finished files stay in the staging folder until all are published.

        In an object store, where moving is copying, only while they would replace those of a finished output.
        """
        return storage.is_local(self.output) or storage.exists(self.marker_path)

    def staged_path(self, name: str) -> str:
        """Path at which a finished file is written: staged, or its final path."""
        return storage.join(self.staging_folder if self.has_staged_files else self.output, name)

    def completed_paths(self, name: str) -> list[str]:
        """Paths at which a file of a completed partition may be, staged or published already."""
        staged, published = storage.join(self.staging_folder, name), self.published_path(name)
        # In an object store files have no digest: one of the finished output could be taken for the new one.
        return [staged] if self.has_staged_files and not storage.is_local(self.output) else [staged, published]

    def discard_file(self, name: str) -> None:
        """Remove a file of a completed partition that is to be written again; never one of a finished output."""
        paths = [self.staged_path(name)] if storage.is_local(self.output) else self.completed_paths(name)
        for path in paths:
            storage.remove(path)

    def published_path(self, name: str) -> str:
        """Final path of a file of a folder output."""
        return storage.join(self.output, name)

    def publish(self, names: Sequence[str]) -> None:
        """Move finished files to their final paths; files that are already there stay."""
        staged = set(storage.list_files(self.staging_folder, PART_FILE_PATTERN))
        for name in names:
            if name in staged:
                storage.move_file(storage.join(self.staging_folder, name), self.published_path(name))
        if storage.is_local(self.output):
            storage.sync_folder(self.output)


def resolve_target(output: str, to: OutputFormat | None) -> OutputTarget:
    """Derive the target of an output path and --to. Raises UsageError for a path that cannot be one."""
    kind = writers.resolve_output_format(output, to)
    if kind == "lance":
        return resolve_lance_target(output)
    return OutputTarget(output, kind, output.endswith("/") or storage.is_folder(output))


def check_parent_folder(output: str, to: OutputFormat | None) -> None:
    """Raise OutputError if a file on this machine is to be written into a folder that does not exist, or cannot be."""
    if output == "-" or not storage.is_local(output) or resolve_target(output, to).is_folder:
        return
    storage.check_file_can_be_made(output)


def find_existing_target(output: str, to: OutputFormat | None = None) -> OutputTarget:
    """Find the target of an output that was started or finished earlier; a folder keeps its format."""
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
    """Return a predicate for names of files in a folder output that embedcli wrote and may replace or remove.

    These are the files listed by the finished output, those of an output that is being replaced, and those of
    completed partitions.
    """
    found = OutputTarget(output, "parquet", is_folder=True)
    listed = {
        *list_manifest_files(read_json_or_empty(found.marker_path)),
        *read_json_or_empty(storage.join(found.staging_folder, REPLACED_FILE)).get("names", ()),
    }
    completed = {int(name.split("-")[1]) for name in storage.list_files(found.staging_folder, r"share-\d+-")}

    def is_own_file(name: str) -> bool:
        has_own_name = re.match(PART_FILE_PATTERN, name) is not None
        return name in listed or (has_own_name and int(name[5:].partition("-")[0].partition(".")[0]) in completed)

    return is_own_file


def list_manifest_files(manifest: Mapping[str, Any]) -> set[str]:
    """List the names of all files in the manifest of a finished folder output."""
    named = manifest.get("parts", ())
    beside = {record for name in named for record in (writers.ids_path(name), writers.space_path(name))}
    return {*named, *manifest.get("sizes", beside)}


def read_json_or_empty(path: str) -> dict[str, Any]:
    """Read a JSON object; {} if the file is missing or damaged."""
    try:
        content = json.loads(storage.read_bytes(path))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def resolve_lance_target(output: str) -> OutputTarget:
    """Return the target of a Lance dataset, a folder that is treated as one file. Raises UsageError if unsupported."""
    lance_output.require_lance()
    if not storage.is_local(output):
        raise UsageError(
            f"{storage.format_location(output)}: Lance datasets can only be written to local paths",
            "write to a local folder, then copy it",
        )
    return OutputTarget(output.rstrip("/"), "lance", is_folder=False)


# Checks


def check_no_foreign_files(target: OutputTarget) -> None:
    """Check that a folder output may be begun in a folder.

    Raises:
        UsageError: The folder has files named like output files that embedcli did not write; or it has other files, and
            is not yet the folder of an output.
    """
    if not target.is_folder:
        return
    is_own_file = own_file_matcher(target.output)
    names = [
        *storage.list_files(target.output, PART_FILE_PATTERN),
        *storage.list_folders(target.output, PART_FILE_PATTERN),
    ]
    for name in [name for name in names if not is_own_file(name)][:1]:
        raise UsageError(
            f"{storage.format_location(target.published_path(name))}: the file exists, and the folder has no record "
            "that embedcli wrote it",
            "choose another folder, or use --overwrite to replace it",
        )
    others = storage.list_files(target.output, FOREIGN_NAME_PATTERN)
    if others and not storage.exists(target.marker_path):
        raise UsageError(
            f"{storage.format_location(target.output)}: the folder has files that embedcli did not write: "
            f"{storage.shorten(others)}",
            "choose a new folder, a name such as vectors/, or use --overwrite to write beside them",
        )


def changed_input_error(path: str, old: str, new: str, target: OutputTarget, *, can_update: bool = True) -> ResumeError:
    """Build the error for an input whose rows differ from those of the started run.

    Args:
        path: The input.
        old: The hash of the rows that were read.
        new: The hash of the rows that the input has now.
        target: The output.
        can_update: Whether --update would accept the input.
    """
    update = UPDATE_HINT if can_update else ""
    return ResumeError(
        f"{path} has changed since {target.output} was started: the hash of its rows was {old[:12]}, now {new[:12]}",
        f"use --overwrite to start again, {update}or another output",
    )


def changed_splits_error(path: str, target: OutputTarget) -> ResumeError:
    """Build the error for an input whose splits differ from those of the started run."""
    return ResumeError(
        f"{path} has changed since {target.output} was started: its rows are at other positions",
        f"use --overwrite to start again, {UPDATE_HINT}or another output",
    )


# Finished outputs


@dataclass(frozen=True)
class FinishedOutput:
    """The metadata of a finished output."""

    vector_space: Mapping[str, Any]
    job_manifest: Mapping[str, Any]

    @property
    def source_hash(self) -> str:
        return str(self.job_manifest.get("source_hash", ""))


def read_finished_output(target: OutputTarget) -> FinishedOutput | None:
    """Read the metadata of a finished output.

    Returns:
        None if there is no output. An output without metadata but with a staging folder was interrupted while it
        was published, and counts as not finished.

    Raises:
        ResumeError: The output was not written by embedcli, or files of it are missing.
    """
    if not storage.exists(target.marker_path):
        return None
    if not storage.exists(target.metadata_path) and storage.exists(storage.join(target.staging_folder, MANIFEST_FILE)):
        return None
    foreign = ResumeError(
        f"{target.output} exists and was not written by embedcli", "use --overwrite to replace it, or another output"
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


def count_replaced_rows(target: OutputTarget) -> int | None:
    """The rows of the output that publishing would replace; 0 without one, None if embedcli cannot read it."""
    try:
        finished = read_finished_output(target)
    except ResumeError:
        return None
    return int(finished.job_manifest.get("rows", 0)) if finished is not None else 0


def _refuse_incomplete(target: OutputTarget, sizes: Mapping[str, int]) -> None:
    """Raise ResumeError if a file of a finished folder output is missing or, for local files, has another size."""
    existing = set(storage.list_files(target.output, PART_FILE_PATTERN)) if sizes else set()
    for name, size in sizes.items():
        path = target.published_path(name)
        if name not in existing or (storage.is_local(path) and storage.file_identity(path).get("size") != size):
            problem = "is missing" if name not in existing else "has changed"
            raise ResumeError(
                f"{storage.format_location(path)}: a file of the finished output {problem}",
                "restore it, or use --overwrite to encode all rows again",
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
    """Whether an interrupted --overwrite of the same job can be resumed, without checking the output it replaces."""
    begun = read_json_or_empty(storage.join(target.staging_folder, MANIFEST_FILE))
    return storage.exists(storage.join(target.staging_folder, REPLACING_FILE)) and begun == json.loads(json.dumps(job))


def fingerprint_files(
    target: OutputTarget, inputs: Sequence[str], seen: Mapping[str, Mapping[str, int]]
) -> dict[str, Any] | None:
    """Return size and modification time of every input and of the output, or None if an input is a stream.

    Args:
        target: The output.
        inputs: Paths of the inputs.
        seen: Size and time of inputs as they were when the run started; other inputs are looked up now.
    """
    try:
        files = storage.file_identities((*(path for path in inputs if path not in seen), target.marker_path))
    except EmbedcliError:
        return None
    files |= {path: dict(seen[path]) for path in inputs if path in seen}
    return files if all(files.values()) else None

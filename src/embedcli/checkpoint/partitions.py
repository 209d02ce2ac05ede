"""Records of completed partitions: their input, their part files, and their files in a folder output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from embedcli import storage
from embedcli.checkpoint.merge_parts import measure_part, merge_parts
from embedcli.checkpoint.part_files import (
    hash_bytes,
    hash_chunk,
    name_matches_digest,
    part_file_from_json,
    part_file_to_json,
)
from embedcli.core.batching import group_by_size
from embedcli.core.types import Chunk, InputSplit, PartFile, Partition
from embedcli.outputs import writers

if TYPE_CHECKING:
    from embedcli.outputs.schema import OutputLayout
    from embedcli.outputs.target import OutputTarget

RECORD_NAME_PATTERN = r"share-\d+-[0-9a-f]+\.json$"


@dataclass(frozen=True)
class PartitionRecord:
    """A completed partition, as a file in the staging folder records it.

    Attributes:
        index: The partition's number.
        job_digest: `part_files.hash_job` of the job that it belongs to.
        snapshot_name: The name of the input snapshot of the run that completed it.
        splits: The partition's input splits.
        parts: Its part files. In a folder output they have been merged into `files` and removed.
        input_stats: Size and modification time of each input file, by path, when it was read; {} for a file that
            changed meanwhile. While they stay the same, the file need not be read again.
        files: Name, size and, on a local disk, SHA-256 digest of the partition's files in a folder output.
        written_ns: When the record was written to a local disk, in nanoseconds since 1970; None if that is not known.
    """

    index: int
    job_digest: str
    snapshot_name: str
    splits: tuple[InputSplit, ...]
    parts: tuple[PartFile, ...]
    input_stats: Mapping[str, Any]
    files: tuple[Mapping[str, Any], ...] = ()
    written_ns: int | None = field(default=None, compare=False)

    @property
    def rows_read(self) -> int:
        return sum(part.read for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        return {
            "share": self.index,
            "job": self.job_digest,
            "view": self.snapshot_name,
            "pieces": [_split_fields(split) for split in self.splits],
            "inputs": dict(self.input_stats),
            "files": list(self.files),
            "parts": [part_file_to_json(part) for part in self.parts],
        }


def _split_fields(split: InputSplit) -> tuple[Any, ...]:
    """The fields of a split, without a limit of rows if it has none, as earlier versions have recorded it."""
    values = astuple(split)
    return values[:-1] if split.max_rows is None else values


def record_from_json(staging_folder: str, record: Mapping[str, Any]) -> PartitionRecord:
    """Build a record from the JSON values that `PartitionRecord.as_json` returned."""
    parts = tuple(part_file_from_json(storage.join(staging_folder, part["name"]), part) for part in record["parts"])
    splits = tuple(InputSplit(*split) for split in record["pieces"])
    return PartitionRecord(
        record["share"], record["job"], record["view"], splits, parts, record["inputs"], tuple(record["files"])
    )


def matches_chunks(record: PartitionRecord, chunks: Iterable[Chunk]) -> bool:
    """Whether the completed partition was encoded from exactly these chunks."""
    recorded_hashes = {part.key: part.source_hash for part in record.parts}
    return recorded_hashes == {chunk.key: hash_chunk(chunk) for chunk in chunks}


def output_file_name(partition_index: int, number: int, extension: str) -> str:
    """Return the name of a partition's file in a folder output; `number` counts the files of one partition from 0.

    Files sorted by name are in the order of the rows: an underscore comes after the dot of the first one's ending.
    """
    suffix = "" if number == 0 else f"_{number:05d}"
    return f"part-{partition_index:05d}{suffix}.{extension}"


def write_partition_files(
    target: OutputTarget,
    partition: Partition,
    parts: Sequence[PartFile],
    layout: OutputLayout,
    metadata: writers.Metadata,
    part_size: int,
) -> tuple[dict[str, Any], ...]:
    """Merge the part files of a partition into its files of a folder output.

    Args:
        target: The folder output.
        partition: The partition, all of whose chunks have part files.
        parts: Its part files, in input order.
        layout: The output's columns.
        metadata: Key-value pairs to store in each file.
        part_size: Approximate size of a file's vectors, in bytes.

    Returns:
        The description of each file, as `PartitionRecord.files` holds it.
    """
    paths: list[str] = []
    sizes = [measure_part(part, layout) for part in parts]
    for number, (first, last) in enumerate(group_by_size(sizes, part_size)):
        path = target.staged_path(output_file_name(partition.index, number, target.format))
        paths += merge_parts(parts[first:last], path, target.format, layout, metadata)
    return tuple(describe_file(path) for path in paths)


def describe_file(path: str) -> dict[str, Any]:
    """Return name, size and, on a local disk, digest of a file; object stores check digests themselves."""
    description = {"name": storage.basename(path), "size": storage.file_identity(path)["size"]}
    return description | ({"sha256": hash_file(path)} if storage.is_local(path) else {})


def hash_file(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_record(staging_folder: str, record: PartitionRecord) -> None:
    """Write the record of a partition, then remove older records of the same partition."""
    data = json.dumps(record.as_json()).encode()
    name = f"{record_name_prefix(record.index)}{hash_bytes(data)}.json"
    storage.write_bytes(storage.join(staging_folder, name), data)
    remove_records(staging_folder, record.index, keep=name)


def remove_records(staging_folder: str, partition_index: int, *, keep: str = "") -> None:
    """Remove all records of a partition, except the file named `keep`."""
    for name in storage.list_files(staging_folder, record_name_prefix(partition_index)):
        if name != keep:
            storage.remove(storage.join(staging_folder, name))


def record_name_prefix(partition_index: int) -> str:
    return f"share-{partition_index:06d}-"


def list_completed_partitions(staging_folder: str) -> set[int]:
    """Return the numbers of the partitions that have a record, without reading the records."""
    return {int(name.split("-")[1]) for name in storage.list_files(staging_folder, RECORD_NAME_PATTERN)}


def read_records(staging_folder: str) -> tuple[dict[int, PartitionRecord], list[str]]:
    """Read all records in a staging folder.

    Returns:
        The records by partition number, and the paths of damaged record files.
    """
    records, damaged = {}, []
    for name in storage.list_files(staging_folder, RECORD_NAME_PATTERN):
        path = storage.join(staging_folder, name)
        record = read_record(path)
        if record is None:
            damaged.append(path)
        else:
            records[record.index] = record
    return records, damaged


def read_record(path: str) -> PartitionRecord | None:
    """Read one record; None if the file is missing or damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        data = storage.read_bytes(path)
        if name_matches_digest(path, data):
            record = record_from_json(storage.parent_folder(path), json.loads(data))
            return replace(record, written_ns=storage.file_identity(path).get("mtime_ns"))
    return None


def are_files_intact(target: OutputTarget, files: Iterable[Mapping[str, Any]]) -> bool:
    """Whether each file of a completed partition is there and undamaged, in the staging folder or published."""
    return all(_is_file_intact(target, file) for file in files)


def _is_file_intact(target: OutputTarget, file: Mapping[str, Any]) -> bool:
    for path in target.completed_paths(file["name"]):
        if storage.exists(path) and storage.file_identity(path).get("size") == file["size"]:
            return "sha256" not in file or hash_file(path) == file["sha256"]
    return False

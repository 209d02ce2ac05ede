"""Shares of the input that are done: what they were made from, their parts, and their own files in a folder output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

from embedcli import storage
from embedcli.checkpoint.part_files import (
    hash_bytes,
    hash_chunk,
    name_matches_digest,
    part_file_from_json,
    part_file_to_json,
    read_part_tables,
)
from embedcli.core.types import Chunk, InputSplit, PartFile, Partition
from embedcli.outputs import writers

if TYPE_CHECKING:
    from embedcli.outputs.schema import OutputLayout
    from embedcli.outputs.target import OutputTarget

RECORD_NAME_PATTERN = r"share-\d+-[0-9a-f]+\.json$"


@dataclass(frozen=True)
class PartitionRecord:
    """One share that is done. `files` are what a folder output holds of it, each with its size and digest.

    `inputs` is how the files that it was read from looked: while they look the same, they need no reading again.
    {} stands for one that changed meanwhile. `job` is the mark of the job that it belongs to, `view` the name of what
    its run saw of all inputs.
    """

    index: int
    job_digest: str
    snapshot_name: str
    splits: tuple[InputSplit, ...]
    parts: tuple[PartFile, ...]
    input_stats: Mapping[str, Any]
    files: tuple[Mapping[str, Any], ...] = ()

    @property
    def rows_read(self) -> int:
        return sum(part.read for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        return {
            "share": self.index,
            "job": self.job_digest,
            "view": self.snapshot_name,
            "pieces": [astuple(piece) for piece in self.splits],
            "inputs": dict(self.input_stats),
            "files": list(self.files),
            "parts": [part_file_to_json(part) for part in self.parts],
        }


def record_from_json(stage: str, made: Mapping[str, Any]) -> PartitionRecord:
    parts = tuple(part_file_from_json(storage.join(stage, facts["name"]), facts) for facts in made["parts"])
    pieces = tuple(InputSplit(*piece) for piece in made["pieces"])
    return PartitionRecord(
        made["share"], made["job"], made["view"], pieces, parts, made["inputs"], tuple(made["files"])
    )


def matches_chunks(record: PartitionRecord, chunks: Iterable[Chunk]) -> bool:
    """Whether these chunks are what the share was made from."""
    made = {part.key: part.source_hash for part in record.parts}
    return made == {chunk.key: hash_chunk(chunk) for chunk in chunks}


def output_file_name(share: int, number: int, kind: str) -> str:
    """The name of a share's file in a folder output; almost every share has just one."""
    return f"part-{share:05d}.{kind}" if number == 0 else f"part-{share:05d}-{number:03d}.{kind}"


def write_partition_files(
    target: OutputTarget,
    share: Partition,
    parts: Sequence[PartFile],
    layout: OutputLayout,
    space: writers.Metadata,
    part_size: int,
) -> tuple[dict[str, Any], ...]:
    """Merge the parts of a share into its files of about `part_size` bytes of vectors; what each is."""
    counts = [part.stats["vectors"] for part in parts]
    made: list[str] = []
    for number, (first, last) in enumerate(writers.split_into_files(counts, layout.bytes_per_row, part_size)):
        path = target.staged_path(output_file_name(share.index, number, target.format))
        made += writers.OUTPUT_WRITERS[target.format](
            read_part_tables(parts[first:last]), path, layout, space, sum(counts[first:last])
        )
    return tuple(describe_file(path) for path in made)


def describe_file(path: str) -> dict[str, Any]:
    """Name, size and digest of a file; object stores keep their own digests, so there it is left out."""
    facts = {"name": storage.basename(path), "size": storage.file_identity(path)["size"]}
    return facts | ({"sha256": hash_file(path)} if storage.is_local(path) else {})


def hash_file(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_record(stage: str, record: PartitionRecord) -> None:
    """Write the record of a share, and remove those that it had before."""
    data = json.dumps(record.as_json()).encode()
    name = f"share-{record.index:06d}-{hash_bytes(data)}.json"
    storage.write_bytes(storage.join(stage, name), data)
    for old in storage.list_files(stage, rf"share-{record.index:06d}-"):
        if old != name:
            storage.remove(storage.join(stage, old))


def list_completed_partitions(stage: str) -> set[int]:
    """The numbers of the shares that have a record, told by the names alone."""
    return {int(name.split("-")[1]) for name in storage.list_files(stage, RECORD_NAME_PATTERN)}


def read_records(stage: str) -> tuple[dict[int, PartitionRecord], list[str]]:
    """The records in a staging folder by share, and the paths of those that are damaged."""
    found, damaged = {}, []
    for name in storage.list_files(stage, RECORD_NAME_PATTERN):
        path = storage.join(stage, name)
        record = read_record(path)
        if record is None:
            damaged.append(path)
        else:
            found[record.index] = record
    return found, damaged


def read_record(path: str) -> PartitionRecord | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        data = storage.read_bytes(path)
        if name_matches_digest(path, data):
            return record_from_json(storage.parent_folder(path), json.loads(data))
    return None


def are_files_intact(target: OutputTarget, files: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the files of a share are there, in the staging folder or already published, and whole."""
    return all(_sound(target, file) for file in files)


def _sound(target: OutputTarget, file: Mapping[str, Any]) -> bool:
    for path in {target.staged_path(file["name"]), target.published_path(file["name"])}:
        if storage.exists(path) and storage.file_identity(path).get("size") == file["size"]:
            return "sha256" not in file or hash_file(path) == file["sha256"]
    return False

"""Shares of the input that are done: what they were made from, their parts, and their own files in a folder output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

from embedcli import storage
from embedcli.checkpoint.part_files import digest, facts_of, named_after, part_of, source_hash, tables
from embedcli.core.types import Chunk, Part, Piece, Share
from embedcli.outputs import writers

if TYPE_CHECKING:
    from embedcli.outputs.schema import Layout
    from embedcli.outputs.target import Target

RECORD_NAME = r"share-\d+-[0-9a-f]+\.json$"


@dataclass(frozen=True)
class Record:
    """One share that is done. `files` are what a folder output holds of it, each with its size and digest.

    `inputs` is how the files that it was read from looked: while they look the same, they need no reading again.
    {} stands for one that changed meanwhile. `job` is the mark of the job that it belongs to, `view` the name of what
    its run saw of all inputs.
    """

    index: int
    job: str
    view: str
    pieces: tuple[Piece, ...]
    parts: tuple[Part, ...]
    inputs: Mapping[str, Any]
    files: tuple[Mapping[str, Any], ...] = ()

    @property
    def read(self) -> int:
        return sum(part.read for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        return {
            "share": self.index,
            "job": self.job,
            "view": self.view,
            "pieces": [astuple(piece) for piece in self.pieces],
            "inputs": dict(self.inputs),
            "files": list(self.files),
            "parts": [facts_of(part) for part in self.parts],
        }


def record_of(stage: str, made: Mapping[str, Any]) -> Record:
    parts = tuple(part_of(storage.join(stage, facts["name"]), facts) for facts in made["parts"])
    pieces = tuple(Piece(*piece) for piece in made["pieces"])
    return Record(made["share"], made["job"], made["view"], pieces, parts, made["inputs"], tuple(made["files"]))


def same(record: Record, chunks: Iterable[Chunk]) -> bool:
    """Whether these chunks are what the share was made from."""
    made = {part.key: part.source_hash for part in record.parts}
    return made == {chunk.key: source_hash(chunk) for chunk in chunks}


def name_of(share: int, number: int, kind: str) -> str:
    """The name of a share's file in a folder output; almost every share has just one."""
    return f"part-{share:05d}.{kind}" if number == 0 else f"part-{share:05d}-{number:03d}.{kind}"


def write_files(
    target: Target, share: Share, parts: Sequence[Part], layout: Layout, space: writers.Metadata, part_size: int
) -> tuple[dict[str, Any], ...]:
    """Merge the parts of a share into its files of about `part_size` bytes of vectors; what each is."""
    counts = [part.stats["vectors"] for part in parts]
    made: list[str] = []
    for number, (first, last) in enumerate(writers.folder_parts(counts, layout.row_bytes, part_size)):
        path = target.sealed(name_of(share.index, number, target.kind))
        made += writers.MERGES[target.kind](tables(parts[first:last]), path, layout, space, sum(counts[first:last]))
    return tuple(described(path) for path in made)


def described(path: str) -> dict[str, Any]:
    """Name, size and digest of a file; object stores keep their own digests, so there it is left out."""
    facts = {"name": storage.base(path), "size": storage.file_identity(path)["size"]}
    return facts | ({"sha256": file_digest(path)} if storage.is_local(path) else {})


def file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_record(stage: str, record: Record) -> None:
    """Write the record of a share, and remove those that it had before."""
    data = json.dumps(record.as_json()).encode()
    name = f"share-{record.index:06d}-{digest(data)}.json"
    storage.write_bytes(storage.join(stage, name), data)
    for old in storage.names(stage, rf"share-{record.index:06d}-"):
        if old != name:
            storage.remove(storage.join(stage, old))


def sealed_shares(stage: str) -> set[int]:
    """The numbers of the shares that have a record, told by the names alone."""
    return {int(name.split("-")[1]) for name in storage.names(stage, RECORD_NAME)}


def read_records(stage: str) -> tuple[dict[int, Record], list[str]]:
    """The records in a staging folder by share, and the paths of those that are damaged."""
    found, damaged = {}, []
    for name in storage.names(stage, RECORD_NAME):
        path = storage.join(stage, name)
        record = read_record(path)
        if record is None:
            damaged.append(path)
        else:
            found[record.index] = record
    return found, damaged


def read_record(path: str) -> Record | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        data = storage.read_bytes(path)
        if named_after(path, data):
            return record_of(storage.parent(path), json.loads(data))
    return None


def files_sound(target: Target, files: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the files of a share are there, in the staging folder or already published, and whole."""
    return all(_sound(target, file) for file in files)


def _sound(target: Target, file: Mapping[str, Any]) -> bool:
    for path in {target.sealed(file["name"]), target.published(file["name"])}:
        if storage.exists(path) and storage.file_identity(path).get("size") == file["size"]:
            return "sha256" not in file or file_digest(path) == file["sha256"]
    return False

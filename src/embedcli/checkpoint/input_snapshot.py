"""How the inputs looked when a run began: shares that were made from different inputs are not merged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any

from embedcli import storage
from embedcli.checkpoint.part_files import hash_bytes, name_matches_digest
from embedcli.checkpoint.partitions import PartitionRecord
from embedcli.core.errors import OutputError
from embedcli.core.types import InputSplit, PartFile, Partition

FileDescriptions = tuple[Mapping[str, Any], ...]
RERUN_SHARDS_HINT = "run every shard again: what was made from other inputs is done anew, the rest is kept"


@dataclass(frozen=True)
class InputSnapshot:
    """`inputs` are pairs of path and look (size and time; {} for a stream), in order.

    `shares` is into how many shares they are cut, `cut` a digest of which piece is in which.
    """

    inputs: Sequence[tuple[str, Mapping[str, int]]]
    shares: int
    cut: str

    @cached_property
    def looks(self) -> dict[str, Mapping[str, int]]:
        return dict(self.inputs)

    def as_json(self) -> bytes:
        # The keys are those of files that earlier versions have written.
        return json.dumps({"inputs": self.inputs, "shares": self.shares, "cut": self.cut}).encode()

    @cached_property
    def name(self) -> str:
        return hash_bytes(self.as_json())

    def of(self, share: Partition) -> dict[str, Mapping[str, int]]:
        """How the inputs of a share looked."""
        return {piece.path: self.looks[piece.path] for piece in share.splits}

    def is_unchanged(self, record: PartitionRecord, *, numbered: bool) -> bool:
        """Whether inputs look as they did when a share was made, so that it need not be read again.

        With `numbered` rows all of them count, as any input before a row changes its number.
        """
        same = all(look and look == self.looks.get(path) for path, look in record.input_stats.items())
        return same and (not numbered or record.snapshot_name == self.name)

    def matches(self, other: InputSnapshot) -> bool:
        """Whether both are of the same inputs, under whatever folder each run has found them."""
        mine, theirs = ([(storage.basename(path), look) for path, look in view.inputs] for view in (self, other))
        return mine == theirs and (self.shares, self.cut) == (other.shares, other.cut)


def take_snapshot(every: Sequence[Partition]) -> InputSnapshot:
    """How the inputs of all shares of a job look now."""
    looks = storage.file_identities([piece.path for share in every for piece in share.splits])
    cut = hash_bytes(json.dumps([[split_identity(piece) for piece in share.splits] for share in every]).encode())
    return InputSnapshot(tuple(looks.items()), len(every), cut)


def has_same_splits(record: PartitionRecord, share: Partition) -> bool:
    """Whether a record is of the very pieces that the share has now."""
    return [split_identity(piece) for piece in record.splits] == [split_identity(piece) for piece in share.splits]


def build_record(
    share: Partition, view: InputSnapshot, job: str, parts: tuple[PartFile, ...], files: FileDescriptions
) -> PartitionRecord:
    """The record of a share that is done now. An input that does not look as in the view changed while it was read."""
    now = storage.file_identities([piece.path for piece in share.splits])
    looks = {path: look if look == now[path] else {} for path, look in view.of(share).items()}
    return PartitionRecord(share.index, job, view.name, share.splits, parts, looks, files)


def split_identity(input_split: InputSplit) -> tuple[Any, ...]:
    """Where a piece lies, without the folder of its file: a moved folder is no other input."""
    index, path, *rest = astuple(input_split)
    return index, storage.basename(path), *rest


def write_snapshot(stage: str, view: InputSnapshot) -> None:
    path = _path(stage, view.name)
    if not storage.exists(path):
        storage.write_bytes(path, view.as_json())


def read_snapshot(stage: str, name: str) -> InputSnapshot | None:
    """A view that a run has written; None if it is not there or damaged."""
    path = _path(stage, name)
    with suppress(OSError, ValueError, KeyError, TypeError):
        data = storage.read_bytes(path)
        if name_matches_digest(path, data):
            made = json.loads(data)
            return InputSnapshot(tuple((path, look) for path, look in made["inputs"]), made["shares"], made["cut"])
    return None


def _path(stage: str, name: str) -> str:
    return storage.join(stage, f"inputs-{name}.json")


def common_snapshot(stage: str, output: str, records: Iterable[PartitionRecord]) -> InputSnapshot | None:
    """The one view that all records were made from; None without records.

    OutputError naming the input that looked different to some, or that changed while it was read.
    """
    first: InputSnapshot | None = None
    views = {name: read_snapshot(stage, name) for name in sorted({record.snapshot_name for record in records})}
    for view in views.values():
        if view is None:
            raise OutputError(
                f"{storage.format_location(stage)}: a note of what the inputs looked like is gone", RERUN_SHARDS_HINT
            )
        if first is not None and not first.matches(view):
            raise snapshot_conflict_error(first, view, output)
        first = view
    for record in records:
        view = views[record.snapshot_name]
        for path, look in record.input_stats.items():
            if view is not None and look != view.looks[path]:
                raise OutputError(
                    f"{storage.format_location(path)} has changed while share {record.index} of {storage.format_location(output)} was made "
                    "from it; nothing was published",
                    RERUN_SHARDS_HINT,
                )
    return first


def snapshot_conflict_error(one: InputSnapshot, two: InputSnapshot, output: str) -> OutputError:
    """The error for shares of two views: names the first input that differs."""
    pairs = zip(one.inputs, two.inputs, strict=False)
    path = next((path for (_, look), (path, other) in pairs if look != other), None)
    what = "the cut of the input" if path is None else storage.format_location(path)
    return OutputError(
        f"{what} has changed between the shards of {storage.format_location(output)}; nothing was published",
        RERUN_SHARDS_HINT,
    )

"""Snapshots of the inputs at the start of a run; partitions encoded from different inputs are not merged."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from functools import cached_property
from typing import Any

from embedcli import storage
from embedcli.checkpoint.part_files import hash_bytes, name_matches_digest
from embedcli.checkpoint.partitions import PartitionRecord
from embedcli.core.errors import OutputError
from embedcli.core.types import InputSplit, PartFile, Partition

FileDescriptions = tuple[Mapping[str, Any], ...]
RERUN_SHARDS_HINT = "run every shard again: only what was encoded from other inputs is encoded again"


@dataclass(frozen=True)
class InputSnapshot:
    """The inputs of a job as one run found them.

    Attributes:
        inputs: Path and stats (size and modification time; {} for a stream) of each input file, in order.
        partition_count: The number of partitions that the inputs are divided into.
        splits_digest: A digest of the input splits of each partition.
        states: `storage.file_state` of each input before it was read, by path; only known to the run itself.
    """

    inputs: Sequence[tuple[str, Mapping[str, int]]]
    partition_count: int
    splits_digest: str
    states: Mapping[str, Mapping[str, int]] = field(default_factory=dict, compare=False)

    @cached_property
    def stats_by_path(self) -> dict[str, Mapping[str, int]]:
        return dict(self.inputs)

    def as_json(self) -> bytes:
        # The keys are those of files that earlier versions have written.
        return json.dumps({"inputs": self.inputs, "shares": self.partition_count, "cut": self.splits_digest}).encode()

    @cached_property
    def name(self) -> str:
        return hash_bytes(self.as_json())

    def stats_of(self, partition: Partition) -> dict[str, Mapping[str, int]]:
        """Return the stats of the input files of a partition, by path."""
        return {split.path: self.stats_by_path[split.path] for split in partition.splits}

    def is_unchanged(self, record: PartitionRecord, *, has_row_numbers: bool) -> bool:
        """Whether a completed partition need not be read again, because its input files have the same stats as then.

        A file of which anything was changed since the record was written is read again, whatever its stats. With row
        numbers as ids all inputs count: a change in an earlier input changes the numbers of later rows.
        """
        same = all(stats and stats == self.stats_by_path.get(path) for path, stats in record.input_stats.items())
        same = same and not any(self._has_changed_since(path, record.written_ns) for path in record.input_stats)
        return same and (not has_row_numbers or record.snapshot_name == self.name)

    def _has_changed_since(self, path: str, time_ns: int | None) -> bool:
        changed_ns = self.states.get(path, {}).get("ctime_ns")
        return changed_ns is not None and time_ns is not None and changed_ns >= time_ns

    def has_same_inputs(self, other: InputSnapshot) -> bool:
        """Whether both snapshots are of the same inputs, whatever the folder in which each run found them."""
        own, others = ([(storage.basename(path), stats) for path, stats in each.inputs] for each in (self, other))
        return own == others and (self.partition_count, self.splits_digest) == (
            other.partition_count,
            other.splits_digest,
        )


def take_snapshot(
    all_partitions: Sequence[Partition], states: Mapping[str, Mapping[str, int]] | None = None
) -> InputSnapshot:
    """Take a snapshot of the inputs of all partitions of a job; `states` are their states before they were read."""
    stats = storage.file_identities([split.path for partition in all_partitions for split in partition.splits])
    splits = [[split_identity(split) for split in partition.splits] for partition in all_partitions]
    return InputSnapshot(
        tuple(stats.items()), len(all_partitions), hash_bytes(json.dumps(splits).encode()), states or {}
    )


def has_same_splits(record: PartitionRecord, partition: Partition) -> bool:
    """Whether a completed partition had the same input splits as the partition has now."""
    return [split_identity(split) for split in record.splits] == [split_identity(split) for split in partition.splits]


def build_record(
    partition: Partition,
    snapshot: InputSnapshot,
    job_digest: str,
    parts: tuple[PartFile, ...],
    files: FileDescriptions,
) -> PartitionRecord:
    """Build the record of a partition that is complete now; inputs that changed since the snapshot are marked."""
    current_states = storage.file_states([split.path for split in partition.splits])
    input_stats = {
        path: stats if _is_same_state({**stats, **snapshot.states.get(path, {})}, current_states[path]) else {}
        for path, stats in snapshot.stats_of(partition).items()
    }
    return PartitionRecord(partition.index, job_digest, snapshot.name, partition.splits, parts, input_stats, files)


def _is_same_state(before: Mapping[str, int], now: Mapping[str, int]) -> bool:
    """Whether a file has not changed. Not by its inode: some network file systems invent another one at any time."""
    return all(now.get(key) == value for key, value in before.items() if key != "inode") and bool(now) == bool(before)


def split_identity(input_split: InputSplit) -> tuple[Any, ...]:
    """Return the range and the file name of a split, without the folder: a moved folder is the same input."""
    index, path, start, stop, unit, max_rows = astuple(input_split)
    identity = index, storage.basename(path), start, stop, unit
    return identity if max_rows is None else (*identity, max_rows)  # as earlier versions have recorded it


def write_snapshot(staging_folder: str, snapshot: InputSnapshot) -> None:
    path = _snapshot_path(staging_folder, snapshot.name)
    if not storage.exists(path):
        storage.write_bytes(path, snapshot.as_json())


def read_snapshot(staging_folder: str, name: str) -> InputSnapshot | None:
    """Read a snapshot from the staging folder; None if it is missing or damaged."""
    path = _snapshot_path(staging_folder, name)
    with suppress(OSError, ValueError, KeyError, TypeError):
        data = storage.read_bytes(path)
        if name_matches_digest(path, data):
            values = json.loads(data)
            inputs = tuple((path, stats) for path, stats in values["inputs"])
            return InputSnapshot(inputs, values["shares"], values["cut"])
    return None


def _snapshot_path(staging_folder: str, name: str) -> str:
    return storage.join(staging_folder, f"inputs-{name}.json")


def find_common_snapshot(
    staging_folder: str, output: str, records: Collection[PartitionRecord]
) -> InputSnapshot | None:
    """Return the snapshot that all completed partitions have in common; None without records.

    Raises:
        OutputError: The inputs changed between the partitions or while one of them was read, or a snapshot is missing.
    """
    snapshots: dict[str, InputSnapshot] = {}
    for name in sorted({record.snapshot_name for record in records}):
        snapshot = read_snapshot(staging_folder, name)
        if snapshot is None:
            raise OutputError(
                f"{storage.format_location(staging_folder)}: the snapshot of the inputs is missing or damaged",
                RERUN_SHARDS_HINT,
            )
        snapshots[name] = snapshot
    first = next(iter(snapshots.values()), None)
    for snapshot in snapshots.values():
        if first is not None and not first.has_same_inputs(snapshot):
            raise snapshot_conflict_error(first, snapshot, output)
    for record in records:
        for path, stats in record.input_stats.items():
            if stats != snapshots[record.snapshot_name].stats_by_path[path]:
                raise OutputError(
                    f"{storage.format_location(path)} has changed while partition {record.index} of "
                    f"{storage.format_location(output)} was encoded; nothing was published",
                    RERUN_SHARDS_HINT,
                )
    return first


def snapshot_conflict_error(one: InputSnapshot, other: InputSnapshot, output: str) -> OutputError:
    """Return the error for partitions with different snapshots; it names the first input that differs."""
    pairs = zip(one.inputs, other.inputs, strict=False)
    path = next((path for (_, stats), (path, other_stats) in pairs if stats != other_stats), None)
    what = "the division of the input into partitions" if path is None else storage.format_location(path)
    return OutputError(
        f"{what} has changed between the shards of {storage.format_location(output)}; nothing was published",
        RERUN_SHARDS_HINT,
    )

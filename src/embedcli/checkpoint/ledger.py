"""The ledger of an output: which chunks and partitions are done, and that they belong to the same job and input."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from embedcli import storage
from embedcli.checkpoint import input_snapshot, part_files, partitions, publish, rejects
from embedcli.checkpoint.part_files import PART_NAME_PATTERN, has_all_part_files, hash_chunk
from embedcli.checkpoint.partitions import PartitionRecord
from embedcli.checkpoint.staging import LOCK_FILE, StagingFolder
from embedcli.core.constants import MANIFEST_FILE
from embedcli.core.errors import OutputError
from embedcli.core.types import Chunk, EncodedChunk, InputSplit, PartFile, Partition
from embedcli.outputs import writers
from embedcli.outputs.job_changes import check_job_unchanged
from embedcli.outputs.schema import OutputLayout
from embedcli.outputs.target import OutputTarget, changed_input_error, changed_splits_error, check_no_foreign_files

DEFAULT_PART_SIZE = 256_000_000
PartitionReader = Callable[[Partition], Iterable[Chunk]]


class Ledger:
    """The part files and completed partitions of one output.

    A partition is completed when each of its chunks has a part file: a record of it is written and, in a folder output,
    its part files are merged into its final files. Single-file outputs of one process have no partitions.

    Args:
        target: The output.
        allow_changed_input: Whether what was encoded from an input that has changed is encoded again, rather than
            refused with a ResumeError.
        lock: The name of the lock file; a shard has a lock of its own and shares the output's.

    Attributes:
        job: The identity of the job, as the manifest in the staging folder holds it.
        snapshot: The inputs as this run found them.
        completed: The records of completed partitions, by partition number.
        damaged_parts: Damaged part files and partitions, by path or name.
        rejected_rows: Rejects in all part files so far.
        rows_written: Rows of the input, rejects included, in part files that this run has written.
    """

    def __init__(self, target: OutputTarget, *, allow_changed_input: bool = False, lock: str = LOCK_FILE) -> None:
        self.target = target
        self.staging = StagingFolder(target, lock)
        self.allow_changed_input = allow_changed_input
        self.job: dict[str, Any] = {}
        self.snapshot = input_snapshot.InputSnapshot((), 0, "")
        self.completed: dict[int, PartitionRecord] = {}
        self.damaged_parts: list[str] = []
        self.rejected_rows = 0
        self.rows_written = 0
        self._job_digest = ""
        self._parts: dict[tuple[int, int], PartFile] = {}
        self._completed_parts: dict[tuple[int, int], PartFile] = {}
        self._open_partitions: list[Partition] = []
        self._staged_paths: dict[tuple[int, int], list[str]] = {}
        self._source_hashes: dict[tuple[int, int], str] = {}

    # Opening and closing

    def acquire(self) -> None:
        """Create and lock the staging folder until `release`.

        Raises:
            OutputLocked: Another process is writing the output.
        """
        self.staging.acquire()

    def release(self) -> None:
        """Release the lock; a staging folder without anything to resume from is removed."""
        self.staging.release()

    def begin(self, job: Mapping[str, Any], *, overwrite: bool) -> None:
        """Begin or resume a job in the staging folder.

        Args:
            job: The identity of the job.
            overwrite: Whether to discard what is there, whichever job it belongs to.

        Raises:
            ResumeError: The staging folder belongs to another job.
        """
        self.job = dict(job)
        old_job = {} if overwrite else self.staging.read_manifest()
        if old_job:
            check_job_unchanged(old_job, self.job, "begun", self.target)
        else:
            if not overwrite:
                check_no_foreign_files(self.target)
            self.staging.discard_work()
            storage.write_bytes(self.staging.join(MANIFEST_FILE), writers.to_readable_json(self.job, indent=1).encode())
        self._job_digest = part_files.hash_job(old_job or self.job)
        self._find_part_files()

    def join(self, job: Mapping[str, Any], snapshot_name: str = "") -> None:
        """Join a run that another process has begun.

        Args:
            job: The identity of the job.
            snapshot_name: The name of the run's input snapshot; only needed to complete partitions.

        Raises:
            OutputError: The run's staging folder cannot be seen from this machine.
        """
        snapshot = input_snapshot.read_snapshot(self.staging.path, snapshot_name) if snapshot_name else self.snapshot
        if snapshot is None or self.staging.read_manifest() != json.loads(json.dumps(job)):
            raise OutputError(
                f"{storage.format_location(self.staging.path)}: the run's folder cannot be seen from this machine",
                "choose an output that all machines share: a network folder, or an s3:// address",
            )
        self.job, self._job_digest, self.snapshot = dict(job), part_files.hash_job(job), snapshot
        self._find_part_files()

    def _find_part_files(self) -> None:
        for name in self.staging.list_files(PART_NAME_PATTERN):
            self._staged_paths.setdefault(part_files.parse_part_key(name), []).append(self.staging.join(name))

    def _check_same_job(self) -> None:  # a lock can be lost, and some file systems have none
        part_files.check_same_job(self.staging.read_manifest(), self._job_digest, self.target.output)

    # Chunks

    def skip_finished_chunks(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield the chunks without an intact part file; count the others as done.

        Raises:
            ResumeError: The input has changed: a part file was encoded from other ids or texts. If changed inputs are
                allowed, the chunk is yielded instead.
        """
        for chunk in chunks:
            digest = hash_chunk(chunk)
            self._source_hashes[chunk.key] = digest
            completed_part = self._completed_parts.get(chunk.key)
            part = completed_part or self._find_intact_part(chunk.key)
            if part is not None and part.source_hash != digest:
                if completed_part or not self.allow_changed_input:
                    raise changed_input_error(chunk.input_split.path, part.source_hash, digest, self.target)
                storage.remove(part.path)
                part = None
            if part is None:
                yield chunk
            elif not completed_part:
                self._parts[chunk.key] = part
                self.rejected_rows += part.rejects

    def _find_intact_part(self, key: tuple[int, int]) -> PartFile | None:
        """Find a chunk's intact part file of this job; remove damaged ones and those of other jobs."""
        for path in self._staged_paths.get(key, ()):
            try:
                part = part_files.read_part_file(path, self._job_digest)
            except OutputError:
                part = None
                self.damaged_parts.append(path)
            if part is not None:
                return part
            storage.remove(path)
        return None

    def add_chunk(
        self, encoded: EncodedChunk, layout: OutputLayout, changes: Mapping[str, int] | None = None
    ) -> PartFile:
        """Write the part file of a chunk, and its rejects; both are synced to disk when this returns.

        Args:
            encoded: The chunk and its vectors.
            layout: The output's columns.
            changes: Counts of added, changed and reused rows, by name.

        Raises:
            OutputError: Writing failed.
        """
        chunk = encoded.chunk
        source_hash = self._source_hashes.pop(chunk.key, None) or hash_chunk(chunk)
        part = part_files.write_part_file(
            self.staging.path, encoded, layout, source_hash, changes or {}, job_digest=self._job_digest
        )
        self._parts[chunk.key] = part
        self.rejected_rows += part.rejects
        self.rows_written += part.read
        return part

    # Partitions

    def begin_partitions(
        self,
        own_partitions: Sequence[Partition],
        all_partitions: Sequence[Partition],
        *,
        states: Mapping[str, Mapping[str, int]] | None = None,
        skip_unchanged: bool = True,
        read_again: PartitionReader | None = None,
    ) -> list[Partition]:
        """Count the intact completed partitions as done, and reopen those that are damaged or whose input has changed.

        Args:
            own_partitions: The partitions that this run encodes.
            all_partitions: All partitions of the plan.
            states: `storage.file_state` of the inputs before they were read, by path.
            skip_unchanged: Whether completed partitions whose input files have the same stats need not be read.
            read_again: Reads a partition's chunks. With it, a completed partition whose input files have other stats
                is compared here; without it, the caller must read such a partition to have it compared.

        Returns:
            The partitions that the caller must read.

        Raises:
            ResumeError: The input was divided into other partitions, and changed inputs are not allowed.
        """
        self.snapshot = input_snapshot.take_snapshot(all_partitions, states)
        input_snapshot.write_snapshot(self.staging.path, self.snapshot)
        records = self._read_records()
        for index in [index for index in records if index >= len(all_partitions)]:
            self._reopen_changed_splits(records[index])
        to_read = []
        for partition in own_partitions:
            record = records.get(partition.index)
            is_done = record is not None and self._count_or_reopen(record, partition, read_again)
            if not is_done:
                self._open_partitions.append(partition)
            if not is_done or not skip_unchanged or not self._is_unchanged(self.completed[partition.index]):
                to_read.append(partition)
        return to_read

    def load_completed_partitions(self) -> tuple[list[int], int]:
        """Load a job from its staging folder alone, and count its intact completed partitions as done.

        Returns:
            The numbers of missing partitions, and the number of all partitions.

        Raises:
            OutputError: The partitions were encoded from different inputs.
        """
        self.job = self.staging.read_manifest()
        self._job_digest = part_files.hash_job(self.job)
        self._find_part_files()
        records = self._read_records()
        snapshot = input_snapshot.find_common_snapshot(self.staging.path, self.target.output, records.values())
        count = snapshot.partition_count if snapshot is not None else 0
        for record in records.values():
            if self._is_intact(record):
                self._count_completed(record)
        return [index for index in range(count) if index not in self.completed], count

    def complete_ready_partitions(self, layout: OutputLayout, vector_space: Mapping[str, Any]) -> None:
        """Complete the open partitions, in order, up to the first with a chunk that has no part file."""
        while self._open_partitions and all(
            has_all_part_files(self._parts, split.index) for split in self._open_partitions[0].splits
        ):
            self.complete_partition(self._open_partitions.pop(0), layout, vector_space)

    def complete_partition(
        self, partition: Partition, layout: OutputLayout, vector_space: Mapping[str, Any]
    ) -> PartitionRecord:
        """Write the record of a partition and, in a folder output, merge its part files into its final files.

        Args:
            partition: The partition, all of whose chunks have part files.
            layout: The output's columns.
            vector_space: The vector space metadata to store in the files.

        Raises:
            OutputError: Writing failed, or another run has taken over the output.
        """
        split_indexes = {split.index for split in partition.splits}
        parts = tuple(self._parts[key] for key in sorted(self._parts) if key[0] in split_indexes)
        files: tuple[dict[str, Any], ...] = ()
        self._check_same_job()
        if self.target.is_folder:
            part_size = int(self.job.get("part_size") or DEFAULT_PART_SIZE)
            metadata = {writers.SPACE_METADATA_KEY: dict(vector_space)}
            files = partitions.write_partition_files(self.target, partition, parts, layout, metadata, part_size)
        record = input_snapshot.build_record(partition, self.snapshot, self._job_digest, parts, files)
        partitions.write_record(self.staging.path, record)
        for part in parts:
            if files:
                storage.remove(part.path)
            del self._parts[part.key]
        self.completed[record.index] = record
        return record

    def add_completed_partition(self, record: PartitionRecord, resumed_rows: int = 0) -> None:
        """Count a partition that another process of this run has completed; it found `resumed_rows` done before."""
        self._count_completed(record)
        self.rows_written += record.rows_read - resumed_rows

    def _read_records(self) -> dict[int, PartitionRecord]:
        """Read the partition records of this job; remove damaged ones and those of other jobs."""
        records, damaged = partitions.read_records(self.staging.path)
        self.damaged_parts += damaged
        for path in damaged:
            storage.remove(path)
        for index in [index for index, record in records.items() if record.job_digest != self._job_digest]:
            del records[index]
            partitions.remove_records(self.staging.path, index)
        return records

    def _count_or_reopen(
        self, record: PartitionRecord, partition: Partition, read_again: PartitionReader | None
    ) -> bool:
        """Count a completed partition as done, or reopen it; returns whether it is done."""
        if not input_snapshot.has_same_splits(record, partition):
            self._reopen_changed_splits(record)
            return False
        has_same_input = self._is_unchanged(record) or (
            read_again is not None and partitions.matches_chunks(record, read_again(partition))
        )
        if has_same_input or not self.allow_changed_input:
            if self._is_intact(record):
                self._count_completed(self._update_snapshot(record, partition) if has_same_input else record)
                return True
            self.damaged_parts.append(f"partition {record.index}")
        self._reopen(record)
        return False

    def _is_unchanged(self, record: PartitionRecord) -> bool:
        return self.snapshot.is_unchanged(record, has_row_numbers=self.job.get("id_column", "") is None)

    def _is_intact(self, record: PartitionRecord) -> bool:
        """Whether all files of a completed partition are there and undamaged."""
        parts = {part.key: part for part in record.parts}
        has_all_chunks = all(has_all_part_files(parts, split_index) for split_index in {index for index, _ in parts})
        if not has_all_chunks or not all(
            part_files.are_rejects_intact(self.staging.path, part) for part in record.parts
        ):
            return False
        if record.files:
            return partitions.are_files_intact(self.target, record.files)
        return not self.target.is_folder and all(self._find_intact_part(key) is not None for key in parts)

    def _update_snapshot(self, record: PartitionRecord, partition: Partition) -> PartitionRecord:
        """Record that a completed partition matches the inputs as they are now."""
        stats, name = self.snapshot.stats_of(partition), self.snapshot.name
        updated = replace(record, snapshot_name=name, input_stats=stats, written_ns=None)
        if updated != record or not self._is_unchanged(record):
            partitions.write_record(self.staging.path, updated)
        return updated

    def _count_completed(self, record: PartitionRecord) -> None:
        self.completed[record.index] = record
        self._completed_parts |= {part.key: part for part in record.parts}
        self.rejected_rows += sum(part.rejects for part in record.parts)

    def _reopen_changed_splits(self, record: PartitionRecord) -> None:
        """Reopen a partition that has other splits in the plan; ResumeError if changed inputs are not allowed."""
        if not self.allow_changed_input:
            raise changed_splits_error(record.splits[0].path, self.target)
        self._reopen(record)

    def _reopen(self, record: PartitionRecord) -> None:
        partitions.remove_records(self.staging.path, record.index)
        for file in record.files:
            self.target.discard_file(file["name"])

    # Totals and publishing

    def count_staged_parts(self, splits: Iterable[InputSplit]) -> None:
        """Count the part files of these splits that other processes or earlier runs have written, when a run stops."""
        known, split_indexes = {part.key for part in self.all_parts()}, {split.index for split in splits}
        earlier = {path for paths in self._staged_paths.values() for path in paths}
        for part in part_files.find_part_files(self.staging, split_indexes, known, self._job_digest):
            self._parts[part.key] = part
            self.rejected_rows += part.rejects
            self.rows_written += 0 if part.path in earlier else part.read

    def all_parts(self) -> list[PartFile]:
        """Return every part file, those of completed partitions included, in input order."""
        parts = {part.key: part for record in self.completed.values() for part in record.parts} | self._parts
        return [parts[key] for key in sorted(parts)]

    def totals(self) -> dict[str, int]:
        """Return sums over all part files: read, rows, rejects, tokens, truncated, lost_tokens."""
        return part_files.sum_counts(self.all_parts())

    def changes(self) -> dict[str, int]:
        """Return sums over all part files: rows added, changed, reused and removed; see `sum_changes`."""
        return part_files.sum_changes(self.all_parts())

    def publish(self, layout: OutputLayout, vector_space: Mapping[str, Any]) -> None:
        """Publish rejects and output, then remove the staging folder. The caller has checked that no row is missing.

        Raises:
            OutputError: Writing failed, a part file is damaged, or another run has taken over the output.
        """
        self._check_same_job()
        parts = self.all_parts()
        metadata = publish.build_output_metadata(self.job, parts, self.totals(), vector_space)
        rejects.publish_rejects(self.target, parts)
        if self.target.is_folder:
            records = [self.completed[index] for index in sorted(self.completed)]
            publish.publish_folder(self.target, records, metadata)
        else:
            publish.publish_file(self.target, parts, layout, metadata)
        self.staging.remove()

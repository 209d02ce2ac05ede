"""The parts of one output: found, added, sealed by shares, published."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from embedcli import storage
from embedcli.checkpoint import input_snapshot, part_files, partitions
from embedcli.checkpoint.part_files import (
    PART_NAME_PATTERN,
    combine_hashes,
    has_all_part_files,
    hash_chunk,
    parse_part_key,
    read_part_file,
)
from embedcli.checkpoint.partitions import PartitionRecord
from embedcli.core.errors import OutputError
from embedcli.core.types import MANIFEST_FILE, PART_FILE_PATTERN, Chunk, EncodedChunk, PartFile, Partition
from embedcli.outputs import target as output_target
from embedcli.outputs import writers
from embedcli.outputs.schema import OutputLayout
from embedcli.outputs.target import (
    OutputTarget,
    changed_input_error,
    changed_splits_error,
    check_job_unchanged,
    check_no_foreign_files,
)

DEFAULT_PART_SIZE = 256_000_000
LOCK_FILE = "_lock"
PartitionRereader = Callable[[Partition], Iterable[Chunk]]


class Ledger:
    """The parts of one output. Holds the output's lock until `release`; a dead process keeps none.

    A shard has a lock of its own, named `lock`, and shares the output's: shards work side by side, a whole run alone.
    A share of the input whose chunks are all done is sealed: a record says so, and in a folder output its parts
    have become its final files. `shares` are those of the plan; single-file outputs of one process have none.
    """

    def __init__(self, target: OutputTarget, *, keeps_other_parts: bool = False, lock: str = LOCK_FILE) -> None:
        self.target = target
        self.job: dict[str, Any] = {}
        self.job_digest = ""
        self.snapshot = input_snapshot.InputSnapshot((), 0, "")
        self.keeps_other_parts = keeps_other_parts
        self.new_parts: list[int] = []
        self.rejected_rows = 0
        self.parts: dict[tuple[int, int], PartFile] = {}
        self.completed: dict[int, PartitionRecord] = {}
        self.damaged_parts: list[str] = []
        self.open_partitions: list[Partition] = []
        self._lock_name = lock
        self._hashes: dict[tuple[int, int], str] = {}
        self._found: dict[tuple[int, int], list[str]] = {}
        self._inside: dict[tuple[int, int], PartFile] = {}
        self._unlock: Callable[[], None] | None = None

    # Opening

    def acquire(self) -> None:
        """Take the lock and sweep what a dead process left; OutputError if another process holds it."""
        stage = self.target.staging_folder
        if self.target.is_folder:
            storage.make_folder(storage.parent_folder(stage))
        self.target.make_staging_folder()
        if self._lock_name == LOCK_FILE:
            self._unlock = storage.acquire_lock(self._path(LOCK_FILE), self.target.output)
            self._sweep()
        else:
            self._unlock = self._locked_as_shard()

    def _locked_as_shard(self) -> Callable[[], None]:
        """The shard's own lock, and the output's, shared; what gives both back."""
        output = self.target.output
        held = ExitStack()
        with held:
            held.callback(storage.acquire_lock(self._path(LOCK_FILE), output, shared=True))
            held.callback(storage.acquire_lock(self._path(self._lock_name), output))
            return held.pop_all().close

    def _sweep(self) -> None:
        storage.remove_stale_temporaries(self.target.staging_folder)
        if self.target.is_folder:
            storage.remove_stale_temporaries(storage.parent_folder(self.target.staging_folder))
        for file in (*self.target.list_files(), self.target.rejects_path):
            storage.remove_stale_temporaries_beside(file)

    def begin(self, job: Mapping[str, Any], *, overwrite: bool) -> None:
        """Find the parts of the same job; ResumeError if they belong to another one."""
        self.job = dict(job)
        manifest = self._path(MANIFEST_FILE)
        old = {} if overwrite else output_target.read_json_or_empty(manifest)
        if old:
            check_job_unchanged(old, self.job, manifest, self.target)
        else:
            if not overwrite:
                check_no_foreign_files(self.target)
            self.discard()
            storage.write_bytes(manifest, writers.to_readable_json(self.job, indent=1).encode())
        self.job_digest = part_files.hash_job(old or self.job)
        self._find_parts()

    def join(self, job: Mapping[str, Any], view: str = "") -> None:
        """Take part in a run that another process has begun; OutputError if its stage cannot be seen from here.

        `view` is the name of what it saw of the inputs; whoever seals no share needs none.
        """
        seen = input_snapshot.read_snapshot(self.target.staging_folder, view) if view else self.snapshot
        if seen is None or output_target.read_json_or_empty(self._path(MANIFEST_FILE)) != json.loads(json.dumps(job)):
            raise OutputError(
                f"{storage.format_location(self.target.staging_folder)}: the run that this worker belongs to cannot be seen there",
                "choose an output that all machines share: a network folder, or an s3:// address",
            )
        self.job, self.job_digest, self.snapshot = dict(job), part_files.hash_job(job), seen
        self._find_parts()

    def _find_parts(self) -> None:
        for name in storage.list_files(self.target.staging_folder, PART_NAME_PATTERN):
            self._found.setdefault(parse_part_key(name), []).append(self._path(name))

    def check_not_taken_over(self) -> None:
        """OutputError if the stage is no longer this job's: a lock may be lost, or never have been one."""
        part_files.check_same_job(
            output_target.read_json_or_empty(self._path(MANIFEST_FILE)), self.job_digest, self.target.output
        )

    def _records(self) -> dict[int, PartitionRecord]:
        """The records of this job by share; those that are damaged, or another job's, are removed."""
        records, damaged = partitions.read_records(self.target.staging_folder)
        self.damaged_parts += damaged
        foreign = [index for index, record in records.items() if record.job_digest != self.job_digest]
        for path in damaged:
            storage.remove(path)
        for index in foreign:
            del records[index]
            self._remove_record(index)
        return records

    def _remove_record(self, share: int) -> None:
        for name in storage.list_files(self.target.staging_folder, rf"share-{share:06d}-"):
            storage.remove(self._path(name))

    def begin_partitions(
        self,
        shares: Sequence[Partition],
        every: Sequence[Partition],
        *,
        unread: bool = True,
        reread: PartitionRereader | None = None,
    ) -> list[Partition]:
        """Find the shares that are sealed and sound; returns those that must be read, which is all unless `unread`.

        `every` are all shares of the plan. A sealed share whose inputs look as they did needs no reading. The others
        are compared chunk by chunk: by the caller, who reads them, or here with `reread`; then what differs is undone.
        """
        self.snapshot = input_snapshot.take_snapshot(every)
        input_snapshot.write_snapshot(self.target.staging_folder, self.snapshot)
        records = self._records()
        for index in [index for index in records if index >= len(every)]:
            self._undo_cut(records[index])
        left = []
        for share in shares:
            record = records.get(share.index)
            if record is not None and not self._take(record, share, reread):
                record = None
            if record is None:
                self.open_partitions.append(share)
            if record is None or not unread or not self._unchanged(self.completed[share.index]):
                left.append(share)
        return left

    def _unchanged(self, record: PartitionRecord) -> bool:
        return self.snapshot.is_unchanged(record, numbered=self.job.get("id_column", "") is None)

    def load_completed_partitions(self) -> tuple[list[int], int]:
        """Count all sealed shares of a job of which only the stage is known; the missing ones' numbers, and how many.

        OutputError, and nothing is counted, if they were not all made from the same inputs.
        """
        self.job = output_target.read_json_or_empty(self._path(MANIFEST_FILE))
        self.job_digest = part_files.hash_job(self.job)
        self._find_parts()
        records = self._records()
        view = input_snapshot.common_snapshot(self.target.staging_folder, self.target.output, records.values())
        count = view.shares if view is not None else 0
        for record in records.values():
            if self._whole(record):
                self._count(record)
        return [index for index in range(count) if index not in self.completed], count

    def _whole(self, record: PartitionRecord) -> bool:
        parts = {part.key: part for part in record.parts}
        whole = all(has_all_part_files(parts, piece) for piece in {piece for piece, _ in parts})
        if not whole or not all(
            part_files.are_rejects_intact(self.target.staging_folder, part) for part in record.parts
        ):
            return False
        return partitions.are_files_intact(self.target, record.files) if record.files else self._parts_sound(record)

    def _take(self, record: PartitionRecord, share: Partition, reread: PartitionRereader | None) -> bool:
        """Count a sealed share as done, or undo its seal."""
        if not input_snapshot.has_same_splits(record, share):
            self._undo_cut(record)
            return False
        known = self._unchanged(record) or (reread is not None and partitions.matches_chunks(record, reread(share)))
        changed = self.keeps_other_parts and not known
        if not changed and self._whole(record):
            self._count(self._seen(record, share) if known else record)
            return True
        if not changed:
            self.damaged_parts.append(f"share {record.index}")
        self._unseal(record)
        return False

    def _seen(self, record: PartitionRecord, share: Partition) -> PartitionRecord:
        """The record, which says from now on that it is of the inputs as they look now."""
        now = replace(record, snapshot_name=self.snapshot.name, input_stats=self.snapshot.of(share))
        if now != record:
            partitions.write_record(self.target.staging_folder, now)
        return now

    def _undo_cut(self, record: PartitionRecord) -> None:
        """Undo the seal of a share that is none of the plan's; ResumeError if a changed input is to be refused."""
        if not self.keeps_other_parts:
            raise changed_splits_error(record.splits[0].path, self.target)
        self._unseal(record)

    def _parts_sound(self, record: PartitionRecord) -> bool:
        return not self.target.is_folder and all(self._sound(part.key) is not None for part in record.parts)

    def _count(self, record: PartitionRecord) -> None:
        self.completed[record.index] = record
        self._inside |= {part.key: part for part in record.parts}
        self.rejected_rows += sum(part.rejects for part in record.parts)

    def _unseal(self, record: PartitionRecord) -> None:
        self._remove_record(record.index)
        for file in record.files:
            storage.remove(self.target.staged_path(file["name"]))

    def recorded_value(self, name: str) -> Any:
        """A value of the interrupted job's manifest, for what the user left open; None without one."""
        return output_target.read_json_or_empty(self._path(MANIFEST_FILE)).get(name)

    def discard(self) -> None:
        """Forget all parts; the finished output, if any, stays until a new one replaces it."""
        storage.remove(self._path(MANIFEST_FILE))
        for name in storage.list_files(
            self.target.staging_folder, r"part-|rejects-|share-|inputs-|_(ranges|starts|space|replacing)\.json"
        ):
            storage.remove(self._path(name))

    def _path(self, name: str) -> str:
        return storage.join(self.target.staging_folder, name)

    # Parts

    def skip_finished_chunks(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield the chunks that have no sound part yet; count the others as done.

        A part made from other ids or texts than the chunk holds now means a changed input: ResumeError,
        or, with --update, the part is made again.
        """
        for chunk in chunks:
            digest = hash_chunk(chunk)
            self._hashes[chunk.key] = digest
            inside = self._inside.get(chunk.key)
            part = inside or self._sound(chunk.key)
            if part is not None and part.source_hash != digest:
                if inside or not self.keeps_other_parts:
                    raise changed_input_error(chunk.input_split.path, part.source_hash, digest, self.target)
                storage.remove(part.path)
                part = None
            if part is None:
                yield chunk
            elif not inside:
                self.parts[chunk.key] = part
                self.rejected_rows += part.rejects

    def _sound(self, key: tuple[int, int]) -> PartFile | None:
        """The part of a chunk that is whole and this job's; what is damaged or another's is removed."""
        for path in self._found.get(key, ()):
            try:
                part = read_part_file(path, self.job_digest)
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
        """Write a chunk's part and its rejects: on disk and synced when this returns, or an OutputError."""
        chunk = encoded.chunk
        source = self._hashes.pop(chunk.key, None) or hash_chunk(chunk)
        part = part_files.write_part_file(
            self.target.staging_folder, encoded, layout, source, changes or {}, job=self.job_digest
        )
        self.parts[chunk.key] = part
        self.rejected_rows += part.rejects
        self.new_parts.append(part.read)
        return part

    # Shares

    def complete_ready_partitions(self, layout: OutputLayout, space: Mapping[str, Any]) -> None:
        """Seal the shares at hand whose every chunk has its part, in order."""
        while self.open_partitions and all(
            has_all_part_files(self.parts, piece.index) for piece in self.open_partitions[0].splits
        ):
            self.complete_partition(self.open_partitions.pop(0), layout, space)

    def complete_partition(self, share: Partition, layout: OutputLayout, space: Mapping[str, Any]) -> PartitionRecord:
        """Write the files of a share, if this is a folder output, and its record; then its parts are not needed."""
        wanted = {piece.index for piece in share.splits}
        parts = tuple(self.parts[key] for key in sorted(self.parts) if key[0] in wanted)
        files: tuple[dict[str, Any], ...] = ()
        self.check_not_taken_over()
        if self.target.is_folder:
            size = int(self.job.get("part_size") or DEFAULT_PART_SIZE)
            metadata = {writers.SPACE_METADATA_KEY: dict(space)}
            files = partitions.write_partition_files(self.target, share, parts, layout, metadata, size)
        record = input_snapshot.build_record(share, self.snapshot, self.job_digest, parts, files)
        partitions.write_record(self.target.staging_folder, record)
        for part in parts:
            if files:
                storage.remove(part.path)
            del self.parts[part.key]
        self.completed[share.index] = record
        return record

    def add_completed_partition(self, record: PartitionRecord) -> None:
        """Count a share that another process has sealed."""
        self._count(record)
        self.new_parts.append(record.rows_read)

    # Closing

    def all_parts(self) -> list[PartFile]:
        """Every part in the order of the input, those of sealed shares too."""
        inside = {part.key: part for record in self.completed.values() for part in record.parts}
        every = inside | self.parts
        return [every[key] for key in sorted(every)]

    def totals(self) -> dict[str, int]:
        """Sums over all parts: read, rows, rejects, tokens, truncated, lost_tokens."""
        parts = self.all_parts()
        sums = {name: sum(getattr(part, name) for part in parts) for name in ("read", "rows", "rejects")}
        return sums | {name: sum(part.stats[name] for part in parts) for name in ("tokens", "truncated", "lost_tokens")}

    def changes(self) -> dict[str, int]:
        """Sums over all parts: rows added, changed and reused by --update or --reuse."""
        counts = [part.stats["changes"] for part in self.all_parts()]
        return {name: sum(count.get(name, 0) for count in counts) for name in ("added", "changed", "reused")}

    def publish(self, layout: OutputLayout, space: Mapping[str, Any]) -> None:
        """Publish rejects and output, then remove the stage. The caller has checked that no row is missing."""
        self.check_not_taken_over()
        totals = self.totals()
        parts = self.all_parts()
        metadata = {
            writers.SPACE_METADATA_KEY: dict(space),
            writers.JOB_METADATA_KEY: {
                "job": self.job,
                "source_hash": combine_hashes([p.source_hash for p in parts]),
                **totals,
            },
        }
        self._publish_rejects(parts)
        if self.target.is_folder:
            self._publish_folder(metadata)
        else:
            rows = sum(part.stats["vectors"] for part in parts)
            writers.OUTPUT_WRITERS[self.target.format](
                part_files.read_part_tables(parts), self.target.output, layout, metadata, rows
            )
        self.remove_staging()

    def _publish_rejects(self, parts: Sequence[PartFile]) -> None:
        files = [self._path(str(part.stats["rejects_file"])) for part in parts if part.rejects]
        if not files:
            storage.remove(self.target.rejects_path)
            return
        with storage.write_atomically(self.target.rejects_path) as out:
            for path in files:
                out.write(storage.read_bytes(path))

    def _publish_folder(self, metadata: writers.Metadata) -> None:
        """Give the sealed files their names; the manifest, written last, says that the output is whole."""
        records = [self.completed[index] for index in sorted(self.completed)]
        names = [str(file["name"]) for record in records for file in record.files]
        replaced = list(
            filter(
                output_target.own_file_matcher(self.target.output),
                storage.list_files(self.target.output, PART_FILE_PATTERN),
            )
        )
        # Without the marker nothing else says that they are ours.
        storage.write_bytes(
            self._path(output_target.REPLACED_FILE), json.dumps({"names": [*replaced, *names]}).encode()
        )
        storage.remove(self.target.marker_path)
        for stale in sorted(set(replaced) - set(names)):
            storage.remove(storage.join(self.target.output, stale))
        self.target.publish(names)
        named = [
            name for name in names if name.endswith("." + self.target.format) and not name.endswith(".ids.parquet")
        ]
        sizes = {str(file["name"]): file["size"] for record in records for file in record.files}
        manifest = metadata | {"parts": named, "sizes": sizes}
        storage.write_bytes(self.target.marker_path, writers.to_readable_json(manifest, indent=1).encode())

    def remove_staging(self) -> None:
        """Remove the staging folder, the lock last, while it is still held."""
        # An object store removes a whole folder in a few requests; one by one takes three for each part.
        names = storage.list_files(self.target.staging_folder) if storage.is_local(self.target.staging_folder) else []
        for name in sorted(names, key=lambda name: name == MANIFEST_FILE):  # without it nobody looks for the others
            if name not in (LOCK_FILE, self._lock_name):
                storage.remove(self._path(name))
        storage.remove_folder(self.target.staging_folder)
        self.release()

    def release(self) -> None:
        """Give the lock back. A stage without parts holds nothing to go on from and is removed with it."""
        if self._unlock is None:
            return
        unlock, self._unlock = self._unlock, None
        if self._lock_name == LOCK_FILE and not storage.list_files(self.target.staging_folder, "part-|share-|_lock-"):
            storage.remove_folder(self.target.staging_folder)
        unlock()

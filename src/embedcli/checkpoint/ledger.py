"""The parts of one output: found, added, sealed by shares, published."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from embedcli import storage
from embedcli.checkpoint import input_snapshot, part_files, partitions
from embedcli.checkpoint.part_files import PART_NAME, complete, joined_hash, key_of, read_part, source_hash
from embedcli.checkpoint.partitions import Record
from embedcli.core.errors import OutputError
from embedcli.core.types import MANIFEST, PART_FILE, Chunk, Encoded, Part, Share
from embedcli.outputs import target as output_target
from embedcli.outputs import writers
from embedcli.outputs.schema import Layout
from embedcli.outputs.target import Target, changed_cut, changed_input, refuse_changed, refuse_foreign

DEFAULT_PART_SIZE = 256_000_000
LOCK = "_lock"
Reread = Callable[[Share], Iterable[Chunk]]


class Ledger:
    """The parts of one output. Holds the output's lock until `release`; a dead process keeps none.

    A shard has a lock of its own, named `lock`, and shares the output's: shards work side by side, a whole run alone.
    A share of the input whose chunks are all done is sealed: a record says so, and in a folder output its parts
    have become its final files. `shares` are those of the plan; single-file outputs of one process have none.
    """

    def __init__(self, target: Target, *, tolerant: bool = False, lock: str = LOCK) -> None:
        self.target = target
        self.job: dict[str, Any] = {}
        self.mark = ""
        self.view = input_snapshot.View((), 0, "")
        self.tolerant = tolerant
        self.added: list[int] = []
        self.rejected = 0
        self.parts: dict[tuple[int, int], Part] = {}
        self.sealed: dict[int, Record] = {}
        self.damaged: list[str] = []
        self.open_shares: list[Share] = []
        self._lock_name = lock
        self._hashes: dict[tuple[int, int], str] = {}
        self._found: dict[tuple[int, int], list[str]] = {}
        self._inside: dict[tuple[int, int], Part] = {}
        self._unlock: Callable[[], None] | None = None

    # Opening

    def acquire(self) -> None:
        """Take the lock and sweep what a dead process left; OutputError if another process holds it."""
        stage = self.target.stage
        if self.target.folder:
            storage.make_folder(storage.parent(stage))
        self.target.make_stage()
        if self._lock_name == LOCK:
            self._unlock = storage.lock(self._path(LOCK), self.target.output)
            self._sweep()
        else:
            self._unlock = self._locked_as_shard()

    def _locked_as_shard(self) -> Callable[[], None]:
        """The shard's own lock, and the output's, shared; what gives both back."""
        output = self.target.output
        held = ExitStack()
        with held:
            held.callback(storage.lock(self._path(LOCK), output, shared=True))
            held.callback(storage.lock(self._path(self._lock_name), output))
            return held.pop_all().close

    def _sweep(self) -> None:
        storage.sweep(self.target.stage)
        if self.target.folder:
            storage.sweep(storage.parent(self.target.stage))
        for file in (*self.target.files(), self.target.rejects):
            storage.sweep_beside(file)

    def begin(self, job: Mapping[str, Any], *, overwrite: bool) -> None:
        """Find the parts of the same job; ResumeError if they belong to another one."""
        self.job = dict(job)
        manifest = self._path(MANIFEST)
        old = {} if overwrite else output_target.json_in(manifest)
        if old:
            refuse_changed(old, self.job, manifest, self.target)
        else:
            if not overwrite:
                refuse_foreign(self.target)
            self.discard()
            storage.write_bytes(manifest, writers.json_text(self.job, indent=1).encode())
        self.mark = part_files.mark_of(old or self.job)
        self._find_parts()

    def join(self, job: Mapping[str, Any], view: str = "") -> None:
        """Take part in a run that another process has begun; OutputError if its stage cannot be seen from here.

        `view` is the name of what it saw of the inputs; whoever seals no share needs none.
        """
        seen = input_snapshot.read_view(self.target.stage, view) if view else self.view
        if seen is None or output_target.json_in(self._path(MANIFEST)) != json.loads(json.dumps(job)):
            raise OutputError(
                f"{storage.where(self.target.stage)}: the run that this worker belongs to cannot be seen there",
                "choose an output that all machines share: a network folder, or an s3:// address",
            )
        self.job, self.mark, self.view = dict(job), part_files.mark_of(job), seen
        self._find_parts()

    def _find_parts(self) -> None:
        for name in storage.names(self.target.stage, PART_NAME):
            self._found.setdefault(key_of(name), []).append(self._path(name))

    def refuse_taken_over(self) -> None:
        """OutputError if the stage is no longer this job's: a lock may be lost, or never have been one."""
        part_files.refuse_other_job(output_target.json_in(self._path(MANIFEST)), self.mark, self.target.output)

    def _records(self) -> dict[int, Record]:
        """The records of this job by share; those that are damaged, or another job's, are removed."""
        records, damaged = partitions.read_records(self.target.stage)
        self.damaged += damaged
        foreign = [index for index, record in records.items() if record.job != self.mark]
        for path in damaged:
            storage.remove(path)
        for index in foreign:
            del records[index]
            self._remove_record(index)
        return records

    def _remove_record(self, share: int) -> None:
        for name in storage.names(self.target.stage, rf"share-{share:06d}-"):
            storage.remove(self._path(name))

    def begin_shares(
        self, shares: Sequence[Share], every: Sequence[Share], *, unread: bool = True, reread: Reread | None = None
    ) -> list[Share]:
        """Find the shares that are sealed and sound; returns those that must be read, which is all unless `unread`.

        `every` are all shares of the plan. A sealed share whose inputs look as they did needs no reading. The others
        are compared chunk by chunk: by the caller, who reads them, or here with `reread`; then what differs is undone.
        """
        self.view = input_snapshot.view_of(every)
        input_snapshot.write_view(self.target.stage, self.view)
        records = self._records()
        for index in [index for index in records if index >= len(every)]:
            self._undo_cut(records[index])
        left = []
        for share in shares:
            record = records.get(share.index)
            if record is not None and not self._take(record, share, reread):
                record = None
            if record is None:
                self.open_shares.append(share)
            if record is None or not unread or not self._unchanged(self.sealed[share.index]):
                left.append(share)
        return left

    def _unchanged(self, record: Record) -> bool:
        return self.view.unchanged(record, numbered=self.job.get("id_column", "") is None)

    def gather(self) -> tuple[list[int], int]:
        """Count all sealed shares of a job of which only the stage is known; the missing ones' numbers, and how many.

        OutputError, and nothing is counted, if they were not all made from the same inputs.
        """
        self.job = output_target.json_in(self._path(MANIFEST))
        self.mark = part_files.mark_of(self.job)
        self._find_parts()
        records = self._records()
        view = input_snapshot.agreed(self.target.stage, self.target.output, records.values())
        count = view.shares if view is not None else 0
        for record in records.values():
            if self._whole(record):
                self._count(record)
        return [index for index in range(count) if index not in self.sealed], count

    def _whole(self, record: Record) -> bool:
        parts = {part.key: part for part in record.parts}
        whole = all(complete(parts, piece) for piece in {piece for piece, _ in parts})
        if not whole or not all(part_files.rejects_sound(self.target.stage, part) for part in record.parts):
            return False
        return partitions.files_sound(self.target, record.files) if record.files else self._parts_sound(record)

    def _take(self, record: Record, share: Share, reread: Reread | None) -> bool:
        """Count a sealed share as done, or undo its seal."""
        if not input_snapshot.of_pieces(record, share):
            self._undo_cut(record)
            return False
        known = self._unchanged(record) or (reread is not None and partitions.same(record, reread(share)))
        changed = self.tolerant and not known
        if not changed and self._whole(record):
            self._count(self._seen(record, share) if known else record)
            return True
        if not changed:
            self.damaged.append(f"share {record.index}")
        self._unseal(record)
        return False

    def _seen(self, record: Record, share: Share) -> Record:
        """The record, which says from now on that it is of the inputs as they look now."""
        now = replace(record, view=self.view.name, inputs=self.view.of(share))
        if now != record:
            partitions.write_record(self.target.stage, now)
        return now

    def _undo_cut(self, record: Record) -> None:
        """Undo the seal of a share that is none of the plan's; ResumeError if a changed input is to be refused."""
        if not self.tolerant:
            raise changed_cut(record.pieces[0].path, self.target)
        self._unseal(record)

    def _parts_sound(self, record: Record) -> bool:
        return not self.target.folder and all(self._sound(part.key) is not None for part in record.parts)

    def _count(self, record: Record) -> None:
        self.sealed[record.index] = record
        self._inside |= {part.key: part for part in record.parts}
        self.rejected += sum(part.rejects for part in record.parts)

    def _unseal(self, record: Record) -> None:
        self._remove_record(record.index)
        for file in record.files:
            storage.remove(self.target.sealed(file["name"]))

    def adopted(self, name: str) -> Any:
        """A value of the interrupted job's manifest, for what the user left open; None without one."""
        return output_target.json_in(self._path(MANIFEST)).get(name)

    def discard(self) -> None:
        """Forget all parts; the finished output, if any, stays until a new one replaces it."""
        storage.remove(self._path(MANIFEST))
        for name in storage.names(
            self.target.stage, r"part-|rejects-|share-|inputs-|_(ranges|starts|space|replacing)\.json"
        ):
            storage.remove(self._path(name))

    def _path(self, name: str) -> str:
        return storage.join(self.target.stage, name)

    # Parts

    def missing(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield the chunks that have no sound part yet; count the others as done.

        A part made from other ids or texts than the chunk holds now means a changed input: ResumeError,
        or, with --update, the part is made again.
        """
        for chunk in chunks:
            digest = source_hash(chunk)
            self._hashes[chunk.key] = digest
            inside = self._inside.get(chunk.key)
            part = inside or self._sound(chunk.key)
            if part is not None and part.source_hash != digest:
                if inside or not self.tolerant:
                    raise changed_input(chunk.piece.path, part.source_hash, digest, self.target)
                storage.remove(part.path)
                part = None
            if part is None:
                yield chunk
            elif not inside:
                self.parts[chunk.key] = part
                self.rejected += part.rejects

    def _sound(self, key: tuple[int, int]) -> Part | None:
        """The part of a chunk that is whole and this job's; what is damaged or another's is removed."""
        for path in self._found.get(key, ()):
            try:
                part = read_part(path, self.mark)
            except OutputError:
                part = None
                self.damaged.append(path)
            if part is not None:
                return part
            storage.remove(path)
        return None

    def add(self, encoded: Encoded, layout: Layout, changes: Mapping[str, int] | None = None) -> Part:
        """Write a chunk's part and its rejects: on disk and synced when this returns, or an OutputError."""
        chunk = encoded.chunk
        source = self._hashes.pop(chunk.key, None) or source_hash(chunk)
        part = part_files.write_part(self.target.stage, encoded, layout, source, changes or {}, job=self.mark)
        self.parts[chunk.key] = part
        self.rejected += part.rejects
        self.added.append(part.read)
        return part

    # Shares

    def seal_ready(self, layout: Layout, space: Mapping[str, Any]) -> None:
        """Seal the shares at hand whose every chunk has its part, in order."""
        while self.open_shares and all(complete(self.parts, piece.index) for piece in self.open_shares[0].pieces):
            self.seal(self.open_shares.pop(0), layout, space)

    def seal(self, share: Share, layout: Layout, space: Mapping[str, Any]) -> Record:
        """Write the files of a share, if this is a folder output, and its record; then its parts are not needed."""
        wanted = {piece.index for piece in share.pieces}
        parts = tuple(self.parts[key] for key in sorted(self.parts) if key[0] in wanted)
        files: tuple[dict[str, Any], ...] = ()
        self.refuse_taken_over()
        if self.target.folder:
            size = int(self.job.get("part_size") or DEFAULT_PART_SIZE)
            metadata = {writers.SPACE_KEY: dict(space)}
            files = partitions.write_files(self.target, share, parts, layout, metadata, size)
        record = input_snapshot.record_of(share, self.view, self.mark, parts, files)
        partitions.write_record(self.target.stage, record)
        for part in parts:
            if files:
                storage.remove(part.path)
            del self.parts[part.key]
        self.sealed[share.index] = record
        return record

    def receive(self, record: Record) -> None:
        """Count a share that another process has sealed."""
        self._count(record)
        self.added.append(record.read)

    # Closing

    def all_parts(self) -> list[Part]:
        """Every part in the order of the input, those of sealed shares too."""
        inside = {part.key: part for record in self.sealed.values() for part in record.parts}
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

    def close(self, layout: Layout, space: Mapping[str, Any]) -> None:
        """Publish rejects and output, then remove the stage. The caller has checked that no row is missing."""
        self.refuse_taken_over()
        totals = self.totals()
        parts = self.all_parts()
        metadata = {
            writers.SPACE_KEY: dict(space),
            writers.JOB_KEY: {"job": self.job, "source_hash": joined_hash([p.source_hash for p in parts]), **totals},
        }
        self._publish_rejects(parts)
        if self.target.folder:
            self._publish_folder(metadata)
        else:
            rows = sum(part.stats["vectors"] for part in parts)
            writers.MERGES[self.target.kind](part_files.tables(parts), self.target.output, layout, metadata, rows)
        self.remove_stage()

    def _publish_rejects(self, parts: Sequence[Part]) -> None:
        files = [self._path(str(part.stats["rejects_file"])) for part in parts if part.rejects]
        if not files:
            storage.remove(self.target.rejects)
            return
        with storage.writing(self.target.rejects) as out:
            for path in files:
                out.write(storage.read_bytes(path))

    def _publish_folder(self, metadata: writers.Metadata) -> None:
        """Give the sealed files their names; the manifest, written last, says that the output is whole."""
        records = [self.sealed[index] for index in sorted(self.sealed)]
        names = [str(file["name"]) for record in records for file in record.files]
        replaced = list(
            filter(output_target.own_parts(self.target.output), storage.names(self.target.output, PART_FILE))
        )
        # Without the marker nothing else says that they are ours.
        storage.write_bytes(self._path(output_target.REPLACED), json.dumps({"names": [*replaced, *names]}).encode())
        storage.remove(self.target.marker)
        for stale in sorted(set(replaced) - set(names)):
            storage.remove(storage.join(self.target.output, stale))
        self.target.publish(names)
        named = [name for name in names if name.endswith("." + self.target.kind) and not name.endswith(".ids.parquet")]
        sizes = {str(file["name"]): file["size"] for record in records for file in record.files}
        manifest = metadata | {"parts": named, "sizes": sizes}
        storage.write_bytes(self.target.marker, writers.json_text(manifest, indent=1).encode())

    def remove_stage(self) -> None:
        """Remove the staging folder, the lock last, while it is still held."""
        # An object store removes a whole folder in a few requests; one by one takes three for each part.
        names = storage.names(self.target.stage) if storage.is_local(self.target.stage) else []
        for name in sorted(names, key=lambda name: name == MANIFEST):  # without it nobody looks for the others
            if name not in (LOCK, self._lock_name):
                storage.remove(self._path(name))
        storage.remove_folder(self.target.stage)
        self.release()

    def release(self) -> None:
        """Give the lock back. A stage without parts holds nothing to go on from and is removed with it."""
        if self._unlock is None:
            return
        unlock, self._unlock = self._unlock, None
        if self._lock_name == LOCK and not storage.names(self.target.stage, "part-|share-|_lock-"):
            storage.remove_folder(self.target.stage)
        unlock()

"""What is done, is it the same job, and the final merge: manifest, part files, lock.

A single-file output stages its parts in `OUTPUT.parts/`, a folder output in `OUTPUT/_parts/`. A part is done when
its file is there: it is written under a temporary name, flushed, and renamed to a name that holds its own SHA-256
digest, so a damaged part is noticed. There is no journal that could fall out of step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from embedcli import sinks, storage
from embedcli.contracts import Chunk, Encoded, OutputError, Part, Reject
from embedcli.outputs import MANIFEST, Target, changed_input, refuse_changed

if TYPE_CHECKING:
    from filelock import FileLock

    from embedcli.tables import Layout

PART_KEY = "embedcli.part"
DIGEST_HEX = 32
STATS = ("vectors", "tokens", "truncated", "lost_tokens", "last", "changes", "rejects_file")


def source_hash(chunk: Chunk) -> str:
    """BLAKE2b-128 of everything a chunk holds: ids, texts, kept values, and the rows it refused."""
    state = blake2b(digest_size=16)
    for text in chunk.texts:
        raw = text.encode()
        state.update(b"%d:" % len(raw))
        state.update(raw)
    rest = [
        chunk.ids.to_pylist(),
        chunk.kept.to_pydict(),
        [(r.line, r.reason, r.raw) for r in chunk.rejects],
        chunk.read,
    ]
    state.update(repr(rest).encode("utf-8", "surrogatepass"))
    return state.hexdigest()


class Ledger:
    """The parts of one output. Holds the output's lock until `release`; a dead process keeps none."""

    def __init__(self, target: Target, *, tolerant: bool = False) -> None:
        self.target = target
        self.job: dict[str, Any] = {}
        self.tolerant = tolerant
        self.added: list[int] = []
        self.rejected = 0
        self.parts: dict[tuple[int, int], Part] = {}
        self.damaged: list[str] = []
        self._hashes: dict[tuple[int, int], str] = {}
        self._found: dict[tuple[int, int], Path] = {}
        self._lock: FileLock | None = None

    # Opening

    def acquire(self) -> None:
        """Take the lock and sweep what a dead process left; OutputError if another process holds it."""
        from filelock import FileLock, Timeout

        parent = self.target.stage.parent
        with storage.os_errors(str(parent)):
            if self.target.folder:
                parent.mkdir(parents=True, exist_ok=True)
            self.target.stage.mkdir(exist_ok=True)
            lock = FileLock(str(self.target.stage / "_lock"))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise OutputError(
                    f"another embedcli is writing {self.target.output}", "wait for it, or choose another output"
                ) from None
            storage.sweep(self.target.stage)
            if self.target.folder:
                storage.sweep(parent)
            for file in (*self.target.files(), str(self.target.rejects)):
                storage.sweep(Path(file).parent, Path(file).name)
        self._lock = lock

    def begin(self, job: Mapping[str, Any], *, overwrite: bool) -> None:
        """Find the parts of the same job; ResumeError if they belong to another one."""
        self.job = dict(job)
        manifest = self.target.stage / MANIFEST
        old = {} if overwrite else _json(manifest)
        if old:
            refuse_changed(old, self.job, str(manifest), self.target.output)
        else:
            self.discard()
            storage.write_bytes(str(manifest), json.dumps(self.job, indent=1, ensure_ascii=False).encode())
        for path in sorted(self.target.stage.glob("part-*.parquet")):
            self._found[_key(path)] = path

    def adopted(self, name: str) -> Any:
        """A value of the interrupted job's manifest, for what the user left open; None without one."""
        return _json(self.target.stage / MANIFEST).get(name)

    def discard(self) -> None:
        """Forget all parts; the finished output, if any, stays until a new one replaces it."""
        (self.target.stage / MANIFEST).unlink(missing_ok=True)
        self._drop_parts()

    def _drop_parts(self) -> None:
        for pattern in ("part-*", "rejects-*", "_ranges.json"):
            for path in self.target.stage.glob(pattern):
                path.unlink(missing_ok=True)

    # Parts

    def missing(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield the chunks that have no sound part yet; count the others as done.

        A part made from other ids or texts than the chunk holds now means a changed input: ResumeError,
        or, with --update, the part is made again.
        """
        for chunk in chunks:
            digest = source_hash(chunk)
            self._hashes[chunk.key] = digest
            part = self._sound(chunk.key)
            if part is not None and part.source_hash != digest:
                if not self.tolerant:
                    raise changed_input(chunk.piece.path, part.source_hash, digest, self.target.output)
                self._forget(part)
                part = None
            if part is None:
                yield chunk
            else:
                self.parts[chunk.key] = part
                self.rejected += part.rejects

    def _sound(self, key: tuple[int, int]) -> Part | None:
        path = self._found.get(key)
        if path is None:
            return None
        try:
            part = read_part(path)
        except OutputError:
            self.damaged.append(str(path))
            path.unlink(missing_ok=True)
            return None
        return part

    def _forget(self, part: Part) -> None:
        Path(part.path).unlink(missing_ok=True)

    def add(self, encoded: Encoded, layout: Layout, changes: Mapping[str, int] | None = None) -> Part:
        """Write a chunk's part and its rejects: on disk and synced when this returns, or an OutputError."""
        chunk = encoded.chunk
        rejects = sorted((*chunk.rejects, *encoded.rejects), key=lambda reject: reject.line)
        name = f"{chunk.piece.index:06d}-{chunk.seq:06d}"
        facts = {
            "rows": chunk.read - len(rejects),
            "read": chunk.read,
            "rejects": len(rejects),
            "source_hash": self._hashes.pop(chunk.key, None) or source_hash(chunk),
            "last": chunk.last,
            "vectors": len(encoded.rows),
            "tokens": int(encoded.n_tokens.sum()),
            "truncated": int(encoded.truncated.sum()),
            "lost_tokens": encoded.lost_tokens,
            "changes": dict(changes or {}),
            "rejects_file": None,
        }
        if rejects:
            lines = b"".join(reject_line(reject) for reject in rejects)
            facts["rejects_file"] = f"rejects-{name}-{_digest(lines)}.jsonl"
            storage.write_bytes(str(self.target.stage / str(facts["rejects_file"])), lines)
        data = sinks.parquet_bytes(layout.table(encoded), {PART_KEY: facts})
        path = self.target.stage / f"part-{name}-{_digest(data)}.parquet"
        storage.write_bytes(str(path), data)
        part = part_of(path, facts)
        self.parts[chunk.key] = part
        self.rejected += part.rejects
        self.added.append(part.read)
        return part

    # Closing

    def totals(self) -> dict[str, int]:
        """Sums over all parts: read, rows, rejects, tokens, truncated, lost_tokens."""
        parts = list(self.parts.values())
        sums = {name: sum(getattr(part, name) for part in parts) for name in ("read", "rows", "rejects")}
        return sums | {name: sum(part.stats[name] for part in parts) for name in ("tokens", "truncated", "lost_tokens")}

    def changes(self) -> dict[str, int]:
        """Sums over all parts: rows added, changed and reused by --update or --reuse."""
        counts = [part.stats["changes"] for part in self.parts.values()]
        return {name: sum(count.get(name, 0) for count in counts) for name in ("added", "changed", "reused")}

    def close(self, layout: Layout, space: Mapping[str, Any]) -> None:
        """Publish rejects and output, then remove the stage. The caller has checked that no row is missing."""
        totals = self.totals()
        parts = [self.parts[key] for key in sorted(self.parts)]
        metadata = {
            sinks.SPACE_KEY: dict(space),
            sinks.JOB_KEY: {"job": self.job, "source_hash": overall_hash(parts), **totals},
        }
        self._publish_rejects(parts)
        if self.target.folder:
            self._publish_folder(parts, layout, metadata)
        else:
            rows = sum(part.stats["vectors"] for part in parts)
            sinks.MERGES[self.target.kind](tables(parts), self.target.output, layout, metadata, rows)
        self.remove_stage()

    def _publish_rejects(self, parts: Sequence[Part]) -> None:
        files = [self.target.stage / str(part.stats["rejects_file"]) for part in parts if part.rejects]
        if not files:
            self.target.rejects.unlink(missing_ok=True)
            return
        with storage.replacing(str(self.target.rejects)) as temporary, open(temporary, "wb") as out:
            out.writelines(path.read_bytes() for path in files)

    def _publish_folder(self, parts: Sequence[Part], layout: Layout, metadata: sinks.Metadata) -> None:
        self.target.marker.unlink(missing_ok=True)
        ending = "parquet" if self.target.kind == "parquet" else self.target.kind
        folder = Path(self.target.output)
        counts = [part.stats["vectors"] for part in parts]
        names: list[str] = []
        part_size = int(self.job.get("part_size") or 256 << 20)
        for i, (first, last) in enumerate(sinks.folder_parts(counts, layout.row_bytes, part_size)):
            name = f"part-{i:05d}.{ending}"
            merge = sinks.MERGES[self.target.kind]
            space = {sinks.SPACE_KEY: metadata[sinks.SPACE_KEY]}
            merge(tables(parts[first:last]), str(folder / name), layout, space, sum(counts[first:last]))
            names.append(name)
        for stale in folder.glob("part-*"):
            if stale.name not in names and not any(stale.name.startswith(n.rsplit(".", 1)[0] + ".") for n in names):
                stale.unlink()
        text = json.dumps({**metadata, "parts": names}, indent=1, ensure_ascii=False)
        storage.write_bytes(str(self.target.marker), text.encode())

    def remove_stage(self) -> None:
        """Remove the staging folder, the lock last, while it is still held."""
        for path in self.target.stage.iterdir():
            if path.name != "_lock":
                path.unlink(missing_ok=True)
        shutil.rmtree(self.target.stage, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Give the lock back. A stage without parts holds nothing to go on from and is removed with it."""
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        stage = self.target.stage
        if stage.exists() and not any(stage.glob("part-*")):
            shutil.rmtree(stage, ignore_errors=True)
        lock.release()


# Parts on disk


def read_part(path: Path) -> Part:
    """A part whose bytes match the digest in its name; OutputError if they do not."""
    damaged = OutputError(f"{path}: the part is damaged", "run the same command again: it will be made again")
    with storage.os_errors(str(path)):
        data = path.read_bytes()
    if _digest(data) != path.stem.rsplit("-", 1)[-1]:
        raise damaged
    metadata = pq.read_metadata(path).metadata or {}
    part = part_of(path, json.loads(metadata[PART_KEY.encode()]))
    rejects = part.stats["rejects_file"]
    if rejects is not None:
        file = path.parent / str(rejects)
        if not file.exists() or _digest(file.read_bytes()) != file.stem.rsplit("-", 1)[-1]:
            raise damaged
    return part


def part_of(path: Path, facts: Mapping[str, Any]) -> Part:
    stats = {
        name: facts[name]
        for name in ("vectors", "tokens", "truncated", "lost_tokens", "last", "changes", "rejects_file")
    }
    counts = (facts["rows"], facts["read"], facts["rejects"])
    return Part(_key(path), str(path), *counts, facts["source_hash"], stats)


def tables(parts: Sequence[Part]) -> Iterator[Any]:
    """The parts' rows, one table each, page checksums verified."""
    for part in parts:
        yield sinks.read_parquet(part.path).replace_schema_metadata(None)


def reject_line(reject: Reject) -> bytes:
    """One rejected row as a JSON line: source, line, id, reason, raw. Lone surrogates are escaped."""
    row = {
        "source": reject.source,
        "line": reject.line,
        "id": reject.id if isinstance(reject.id, int | str | float | None) else str(reject.id),
        "reason": reject.reason,
        "raw": reject.raw,
    }
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row).encode() + b"\n"


def overall_hash(parts: Sequence[Part]) -> str:
    """One hash over the source hashes of all chunks in order."""
    return joined_hash([part.source_hash for part in parts])


def joined_hash(hashes: Sequence[str]) -> str:
    return blake2b("".join(hashes).encode(), digest_size=16).hexdigest()


def _digest(data: Any) -> str:
    return sha256(data).hexdigest()[:DIGEST_HEX]


def _key(path: Path) -> tuple[int, int]:
    _, piece, seq, _ = path.stem.split("-")
    return int(piece), int(seq)


def _json(path: Path) -> dict[str, Any]:
    """A manifest, or {} when a kill or a hand damaged it: its parts are then made again."""
    try:
        loaded = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}

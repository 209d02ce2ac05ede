"""Chunks as part files: a name that holds the digest of the bytes, and the facts of the chunk inside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from embedcli import storage
from embedcli.core.arrow_values import values_of
from embedcli.core.errors import OutputError
from embedcli.core.types import Chunk, Encoded, Part, Reject
from embedcli.outputs import writers

if TYPE_CHECKING:
    from embedcli.outputs.schema import Layout

PART_KEY = "embedcli.part"
DIGEST_HEX = 32
STATS = ("vectors", "tokens", "truncated", "lost_tokens", "last", "changes", "rejects_file")
PART_NAME = r"part-\d+-\d+-[0-9a-f]+\.arrow$"


def source_hash(chunk: Chunk) -> str:
    """BLAKE2b-128 of everything a chunk holds: ids, texts, kept values, and the rows it refused."""
    state = blake2b(digest_size=16)
    for text in chunk.texts:
        raw = text.encode()
        state.update(b"%d:" % len(raw))
        state.update(raw)
    rest = [
        values_of(chunk.ids),
        {name: values_of(chunk.kept.column(name)) for name in chunk.kept.column_names},
        [(r.line, r.reason, r.raw) for r in chunk.rejects],
        chunk.read,
    ]
    state.update(repr(rest).encode("utf-8", "surrogatepass"))
    return state.hexdigest()


def joined_hash(hashes: Sequence[str]) -> str:
    """One hash over the source hashes of chunks in order."""
    return blake2b("".join(hashes).encode(), digest_size=16).hexdigest()


def mark_of(job: Mapping[str, Any]) -> str:
    """What parts and records carry of the job that they belong to: a digest of its manifest."""
    return digest(json.dumps(job, sort_keys=True).encode())


def refuse_other_job(manifest: Mapping[str, Any], mark: str, output: str) -> None:
    """OutputError unless a manifest is of the job with this mark."""
    if mark_of(manifest) != mark:
        raise OutputError(
            f"{storage.where(output)}: another run has taken the output over, away from this one",
            "run the same command again once the other has ended, or choose another output",
        )


def write_part(
    stage: str, encoded: Encoded, layout: Layout, source: str, changes: Mapping[str, int], *, job: str
) -> Part:
    """A chunk's vectors and rejects in the staging folder: on disk and synced when this returns, or an OutputError.

    `job` is the mark of the job that it belongs to.
    """
    chunk = encoded.chunk
    rejects = sorted((*chunk.rejects, *encoded.rejects), key=lambda reject: reject.line)
    name = f"{chunk.piece.index:06d}-{chunk.seq:06d}"
    facts = {
        "rows": chunk.read - len(rejects),
        "read": chunk.read,
        "rejects": len(rejects),
        "source_hash": source,
        "last": chunk.last,
        "vectors": len(encoded.rows),
        "tokens": int(encoded.n_tokens.sum()),
        "truncated": int(encoded.truncated.sum()),
        "lost_tokens": encoded.lost_tokens,
        "changes": dict(changes),
        "rejects_file": None,
        "job": job,
    }
    if rejects:
        lines = b"".join(reject_line(reject) for reject in rejects)
        facts["rejects_file"] = f"rejects-{name}-{digest(lines)}.jsonl"
        storage.write_bytes(storage.join(stage, str(facts["rejects_file"])), lines)
    data = writers.arrow_bytes(layout.table(encoded), {PART_KEY: facts})
    path = storage.join(stage, f"part-{name}-{digest(data)}.arrow")
    storage.write_bytes(path, data)
    return part_of(path, facts)


def read_part(path: str, job: str) -> Part | None:
    """A part that is whole, with its rejects; None if it is another job's, OutputError if it is not whole."""
    facts = json.loads(opened(path).schema.metadata[PART_KEY.encode()])
    if facts.get("job") != job:
        return None
    part = part_of(path, facts)
    if not rejects_sound(storage.parent(path), part):
        raise damaged(path)
    return part


def opened(path: str) -> pa.ipc.RecordBatchFileReader:
    """A part whose bytes match the digest in its name; OutputError if they do not."""
    with storage.os_errors(path):
        data = storage.read_bytes(path)
    if not named_after(path, data):
        raise damaged(path)
    return pa.ipc.open_file(pa.BufferReader(data))


def damaged(path: str) -> OutputError:
    return OutputError(
        f"{storage.where(path)}: the part is damaged", "run the same command again: it will be made again"
    )


def rejects_sound(stage: str, part: Part) -> bool:
    """Whether the file with a part's rejects, if it has one, is whole."""
    name = part.stats["rejects_file"]
    if name is None:
        return True
    path = storage.join(stage, str(name))
    try:
        return named_after(path, storage.read_bytes(path))
    except OSError:
        return False


def part_of(path: str, facts: Mapping[str, Any]) -> Part:
    stats = {name: facts[name] for name in STATS}
    counts = (facts["rows"], facts["read"], facts["rejects"])
    return Part(key_of(path), path, *counts, facts["source_hash"], stats)


def facts_of(part: Part) -> dict[str, Any]:
    """What `part_of` makes the part from, with its name: JSON values only."""
    counts = {"rows": part.rows, "read": part.read, "rejects": part.rejects, "source_hash": part.source_hash}
    return {"name": storage.base(part.path), **counts, **part.stats}


def tables(parts: Sequence[Part]) -> Iterator[Any]:
    """The parts' rows, one table each. OutputError for a part that is no longer as it was written."""
    for part in parts:
        yield opened(part.path).read_all().replace_schema_metadata(None)


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


def digest(data: Any) -> str:
    """The first half of the SHA-256 of some bytes, in hex."""
    return sha256(data).hexdigest()[:DIGEST_HEX]


def named_after(path: str, data: bytes) -> bool:
    """Whether a file's name ends with the digest of its bytes."""
    return storage.base(path).rpartition(".")[0].rpartition("-")[2] == digest(data)


def key_of(path: str) -> tuple[int, int]:
    """(piece, seq) of a part, from its name."""
    _, piece, seq, _ = storage.base(path).split("-")
    return int(piece), int(seq)


def complete(parts: Mapping[tuple[int, int], Part], piece: int) -> bool:
    """Whether every chunk of a piece has its part: numbered from 0 to the last."""
    seq = 0
    while (part := parts.get((piece, seq))) is not None:
        if part.stats["last"]:
            return True
        seq += 1
    return False

"""Chunks as part files: a name that holds the digest of the bytes, and the facts of the chunk inside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from embedcli import storage
from embedcli.core.arrow_values import column_to_python
from embedcli.core.errors import OutputError
from embedcli.core.types import Chunk, EncodedChunk, PartFile, Reject
from embedcli.outputs import writers

if TYPE_CHECKING:
    from embedcli.outputs.schema import OutputLayout

PART_METADATA_KEY = "embedcli.part"
DIGEST_HEX = 32
STAT_KEYS = ("vectors", "tokens", "truncated", "lost_tokens", "last", "changes", "rejects_file")
PART_NAME_PATTERN = r"part-\d+-\d+-[0-9a-f]+\.arrow$"


def hash_chunk(chunk: Chunk) -> str:
    """BLAKE2b-128 of everything a chunk holds: ids, texts, kept values, and the rows it refused."""
    state = blake2b(digest_size=16)
    for text in chunk.texts:
        raw = text.encode()
        state.update(b"%d:" % len(raw))
        state.update(raw)
    rest = [
        column_to_python(chunk.ids),
        {name: column_to_python(chunk.kept_columns.column(name)) for name in chunk.kept_columns.column_names},
        [(r.line, r.reason, r.raw) for r in chunk.rejects],
        chunk.rows_read,
    ]
    state.update(repr(rest).encode("utf-8", "surrogatepass"))
    return state.hexdigest()


def combine_hashes(hashes: Sequence[str]) -> str:
    """One hash over the source hashes of chunks in order."""
    return blake2b("".join(hashes).encode(), digest_size=16).hexdigest()


def hash_job(job: Mapping[str, Any]) -> str:
    """What parts and records carry of the job that they belong to: a digest of its manifest."""
    return hash_bytes(json.dumps(job, sort_keys=True).encode())


def check_same_job(manifest: Mapping[str, Any], mark: str, output: str) -> None:
    """OutputError unless a manifest is of the job with this mark."""
    if hash_job(manifest) != mark:
        raise OutputError(
            f"{storage.format_location(output)}: another run has taken the output over, away from this one",
            "run the same command again once the other has ended, or choose another output",
        )


def write_part_file(
    stage: str, encoded: EncodedChunk, layout: OutputLayout, source: str, changes: Mapping[str, int], *, job: str
) -> PartFile:
    """A chunk's vectors and rejects in the staging folder: on disk and synced when this returns, or an OutputError.

    `job` is the mark of the job that it belongs to.
    """
    chunk = encoded.chunk
    rejects = sorted((*chunk.rejects, *encoded.rejects), key=lambda reject: reject.line)
    name = f"{chunk.input_split.index:06d}-{chunk.index_in_split:06d}"
    facts = {
        "rows": chunk.rows_read - len(rejects),
        "read": chunk.rows_read,
        "rejects": len(rejects),
        "source_hash": source,
        "last": chunk.is_last,
        "vectors": len(encoded.rows),
        "tokens": int(encoded.n_tokens.sum()),
        "truncated": int(encoded.is_truncated.sum()),
        "lost_tokens": encoded.lost_tokens,
        "changes": dict(changes),
        "rejects_file": None,
        "job": job,
    }
    if rejects:
        lines = b"".join(reject_to_json_line(reject) for reject in rejects)
        facts["rejects_file"] = f"rejects-{name}-{hash_bytes(lines)}.jsonl"
        storage.write_bytes(storage.join(stage, str(facts["rejects_file"])), lines)
    data = writers.table_to_arrow(layout.build_table(encoded), {PART_METADATA_KEY: facts})
    path = storage.join(stage, f"part-{name}-{hash_bytes(data)}.arrow")
    storage.write_bytes(path, data)
    return part_file_from_json(path, facts)


def read_part_file(path: str, job: str) -> PartFile | None:
    """A part that is whole, with its rejects; None if it is another job's, OutputError if it is not whole."""
    facts = json.loads(open_part_file(path).schema.metadata[PART_METADATA_KEY.encode()])
    if facts.get("job") != job:
        return None
    part = part_file_from_json(path, facts)
    if not are_rejects_intact(storage.parent_folder(path), part):
        raise damaged_part_error(path)
    return part


def open_part_file(path: str) -> pa.ipc.RecordBatchFileReader:
    """A part whose bytes match the digest in its name; OutputError if they do not."""
    with storage.translate_output_errors(path):
        data = storage.read_bytes(path)
    if not name_matches_digest(path, data):
        raise damaged_part_error(path)
    return pa.ipc.open_file(pa.BufferReader(data))


def damaged_part_error(path: str) -> OutputError:
    return OutputError(
        f"{storage.format_location(path)}: the part is damaged", "run the same command again: it will be made again"
    )


def are_rejects_intact(stage: str, part: PartFile) -> bool:
    """Whether the file with a part's rejects, if it has one, is whole."""
    name = part.stats["rejects_file"]
    if name is None:
        return True
    path = storage.join(stage, str(name))
    try:
        return name_matches_digest(path, storage.read_bytes(path))
    except OSError:
        return False


def part_file_from_json(path: str, facts: Mapping[str, Any]) -> PartFile:
    stats = {name: facts[name] for name in STAT_KEYS}
    counts = (facts["rows"], facts["read"], facts["rejects"])
    return PartFile(parse_part_key(path), path, *counts, facts["source_hash"], stats)


def part_file_to_json(part: PartFile) -> dict[str, Any]:
    """What `part_of` makes the part from, with its name: JSON values only."""
    counts = {"rows": part.rows, "read": part.read, "rejects": part.rejects, "source_hash": part.source_hash}
    return {"name": storage.basename(part.path), **counts, **part.stats}


def read_part_tables(parts: Sequence[PartFile]) -> Iterator[Any]:
    """The parts' rows, one table each. OutputError for a part that is no longer as it was written."""
    for part in parts:
        yield open_part_file(part.path).read_all().replace_schema_metadata(None)


def reject_to_json_line(reject: Reject) -> bytes:
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


def hash_bytes(data: Any) -> str:
    """The first half of the SHA-256 of some bytes, in hex."""
    return sha256(data).hexdigest()[:DIGEST_HEX]


def name_matches_digest(path: str, data: bytes) -> bool:
    """Whether a file's name ends with the digest of its bytes."""
    return storage.basename(path).rpartition(".")[0].rpartition("-")[2] == hash_bytes(data)


def parse_part_key(path: str) -> tuple[int, int]:
    """(piece, seq) of a part, from its name."""
    _, piece, seq, _ = storage.basename(path).split("-")
    return int(piece), int(seq)


def has_all_part_files(parts: Mapping[tuple[int, int], PartFile], input_split: int) -> bool:
    """Whether every chunk of a piece has its part: numbered from 0 to the last."""
    seq = 0
    while (part := parts.get((input_split, seq))) is not None:
        if part.stats["last"]:
            return True
        seq += 1
    return False

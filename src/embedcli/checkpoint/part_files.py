"""Write and read part files: a chunk's vectors and counts, in a file whose name contains the digest of its bytes."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from embedcli import storage
from embedcli.core.arrow_values import column_to_python
from embedcli.core.errors import OutputError
from embedcli.core.row_vectors import find_token_vectors
from embedcli.core.types import Chunk, EncodedChunk, PartFile, Reject
from embedcli.outputs import writers

if TYPE_CHECKING:
    from embedcli.checkpoint.staging import StagingFolder
    from embedcli.outputs.schema import OutputLayout

PART_METADATA_KEY = "embedcli.part"
DIGEST_HEX = 32
# Only of vectors for each token: how many of them a part file holds, in whatever column.
OPTIONAL_STAT_KEYS = ("token_vectors",)
STAT_KEYS = ("vectors", "tokens", "truncated", "lost_tokens", "last", "changes", "rejects_file")
PART_NAME_PATTERN = r"part-\d+-\d+-[0-9a-f]+\.arrow$"


def hash_chunk(chunk: Chunk) -> str:
    """Hash the content of a chunk: ids, texts, kept values and rejects.

    Returns:
        A BLAKE2b digest of 128 bits, in hex.
    """
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
    """Combine the source hashes of chunks, in input order, into one."""
    return blake2b("".join(hashes).encode(), digest_size=16).hexdigest()


def hash_job(job: Mapping[str, Any]) -> str:
    """Hash a job's manifest; part files and partition records store this digest to say which job they belong to."""
    return hash_bytes(json.dumps(job, sort_keys=True).encode())


def check_same_job(manifest: Mapping[str, Any], job_digest: str, output: str) -> None:
    """Check that the manifest in the staging folder still has this digest.

    Raises:
        OutputError: Another run has replaced it.
    """
    if hash_job(manifest) != job_digest:
        raise OutputError(
            f"{storage.format_location(output)}: another run has taken over this output",
            "wait for the other run to end and run the same command again, or choose another output",
        )


def write_part_file(
    staging_folder: str,
    encoded: EncodedChunk,
    layout: OutputLayout,
    source_hash: str,
    changes: Mapping[str, int],
    *,
    job_digest: str,
) -> PartFile:
    """Write a chunk's vectors and rejects to the staging folder; both are synced to disk when this returns.

    Args:
        staging_folder: The folder to write to.
        encoded: The chunk and its vectors.
        layout: The output's columns.
        source_hash: `hash_chunk` of the chunk.
        changes: Counts of added, changed and reused rows, by name.
        job_digest: `hash_job` of the job that the part file belongs to.

    Raises:
        OutputError: Writing failed, or the read-back check did.
    """
    chunk = encoded.chunk
    rejects = sorted((*chunk.rejects, *encoded.rejects), key=lambda reject: reject.line)
    name = f"{chunk.input_split.index:06d}-{chunk.index_in_split:06d}"
    metadata = {
        "rows": chunk.rows_read - len(rejects),
        "read": chunk.rows_read,
        "rejects": len(rejects),
        "source_hash": source_hash,
        "last": chunk.is_last,
        "vectors": len(encoded.rows),
        "tokens": int(encoded.n_tokens.sum()),
        "truncated": int(encoded.is_truncated.sum()),
        "lost_tokens": encoded.lost_tokens,
        "changes": dict(changes),
        "rejects_file": None,
        "job": job_digest,
    }
    token_vectors = find_token_vectors(encoded.vectors)
    if token_vectors is not None:
        metadata["token_vectors"] = len(token_vectors.values)
    if rejects:
        lines = b"".join(reject_to_json_line(reject) for reject in rejects)
        metadata["rejects_file"] = f"rejects-{name}-{hash_bytes(lines)}.jsonl"
        storage.write_bytes(storage.join(staging_folder, str(metadata["rejects_file"])), lines)
    data = writers.table_to_arrow(layout.build_table(encoded), {PART_METADATA_KEY: metadata})
    path = storage.join(staging_folder, f"part-{name}-{hash_bytes(data)}.arrow")
    storage.write_bytes(path, data)
    return part_file_from_json(path, metadata)


def read_part_file(path: str, job_digest: str) -> PartFile | None:
    """Check a part file and its rejects, and return its description; None if it belongs to another job.

    Raises:
        OutputError: The part file or its rejects are damaged or missing.
    """
    metadata = json.loads(open_part_file(path).schema.metadata[PART_METADATA_KEY.encode()])
    if metadata.get("job") != job_digest:
        return None
    part = part_file_from_json(path, metadata)
    if not are_rejects_intact(storage.parent_folder(path), part):
        raise damaged_part_error(path)
    return part


def open_part_file(path: str) -> pa.ipc.RecordBatchFileReader:
    """Read a part file and compare its bytes with the digest in its name.

    Raises:
        OutputError: The file cannot be read, or is damaged.
    """
    with storage.translate_output_errors(path):
        data = storage.read_bytes(path)
    if not name_matches_digest(path, data):
        raise damaged_part_error(path)
    return pa.ipc.open_file(pa.BufferReader(data))


def damaged_part_error(path: str) -> OutputError:
    return OutputError(
        f"{storage.format_location(path)}: the part file is damaged",
        "run the same command again to encode its rows again",
    )


def are_rejects_intact(staging_folder: str, part: PartFile) -> bool:
    """Whether the rejects file of a part, if it has one, is there and undamaged."""
    name = part.stats["rejects_file"]
    if name is None:
        return True
    path = storage.join(staging_folder, str(name))
    try:
        return name_matches_digest(path, storage.read_bytes(path))
    except OSError:
        return False


def part_file_from_json(path: str, metadata: Mapping[str, Any]) -> PartFile:
    """Build the description of a part file from its path and its metadata."""
    stats = {name: metadata[name] for name in STAT_KEYS}
    stats |= {name: metadata[name] for name in OPTIONAL_STAT_KEYS if name in metadata}
    counts = (metadata["rows"], metadata["read"], metadata["rejects"])
    return PartFile(parse_part_key(path), path, *counts, metadata["source_hash"], stats)


def part_file_to_json(part: PartFile) -> dict[str, Any]:
    """Return the JSON values from which `part_file_from_json` restores a part file, together with its name."""
    counts = {"rows": part.rows, "read": part.read, "rejects": part.rejects, "source_hash": part.source_hash}
    return {"name": storage.basename(part.path), **counts, **part.stats}


def read_part_tables(parts: Sequence[PartFile]) -> Iterator[pa.Table]:
    """Yield the rows of each part file as a table.

    Raises:
        OutputError: A part file is damaged or missing.
    """
    for part in parts:
        yield open_part_file(part.path).read_all().replace_schema_metadata(None)


def reject_to_json_line(reject: Reject) -> bytes:
    """Format a reject as a JSON line with source, line, id, reason and raw; lone surrogates are escaped."""
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


def find_part_files(
    staging: StagingFolder, splits: Container[int], known: Container[tuple[int, int]], job_digest: str
) -> Iterator[PartFile]:
    """Yield the intact part files of a job that are on disk.

    Args:
        staging: The staging folder.
        splits: The indexes of the input splits to look for; a shard shares the staging folder with others.
        known: The keys of part files to leave out.
        job_digest: `hash_job` of the job.
    """
    for name in staging.list_files(PART_NAME_PATTERN):
        key = parse_part_key(name)
        if key[0] in splits and key not in known:
            with suppress(OutputError):
                part = read_part_file(staging.join(name), job_digest)
                if part is not None:
                    yield part


def sum_counts(parts: Sequence[PartFile]) -> dict[str, int]:
    """Return the sums of read, rows, rejects, tokens, truncated and lost_tokens."""
    sums = {name: sum(getattr(part, name) for part in parts) for name in ("read", "rows", "rejects")}
    return sums | {name: sum(part.stats[name] for part in parts) for name in ("tokens", "truncated", "lost_tokens")}


def sum_changes(parts: Sequence[PartFile]) -> dict[str, int]:
    """Return how many rows --update or --reuse have added, changed, reused and, by rejecting them, removed."""
    counts = [part.stats["changes"] for part in parts]
    return {name: sum(count.get(name, 0) for count in counts) for name in ("added", "changed", "reused", "removed")}


def hash_bytes(data: Any) -> str:
    """Return the first 128 bits of the SHA-256 of some bytes, in hex."""
    return sha256(data).hexdigest()[:DIGEST_HEX]


def name_matches_digest(path: str, data: bytes) -> bool:
    """Whether a file's name ends with the digest of its bytes."""
    return storage.basename(path).rpartition(".")[0].rpartition("-")[2] == hash_bytes(data)


def parse_part_key(path: str) -> tuple[int, int]:
    """Return the split index and the chunk index from the name of a part file."""
    _, split_index, chunk_index, _ = storage.basename(path).split("-")
    return int(split_index), int(chunk_index)


def has_all_part_files(parts: Mapping[tuple[int, int], PartFile], split_index: int) -> bool:
    """Whether every chunk of an input split, from 0 to the last, has a part file."""
    chunk_index = 0
    while (part := parts.get((split_index, chunk_index))) is not None:
        if part.stats["last"]:
            return True
        chunk_index += 1
    return False

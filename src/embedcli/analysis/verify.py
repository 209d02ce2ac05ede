"""Is an output what it says it is? Counts, ids and numbers of the file; texts and vectors against the input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli import readers, storage
from embedcli.analysis.inspect_output import StreamingQuantiles, describe_output, to_json_value
from embedcli.analysis.text_encoder import Notify, TextEncoder, ignore_message, rebuild_recorded_job
from embedcli.analysis.topk import normalize
from embedcli.core import quantization
from embedcli.core.arrow_values import column_to_python
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.outputs import target as output_target
from embedcli.outputs import writers
from embedcli.outputs.dataset import VectorDataset
from embedcli.pipeline.preparation import hash_texts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import Float32Array

# The lowest cosine between a stored vector and the same text encoded again that passes. Float32 on two engines
# differs by less than 1e-5; bits of numbers near zero flip.
MIN_COSINE = {"float32": 0.9999, "float16": 0.9999, "int8": 0.999, "uint8": 0.999, "binary": 0.97, "ubinary": 0.97}
# bfloat16 keeps 8 bits of a number: cosines of 0.9995 and above are usual.
HALF_PRECISION_TOLERANCE = 0.001
# How far the length of a stored unit vector may be from 1, by what the precision can hold.
NORM_TOLERANCE = {"float32": 1e-3, "float16": 3e-3}
TEXT_BATCH_ROWS = 256
MAX_EXAMPLE_IDS = 20


@dataclass
class VerificationCheck:
    """One thing that was looked at. `ids` are some of the rows for which it does not hold."""

    name: str
    passed: bool
    detail: str
    example_ids: list[Any] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "ok": self.passed, "detail": self.detail, "ids": self.example_ids[:MAX_EXAMPLE_IDS]}


@dataclass(frozen=True)
class StoredRow:
    """One row of the output: its position, id, text hash, window number and stored vector."""

    position: int
    id: Any
    text_hash: bytes
    window: int
    vector: NDArray[Any]


@dataclass
class RowExamples:
    """Rows of one kind: how many, and the ids of the first ones."""

    count: int = 0
    example_ids: list[Any] = field(default_factory=list)

    def add(self, id: Any) -> None:
        self.count += 1
        if len(self.example_ids) < MAX_EXAMPLE_IDS:
            self.example_ids.append(to_json_value(id))


@dataclass
class VerificationStats:
    """What going through input and output side by side found."""

    rows_read: int = 0
    rejected_rows: int = 0
    matched_rows: int = 0
    changed_rows: RowExamples = field(default_factory=RowExamples)
    missing_rows: RowExamples = field(default_factory=RowExamples)
    extra_rows: RowExamples = field(default_factory=RowExamples)
    deviating_rows: RowExamples = field(default_factory=RowExamples)
    sampled_rows: int = 0
    cosines: StreamingQuantiles = field(default_factory=StreamingQuantiles)


def verify_output(output: VectorDataset) -> list[VerificationCheck]:
    """What the output alone can tell. InputError if a checksum does not hold."""
    found = describe_output(output)
    return [check_row_counts(output, found), check_ids(found), check_values(found), *check_norms(output, found)]


def check_row_counts(output: VectorDataset, found: dict[str, Any]) -> VerificationCheck:
    """The rows in the file are those recorded, and every row read has a vector or a reject."""
    made = output.job_manifest
    if "read" not in made:
        return VerificationCheck("rows", True, f"{found['rows']:,} rows; how many there should be is not recorded")
    windows = "window" in output.schema.names
    rejects, listed = int(made.get("rejects", 0)), count_listed_rejects(output)
    ok = made["read"] == made["rows"] + rejects and (windows or made["rows"] == found["rows"])
    detail = f"{made['read']:,} read = {made['rows']:,} embedded + {rejects:,} rejected"
    if not ok:
        return VerificationCheck("rows", False, f"recorded: {detail}; the file holds {found['rows']:,} rows")
    if listed is not None and listed != rejects:
        return VerificationCheck("rows", False, f"{rejects:,} rows were rejected, the rejects file lists {listed:,}")
    return VerificationCheck("rows", True, detail)


def count_listed_rejects(output: VectorDataset) -> int | None:
    """Lines of the rejects file beside the output; None if it is not there."""
    path = output_target.OutputTarget(output.path, "parquet", storage.is_folder(output.path)).rejects_path
    if not storage.exists(path):
        return None
    with open(storage.local_copy(path), "rb") as lines:
        return sum(1 for line in lines if line.strip())


def check_ids(found: dict[str, Any]) -> VerificationCheck:
    cases = found["ids"]["examples"]
    count = found["ids"]["duplicates"]
    if count:
        return VerificationCheck("ids", False, f"{count:,} ids come more than once", [case["id"] for case in cases])
    return VerificationCheck("ids", True, "all different" if found["ids"]["column"] else "the output has no ids")


def check_values(found: dict[str, Any]) -> VerificationCheck:
    bad, zero = found["non_finite_rows"], found["zero_rows"]
    return VerificationCheck(
        "values", not bad and not zero, f"{bad:,} rows with non-finite values, {zero:,} of zeros only"
    )


def check_norms(output: VectorDataset, found: dict[str, Any]) -> list[VerificationCheck]:
    """Vectors that are recorded as normalised have length 1, as far as their precision can say."""
    allowed = NORM_TOLERANCE.get(output.precision)
    if output.vector_space.get("normalize") is not True or allowed is None or found["norms"] is None:
        return []
    off = max(abs(found["norms"]["min"] - 1), abs(found["norms"]["max"] - 1))
    return [VerificationCheck("norms", off <= allowed, f"at most {off:.2g} away from 1")]


class Verifier:
    """Compares an output with its input: every row's id and text by hash, a sample of vectors by encoding again."""

    def __init__(
        self, output: VectorDataset, job: Job, texts: TextEncoder, rows: int | None, seed: int, least: float
    ) -> None:
        self.output = output
        self.job = job
        self.min_cosine = least
        self._texts = texts
        self._prompt = str(output.vector_space.get("prompt") or "")
        self._chosen = sample_rows(output.rows, rows, seed)
        self._waiting: list[tuple[str, list[StoredRow]]] = []
        self.stats = VerificationStats()

    def run(self) -> list[VerificationCheck]:
        """Read input and output once, side by side."""
        walk, stored = self.stats, StoredRowCursor(self.output)
        plan = readers.plan_inputs(self.job)
        for chunk in readers.read_chunks(self.job, plan, plan.splits):
            walk.rows_read += chunk.rows_read
            walk.rejected_rows += len(chunk.rejects)
            hashes = hash_texts(chunk.texts, self._prompt)
            ids = column_to_python(chunk.ids)
            ids = writers.to_json_values(ids) if self.output.has_json_types else ids
            for text, id, digest in zip(chunk.texts, ids, hashes, strict=True):
                self._row(text, id, digest.tobytes(), stored)
        for row in stored.remaining_rows():
            walk.extra_rows.add(row.id)
        self._encode()
        return [self.check_row_conservation(), self.check_texts(), self.check_vectors()]

    def _row(self, text: str, id: Any, digest: bytes, stored: StoredRowCursor) -> None:
        found = stored.take_rows_of(id)
        if not found:
            self.stats.missing_rows.add(id)
        elif found[0].text_hash != digest:
            self.stats.changed_rows.add(id)
        else:
            self.stats.matched_rows += 1
            sampled = [row for row in found if self._chosen is None or row.position in self._chosen]
            if sampled:
                self._waiting.append((text, sampled))
                if len(self._waiting) == TEXT_BATCH_ROWS:
                    self._encode()

    def _encode(self) -> None:
        """Encode the waiting texts again and compare them with what is stored."""
        waiting, self._waiting = self._waiting, []
        for done in self._texts.encode_chunks([text for text, _ in waiting]) if waiting else ():
            windows = (
                done.extra_columns["window"].to_pylist() if "window" in done.extra_columns else [0] * len(done.rows)
            )
            places = (done.rows + (done.chunk.lines[0] - 1)).tolist()
            fresh = dict(zip(zip(places, windows, strict=True), done.vectors, strict=True))
            first = done.chunk.lines[0] - 1
            for place, (_, rows) in enumerate(waiting[first : first + len(done.chunk.texts)], first):
                for row in rows:
                    self._compare(row, fresh.get((place, row.window)))

    def _compare(self, row: StoredRow, vector: Float32Array | None) -> None:
        cosine = self._cosine(row.vector, vector) if vector is not None else float("nan")
        self.stats.sampled_rows += 1
        self.stats.cosines.add(np.array([cosine] if np.isfinite(cosine) else []))
        if not cosine >= self.min_cosine:
            self.stats.deviating_rows.add(row.id)

    def _cosine(self, stored: NDArray[Any], vector: Float32Array) -> float:
        """Between two vectors in the same precision, so that what it costs is not counted as an error."""
        out = self.output
        again = quantization.quantize(vector[None], out.precision, out.ranges)
        pair = quantization.dequantize(np.stack([stored, again[0]]), out.precision, out.dim, out.ranges)
        first, second = normalize(pair)
        return float(first @ second)

    # What was found

    def check_row_conservation(self) -> VerificationCheck:
        recorded, read = self.output.job_manifest.get("read"), self.stats.rows_read
        ok = recorded is None or recorded == read
        return VerificationCheck(
            "input", ok, f"{read:,} rows" + ("" if ok else f"; {recorded:,} were read when it was embedded")
        )

    def check_texts(self) -> VerificationCheck:
        walk = self.stats
        # Rows that the encoder refused are absent from the output, and counted as rejects beyond those of the input.
        refused = int(self.output.job_manifest.get("rejects", walk.rejected_rows)) - walk.rejected_rows
        absent = walk.missing_rows if walk.missing_rows.count > refused else RowExamples()
        told = [
            (walk.changed_rows, "have another text in the input"),
            (absent, "of the input are not in the output"),
            (walk.extra_rows, "of the output are not in the input, or not in its order"),
        ]
        detail = "; ".join(f"{cases.count:,} rows {what}" for cases, what in told if cases.count)
        ids = [id for cases, _ in told for id in cases.example_ids]
        return VerificationCheck(
            "texts", not detail, detail or f"{walk.matched_rows:,} rows have the input's ids and texts", ids
        )

    def check_vectors(self) -> VerificationCheck:
        walk = self.stats
        if self._chosen == set():
            return VerificationCheck("vectors", True, "no row was to be encoded again")
        if not walk.sampled_rows:
            return VerificationCheck("vectors", self.output.rows == 0, "no row could be compared")
        spread = walk.cosines.summary(median=0.5)
        told = "lowest cosine {min:.6f}, median {median:.6f}".format(**spread) if spread else "no vector came out"
        detail = (
            f"{walk.sampled_rows:,} rows encoded again: {told}; {walk.deviating_rows.count:,} below {self.min_cosine:g}"
        )
        return VerificationCheck("vectors", not walk.deviating_rows.count, detail, walk.deviating_rows.example_ids)


class StoredRowCursor:
    """The rows of an output in order, each asked for by its id."""

    def __init__(self, output: VectorDataset) -> None:
        self._rows = iterate_stored_rows(output)
        self._next = next(self._rows, None)

    def take_rows_of(self, id: Any) -> list[StoredRow]:
        """The next row with all its windows, if it has this id; else nothing, and it stays the next."""
        found: list[StoredRow] = []
        while self._next is not None and self._next.id == id and (not found or self._next.window > found[-1].window):
            found.append(self._next)
            self._next = next(self._rows, None)
        return found

    def remaining_rows(self) -> Iterator[StoredRow]:
        """The rows nobody asked for."""
        if self._next is not None:
            yield self._next
        yield from self._rows


def iterate_stored_rows(output: VectorDataset) -> Iterator[StoredRow]:
    names = [name for name in (output.id_name, "text_hash", "window") if name and name in output.schema.names]
    for block in output.read_blocks(names):
        ids = column_to_python(output.block_ids(block))
        hashes = block.columns.column("text_hash").to_pylist() if "text_hash" in names else [b""] * len(block)
        windows = block.columns.column("window").to_pylist() if "window" in names else [0] * len(block)
        for i, (id, digest, window) in enumerate(zip(ids, hashes, windows, strict=True)):
            raw = bytes.fromhex(digest) if isinstance(digest, str) else digest
            yield StoredRow(block.first_row + i, id, raw, window, block.vectors[i])


def sample_rows(rows: int, count: int | None, seed: int) -> set[int] | None:
    """Positions of a random sample without repetition; None for every row."""
    if count is None or count >= rows:
        return None
    return set(np.random.default_rng(seed).choice(rows, count, replace=False).tolist())


def min_cosine(output: VectorDataset) -> float:
    """What a vector made again must reach, by the precision it is stored in and the numbers it was computed in."""
    half = str(output.vector_space.get("dtype", "float32")) not in ("float32", "auto")
    return MIN_COSINE[output.precision] - (HALF_PRECISION_TOLERANCE if half else 0)


def verify_against_input(
    output: VectorDataset,
    inputs: tuple[str, ...],
    rows: int | None,
    *,
    seed: int = 0,
    least: float | None = None,
    notify: Notify = ignore_message,
    **flags: Any,
) -> list[VerificationCheck]:
    """All checks of an output against its input; `rows` vectors are made again (None: all of them)."""
    if "text_hash" not in output.schema.names:
        raise UsageError(f"{output.path} holds no text hashes to compare with an input", "use --only-output")
    job = rebuild_recorded_job(output, "verify", inputs=inputs or find_recorded_inputs(output), **flags)
    checks = verify_output(output)
    with TextEncoder(job, notify) as texts:
        checks += Verifier(output, job, texts, rows, seed, min_cosine(output) if least is None else least).run()
    return allow_repeated_ids(checks)


def allow_repeated_ids(checks: list[VerificationCheck]) -> list[VerificationCheck]:
    """Ids that come more than once are no fault where the input's rows carry them too."""
    named = {check.name: check for check in checks}
    if not named["ids"].passed and named["texts"].passed and named["input"].passed:
        named["ids"].passed, named["ids"].example_ids = True, []
        named["ids"].detail += ", in the input too"
    return checks


def find_recorded_inputs(output: VectorDataset) -> tuple[str, ...]:
    """The inputs by their recorded names, looked for here and beside the output. UsageError if they are not there."""
    names = (output.job_manifest.get("job") or {}).get("inputs") or ()
    found = []
    for name in names:
        places = (name, storage.join(storage.parent_folder(output.path), storage.basename(name)))
        there = next((place for place in places if storage.get_file_system(place).kind(place) == "file"), None)
        if there is None:
            raise UsageError(f"{name}, the input of {output.path}, is not here", f"embedcli verify {output.path} INPUT")
        found.append(there)
    if not found:
        raise UsageError(f"{output.path} does not name its input", f"embedcli verify {output.path} INPUT")
    return tuple(found)

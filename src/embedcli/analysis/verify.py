"""Is an output what it says it is? Counts, ids and numbers of the file; texts and vectors against the input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli import readers, storage
from embedcli.analysis.inspect_output import Spread, describe, plain
from embedcli.analysis.text_encoder import Notify, Texts, quiet, recorded_job
from embedcli.analysis.topk import unit
from embedcli.core import quantization
from embedcli.core.arrow_values import values_of
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.outputs import target as output_target
from embedcli.outputs import writers
from embedcli.outputs.dataset import Output
from embedcli.pipeline.preparation import text_hashes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import Floats

# The lowest cosine between a stored vector and the same text encoded again that passes. Float32 on two engines
# differs by less than 1e-5; bits of numbers near zero flip.
LEAST_COSINE = {"float32": 0.9999, "float16": 0.9999, "int8": 0.999, "uint8": 0.999, "binary": 0.97, "ubinary": 0.97}
# bfloat16 keeps 8 bits of a number: cosines of 0.9995 and above are usual.
HALF_ALLOWANCE = 0.001
# How far the length of a stored unit vector may be from 1, by what the precision can hold.
NORM_ALLOWANCE = {"float32": 1e-3, "float16": 3e-3}
TEXTS_AT_ONCE = 256
EXAMPLES = 20


@dataclass
class Check:
    """One thing that was looked at. `ids` are some of the rows for which it does not hold."""

    name: str
    ok: bool
    detail: str
    ids: list[Any] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "ok": self.ok, "detail": self.detail, "ids": self.ids[:EXAMPLES]}


@dataclass(frozen=True)
class Stored:
    """One row of the output: its position, id, text hash, window number and stored vector."""

    position: int
    id: Any
    text_hash: bytes
    window: int
    vector: NDArray[Any]


@dataclass
class Cases:
    """Rows of one kind: how many, and the ids of the first ones."""

    count: int = 0
    ids: list[Any] = field(default_factory=list)

    def add(self, id: Any) -> None:
        self.count += 1
        if len(self.ids) < EXAMPLES:
            self.ids.append(plain(id))


@dataclass
class Walk:
    """What going through input and output side by side found."""

    read: int = 0
    rejected: int = 0
    matched: int = 0
    changed: Cases = field(default_factory=Cases)
    absent: Cases = field(default_factory=Cases)
    extra: Cases = field(default_factory=Cases)
    off: Cases = field(default_factory=Cases)
    sampled: int = 0
    cosines: Spread = field(default_factory=Spread)


def verify_file(output: Output) -> list[Check]:
    """What the output alone can tell. InputError if a checksum does not hold."""
    found = describe(output)
    return [rows_check(output, found), ids_check(found), values_check(found), *norm_checks(output, found)]


def rows_check(output: Output, found: dict[str, Any]) -> Check:
    """The rows in the file are those recorded, and every row read has a vector or a reject."""
    made = output.job
    if "read" not in made:
        return Check("rows", True, f"{found['rows']:,} rows; how many there should be is not recorded")
    windows = "window" in output.schema.names
    rejects, listed = int(made.get("rejects", 0)), rejects_listed(output)
    ok = made["read"] == made["rows"] + rejects and (windows or made["rows"] == found["rows"])
    detail = f"{made['read']:,} read = {made['rows']:,} embedded + {rejects:,} rejected"
    if not ok:
        return Check("rows", False, f"recorded: {detail}; the file holds {found['rows']:,} rows")
    if listed is not None and listed != rejects:
        return Check("rows", False, f"{rejects:,} rows were rejected, the rejects file lists {listed:,}")
    return Check("rows", True, detail)


def rejects_listed(output: Output) -> int | None:
    """Lines of the rejects file beside the output; None if it is not there."""
    path = output_target.Target(output.path, "parquet", storage.is_folder(output.path)).rejects
    if not storage.exists(path):
        return None
    with open(storage.nearby(path), "rb") as lines:
        return sum(1 for line in lines if line.strip())


def ids_check(found: dict[str, Any]) -> Check:
    cases = found["ids"]["examples"]
    count = found["ids"]["duplicates"]
    if count:
        return Check("ids", False, f"{count:,} ids come more than once", [case["id"] for case in cases])
    return Check("ids", True, "all different" if found["ids"]["column"] else "the output has no ids")


def values_check(found: dict[str, Any]) -> Check:
    bad, zero = found["non_finite_rows"], found["zero_rows"]
    return Check("values", not bad and not zero, f"{bad:,} rows with non-finite values, {zero:,} of zeros only")


def norm_checks(output: Output, found: dict[str, Any]) -> list[Check]:
    """Vectors that are recorded as normalised have length 1, as far as their precision can say."""
    allowed = NORM_ALLOWANCE.get(output.precision)
    if output.space.get("normalize") is not True or allowed is None or found["norms"] is None:
        return []
    off = max(abs(found["norms"]["min"] - 1), abs(found["norms"]["max"] - 1))
    return [Check("norms", off <= allowed, f"at most {off:.2g} away from 1")]


class Verifier:
    """Compares an output with its input: every row's id and text by hash, a sample of vectors by encoding again."""

    def __init__(self, output: Output, job: Job, texts: Texts, rows: int | None, seed: int, least: float) -> None:
        self.output = output
        self.job = job
        self.least = least
        self._texts = texts
        self._prompt = str(output.space.get("prompt") or "")
        self._chosen = chosen_rows(output.rows, rows, seed)
        self._waiting: list[tuple[str, list[Stored]]] = []
        self.walk = Walk()

    def run(self) -> list[Check]:
        """Read input and output once, side by side."""
        walk, stored = self.walk, Cursor(self.output)
        plan = readers.plan(self.job)
        for chunk in readers.read(self.job, plan, plan.pieces):
            walk.read += chunk.read
            walk.rejected += len(chunk.rejects)
            hashes = text_hashes(chunk.texts, self._prompt)
            ids = values_of(chunk.ids)
            ids = writers.in_json(ids) if self.output.is_json else ids
            for text, id, digest in zip(chunk.texts, ids, hashes, strict=True):
                self._row(text, id, digest.tobytes(), stored)
        for row in stored.rest():
            walk.extra.add(row.id)
        self._encode()
        return [self.conservation(), self.texts(), self.vectors()]

    def _row(self, text: str, id: Any, digest: bytes, stored: Cursor) -> None:
        found = stored.of(id)
        if not found:
            self.walk.absent.add(id)
        elif found[0].text_hash != digest:
            self.walk.changed.add(id)
        else:
            self.walk.matched += 1
            sampled = [row for row in found if self._chosen is None or row.position in self._chosen]
            if sampled:
                self._waiting.append((text, sampled))
                if len(self._waiting) == TEXTS_AT_ONCE:
                    self._encode()

    def _encode(self) -> None:
        """Encode the waiting texts again and compare them with what is stored."""
        waiting, self._waiting = self._waiting, []
        for done in self._texts.encoded([text for text, _ in waiting]) if waiting else ():
            windows = done.extra["window"].to_pylist() if "window" in done.extra else [0] * len(done.rows)
            places = (done.rows + (done.chunk.lines[0] - 1)).tolist()
            fresh = dict(zip(zip(places, windows, strict=True), done.vectors, strict=True))
            first = done.chunk.lines[0] - 1
            for place, (_, rows) in enumerate(waiting[first : first + len(done.chunk.texts)], first):
                for row in rows:
                    self._compare(row, fresh.get((place, row.window)))

    def _compare(self, row: Stored, vector: Floats | None) -> None:
        cosine = self._cosine(row.vector, vector) if vector is not None else float("nan")
        self.walk.sampled += 1
        self.walk.cosines.add(np.array([cosine] if np.isfinite(cosine) else []))
        if not cosine >= self.least:
            self.walk.off.add(row.id)

    def _cosine(self, stored: NDArray[Any], vector: Floats) -> float:
        """Between two vectors in the same precision, so that what it costs is not counted as an error."""
        out = self.output
        again = quantization.store(vector[None], out.precision, out.ranges)
        pair = quantization.restore(np.stack([stored, again[0]]), out.precision, out.dim, out.ranges)
        first, second = unit(pair)
        return float(first @ second)

    # What was found

    def conservation(self) -> Check:
        recorded, read = self.output.job.get("read"), self.walk.read
        ok = recorded is None or recorded == read
        return Check("input", ok, f"{read:,} rows" + ("" if ok else f"; {recorded:,} were read when it was embedded"))

    def texts(self) -> Check:
        walk = self.walk
        # Rows that the encoder refused are absent from the output, and counted as rejects beyond those of the input.
        refused = int(self.output.job.get("rejects", walk.rejected)) - walk.rejected
        absent = walk.absent if walk.absent.count > refused else Cases()
        told = [
            (walk.changed, "have another text in the input"),
            (absent, "of the input are not in the output"),
            (walk.extra, "of the output are not in the input, or not in its order"),
        ]
        detail = "; ".join(f"{cases.count:,} rows {what}" for cases, what in told if cases.count)
        ids = [id for cases, _ in told for id in cases.ids]
        return Check("texts", not detail, detail or f"{walk.matched:,} rows have the input's ids and texts", ids)

    def vectors(self) -> Check:
        walk = self.walk
        if self._chosen == set():
            return Check("vectors", True, "no row was to be encoded again")
        if not walk.sampled:
            return Check("vectors", self.output.rows == 0, "no row could be compared")
        spread = walk.cosines.summary(median=0.5)
        told = "lowest cosine {min:.6f}, median {median:.6f}".format(**spread) if spread else "no vector came out"
        detail = f"{walk.sampled:,} rows encoded again: {told}; {walk.off.count:,} below {self.least:g}"
        return Check("vectors", not walk.off.count, detail, walk.off.ids)


class Cursor:
    """The rows of an output in order, each asked for by its id."""

    def __init__(self, output: Output) -> None:
        self._rows = stored_rows(output)
        self._next = next(self._rows, None)

    def of(self, id: Any) -> list[Stored]:
        """The next row with all its windows, if it has this id; else nothing, and it stays the next."""
        found: list[Stored] = []
        while self._next is not None and self._next.id == id and (not found or self._next.window > found[-1].window):
            found.append(self._next)
            self._next = next(self._rows, None)
        return found

    def rest(self) -> Iterator[Stored]:
        """The rows nobody asked for."""
        if self._next is not None:
            yield self._next
        yield from self._rows


def stored_rows(output: Output) -> Iterator[Stored]:
    names = [name for name in (output.id_name, "text_hash", "window") if name and name in output.schema.names]
    for block in output.blocks(names):
        ids = values_of(output.ids(block))
        hashes = block.table.column("text_hash").to_pylist() if "text_hash" in names else [b""] * len(block)
        windows = block.table.column("window").to_pylist() if "window" in names else [0] * len(block)
        for i, (id, digest, window) in enumerate(zip(ids, hashes, windows, strict=True)):
            raw = bytes.fromhex(digest) if isinstance(digest, str) else digest
            yield Stored(block.start + i, id, raw, window, block.vectors[i])


def chosen_rows(rows: int, count: int | None, seed: int) -> set[int] | None:
    """Positions of a random sample without repetition; None for every row."""
    if count is None or count >= rows:
        return None
    return set(np.random.default_rng(seed).choice(rows, count, replace=False).tolist())


def least_cosine(output: Output) -> float:
    """What a vector made again must reach, by the precision it is stored in and the numbers it was computed in."""
    half = str(output.space.get("dtype", "float32")) not in ("float32", "auto")
    return LEAST_COSINE[output.precision] - (HALF_ALLOWANCE if half else 0)


def verify(
    output: Output,
    inputs: tuple[str, ...],
    rows: int | None,
    *,
    seed: int = 0,
    least: float | None = None,
    notify: Notify = quiet,
    **flags: Any,
) -> list[Check]:
    """All checks of an output against its input; `rows` vectors are made again (None: all of them)."""
    if "text_hash" not in output.schema.names:
        raise UsageError(f"{output.path} holds no text hashes to compare with an input", "use --only-output")
    job = recorded_job(output, "verify", inputs=inputs or recorded_inputs(output), **flags)
    checks = verify_file(output)
    with Texts(job, notify) as texts:
        checks += Verifier(output, job, texts, rows, seed, least_cosine(output) if least is None else least).run()
    return allowing_repeated_ids(checks)


def allowing_repeated_ids(checks: list[Check]) -> list[Check]:
    """Ids that come more than once are no fault where the input's rows carry them too."""
    named = {check.name: check for check in checks}
    if not named["ids"].ok and named["texts"].ok and named["input"].ok:
        named["ids"].ok, named["ids"].ids = True, []
        named["ids"].detail += ", in the input too"
    return checks


def recorded_inputs(output: Output) -> tuple[str, ...]:
    """The inputs by their recorded names, looked for here and beside the output. UsageError if they are not there."""
    names = (output.job.get("job") or {}).get("inputs") or ()
    found = []
    for name in names:
        places = (name, storage.join(storage.parent(output.path), storage.base(name)))
        there = next((place for place in places if storage.files_of(place).kind(place) == "file"), None)
        if there is None:
            raise UsageError(f"{name}, the input of {output.path}, is not here", f"embedcli verify {output.path} INPUT")
        found.append(there)
    if not found:
        raise UsageError(f"{output.path} does not name its input", f"embedcli verify {output.path} INPUT")
    return tuple(found)

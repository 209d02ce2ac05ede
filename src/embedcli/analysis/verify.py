"""Verify an output: counts, ids and values of the file; texts and vectors against the input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli import readers, storage
from embedcli.analysis.inspect_output import describe_output, to_json_value
from embedcli.analysis.listed_rejects import ListedRejects
from embedcli.analysis.stored_rows import MAX_DISTANCE, StoredRow, StoredRowCursor
from embedcli.analysis.text_encoder import (
    Notify,
    TextEncoder,
    ignore_message,
    rebuild_recorded_job,
    with_prompt_source,
)
from embedcli.analysis.vector_agreement import AgreementStats, compare_with_stored
from embedcli.analysis.verification_checks import (
    MAX_EXAMPLE_IDS,
    VerificationCheck,
    check_recorded_canaries,
    compare_recorded_canaries,
)
from embedcli.core.arrow_values import column_to_python
from embedcli.core.counts import format_count
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.outputs import writers
from embedcli.outputs.dataset import VectorDataset
from embedcli.outputs.integrity import check_output_digests
from embedcli.pipeline.preparation import hash_texts

if TYPE_CHECKING:
    from embedcli.core.row_vectors import RowVectors

# Lowest accepted cosine between a stored vector and the same text encoded again. Float32 vectors of two engines
# differ by less than 1e-5; in binary precisions, bits of values near zero flip.
MIN_COSINE = {"float32": 0.9999, "float16": 0.9999, "int8": 0.999, "uint8": 0.999, "binary": 0.97, "ubinary": 0.97}
# Subtracted for half precision: bfloat16 has 8 significant bits, and cosines of 0.9995 and above are usual.
HALF_PRECISION_TOLERANCE = 0.001
# Accepted difference of the length of a normalized vector from 1, by precision.
NORM_TOLERANCE = {"float32": 1e-3, "float16": 3e-3}
TEXT_BATCH_ROWS = 256

# The checks that compare the rows of an output and of its input.
INPUT, TEXTS, MISSING, EXTRA, ORDER = "input", "texts", "missing", "extra", "order"


@dataclass
class RowExamples:
    """Number of rows of one kind, and the ids of the first ones."""

    count: int = 0
    example_ids: list[Any] = field(default_factory=list)

    def add(self, id: Any) -> None:
        self.count += 1
        if len(self.example_ids) < MAX_EXAMPLE_IDS:
            self.example_ids.append(to_json_value(id))


@dataclass
class VerificationStats:
    """Counts from reading input and output side by side."""

    agreement: AgreementStats
    rows_read: int = 0
    matched_rows: int = 0
    changed_rows: RowExamples = field(default_factory=RowExamples)
    missing_rows: RowExamples = field(default_factory=RowExamples)
    extra_rows: RowExamples = field(default_factory=RowExamples)
    moved_rows: RowExamples = field(default_factory=RowExamples)
    deviating_rows: RowExamples = field(default_factory=RowExamples)


def verify_output(output: VectorDataset) -> list[VerificationCheck]:
    """Run the checks that need only the output.

    Raises:
        InputError: A checksum does not match.
    """
    digests = check_digests(output)
    description = describe_output(output)
    return [
        digests,
        check_row_counts(output, description),
        check_ids(description),
        check_values(description),
        *check_norms(output, description),
        *check_recorded_canaries(output),
    ]


def check_digests(output: VectorDataset) -> VerificationCheck:
    """Compare all bytes with the recorded digests; InputError if they differ."""
    if check_output_digests(output):
        return VerificationCheck("digests", True, "all bytes agree with the recorded SHA-256")
    return VerificationCheck("digests", None, "none recorded: written by another program or an earlier version")


def check_row_counts(output: VectorDataset, description: dict[str, Any]) -> VerificationCheck:
    """Check that the file has the recorded rows, and that every row read has a vector or a reject."""
    manifest, rows = output.job_manifest, format_count(description["rows"], "row")
    if "read" not in manifest:
        return VerificationCheck("rows", None, f"{rows}; the expected number is not recorded")
    windows = "window" in output.schema.names
    rejects, listing = int(manifest.get("rejects", 0)), ListedRejects(output)
    listed = listing.count()
    is_conserved = manifest["read"] == manifest["rows"] + rejects and (
        windows or manifest["rows"] == description["rows"]
    )
    detail = f"{manifest['read']:,} read = {manifest['rows']:,} embedded + {rejects:,} rejected"
    if not is_conserved:
        return VerificationCheck("rows", False, f"recorded: {detail}; the file has {rows}")
    if listed is not None and listed != rejects:
        return VerificationCheck(
            "rows",
            False,
            f"{format_count(rejects, 'row was', 'rows were')} rejected, the rejects file lists {listed:,}",
        )
    if rejects and listed is None:
        detail += f"; {listing.absence}"
    return VerificationCheck("rows", True, detail)


def check_ids(description: dict[str, Any]) -> VerificationCheck:
    examples, count = description["ids"]["examples"], description["ids"]["duplicates"]
    if count:
        detail = f"{format_count(count, 'id is', 'ids are')} not unique"
        return VerificationCheck("ids", False, detail, [example["id"] for example in examples])
    return VerificationCheck("ids", True, "all unique" if description["ids"]["column"] else "the output has no ids")


def check_values(description: dict[str, Any]) -> VerificationCheck:
    """Check that no vector is damaged."""
    counts = [
        (description["non_finite_rows"], "with non-finite values"),
        (description["zero_rows"], "with zeros only"),
    ]
    if description["terms"] is not None:
        counts += [
            (description["terms"]["unsorted_rows"], "whose indices do not ascend"),
            (description["terms"]["repeated_rows"], "with an index twice"),
            (description["damaged_rows"], "that cannot be read"),
        ]
    if description["token_vectors"] is not None:
        counts += [
            (description["token_vectors"]["empty_rows"], "without vectors"),
            (description["token_vectors"]["excess_rows"], "with more vectors than tokens"),
        ]
    (first, problem), *others = counts
    detail = ", ".join([f"{format_count(first, 'row')} {problem}", *(f"{count:,} {text}" for count, text in others)])
    examples = description["damage_examples"]
    detail += "".join(f"; row {example['row']} {example['problem']}" for example in examples[:1])
    is_sound = not any(count for count, _ in counts)
    return VerificationCheck("values", is_sound, detail, [example["id"] for example in examples])


def check_norms(output: VectorDataset, description: dict[str, Any]) -> list[VerificationCheck]:
    """Check that vectors recorded as normalized have length 1, within the tolerance of their precision."""
    tolerance = NORM_TOLERANCE.get(output.precision)
    if output.vector_space.get("normalize") is not True or tolerance is None or description["norms"] is None:
        return []
    deviation = max(abs(description["norms"]["min"] - 1), abs(description["norms"]["max"] - 1))
    return [VerificationCheck("norms", deviation <= tolerance, f"at most {deviation:.2g} away from 1")]


class Verifier:
    """Compares an output with its input: ids and texts of all rows by hash, a sample of vectors by encoding again."""

    def __init__(
        self, output: VectorDataset, job: Job, encoder: TextEncoder, rows: int | None, seed: int, min_cosine: float
    ) -> None:
        self.output = output
        self.job = job
        self._encoder = encoder
        self._prompt = str(output.vector_space.get("prompt") or "")
        self._sample = sample_rows(output.rows, rows, seed)
        self._pending: list[tuple[str, list[StoredRow]]] = []
        self._rejects = ListedRejects(output)
        self.stats = VerificationStats(AgreementStats(min_cosine))

    def run(self) -> list[VerificationCheck]:
        """Read input and output once, side by side, and return the checks."""
        stats = self.stats
        stored = StoredRowCursor(self.output, lambda row: stats.extra_rows.add(row.id))
        plan = readers.plan_inputs(self.job)
        for chunk in readers.read_chunks(self.job, plan, plan.splits):
            stats.rows_read += chunk.rows_read
            hashes = hash_texts(chunk.texts, self._prompt)
            original_ids = column_to_python(chunk.ids)
            ids = writers.to_json_values(original_ids) if self.output.has_json_types else original_ids
            for row, (text, id, digest) in enumerate(zip(chunk.texts, ids, hashes, strict=True)):
                rows, is_in_place = stored.take_row(id, digest.tobytes())
                if rows:
                    self._add_matching_row(text, id, rows, is_in_place=is_in_place)
                elif self._rejects.includes(original_ids[row], chunk.raw_row(row)):
                    continue
                elif stored.take_next_row(id):
                    stats.changed_rows.add(id)
                else:
                    stats.missing_rows.add(id)
        stored.finish()
        self._compare_pending()
        return [
            self.check_row_conservation(),
            self.check_texts(),
            *self.find_misplaced_rows(),
            self.check_vectors(),
        ]

    def _add_matching_row(self, text: str, id: Any, rows: list[StoredRow], *, is_in_place: bool) -> None:
        self.stats.matched_rows += 1
        if not is_in_place:
            self.stats.moved_rows.add(id)
        sampled = [row for row in rows if self._sample is None or row.position in self._sample]
        if sampled:
            self._pending.append((text, sampled))
            if len(self._pending) == TEXT_BATCH_ROWS:
                self._compare_pending()

    def _compare_pending(self) -> None:
        """Encode the pending texts again and compare the vectors with the stored ones."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        for encoded in self._encoder.encode_chunks([text for text, _ in pending]):
            columns = encoded.extra_columns
            windows = columns["window"].to_pylist() if "window" in columns else [0] * len(encoded.rows)
            keys = zip(encoded.rows.tolist(), windows, strict=True)
            positions = {key: i for i, key in enumerate(keys)}
            start = encoded.chunk.lines[0] - 1
            for index, (_, rows) in enumerate(pending[start : start + len(encoded.chunk.texts)]):
                for row in rows:
                    at = positions.get((index, row.window))
                    self._compare(row, None if at is None else encoded.vectors[at : at + 1])

    def _compare(self, row: StoredRow, vector: RowVectors | None) -> None:
        agreement = compare_with_stored(self.output, row.vector, vector, self.stats.agreement.min_cosine)
        self.stats.agreement.add(agreement)
        if agreement.difference is not None:
            self.stats.deviating_rows.add(row.id)

    def check_row_conservation(self) -> VerificationCheck:
        recorded, read = self.output.job_manifest.get("read"), self.stats.rows_read
        is_equal = recorded is None or recorded == read
        detail = format_count(read, "row") + (
            "" if is_equal else f"; {recorded:,} were read when the output was written"
        )
        return VerificationCheck(INPUT, is_equal, detail)

    def check_texts(self) -> VerificationCheck:
        changed, matched = self.stats.changed_rows, self.stats.matched_rows
        if changed.count:
            detail = f"{format_count(changed.count, 'row has', 'rows have')} a different text in the input"
            return VerificationCheck(TEXTS, False, detail, changed.example_ids)
        detail = f"{format_count(matched, 'row has', 'rows have')} the input's ids and texts"
        if self.output.kept_columns:
            detail += f"; not compared: {', '.join(self.output.kept_columns)}"
        return VerificationCheck(TEXTS, True, detail)

    def find_misplaced_rows(self) -> Iterator[VerificationCheck]:
        """Yield failed checks of rows that only the input or only the output has, and of those in another order."""
        missing, extra, moved = self.stats.missing_rows, self.stats.extra_rows, self.stats.moved_rows
        far = f", or not within {MAX_DISTANCE:,} rows of its place" if self.output.rows > MAX_DISTANCE else ""
        if missing.count:
            rows = format_count(missing.count, "row of the input is", "rows of the input are")
            detail = f"{rows} not in the output with this text{far}"
            yield VerificationCheck(MISSING, False, detail, missing.example_ids, self._explain_missing_rows())
        if extra.count:
            rows = format_count(extra.count, "row of the output is", "rows of the output are")
            yield VerificationCheck(EXTRA, False, f"{rows} not in the input with this text{far}", extra.example_ids)
        if moved.count:
            detail = f"{format_count(moved.count, 'row comes', 'rows come')} later in the input than in the output"
            yield VerificationCheck(ORDER, False, detail, moved.example_ids)

    def _explain_missing_rows(self) -> str:
        missing, extra = self.stats.missing_rows.example_ids, self.stats.extra_rows.example_ids
        kinds = ["text" if isinstance(ids[0], str) else "numbers" for ids in (missing, extra) if ids]
        if len(set(kinds)) == 2:
            return f"the input's ids are {kinds[0]}, the output's are {kinds[1]}"
        if self.output.job_manifest.get("rejects") and not self._rejects.exists:
            return self._rejects.absence
        return ""

    def check_vectors(self) -> VerificationCheck:
        stats = self.stats
        if self._sample == set():
            return VerificationCheck("vectors", None, "no row was selected to be encoded again")
        if not stats.agreement.rows:
            return VerificationCheck("vectors", self.output.rows == 0, "no row could be compared")
        detail = f"{format_count(stats.agreement.rows, 'row')} encoded again: {stats.agreement}"
        return VerificationCheck("vectors", not stats.deviating_rows.count, detail, stats.deviating_rows.example_ids)


def sample_rows(rows: int, count: int | None, seed: int) -> set[int] | None:
    """Choose the positions of a random sample without replacement; None means every row."""
    if count is None or count >= rows:
        return None
    return set(np.random.default_rng(seed).choice(rows, count, replace=False).tolist())


def min_cosine(output: VectorDataset) -> float:
    """Return the lowest accepted cosine for the stored precision and the data type of the computation."""
    is_half_precision = str(output.vector_space.get("dtype", "float32")) not in ("float32", "auto")
    return MIN_COSINE[output.precision] - (HALF_PRECISION_TOLERANCE if is_half_precision else 0)


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
    """Run all checks of an output against its input.

    Args:
        output: The output.
        inputs: The inputs; empty for those recorded in the output.
        rows: Number of rows to encode again; None for all.
        seed: Seed of the sample.
        least: Lowest accepted cosine; chosen by precision by default.
        notify: Receives notes about the model.
        flags: Job options that override the recorded ones.

    Raises:
        UsageError: The output has no text hashes, or its input or model is not found.
        InputError: A checksum does not match, or an input cannot be read.
    """
    if "text_hash" not in output.schema.names:
        raise UsageError(f"{output.path} has no text hashes to compare with an input", "use --only-output")
    # In chunks as when the output was written: their size decides how much of a rejected row is listed.
    flags |= {"chunk_rows": (output.job_manifest.get("job") or {}).get("chunk_rows")}
    job = rebuild_recorded_job(output, "verify", inputs=inputs or find_recorded_inputs(output), **flags)
    checks = verify_output(output)
    threshold = min_cosine(output) if least is None else least
    with TextEncoder(job, with_prompt_source(notify, f"recorded in {output.path}")) as encoder:
        compared = compare_recorded_canaries(output, encoder.vector_space)
        checks = [check for check in checks if not compared or check.name != compared[0].name] + compared
        checks += Verifier(output, job, encoder, rows, seed, threshold).run()
    return allow_repeated_ids(checks)


def allow_repeated_ids(checks: list[VerificationCheck]) -> list[VerificationCheck]:
    """Accept duplicate ids if each row of the output was found in the input."""
    (ids,) = (check for check in checks if check.name == "ids")
    if not ids.passed and all(check.name != EXTRA for check in checks):
        ids.passed, ids.example_ids = True, []
        ids.detail += ", as in the input"
    return checks


def find_recorded_inputs(output: VectorDataset) -> tuple[str, ...]:
    """Find the recorded inputs, by their recorded path or beside the output.

    Raises:
        UsageError: An input is not found, or none is recorded.
    """
    names = (output.job_manifest.get("job") or {}).get("inputs") or ()
    paths = []
    for name in names:
        candidates = (name, storage.join(storage.parent_folder(output.path), storage.basename(name)))
        path = next((path for path in candidates if storage.get_file_system(path).kind(path) == "file"), None)
        if path is None:
            raise UsageError(
                f"{name}, the recorded input of {output.path}, is neither in the current folder nor beside the output "
                "(the names of inputs are recorded, not their folders)",
                f"give it: embedcli verify {output.path} INPUT",
            )
        paths.append(path)
    if not paths:
        raise UsageError(f"{output.path} has no record of its input", f"give it: embedcli verify {output.path} INPUT")
    return tuple(paths)

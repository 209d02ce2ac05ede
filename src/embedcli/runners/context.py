"""The context of a running job: what it reads, loads, encodes, counts and reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from embedcli import checkpoint, encoders, readers, storage
from embedcli.core.constants import DEFAULT_CHUNK_ROWS
from embedcli.core.counts import format_count
from embedcli.core.encoder import BaseEncoder
from embedcli.core.errors import OutputError, TooManyRejectsError, TooManyRemovedError, UsageError
from embedcli.core.job import Job
from embedcli.core.signals import exit_code_of_stop
from embedcli.core.types import Chunk, EncodedChunk, InputPlan, InputSplit, RunObserver, RunResult
from embedcli.outputs.schema import OutputLayout, create_vector_fields
from embedcli.outputs.target import FinishedOutput, OutputTarget, count_replaced_rows
from embedcli.outputs.vector_columns import read_ranges
from embedcli.pipeline import calibration, engine
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.prefetch import prefetch
from embedcli.pipeline.preparation import EncodingSettings
from embedcli.runners import row_progress
from embedcli.runners.canaries import keep_recorded_canaries
from embedcli.runners.job_identity import input_paths
from embedcli.runners.vector_space import apply_saved_truncation, build_layout, build_vector_space

if TYPE_CHECKING:
    from embedcli.checkpoint import Ledger
    from embedcli.core.quantization import Ranges
    from embedcli.models.files import ModelFiles
    from embedcli.outputs import reuse

Notify = Callable[[str], None]
EncoderLoader = Callable[[Job, Notify], BaseEncoder]
TOTAL_KEYS = ("read", "rows", "rejects", "tokens", "truncated", "lost_tokens")
STARTS_FILE = "_starts.json"
# Inputs of at most this size, some 200 rows, are encoded in about the time that the rest of the run takes.
FEW_TEXTS_BYTES = 1 << 16


@dataclass
class RunContext:
    """A running job.

    Attributes:
        job: The job, with its runner and rows per chunk resolved; it does not change during the run.
        plan: The input.
        model_files: The files of the model; None if it has none on this machine.
        observer: Receives messages and progress.
        control: Tells when to stop.
        metrics: Counters and timers.
        load_encoder_override: Loads the encoder in place of `encoders.load_encoder`.
        usage: What the encoder says that this run has used, if it counts that.
        rows_read: Rows that the reader has counted; each must end with a vector or as a reject.
        unfinished_splits: Indexes of the input splits that were not read to their end.
        worker_count: The number of workers, where the runner chooses it.
    """

    job: Job
    plan: InputPlan
    model_files: ModelFiles | None
    observer: RunObserver
    control: RunControl
    metrics: MetricsCollector
    load_encoder_override: EncoderLoader | None = None
    usage: Mapping[str, Any] | None = None
    rows_read: int = 0
    unfinished_splits: set[int] = field(default_factory=set)
    worker_count: int | None = None

    def with_chunk_rows(self, chunk_rows: int) -> RunContext:
        """Return the context of the same run with the number of rows per chunk resolved."""
        return replace(self, job=replace(self.job, chunk_rows=chunk_rows))

    # Reading

    def read_chunks(
        self, splits: Sequence[InputSplit] | None = None, starts: Mapping[int, readers.SplitStart] | None = None
    ) -> Iterator[Chunk]:
        """Read the chunks of some input splits, by default of all, and count their rows.

        Args:
            splits: The splits to read.
            starts: Where each of them starts, for generated ids, by index.
        """
        chosen = self.plan.splits if splits is None else splits
        self.unfinished_splits = {split.index for split in chosen}
        for chunk in readers.read_chunks(self.job, self.plan, chosen, starts):
            self.rows_read += chunk.rows_read
            if chunk.repeated_headers:
                self._notify_repeated_headers(chunk)
            if chunk.is_last:
                self.unfinished_splits.discard(chunk.input_split.index)
            yield chunk

    def _notify_repeated_headers(self, chunk: Chunk) -> None:
        """Tell which lines were skipped because they repeat the header."""
        lines = ", ".join(map(str, chunk.repeated_headers[:3])) + (", ..." if len(chunk.repeated_headers) > 3 else "")
        skipped = format_count(len(chunk.repeated_headers), "repeated header")
        self.observer.notify(f"{storage.format_location(chunk.input_split.path)}: skipped {skipped} (line {lines})")

    def load_split_starts(self, staging_folder: str) -> dict[int, readers.SplitStart] | None:
        """Return the row numbers at which the input splits start; None if ids come from a column.

        They are counted once for all runs and workers of a job and stored in the staging folder.
        """
        if self.plan.columns.id_column is not None:
            return None
        path = storage.join(staging_folder, STARTS_FILE)
        input_stats = storage.file_identities(input_paths(self.plan))
        if storage.exists(path):
            stored = json.loads(storage.read_bytes(path))
            if stored["inputs"] == input_stats and all(input_stats.values()):
                return {index: readers.SplitStart(*start) for index, start in enumerate(stored["starts"])}
        self.observer.on_phase("counting the rows")
        starts = readers.count_split_starts(self.job, self.plan)
        storage.write_bytes(path, json.dumps({"inputs": input_stats, "starts": starts}).encode())
        return dict(enumerate(starts))

    # Encoding

    def load_encoder(self) -> BaseEncoder:
        """Load the job's encoder."""
        self.observer.on_phase(f"loading the model {self.job.model}")
        if self.load_encoder_override is not None:
            return self.load_encoder_override(self.job, self.observer.notify)
        return encoders.load_encoder(
            self.job,
            self.model_files,
            self.observer.notify,
            self.control.stop_event,
            self.observer.on_phase,
            deadline=self.control.deadline,
            few_texts=self.plan.total_bytes is not None and self.plan.total_bytes <= FEW_TEXTS_BYTES,
        )

    def describe_output(
        self, encoder: BaseEncoder, staging_folder: str | None, finished: FinishedOutput | None = None
    ) -> tuple[OutputLayout, dict[str, Any]]:
        """Return the columns and the vector space metadata of the output; the arguments are those of `resolve_ranges`.

        Raises:
            ResumeError: The quantization ranges or the canaries differ from those that the output was begun with.
        """
        job = apply_saved_truncation(self.job, encoder)
        ranges = self.resolve_ranges(encoder, staging_folder, finished)
        vector_space = build_vector_space(job, encoder, ranges, self.model_files)
        vector_space = keep_recorded_canaries(vector_space, self.job.output, staging_folder, finished)
        return build_layout(job, self.plan, encoder, ranges), vector_space

    def resolve_ranges(
        self, encoder: BaseEncoder, staging_folder: str | None, finished: FinishedOutput | None = None
    ) -> Ranges:
        """Return the quantization ranges of int8 and uint8: those that are recorded, else those of a sample of rows.

        Args:
            encoder: The job's encoder.
            staging_folder: Where the ranges of the job are recorded; None for an output to stdout.
            finished: The output that --update replaces.

        Returns:
            Those of each column of vectors; empty for other number formats.

        Raises:
            ResumeError: The recorded ranges differ from those that the user asked for.
        """
        job = apply_saved_truncation(self.job, encoder)
        if not calibration.needs_ranges(job):
            return ()
        kept = read_ranges(finished.vector_space, job.output) if finished is not None else ()
        known = calibration.choose_known_ranges(job, staging_folder, kept)
        if not known:
            self.observer.on_phase(f"choosing the ranges of {job.precision} from a sample of the rows")
            chunks = readers.read_chunks(job, self.plan, self.plan.splits)
            settings = self.encoding_settings(encoder)
            return calibration.compute_ranges_from_sample(job, chunks, encoder, settings, staging_folder)
        if not kept:
            check_ranges_fit(job, known, encoder)
        return known

    def encoding_settings(self, encoder: BaseEncoder, store: reuse.ReuseStore | None = None) -> EncodingSettings:
        """Return the settings of the pipeline; `store` holds the vectors that --update and --reuse take over."""
        lookup = store.lookup if store is not None else None
        space = encoder.vector_space()
        prompt = str(space.get("prompt") or "")
        return EncodingSettings.from_job(self.job, prompt, lookup, saved_dim=space.get("truncate_dim"))

    def encode(
        self, chunks: Iterable[Chunk], encoder: BaseEncoder, store: reuse.ReuseStore | None = None
    ) -> Iterator[EncodedChunk]:
        """Encode chunks; reading, tokenizing and the forward pass run in threads of their own.

        The caller writes the encoded chunks, and closes the generator.
        """
        settings = self.encoding_settings(encoder, store)
        self.control.has_started = True

        def read(stream: Iterator[Chunk]) -> Iterator[Chunk]:
            return self.metrics.time_items("read", stream)

        prefetched = prefetch(read, chunks, cancel=self.control.stop_event)
        return engine.encode_chunks(prefetched, encoder, settings, self.metrics, self.control, self.report_progress)

    # Counting

    def start_embedding(self, splits: Sequence[InputSplit], finished_rows: int = 0) -> None:
        """Tell the observer that rows start to flow; the start-up ends here.

        Args:
            splits: The splits that this run reads.
            finished_rows: Rows of the others that are finished.
        """
        self.metrics.mark_embedding_start()
        expected = row_progress.expect_rows(self.plan, splits, finished_rows, self.job.limit)
        self.observer.on_start(expected, self.metrics)

    def end_embedding(self, next_phase: str) -> None:
        """Tell the observer that all rows are done, and what comes next."""
        self.metrics.mark_embedding_end()
        self.observer.on_phase(next_phase)

    def report_progress(self) -> None:
        """Tell the observer how far this run is."""
        self.observer.on_progress(self.metrics.progress)

    def skip_finished_chunks(self, chunks: Iterable[Chunk], ledger: Ledger) -> Iterator[Chunk]:
        """Yield the chunks without a part file, and count the others as resumed."""
        return row_progress.skip_finished_chunks(
            chunks, ledger.skip_finished_chunks, self.metrics.progress, self.report_progress
        )

    def on_chunk_written(self, encoded: EncodedChunk, rejects: int, kept: Ledger | checkpoint.RejectCounter) -> None:
        """Count and report a chunk that has been written.

        Args:
            encoded: The chunk.
            rejects: The number of rejected rows of the output so far.
            kept: As for `check_max_rejects`.

        Raises:
            TooManyRejectsError: There are more than --max-rejects.
        """
        self.metrics.rows += encoded.embedded_rows
        self.metrics.progress.written_rows += encoded.embedded_rows
        self.metrics.bytes_read = encoded.chunk.bytes_read
        self.report_progress()
        check_max_rejects(self.job.max_rejects, rejects, None, kept)

    def record_usage(self, encoder: BaseEncoder) -> None:
        """Record what the encoder says that this run has used."""
        self.usage = encoder.usage()

    def check_row_conservation(self, totals: Mapping[str, int]) -> None:
        """Check that every row read has a vector or a reject, and that every split was read to its end.

        Raises:
            OutputError: Rows are missing.
        """
        if self.unfinished_splits or not totals["read"] == self.rows_read == totals["rows"] + totals["rejects"]:
            raise OutputError(
                f"{self.rows_read} rows were read, but {totals['rows']} embedded and {totals['rejects']} rejected "
                f"({len(self.unfinished_splits)} input splits were not read to their end); nothing was published",
                "this should never happen: please report it with the run report",
            )

    def stopped_result(self, totals: dict[str, int], rows_written: int, next_step: str = "") -> RunResult:
        """Return the result of a run that was stopped.

        Args:
            totals: The counts of `TOTAL_KEYS` of what is kept.
            rows_written: Rows of the input among them, rejects included, that this run has written.
            next_step: What the user can do now; by default how to go on.
        """
        progress = self.metrics.progress
        lost_rows = max(0, progress.done_rows - progress.resumed_rows - rows_written)
        reason = f"stopped by {self.control.reason}"
        if lost_rows and not rows_written:
            chunk = format_count(self.job.chunk_rows or 1, "row")
            lost = format_count(lost_rows, "computed row is", "computed rows are")
            reason += f" before a chunk of {chunk} was finished, so {lost} lost"
        return RunResult(
            exit_code_of_stop(self.control.reason or ""),
            f"{reason}: {next_step or self._describe_next_step(has_kept_rows=bool(totals['read']))}",
            totals,
            resumed_rows=totals["read"] - rows_written,
            lost_rows=lost_rows,
            usage=self.usage,
        )

    def _describe_next_step(self, *, has_kept_rows: bool) -> str:
        """Say how to go on after a stop."""
        if not has_kept_rows:
            return "run the same command again; a smaller --chunk-rows keeps rows sooner"
        # With --overwrite the finished chunks would be discarded.
        return f"run the same command {'without --overwrite' if self.job.overwrite else 'again'} to go on"


def check_ranges_fit(job: Job, ranges: Ranges, encoder: BaseEncoder) -> None:
    """Raise UsageError unless the ranges of --ranges-from are for the columns of vectors that a job writes."""
    fields = create_vector_fields(encoders.stored_dims(job, encoder), job.precision)
    if len(ranges) != len(fields):
        raise UsageError(
            f"{job.ranges_from} has ranges for {format_count(len(ranges), 'column')} of vectors, and this job writes "
            f"{len(fields)}",
            "name an output of the same model and --heads",
        )
    for column, own in zip(fields, ranges, strict=True):
        if own.shape[1] != column.ranges_width:
            needed = "sparse ones share one" if column.kind == "sparse" else f"the vectors have {column.dim}"
            raise UsageError(
                f"{job.ranges_from} has ranges for {format_count(own.shape[1], 'dimension')}, {needed}",
                "name an output of the same model and --truncate-dim",
            )


def describe_lost_chunk(chunk_rows: int | None) -> str:
    """Describe that a run has ended within its first chunk."""
    return f"no chunk of {chunk_rows or DEFAULT_CHUNK_ROWS:,} rows was finished: a smaller --chunk-rows loses less"


def describe_rejected_rows(rejects: int) -> str:
    """Return "1 row was" or "2 rows were"."""
    return format_count(rejects, "row was", "rows were")


def check_max_rejects(
    limit: str | None, rejects: int, rows_read: int | None, kept: Ledger | checkpoint.RejectCounter
) -> None:
    """Apply --max-rejects.

    Args:
        limit: A number of rows, or a percentage such as "0.1%"; None for no limit.
        rejects: The number of rejected rows.
        rows_read: The number of all rows; None while it is not known, and then percentages are not checked.
        kept: Has the rejects so far. Those of a ledger are written to a file of their own.

    Raises:
        TooManyRejectsError: There are more rejects than the limit.
    """
    if limit is None:
        return
    is_percentage = limit.endswith("%")
    if (not is_percentage or rows_read is not None) and rejects > rows_allowed(limit, rows_read or 0):
        hint = "correct the input, or raise --max-rejects"
        if isinstance(kept, checkpoint.RejectCounter):
            summary = kept.summary()
        else:
            summary = checkpoint.save_unpublished_rejects(kept.target, kept.all_parts())
            path = storage.format_location(kept.target.unpublished_rejects_path)
            hint = f"look at the rejected rows in {path}, {hint}"
        reasons = f" ({summary.format_reasons()})" if summary is not None else ""
        error = TooManyRejectsError(
            f"{describe_rejected_rows(rejects)} rejected, more than --max-rejects {limit} allows{reasons}; "
            "the output was not published",
            hint,
        )
        error.rejects = summary
        raise error


def check_max_removed(limit: str, target: OutputTarget, rows: int) -> None:
    """Apply --max-removed: never replace an output by an empty or much smaller one without being told.

    Args:
        limit: A number of rows, or a percentage of the rows of the existing output, such as "50%".
        target: The output, before publishing.
        rows: The rows of the new output.

    Raises:
        TooManyRemovedError: The existing output has more rows than the new one, by more than the limit.
    """
    old_rows = count_replaced_rows(target)
    shown = "rows of an unknown number" if old_rows is None else format_count(old_rows, "row")
    is_emptied = old_rows is None and rows == 0 and rows_allowed(limit, 100) < 100
    if is_emptied or (old_rows is not None and old_rows - rows > rows_allowed(limit, old_rows)):
        raise TooManyRemovedError(
            f"{storage.format_location(target.output)} has {shown}, the new output {rows}: more would be removed than "
            f"--max-removed {limit} allows; the old output was kept",
            "check the inputs; if they are right, run the same command again with --max-removed 100%",
        )


def rows_allowed(limit: str, rows: int) -> float:
    """How many of `rows` rows a limit allows: a number of rows, or a percentage such as "0.1%"."""
    return float(limit[:-1]) / 100 * rows if limit.endswith("%") else float(limit)

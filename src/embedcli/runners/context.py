"""A job on its way: what it reads and runs on, what it counts, and who follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from embedcli import encoders, readers
from embedcli.core.encoder import BaseEncoder
from embedcli.core.errors import OutputError, TooManyRejectsError
from embedcli.core.job import Job
from embedcli.core.types import Chunk, EncodedChunk, InputPlan, InputSplit, RunObserver
from embedcli.outputs import reuse
from embedcli.pipeline import engine
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.prefetch import prefetch
from embedcli.pipeline.preparation import EncodingSettings

if TYPE_CHECKING:
    from embedcli.models.files import ModelFiles

Notify = Callable[[str], None]
EncoderLoader = Callable[[Job, Notify], BaseEncoder]
TOTAL_KEYS = ("read", "rows", "rejects", "tokens", "truncated", "lost_tokens")


@dataclass
class RunContext:
    """A job on its way. `read` is the reader's own count of rows, one side of the conservation law.

    `job` stays as it is given. `worker_count` is set by runners that choose the number of workers themselves.
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

    def read_chunks(
        self, splits: Sequence[InputSplit] | None = None, starts: Mapping[int, readers.SplitStart] | None = None
    ) -> Iterator[Chunk]:
        """All chunks of some pieces, of the whole plan if none are named."""
        chosen = self.plan.splits if splits is None else splits
        self.unfinished_splits = {piece.index for piece in chosen}
        for chunk in readers.read_chunks(self.job, self.plan, chosen, starts):
            self.rows_read += chunk.rows_read
            if chunk.is_last:
                self.unfinished_splits.discard(chunk.input_split.index)
            yield chunk

    def load_encoder(self) -> BaseEncoder:
        """The job's encoder, ready to run."""
        if self.load_encoder_override is not None:
            return self.load_encoder_override(self.job, self.observer.notify)
        return encoders.load_encoder(self.job, self.model_files, self.observer.notify, self.control.stop_event)

    def encoding_settings(self, encoder: BaseEncoder, store: reuse.ReuseStore | None = None) -> EncodingSettings:
        """What the engine needs of the job."""
        known = store.lookup if store is not None else None
        job = apply_saved_truncation(self.job, encoder)
        return EncodingSettings.from_job(job, str(encoder.vector_space().get("prompt") or ""), known)

    def encode(
        self, chunks: Iterable[Chunk], encoder: BaseEncoder, store: reuse.ReuseStore | None = None
    ) -> Iterator[EncodedChunk]:
        """The stages reader | tokenizer | forward in their threads; the caller is the writer. Close it."""
        settings = self.encoding_settings(encoder, store)
        self.control.has_started = True

        def read(stream: Iterator[Chunk]) -> Iterator[Chunk]:
            return self.metrics.time_items("read", stream)

        return engine.encode_chunks(
            prefetch(read, chunks, cancel=self.control.stop_event), encoder, settings, self.metrics, self.control
        )

    def on_chunk_written(self, encoded: EncodedChunk, rejects: int) -> None:
        """Tell who follows, and stop if a number of rejects is exceeded."""
        self.metrics.rows += encoded.embedded_rows
        self.metrics.bytes_read = encoded.chunk.bytes_read
        self.observer.on_progress(self.rows_read, encoded.chunk.bytes_read)
        check_max_rejects(self.job.max_rejects, rejects, None)

    def record_usage(self, encoder: BaseEncoder) -> None:
        """Remember what the encoder has cost."""
        self.usage = encoder.usage()

    def check_row_conservation(self, totals: Mapping[str, int]) -> None:
        """OutputError unless every row read has a vector or a reject, and every piece was read to its end."""
        if self.unfinished_splits or not totals["read"] == self.rows_read == totals["rows"] + totals["rejects"]:
            raise OutputError(
                f"{self.rows_read} rows were read, but {totals['rows']} embedded and {totals['rejects']} rejected "
                f"({len(self.unfinished_splits)} pieces of the input not read to their end); nothing was published",
                "this should never happen: please report it with the run report",
            )


def apply_saved_truncation(job: Job, encoder: BaseEncoder) -> Job:
    """The job with the truncation that the model's own files ask for, unless the user named one."""
    return (
        job if job.truncate_dim is not None else replace(job, truncate_dim=encoder.vector_space().get("truncate_dim"))
    )


def check_max_rejects(most: str | None, rejects: int, read: int | None) -> None:
    """Apply --max-rejects: a number at once, a share (`0.1%`) when all rows are `read`."""
    if most is None:
        return
    share = float(most[:-1]) / 100 if most.endswith("%") else None
    allowed = float(most) if share is None else share * (read or 0)
    if (share is None or read is not None) and rejects > allowed:
        raise TooManyRejectsError(
            f"{rejects} rows were rejected, more than --max-rejects {most} allows; the output was not published",
            "look at the rejected rows in the staged parts, mend the input, or raise --max-rejects",
        )

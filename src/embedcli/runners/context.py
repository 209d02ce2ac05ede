"""A job on its way: what it reads and runs on, what it counts, and who follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedcli import encoders, readers
from embedcli.core.encoder import BaseEncoder
from embedcli.core.errors import OutputError, TooManyRejects
from embedcli.core.job import Job
from embedcli.core.types import Chunk, Encoded, Piece, Plan, Watch
from embedcli.outputs import reuse
from embedcli.pipeline import engine
from embedcli.pipeline.control import Control
from embedcli.pipeline.metrics import Meter
from embedcli.pipeline.prefetch import ahead
from embedcli.pipeline.preparation import Settings

if TYPE_CHECKING:
    from embedcli.models.files import ModelFiles

Notify = Callable[[str], None]
Load = Callable[[Job, Notify], BaseEncoder]
TOTALS = ("read", "rows", "rejects", "tokens", "truncated", "lost_tokens")


@dataclass
class Run:
    """A job on its way. `read` is the reader's own count of rows, one side of the conservation law."""

    job: Job
    plan: Plan
    files: ModelFiles | None
    watch: Watch
    control: Control
    meter: Meter
    loader: Load | None = None
    usage: Mapping[str, Any] | None = None
    read: int = 0
    open_pieces: set[int] = field(default_factory=set)

    def chunks(
        self, pieces: Sequence[Piece] | None = None, starts: Mapping[int, readers.Start] | None = None
    ) -> Iterator[Chunk]:
        """All chunks of some pieces, of the whole plan if none are named."""
        chosen = self.plan.pieces if pieces is None else pieces
        self.open_pieces = {piece.index for piece in chosen}
        for chunk in readers.read(self.job, self.plan, chosen, starts):
            self.read += chunk.read
            if chunk.last:
                self.open_pieces.discard(chunk.piece.index)
            yield chunk

    def load(self) -> BaseEncoder:
        """The job's encoder, ready to run."""
        if self.loader is not None:
            return self.loader(self.job, self.watch.line)
        return encoders.load(self.job, self.files, self.watch.line, self.control.now)

    def settings(self, encoder: BaseEncoder, store: reuse.Store | None = None) -> Settings:
        """What the engine needs of the job."""
        known = store.lookup if store is not None else None
        return Settings.of(self.job, str(encoder.space().get("prompt") or ""), known)

    def encode(
        self, chunks: Iterable[Chunk], encoder: BaseEncoder, store: reuse.Store | None = None
    ) -> Iterator[Encoded]:
        """The stages reader | tokenizer | forward in their threads; the caller is the writer. Close it."""
        settings = self.settings(encoder, store)
        self.control.begun = True

        def read(stream: Iterator[Chunk]) -> Iterator[Chunk]:
            return self.meter.timed("read", stream)

        return engine.encode(ahead(read, chunks, cancel=self.control.now), encoder, settings, self.meter, self.control)

    def wrote(self, encoded: Encoded, rejects: int) -> None:
        """Tell who follows, and stop if a number of rejects is exceeded."""
        self.meter.rows += encoded.embedded
        self.meter.done_bytes = encoded.chunk.done_bytes
        self.watch.progress(self.read, encoded.chunk.done_bytes)
        refuse_rejects(self.job.max_rejects, rejects, None)

    def used(self, encoder: BaseEncoder) -> None:
        """Remember what the encoder has cost."""
        self.usage = encoder.usage()

    def balance(self, totals: Mapping[str, int]) -> None:
        """OutputError unless every row read has a vector or a reject, and every piece was read to its end."""
        if self.open_pieces or not totals["read"] == self.read == totals["rows"] + totals["rejects"]:
            raise OutputError(
                f"{self.read} rows were read, but {totals['rows']} embedded and {totals['rejects']} rejected "
                f"({len(self.open_pieces)} pieces of the input not read to their end); nothing was published",
                "this should never happen: please report it with the run report",
            )


def refuse_rejects(most: str | None, rejects: int, read: int | None) -> None:
    """Apply --max-rejects: a number at once, a share (`0.1%`) when all rows are `read`."""
    if most is None:
        return
    share = float(most[:-1]) / 100 if most.endswith("%") else None
    allowed = float(most) if share is None else share * (read or 0)
    if (share is None or read is not None) and rejects > allowed:
        raise TooManyRejects(
            f"{rejects} rows were rejected, more than --max-rejects {most} allows; the output was not published",
            "look at the rejected rows in the staged parts, mend the input, or raise --max-rejects",
        )

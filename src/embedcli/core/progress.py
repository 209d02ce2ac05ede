"""How far a run is: the rows that it will read, and the rows and tokens that are done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExpectedRows:
    """What is known about the rows of a run before they are read.

    Attributes:
        finished_rows: Rows that earlier runs finished and that this run does not read again.
        rows_to_read: Rows that this run will read; None unless they are counted, as in a Parquet footer.
        bytes_to_read: Bytes of the inputs that this run will read; None for a stream.
        splits_to_read: Input splits that this run will read.
        limit: At most about this many rows are embedded; None without a limit.
        activity: What is done with the rows, in a word.
    """

    finished_rows: int = 0
    rows_to_read: int | None = None
    bytes_to_read: int | None = None
    splits_to_read: int = 1
    limit: int | None = None
    activity: str = "embedding"


@dataclass
class ProgressCounts:
    """What a run has done so far. Each field is written by one stage only, and only grows.

    A row is done once its vector is there or it was rejected: rows that were only read or tokenized are not.

    Attributes:
        rows_read: Rows that the reader has returned, bad ones included.
        bytes_read: Bytes of the inputs that these rows took.
        splits_read: Input splits that were read to their end.
        resumed_rows: Rows among them that earlier runs of the job finished.
        skipped_rows: Rows that need no computation: bad ones, and those with a vector in an earlier output.
        tokenized_rows: Rows that were handed to the encoder, `skipped_rows` included.
        tokenized_tokens: Tokens that the encoder has to read for these.
        embedded_rows: Rows that the encoder has returned a vector or a reject for.
        embedded_tokens: Tokens that it has read for these.
        written_rows: Rows whose vectors this run has written to disk.
        batches: Batches that it has returned.
        requests: Requests to a hosted model.
        billed_tokens: Tokens that its server reported.
    """

    rows_read: int = 0
    bytes_read: int = 0
    splits_read: int = 0
    resumed_rows: int = 0
    skipped_rows: int = 0
    tokenized_rows: int = 0
    tokenized_tokens: int = 0
    embedded_rows: int = 0
    embedded_tokens: int = 0
    written_rows: int = 0
    batches: int = 0
    requests: int = 0
    billed_tokens: int = 0

    @property
    def done_rows(self) -> int:
        """Rows of the inputs read by this run that have a vector or were rejected."""
        return self.resumed_rows + self.skipped_rows + self.embedded_rows

    def add(self, other: ProgressCounts) -> None:
        """Add the counts of a worker."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

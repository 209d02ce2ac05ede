"""Count rows for progress: what a run will read, what it has read, and what earlier runs finished."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from embedcli.core.progress import ExpectedRows, ProgressCounts
from embedcli.core.types import Chunk, InputPlan, InputSplit

SkipFinished = Callable[[Iterable[Chunk]], Iterator[Chunk]]


def expect_rows(
    plan: InputPlan, splits: Sequence[InputSplit], finished_rows: int = 0, limit: int | None = None
) -> ExpectedRows:
    """Return what is known of the rows of some splits before they are read.

    Args:
        plan: The input, with all splits.
        splits: The splits that the run reads.
        finished_rows: Rows of the others that are finished.
        limit: The value of --limit.
    """
    rows = sum(plan.rows_per_split[split.index] for split in splits)
    all_rows = sum(plan.rows_per_split)
    share = rows / all_rows if all_rows else 1.0
    return ExpectedRows(
        finished_rows=finished_rows,
        rows_to_read=None if plan.total_rows is None else rows,
        bytes_to_read=None if plan.total_bytes is None else round(plan.total_bytes * share),
        splits_to_read=len(splits),
        limit=limit,
    )


def count_read_rows(chunks: Iterable[Chunk], counts: ProgressCounts) -> Iterator[Chunk]:
    """Yield chunks as they are read, and count their rows and bytes."""
    for chunk in chunks:
        counts.rows_read += chunk.rows_read
        counts.bytes_read = chunk.bytes_read
        counts.splits_read += chunk.is_last
        yield chunk


def skip_finished_chunks(
    chunks: Iterable[Chunk], skip_finished: SkipFinished, counts: ProgressCounts, on_skip: Callable[[], None]
) -> Iterator[Chunk]:
    """Yield the chunks that `skip_finished` leaves, and count the rows of the others as resumed.

    Args:
        chunks: Chunks as they are read.
        skip_finished: Leaves out chunks that earlier runs have finished.
        counts: Gets the counts.
        on_skip: Called after each chunk that was left out.
    """
    yielded: list[Chunk] = []

    def watch() -> Iterator[Chunk]:
        for chunk in count_read_rows(chunks, counts):
            yielded.clear()
            yield chunk
            if not yielded:
                counts.resumed_rows += chunk.rows_read
                on_skip()

    for chunk in skip_finished(watch()):
        yielded.append(chunk)
        yield chunk

"""Encode rows to stdout, in this process."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import replace

from embedcli import checkpoint
from embedcli.core.errors import EncodingStoppedError, UsageError
from embedcli.core.types import EncodedChunk, OutputFormat, Reject, RunResult
from embedcli.outputs import writers
from embedcli.runners import row_progress
from embedcli.runners.completion import finished_result
from embedcli.runners.context import TOTAL_KEYS, RunContext, check_max_rejects

STOPPED_HINT = "stdout holds only the rows so far"


def encode_to_stdout(run: RunContext) -> RunResult:
    """Encode all rows and write them to stdout as they are done; such a run cannot be resumed.

    Rejects are reported to the observer as JSON lines.
    """
    output_format = writers.resolve_output_format(run.job.output, run.job.to)
    if output_format == "arrow" and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError("an Arrow stream cannot be written to a terminal", "use --to jsonl, or redirect stdout")
    totals = dict.fromkeys(TOTAL_KEYS, 0)
    try:
        return write_rows(run, output_format, totals)
    except EncodingStoppedError:  # before the first row; afterwards the pipeline ends without an error
        if not run.control.stop_if_time_is_over():
            raise
        return run.stopped_result(totals, 0, STOPPED_HINT)


def write_rows(run: RunContext, output_format: OutputFormat, totals: dict[str, int]) -> RunResult:
    """Encode all rows, write them to stdout and add their counts to `totals`."""
    counter = checkpoint.RejectCounter()
    with closing(run.load_encoder()) as encoder:
        layout, vector_space = run.describe_output(encoder, None)
        writer = writers.StdoutWriter(output_format, layout, {writers.SPACE_METADATA_KEY: vector_space})
        run.start_embedding(run.plan.splits)
        chunks = row_progress.count_read_rows(run.read_chunks(), run.metrics.progress)
        with closing(run.encode(chunks, encoder)) as encoded_chunks:  # type: ignore[type-var]
            for encoded in encoded_chunks:
                with run.metrics.time_stage("write"):
                    writer.write(encoded)
                rejects = sorted((*encoded.chunk.rejects, *encoded.rejects), key=lambda reject: reject.line)
                add_to_totals(totals, encoded, rejects)
                for reject in rejects:
                    counter.add(reject)
                    line = checkpoint.reject_to_json_line(reject).decode().rstrip("\n")
                    run.observer.notify(f"rejected {line}")
                run.on_chunk_written(encoded, totals["rejects"], counter)
        run.end_embedding("finishing the output")
        writer.close()
        run.record_usage(encoder)
    if run.control.reason is not None:
        return run.stopped_result(totals, totals["read"], STOPPED_HINT)
    run.check_row_conservation(totals)
    check_max_rejects(run.job.max_rejects, totals["rejects"], totals["read"], counter)
    return replace(finished_result(totals, vector_space), usage=run.usage, reject_summary=counter.summary())


def add_to_totals(totals: dict[str, int], encoded: EncodedChunk, rejects: list[Reject]) -> None:
    """Add the counts of a chunk to the totals."""
    totals["read"] += encoded.chunk.rows_read
    totals["rejects"] += len(rejects)
    totals["rows"] += encoded.embedded_rows
    totals["tokens"] += int(encoded.n_tokens.sum())
    totals["truncated"] += int(encoded.is_truncated.sum())
    totals["lost_tokens"] += encoded.lost_tokens

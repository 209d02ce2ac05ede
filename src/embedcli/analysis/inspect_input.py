"""Describe an input in one pass: rows, rejects by reason, text lengths in characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from embedcli import readers, storage
from embedcli.analysis.inspect_output import SAMPLE_ROWS, to_json_value
from embedcli.analysis.quantiles import StreamingQuantiles
from embedcli.core.job import Job
from embedcli.readers.csv_dialect import CsvOptions
from embedcli.readers.preview import preview_input

# Rows of JSONL inputs that are read to list the columns.
PREVIEW_ROWS = 1000


def describe_input(job: Job) -> dict[str, Any]:
    """Describe an input for `embedcli inspect`, as JSON values. No model is loaded.

    Raises:
        UsageError: No text column can be found.
        InputError: A file cannot be read.
    """
    plan = readers.plan_inputs(job)
    lengths, reasons = StreamingQuantiles(), Counter[str]()
    samples: list[dict[str, Any]] = []
    rows = characters = 0
    for chunk in readers.read_chunks(job, plan, plan.splits):
        counts = np.fromiter(map(len, chunk.texts), np.int64, len(chunk.texts))
        lengths.add(counts)
        characters += int(counts.sum())
        rows += chunk.rows_read
        shown = SAMPLE_ROWS - len(samples)
        ids = chunk.ids[:shown].to_pylist()
        samples += [
            {"id": to_json_value(key), "text": text} for key, text in zip(ids, chunk.texts[:shown], strict=True)
        ]
        reasons.update(reject.kind for reject in chunk.rejects)
    return {
        "path": ", ".join(map(storage.mask_secrets, job.inputs)),
        "kind": "input",
        "files": {path: plan.formats[path] for path in dict.fromkeys(split.path for split in plan.splits)},
        "bytes": plan.total_bytes,
        "rows": rows,
        "good_rows": lengths.count,
        "rejected": sum(reasons.values()),
        "rejects": dict(reasons.most_common()),
        "text_column": plan.columns.text_column,
        "template": plan.columns.template,
        "id_column": plan.columns.id_column,
        "id_type": str(plan.columns.id_type),
        "columns": list_columns(job, list(plan.formats)),
        "notes": list(plan.columns.notes),
        "characters": {"total": characters, **(lengths.summary(median=0.5, p95=0.95) or {})},
        "samples": samples,
    }


def list_columns(job: Job, paths: Sequence[str]) -> dict[str, str]:
    """List columns, with the fields of objects, and their types; those of JSONL inputs from their first rows."""
    columns: dict[str, str] = {}
    for path in paths:
        preview = preview_input(path, job.format, job.encoding, PREVIEW_ROWS, csv_options=CsvOptions.from_job(job))
        for name, column_type in preview.flat_column_types.items():
            columns.setdefault(name, str(column_type))
    return columns

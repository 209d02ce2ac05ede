"""Rows of text from JSONL, CSV, TSV and Parquet: `plan` finds out what there is, `read` streams it in chunks."""

from embedcli.readers.planner import plan, shares
from embedcli.readers.reader import Start, read, row_starts

__all__ = ["Start", "plan", "read", "row_starts", "shares"]

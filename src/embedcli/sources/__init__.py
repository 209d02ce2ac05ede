"""Rows of text from JSONL, CSV, TSV and Parquet: `plan` finds out what there is, `read` streams it in chunks."""

from embedcli.sources.planning import plan, shares
from embedcli.sources.reading import Start, read, row_starts

__all__ = ["Start", "plan", "read", "row_starts", "shares"]

"""Rows of text from JSONL, CSV, TSV and Parquet: `plan` finds out what there is, `read` streams it in chunks."""

from embedcli.readers.planner import group_into_partitions, plan_inputs
from embedcli.readers.reader import SplitStart, count_split_starts, read_chunks

__all__ = ["SplitStart", "count_split_starts", "group_into_partitions", "plan_inputs", "read_chunks"]

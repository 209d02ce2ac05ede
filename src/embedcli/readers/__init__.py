"""Read rows of text from JSON, CSV, TSV, plain text, Parquet and Arrow: `plan_inputs`, then `read_chunks`."""

from embedcli.readers.planner import group_into_partitions, plan_inputs
from embedcli.readers.reader import SplitStart, count_split_starts, read_chunks

__all__ = ["SplitStart", "count_split_starts", "group_into_partitions", "plan_inputs", "read_chunks"]

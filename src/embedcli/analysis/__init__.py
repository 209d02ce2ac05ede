"""The reading side: open a finished output; search, compare, verify, measure and map its vectors."""

from embedcli.outputs.dataset import Block, Output, is_output, open_output

__all__ = ["Block", "Output", "is_output", "open_output"]

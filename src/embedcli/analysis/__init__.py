"""The reading side: open a finished output; search, compare, verify, measure and map its vectors."""

from embedcli.outputs.dataset import VectorBlock, VectorDataset, holds_vectors, open_dataset

__all__ = ["VectorBlock", "VectorDataset", "holds_vectors", "open_dataset"]

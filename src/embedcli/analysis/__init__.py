"""Search, compare, verify, evaluate, plot and inspect finished outputs."""

from embedcli.outputs.dataset import VectorBlock, VectorDataset, holds_vectors, open_dataset

__all__ = ["VectorBlock", "VectorDataset", "holds_vectors", "open_dataset"]

"""Run a pipeline on a few texts, as sentence-transformers does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def run_on_texts(pipeline: Any, texts: Sequence[str], task: str | None = None) -> dict[str, Any]:
    """Return the outputs of a pipeline for some texts in one batch, on its device.

    Args:
        pipeline: A SentenceTransformer, SparseEncoder or MultiVectorEncoder.
        texts: The texts, without a prompt.
        task: The route of a Router, if the pipeline has one.
    """
    import torch
    from sentence_transformers.util import batch_to_device

    with torch.inference_mode():
        features = pipeline.preprocess(list(texts), **({"task": task} if task else {}))
        outputs: dict[str, Any] = pipeline(batch_to_device(features, pipeline.device))
        return outputs

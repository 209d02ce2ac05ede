"""SPLADE pooling without a second array of [batch, tokens, vocabulary]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def install_fast_pooling(pipeline: Any) -> None:
    """Replace the SPLADE pooling by maximum in a pipeline by one that gives the same numbers in less memory and time.

    log(1 + relu(x)) rises with x, so that the maximum over the tokens may be taken first: the logarithm is then
    computed once for a row and not for each of its tokens. Pooling by sum is left as it is.

    Args:
        pipeline: A SentenceTransformer or SparseEncoder.
    """
    for name, module in list(pipeline.named_children()):
        if type(module).__name__ == "SpladePooling" and module.pooling_strategy == "max":
            setattr(pipeline, name, _build_max_pooling(module))


def _build_max_pooling(original: Any) -> Any:
    import torch

    has_second_logarithm = original.activation_function == "log1p_relu"

    class SpladeMaxPooling(torch.nn.Module):
        """From `token_embeddings` [batch, tokens, vocabulary] to `sentence_embedding` [batch, vocabulary]."""

        def __init__(self) -> None:
            super().__init__()
            self.original = original

        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            if "cu_seq_lens_q" in features:
                pooled: dict[str, torch.Tensor] = self.original(features)
                return pooled
            logits, mask = features["token_embeddings"], features["attention_mask"]
            # Padding becomes 0, which no maximum of relu(x) falls below.
            weights = (logits * mask.unsqueeze(-1).to(logits.dtype)).amax(dim=1).relu().log1p()
            features["sentence_embedding"] = weights.log1p() if has_second_logarithm else weights
            return features

        def get_embedding_dimension(self) -> int | None:
            size: int | None = self.original.get_embedding_dimension()
            return size

    return SpladeMaxPooling()

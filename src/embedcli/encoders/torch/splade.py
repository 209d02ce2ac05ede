"""SPLADE without an array of [batch, tokens, vocabulary]: the vocabulary is computed in blocks, each pooled at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from embedcli.encoders.torch.run_texts import run_on_texts

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

# Words of the vocabulary that are computed together: a batch of 512 tokens then needs 4 MB and not 62 MB.
BLOCK_WORDS = 2048
PROBE_TEXTS = ["a", "Some words of a text, and 向量."]
MAX_PROBE_DIFFERENCE = 1e-4


def install_fast_pooling(pipeline: Any) -> None:
    """Replace the pooling by maximum of a SPLADE model by one that gives the same numbers in less memory and time.

    log(1 + relu(x)) rises with x, so that the maximum over the tokens may be taken first: the logarithm is computed
    once for a row and not for each of its tokens. The layer that turns hidden states into a number for each word
    moves into the pooling, which computes some thousand words at a time. If the vectors of two short texts change by
    that, the model is left as it was. Pooling by sum is left as it is.

    Args:
        pipeline: A SentenceTransformer or SparseEncoder.
    """
    children = list(pipeline.named_children())
    names = [
        name
        for name, module in children
        if type(module).__name__ == "SpladePooling" and module.pooling_strategy == "max"
    ]
    if len(names) != 1 or children[0][0] == names[0]:
        return
    name, network = names[0], getattr(children[0][1], "model", None)
    original = getattr(pipeline, name)
    layer = _find_output_layer(network)
    expected = _encode_probe(pipeline)
    setattr(pipeline, name, _build_max_pooling(original, layer))
    identity = _build_identity()
    _replace_module(network, layer, identity)
    try:
        difference = float((_encode_probe(pipeline) - expected).abs().max())
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        log.debug("the SPLADE pooling is not replaced: %s", error)
        difference = float("inf")
    if not difference <= MAX_PROBE_DIFFERENCE:
        setattr(pipeline, name, original)
        _replace_module(network, identity, layer)


def _find_output_layer(network: Any) -> Any:
    """The linear layer from hidden states to a number for each word; None if the network does not show it."""
    import torch

    find: Callable[[], Any] | None = getattr(network, "get_output_embeddings", None)
    layer = find() if find is not None else None
    return layer if type(layer) is torch.nn.Linear else None


def _replace_module(network: Any, old: Any, new: Any) -> None:
    """Put a module in the place of another wherever a network holds it; nothing if there is none to replace."""
    if network is None or old is None or new is None:
        return
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


def _build_identity() -> Any:
    import torch

    return torch.nn.Identity()


def _encode_probe(pipeline: Any) -> Any:
    return run_on_texts(pipeline, PROBE_TEXTS)["sentence_embedding"].float().cpu()


def _build_max_pooling(original: Any, layer: Any) -> Any:
    import torch

    has_second_logarithm = original.activation_function == "log1p_relu"

    class SpladeMaxPooling(torch.nn.Module):
        """From `token_embeddings`, hidden states or numbers per word, to `sentence_embedding` [batch, vocabulary]."""

        def __init__(self) -> None:
            super().__init__()
            self.size = original.get_embedding_dimension()
            self.blocks = torch.nn.ModuleList(_split_layer(layer) if layer is not None else [torch.nn.Identity()])

        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            hidden = repeat_token_in_padding(features["token_embeddings"], features["attention_mask"])
            largest = torch.cat([block(hidden).amax(dim=1) for block in self.blocks], dim=-1)
            weights = largest.relu().log1p()
            features["sentence_embedding"] = weights.log1p() if has_second_logarithm else weights
            return features

        def get_embedding_dimension(self) -> int | None:
            size: int | None = self.size
            return size

    return SpladeMaxPooling().eval()


def repeat_token_in_padding(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Put a token of the row in the place of its padding, so that no maximum over the tokens changes.

    Masking the numbers of each word instead would keep OpenVINO from computing one block of words in the memory of the
    last one: 122 MB for a batch of 512 tokens and two streams.

    Args:
        hidden: [batch, tokens, width].
        mask: [batch, tokens]: 1 for tokens, of which each row has one.
    """
    import torch

    first = mask.argmax(dim=1).view(-1, 1, 1).expand(-1, 1, hidden.shape[2])
    return torch.where(mask.unsqueeze(-1).bool(), hidden, hidden.gather(1, first))


def _split_layer(layer: Any) -> list[Any]:
    """A linear layer as several, each for a part of its outputs; they share its weights."""
    import torch

    parts = []
    for start in range(0, layer.out_features, BLOCK_WORDS):
        part = torch.nn.Linear(1, 1, bias=layer.bias is not None, device="meta")
        part.weight = torch.nn.Parameter(layer.weight.data[start : start + BLOCK_WORDS], requires_grad=False)
        if layer.bias is not None:
            part.bias = torch.nn.Parameter(layer.bias.data[start : start + BLOCK_WORDS], requires_grad=False)
        part.in_features, part.out_features = part.weight.shape[1], part.weight.shape[0]
        parts.append(part)
    return parts

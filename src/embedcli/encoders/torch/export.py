"""A loaded pipeline in a form that a converter can trace."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.encoders.tokenize.fast import pad_rows
from embedcli.encoders.torch.pipeline import count_attention_heads

if TYPE_CHECKING:
    import torch
    from torch import nn

    from embedcli.encoders.tokenize.fast import FastTokenizer
    from embedcli.encoders.tokenize.token_selection import TokenSelection

# Three rows of different lengths, so that neither batch, width nor padding side looks constant to the tracer.
EXAMPLE_TEXTS = ("a", "A row of some more words.", "This row is the longest of the three, 向量 and all, by some words.")
# Kinds of rotary position whose formula depends on the length of the row.
LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


@dataclass(frozen=True)
class TraceablePipeline:
    """A pipeline from token ids to vectors before normalisation, or to the vectors of all tokens.

    Attributes:
        module: `module(input_ids, attention_mask)` returns float32 [rows, dim], or [rows, width, dim] with `selection`.
        example: Inputs for it.
        size: The number of parameters.
        heads: Attention heads of a layer; None: unknown.
        depends_on_length: Whether the length of a row changes the formula.
        selection: Which tokens of a multi-vector model get a vector; None for one vector per row.
    """

    module: nn.Module
    example: dict[str, torch.Tensor]
    size: int
    heads: int | None
    depends_on_length: bool
    selection: TokenSelection | None = None


@contextmanager
def prepare_for_tracing(
    pipeline: Any,
    tokenizer: FastTokenizer | None,
    prompt_length: int | None,
    task: str | None,
    selection: TokenSelection | None = None,
) -> Iterator[TraceablePipeline]:
    """Yield a pipeline in traceable form. In the body, attention masks can be traced.

    Call it before the first forward pass, which packs linear layers.

    Args:
        pipeline: The SentenceTransformer, SparseEncoder or MultiVectorEncoder.
        tokenizer: Its fast tokenizer.
        prompt_length: Tokens of the prompt that pooling leaves out, if any.
        task: The route of a Router model, if any.
        selection: Of a multi-vector model, which tokens get a vector: the caller selects them.

    Raises:
        ValueError: The pipeline has no fast tokenizer.
    """
    import torch

    if tokenizer is None:
        raise ValueError("only a pipeline with a fast tokenizer can be traced")
    tokens = tokenizer.tokenize(EXAMPLE_TEXTS)
    ids, mask = pad_rows(tokens, np.flatnonzero(tokens.lengths), 1, tokenizer.pad_id, tokenizer.pads_left)
    example = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    size = sum(parameter.numel() for parameter in pipeline.parameters())
    config = getattr(pipeline[0].model, "config", None)
    depends_on_length = _has_length_dependent_rope(config.to_dict() if config else {})
    with warnings.catch_warnings(), torch.no_grad(), _traceable_masks():
        warnings.simplefilter("ignore")
        steps, output = _choose_steps(pipeline, selection)
        module = _build_module(pipeline, steps, output, prompt_length, task)
        yield TraceablePipeline(module, example, size, count_attention_heads(pipeline), depends_on_length, selection)


def _choose_steps(pipeline: Any, selection: TokenSelection | None) -> tuple[list[nn.Module], str]:
    """The modules to trace, and the name of their output."""
    modules = list(pipeline)
    if selection is not None:
        return [module for module in modules if type(module).__name__ != "MultiVectorMask"], "token_embeddings"
    if type(modules[-1]).__name__ == "Normalize":
        modules.pop()
    return modules, "sentence_embedding"


def _build_module(
    pipeline: Any, steps: list[nn.Module], output: str, prompt_length: int | None, task: str | None
) -> nn.Module:
    import torch

    has_token_types = "token_type_ids" in pipeline.tokenizer.model_input_names

    class Pipeline(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = torch.nn.ModuleList(steps)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            features: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
            if has_token_types:
                features["token_type_ids"] = torch.zeros_like(input_ids)
            if prompt_length:
                features["prompt_length"] = prompt_length
            if task:
                features["task"] = task
            for step in self.steps:
                features = step(features)
            vectors: torch.Tensor = features[output].float()
            return vectors

    return Pipeline().eval()


@contextmanager
def _traceable_masks() -> Iterator[None]:
    """Make attention masks traceable.

    They come from index arithmetic, because vmap cannot be traced. No row of a mask is empty: with a sliding window
    a padding token may attend to nothing, and OpenVINO's softmax over nothing is NaN, which spreads.
    """
    from transformers import masking_utils

    mask_functions: Any = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS

    def sdpa_mask(*args: Any, **options: Any) -> Any:
        mask: Any = masking_utils.sdpa_mask(*args, **{**options, "use_vmap": False})
        return mask if mask is None else mask | ~mask.any(dim=-1, keepdim=True)

    def eager_mask(*args: Any, **options: Any) -> Any:
        return masking_utils.eager_mask(*args, **{**options, "use_vmap": False})

    mask_functions["sdpa"], mask_functions["eager"] = sdpa_mask, eager_mask
    try:
        yield
    finally:
        del mask_functions["sdpa"], mask_functions["eager"]


def _has_length_dependent_rope(config: Any) -> bool:
    if not isinstance(config, dict):
        return False
    kinds = {config.get("rope_type"), config.get("type")}
    return bool(kinds & LENGTH_DEPENDENT_ROPE) or any(_has_length_dependent_rope(value) for value in config.values())

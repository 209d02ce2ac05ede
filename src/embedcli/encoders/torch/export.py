"""A loaded pipeline in the form a converter can trace: token ids and mask in, vectors before normalising out.

`torch` and transformers' masking module are handed in: one module owns those imports.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedcli.encoders.tokenize.fast import pad_rows

# Three rows of different lengths, so that neither batch, width nor padding side looks constant to the tracer.
EXAMPLE_TEXTS = ("a", "A row of some more words.", "This row is the longest of the three, 向量 and all, by some words.")
# Kinds of rotary position whose formula depends on the length of the row at hand.
LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


@dataclass(frozen=True)
class TraceablePipeline:
    """`module(input_ids, attention_mask)` gives float32 [rows, dim]; `example` are such inputs.

    `size` is the number of parameters; `length_dependent` says that a row's length changes the formula.
    """

    module: Any
    example: dict[str, Any]
    size: int
    depends_on_length: bool


@contextmanager
def prepare_for_tracing(encoder: Any, torch: Any, masking: Any) -> Iterator[TraceablePipeline]:
    """The pipeline of a TransformerEncoder. Trace it inside the context, where attention masks are traceable."""
    model, words = encoder.model, encoder.text_tokenizer
    tokens = encoder.tokenize(EXAMPLE_TEXTS)
    ids, mask = pad_rows(tokens, np.flatnonzero(tokens.lengths), 1, words.pad_id, words.pads_left)
    example = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    size = sum(parameter.numel() for parameter in model.parameters())
    config = getattr(model[0].model, "config", None)
    with warnings.catch_warnings(), torch.no_grad(), _traceable_masks(masking):
        warnings.simplefilter("ignore")
        yield TraceablePipeline(_pipeline(encoder, torch), example, size, _depends(config.to_dict() if config else {}))


def _pipeline(encoder: Any, torch: Any) -> Any:
    model = encoder.model
    modules = list(model)
    if type(modules[-1]).__name__ == "Normalize":
        modules.pop()
    types = "token_type_ids" in model.tokenizer.model_input_names
    prompt_length, task = encoder.prompt_length, encoder.config.task

    class Pipeline(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps = torch.nn.ModuleList(modules)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            features = {"input_ids": input_ids, "attention_mask": attention_mask}
            if types:
                features["token_type_ids"] = torch.zeros_like(input_ids)
            if prompt_length:
                features["prompt_length"] = prompt_length
            if task:
                features["task"] = task
            for step in self.steps:
                features = step(features)
            return features["sentence_embedding"].float()

    return Pipeline().eval()


@contextmanager
def _traceable_masks(masking: Any) -> Iterator[None]:
    """While tracing, attention masks come from index arithmetic (vmap cannot be traced), and no row of a mask is
    empty: padding may see nothing inside its window, and OpenVINO's softmax over nothing is NaN, which spreads."""
    masks = masking.ALL_MASK_ATTENTION_FUNCTIONS

    def open_rows(*args: Any, **kwargs: Any) -> Any:
        mask = masking.sdpa_mask(*args, **{**kwargs, "use_vmap": False})
        return mask if mask is None else mask | ~mask.any(dim=-1, keepdim=True)

    def by_index(*args: Any, **kwargs: Any) -> Any:
        return masking.eager_mask(*args, **{**kwargs, "use_vmap": False})

    masks["sdpa"], masks["eager"] = open_rows, by_index
    try:
        yield
    finally:
        del masks["sdpa"], masks["eager"]


def _depends(config: Any) -> bool:
    if isinstance(config, dict):
        kinds = {config.get("rope_type"), config.get("type")}
        return bool(kinds & LENGTH_DEPENDENT_ROPE) or any(_depends(value) for value in config.values())
    return False

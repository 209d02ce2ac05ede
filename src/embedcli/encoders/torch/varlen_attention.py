"""Batches without padding: rows one after another, and an attention that knows where each row begins.

The kernels are those of the installed torch (`torch.nn.attention.varlen`, CUDA, half precision) or of an installed
flash-attn; nothing is downloaded. They are registered as an attention implementation of transformers, so that a model's
own code runs unchanged. The caller compares vectors with those of padded batches, and pads where they differ.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from embedcli.core.encoder import Tokens
    from embedcli.core.types import Int64Array

ATTENTION_NAME = "embedcli_unpadded"
# (query, key, value [tokens, heads, width], bounds, scale, window) -> [tokens, heads, width]
AttentionKernel = Callable[
    ["torch.Tensor", "torch.Tensor", "torch.Tensor", "SequenceBounds", "float | None", tuple[int, int]], "torch.Tensor"
]
FULL_WINDOW = (-1, -1)
# What flash kernels support: heads of a multiple of 8, up to 256 wide; compute capability 8 is Ampere.
HEAD_WIDTH_STEP, MAX_HEAD_WIDTH, MIN_CUDA_CAPABILITY = 8, 256, (8, 0)


@dataclass(frozen=True)
class SequenceBounds:
    """Where the rows of a batch begin and end.

    Attributes:
        offsets: int32 [rows + 1] on the device.
        max_length: Tokens of the longest row.
    """

    offsets: torch.Tensor
    max_length: int


class _CurrentBatch(threading.local):
    """The batch that this thread computes: models have no argument to pass it to their attention."""

    bounds: SequenceBounds | None = None
    kernel: AttentionKernel | None = None


_current = _CurrentBatch()


class UnsupportedAttentionError(Exception):
    """The model uses an option of attention that the kernels do not have."""


# Models


def install_varlen_attention(network: Any, kernel: AttentionKernel) -> VarlenBatcher | None:
    """Make a transformers network attend through this module.

    Args:
        network: The network of a pipeline's first module.
        kernel: Computes the attention.

    Returns:
        None if its code cannot use another attention, or its positions cannot be passed in.
    """
    from transformers import AttentionInterface

    if not getattr(network, "_supports_attention_backend", False) or not hasattr(network, "set_attn_implementation"):
        return None
    if "position_ids" not in inspect.signature(network.forward).parameters:
        return None
    AttentionInterface.register(ATTENTION_NAME, varlen_attention_forward)
    network.set_attn_implementation(ATTENTION_NAME)
    if network.config._attn_implementation != ATTENTION_NAME:
        return None
    return VarlenBatcher(kernel, first_position_number(network))


def has_standard_pooling(pipeline: Any) -> bool:
    """Whether sentence-transformers' own pooling follows the network: it supports rows one after another."""
    second = type(pipeline[1]) if len(pipeline) > 1 else None
    return second is not None and second.__name__ == "Pooling" and second.__module__.startswith("sentence_transformers")


def first_position_number(network: nn.Module) -> int:
    """The number of a row's first position: the RoBERTa family counts from the padding index on, others from 0."""
    from torch import nn

    for module in network.modules():
        index = getattr(module, "padding_idx", None)
        if isinstance(index, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            return index + 1
    return 0


def varlen_attention_forward(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **options: Any
) -> tuple[torch.Tensor, None]:
    """An attention implementation of transformers, [1, heads, tokens, width] each, over rows one after another."""
    if any(options.get(name) is not None for name in ("softcap", "s_aux")):
        raise UnsupportedAttentionError("softcap and attention sinks")
    causal, sliding_window = options.get("is_causal"), options.get("sliding_window")
    causal = bool(getattr(module, "is_causal", False)) if causal is None else causal
    reach = -1 if sliding_window is None else sliding_window - 1
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    attended = (_registered.attention or run_attention)(q, k, v, scaling, reach, 0 if causal else reach)
    return attended.unsqueeze(0), None


def run_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, before: int, after: int
) -> torch.Tensor:
    """Attention over the batch that this thread computes, in a window of `before` and `after` tokens."""
    if _current.bounds is None or _current.kernel is None:
        raise UnsupportedAttentionError("called outside of a batch")
    return _current.kernel(q, k, v, _current.bounds, scale, (before, after))


# Compiled networks


class _RegisteredOperator:
    """The attention as an operator of torch, None before `register_attention_operator`."""

    attention: Callable[..., torch.Tensor] | None = None


_registered = _RegisteredOperator()


def register_attention_operator() -> None:
    """Make the attention an operator that compilers do not look into.

    Otherwise they would make the batch of the thread that compiles a constant of the compiled code.
    """
    from torch import library

    if _registered.attention is None:
        schema = "(Tensor q, Tensor k, Tensor v, float? scale, SymInt before, SymInt after) -> Tensor"
        operator = library.custom_op("embedcli::attention", _run_contiguous, mutates_args=(), schema=schema)
        operator.register_fake(lambda q, k, v, scale, before, after: q.new_empty((*q.shape[:2], v.shape[2])))
        _registered.attention = operator


def _run_contiguous(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, before: int, after: int
) -> torch.Tensor:
    return run_attention(q, k, v, scale, before, after).contiguous()


# Batches


@dataclass(frozen=True)
class VarlenBatcher:
    """Builds and runs the batches of a network without padding.

    Attributes:
        kernel: Computes the attention.
        first_position: What `first_position_number` returned.
    """

    kernel: AttentionKernel
    first_position: int

    def build_features(
        self, tokens: Tokens, rows: Int64Array, to_device: Callable[[NDArray[Any]], torch.Tensor]
    ) -> dict[str, Any]:
        """The input of a pipeline for a batch, under the names that sentence-transformers' pooling knows."""
        ids, positions, offsets, longest = flatten_rows(tokens, rows, self.first_position)
        row_of_token = np.repeat(np.arange(len(rows)), tokens.lengths[rows])
        return {
            "input_ids": to_device(ids[None]),
            "position_ids": to_device(positions[None]),
            "seq_idx": to_device(row_of_token[None]),
            "cu_seq_lens_q": to_device(offsets),
            "max_length_q": longest,
        }

    @contextmanager
    def batch_context(self, features: dict[str, Any]) -> Iterator[None]:
        """In the body, this thread's attention computes this batch; outside it, `run_attention` fails."""
        _current.bounds = SequenceBounds(features["cu_seq_lens_q"], features["max_length_q"])
        _current.kernel = self.kernel
        try:
            yield
        finally:
            _current.bounds = _current.kernel = None


def flatten_rows(
    tokens: Tokens, rows: Int64Array, first_position: int
) -> tuple[Int64Array, Int64Array, NDArray[np.int32], int]:
    """Rows one after another: int64 ids and positions [tokens], int32 offsets [rows + 1], and the longest length."""
    lengths = tokens.lengths[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    positions = np.arange(offsets[-1], dtype=np.int64) - np.repeat(offsets[:-1], lengths)
    ids = tokens.ids[np.repeat(tokens.offsets[rows], lengths) + positions].astype(np.int64)
    return ids, positions + first_position, offsets, int(lengths.max())


# Kernels


def find_kernels(device: str, dtype: str, network: Any) -> list[AttentionKernel]:
    """The installed kernels for a device, dtype and network, the preferred one first; none if rows must be padded."""
    import torch

    if not device.startswith("cuda") or dtype == "float32":
        return []
    if torch.cuda.get_device_capability(device) < MIN_CUDA_CAPABILITY or not _has_supported_heads(network):
        return []
    return [kernel for kernel in (flash_attention_kernel(), torch_varlen_kernel()) if kernel is not None]


def _has_supported_heads(network: Any) -> bool:
    config = network.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return bool(width % HEAD_WIDTH_STEP == 0 and width <= MAX_HEAD_WIDTH)


def flash_attention_kernel() -> AttentionKernel | None:
    """The kernel of flash-attn, None if it is not installed."""
    try:
        flash_attn_varlen_func = import_module("flash_attn").flash_attn_varlen_func
    except Exception:  # noqa: BLE001  it is built by hand, and a broken build may raise anything
        return None

    def kernel(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: SequenceBounds, scale: float | None,
        window: tuple[int, int],
    ) -> torch.Tensor:  # fmt: skip
        sizes = (bounds.offsets, bounds.offsets, bounds.max_length, bounds.max_length)
        attended: torch.Tensor = flash_attn_varlen_func(
            q, k, v, *sizes, softmax_scale=scale, causal=window[1] == 0, window_size=window
        )
        return attended

    return kernel


def torch_varlen_kernel() -> AttentionKernel | None:
    """The kernel of torch, None in versions without one.

    Its signature has changed: 2.10 and 2.11 have `is_causal` and no window, later versions a window.
    """
    try:
        varlen_attn = import_module("torch.nn.attention.varlen").varlen_attn
    except ImportError:
        return None
    parameters = inspect.signature(varlen_attn).parameters

    def kernel(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: SequenceBounds, scale: float | None,
        window: tuple[int, int],
    ) -> torch.Tensor:  # fmt: skip
        options: dict[str, Any] = {}
        if "enable_gqa" in parameters:
            options["enable_gqa"] = k.shape[1] != q.shape[1]
        elif k.shape[1] != q.shape[1]:
            k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], dim=1) for tensor in (k, v))
        if "scale" in parameters:
            options["scale"] = scale
        elif scale is not None:
            q = q * (scale * q.shape[-1] ** 0.5)
        if "window_size" in parameters:
            options["window_size"] = window
        elif window in (FULL_WINDOW, (-1, 0)):
            options["is_causal"] = window == (-1, 0)
        else:
            raise UnsupportedAttentionError("sliding windows, with this torch")
        sizes = (bounds.offsets, bounds.offsets, bounds.max_length, bounds.max_length)
        attended: torch.Tensor = varlen_attn(q.contiguous(), k.contiguous(), v.contiguous(), *sizes, **options)
        return attended

    return kernel

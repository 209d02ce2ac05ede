"""Batches without padding: rows one after another, and an attention that knows where each begins.

The kernels are those of the installed torch (`torch.nn.attention.varlen`, CUDA, half precision), or of a flash-attn
that the user has installed; nothing is fetched. They are put behind transformers' attention interface, so that
a model's own code runs unchanged. The caller compares vectors with those of the padded path, and keeps that one where
they differ. `torch` is handed in: one module owns that import.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from embedcli.core.encoder import Tokens
    from embedcli.core.types import Int64Array

ATTENTION_NAME = "embedcli_unpadded"
# (query, key, value [tokens, heads, width], spans, scale, window) -> [tokens, heads, width]
AttentionKernel = Callable[[Any, Any, Any, "SequenceBounds", "float | None", tuple[int, int]], Any]
FULL_WINDOW = (-1, -1)
# What flash kernels take: heads of a multiple of 8, up to 256 wide; compute capability 8 is Ampere.
HEAD_WIDTH_STEP, MAX_HEAD_WIDTH, MIN_CUDA_CAPABILITY = 8, 256, (8, 0)


@dataclass(frozen=True)
class SequenceBounds:
    """Where rows begin and end in a batch: `bounds` int32 [rows + 1] on the device, `longest` row in tokens."""

    offsets: Any
    max_length: int


class _CurrentBatch(threading.local):
    """The batch that this thread is computing: models hand attention no such thing from outside."""

    spans: SequenceBounds | None = None
    kernel: AttentionKernel | None = None


_now = _CurrentBatch()


class UnsupportedAttentionError(Exception):
    """The model asks attention for something that the kernels have not."""


def install_varlen_attention(
    torch: Any, transformers: Any, first: Any, kernel: AttentionKernel
) -> VarlenBatcher | None:
    """Let the network of a pipeline's first module attend through this module.

    None if its code has no place for another attention, or its positions cannot be given from outside.
    """
    network = first.auto_model
    if not getattr(network, "_supports_attention_backend", False) or not hasattr(network, "set_attn_implementation"):
        return None
    if "position_ids" not in inspect.signature(network.forward).parameters:
        return None
    transformers.AttentionInterface.register(ATTENTION_NAME, varlen_attention_forward)
    network.set_attn_implementation(ATTENTION_NAME)
    if network.config._attn_implementation != ATTENTION_NAME:
        return None
    return VarlenBatcher(kernel, first_position_number(torch, network))


def has_standard_pooling(pipeline: Any) -> bool:
    """Whether sentence-transformers' own pooling follows the network: it can take rows one after another."""
    second = type(pipeline[1]) if len(pipeline) > 1 else None
    return second is not None and second.__name__ == "Pooling" and second.__module__.startswith("sentence_transformers")


def first_position_number(torch: Any, model: Any) -> int:
    """The number of a row's first position: in the RoBERTa family they count from behind the padding index."""
    for module in model.modules():
        index = getattr(module, "padding_idx", None)
        if isinstance(index, int) and isinstance(getattr(module, "position_embeddings", None), torch.nn.Embedding):
            return index + 1
    return 0


def varlen_attention_forward(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **more: Any
) -> tuple[Any, None]:
    """transformers' attention, [1, heads, tokens, width] each, over rows that lie one after another."""
    if any(more.get(name) is not None for name in ("softcap", "s_aux")):
        raise UnsupportedAttentionError("softcap and attention sinks")
    causal, sliding = more.get("is_causal"), more.get("sliding_window")
    causal = bool(getattr(module, "is_causal", False)) if causal is None else causal
    reach = -1 if sliding is None else sliding - 1
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    made = (_outside.attention or run_attention)(q, k, v, scaling, reach, 0 if causal else reach)
    return made.unsqueeze(0), None


def run_attention(q: Any, k: Any, v: Any, scale: float | None, before: int, after: int) -> Any:
    """Attention over the batch that this thread is computing, in a window of `before` and `after` tokens."""
    if _now.spans is None or _now.kernel is None:
        raise UnsupportedAttentionError("no batch is at hand")
    return _now.kernel(q, k, v, _now.spans, scale, (before, after))


class _RegisteredOperator:
    """`attention` as an operator of torch's, once there is one."""

    attention: Callable[..., Any] | None = None


_outside = _RegisteredOperator()


def register_attention_operator(torch: Any) -> None:
    """From here on attention is an operator that compilers do not look into: which batch it is about, they would
    take from the thread that compiles, once and for all."""
    if _outside.attention is None:
        schema = "(Tensor q, Tensor k, Tensor v, float? scale, SymInt before, SymInt after) -> Tensor"
        made = torch.library.custom_op("embedcli::attention", _contiguous, mutates_args=(), schema=schema)
        made.register_fake(lambda q, k, v, scale, before, after: q.new_empty((*q.shape[:2], v.shape[2])))
        _outside.attention = made


def _contiguous(q: Any, k: Any, v: Any, scale: float | None, before: int, after: int) -> Any:
    return run_attention(q, k, v, scale, before, after).contiguous()


@dataclass(frozen=True)
class VarlenBatcher:
    """How a pipeline runs without padding: by which kernel, and with which number positions begin."""

    kernel: AttentionKernel
    first_position: int

    def build_features(self, tokens: Tokens, rows: Int64Array, put: Callable[[Any], Any]) -> dict[str, Any]:
        """The rows one after another, under the names by which sentence-transformers' pooling knows them."""
        ids, places, bounds, longest = flatten_rows(tokens, rows, self.first_position)
        owners = np.repeat(np.arange(len(rows)), tokens.lengths[rows])
        return {
            "input_ids": put(ids[None]),
            "position_ids": put(places[None]),
            "seq_idx": put(owners[None]),
            "cu_seq_lens_q": put(bounds),
            "max_length_q": longest,
        }

    @contextmanager
    def batch_context(self, features: dict[str, Any]) -> Iterator[None]:
        """Within it, `attend` computes this batch, in this thread; padded batches (of other models) it does not."""
        _now.spans, _now.kernel = SequenceBounds(features["cu_seq_lens_q"], features["max_length_q"]), self.kernel
        try:
            yield
        finally:
            _now.spans = _now.kernel = None


# Kernels


def find_kernels(torch: Any, device: str, dtype: str, model: Any) -> list[AttentionKernel]:
    """Those that are installed for a device and dtype, the best first; none where rows must be padded."""
    if not device.startswith("cuda") or dtype == "float32":
        return []
    if torch.cuda.get_device_capability(device) < MIN_CUDA_CAPABILITY or not _fitting(model):
        return []
    return [kernel for kernel in (flash_attention_kernel(), torch_varlen_kernel(torch)) if kernel is not None]


def _fitting(model: Any) -> bool:
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return bool(width % HEAD_WIDTH_STEP == 0 and width <= MAX_HEAD_WIDTH)


def flash_attention_kernel() -> AttentionKernel | None:
    """flash-attn's own kernel, if the user has installed it."""
    try:
        varlen = import_module("flash_attn").flash_attn_varlen_func
    except Exception:  # noqa: BLE001  it is built by hand: whatever is wrong with it, there is another
        return None

    def kernel(q: Any, k: Any, v: Any, spans: SequenceBounds, scale: float | None, window: tuple[int, int]) -> Any:
        causal = window[1] == 0
        sizes = (spans.offsets, spans.offsets, spans.max_length, spans.max_length)
        return varlen(q, k, v, *sizes, softmax_scale=scale, causal=causal, window_size=window)

    return kernel


def torch_varlen_kernel(torch: Any) -> AttentionKernel | None:
    """torch's kernel. Its signature has moved: 2.10 and 2.11 have `is_causal` and no window, later ones a window."""
    try:
        varlen_attn = import_module("torch.nn.attention.varlen").varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters

    def kernel(q: Any, k: Any, v: Any, spans: SequenceBounds, scale: float | None, window: tuple[int, int]) -> Any:
        if k.shape[1] != q.shape[1] and "enable_gqa" not in known:
            k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], dim=1) for tensor in (k, v))
        more: dict[str, Any] = {"enable_gqa": k.shape[1] != q.shape[1]} if "enable_gqa" in known else {}
        if "scale" in known:
            more["scale"] = scale
        elif scale is not None:
            q = q * (scale * q.shape[-1] ** 0.5)
        if "window_size" in known:
            more["window_size"] = window
        elif window in (FULL_WINDOW, (-1, 0)):
            more["is_causal"] = window == (-1, 0)
        else:
            raise UnsupportedAttentionError("sliding windows, with this torch")
        sizes = (spans.offsets, spans.offsets, spans.max_length, spans.max_length)
        return varlen_attn(q.contiguous(), k.contiguous(), v.contiguous(), *sizes, **more)

    return kernel


def row_by_row_kernel(torch: Any) -> AttentionKernel:
    """The same by plain means, one row at a time, on any device: slow, and what the others are compared with."""

    def kernel(q: Any, k: Any, v: Any, spans: SequenceBounds, scale: float | None, window: tuple[int, int]) -> Any:
        bounds = spans.offsets.tolist()
        made = []
        for start, stop in pairwise(bounds):
            parts = [tensor[start:stop].transpose(0, 1).unsqueeze(0) for tensor in (q, k, v)]
            places = torch.arange(stop - start, device=q.device)
            ahead = places[None, :] - places[:, None]
            reach = [len(places) if side < 0 else side for side in window]
            seen = (ahead >= -reach[0]) & (ahead <= reach[1])
            one = torch.nn.functional.scaled_dot_product_attention(
                *parts, attn_mask=seen, scale=scale, enable_gqa=k.shape[1] != q.shape[1]
            )
            made.append(one[0].transpose(0, 1))
        return torch.cat(made)

    return kernel


# Batches


def flatten_rows(tokens: Tokens, rows: Int64Array, first: int) -> tuple[Any, Any, Any, int]:
    """int64 ids [tokens] and positions [tokens] of the rows one after another, int32 bounds [rows + 1], the longest."""
    lengths = tokens.lengths[rows]
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    places = np.arange(bounds[-1], dtype=np.int64) - np.repeat(bounds[:-1], lengths)
    ids = tokens.ids[np.repeat(tokens.offsets[rows], lengths) + places].astype(np.int64)
    return ids, places + first, bounds, int(lengths.max())

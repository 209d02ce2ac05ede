"""Attention masks of padded batches, made without a device synchronisation.

transformers leaves the mask out where a batch has no padding, so that faster attention can run. To find out, it reads
the mask back from the device, and there the host waits for all work it has started. embedcli packs the batch on the
host and knows the answer. It holds only for networks that mask padding and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

# The attention implementations whose masks transformers may leave out.
ATTENTION_KINDS = ("sdpa", "eager")


class _BatchPadding(threading.local):
    """Whether the batch that this thread computes has padding, and its width; None outside of `batch_padding`."""

    is_padded: bool | None = None
    width: int | None = None


_current = _BatchPadding()


def install_mask_functions() -> None:
    """Make transformers build attention masks by `batch_padding`; outside of it, masks stay as they were."""
    from transformers import AttentionMaskInterface

    registered = AttentionMaskInterface()  # type: ignore[no-untyped-call]
    for kind in ATTENTION_KINDS:
        if not hasattr(registered[kind], "original"):
            AttentionMaskInterface.register(kind, _with_known_padding(registered[kind]))


@contextmanager
def batch_padding(padded: bool, width: int) -> Iterator[None]:
    """Declare that the batch which this thread computes in the body has padding, or has none.

    Args:
        padded: Whether any of its rows is padded.
        width: Tokens of each row, padding included. A mask of another width is left as it is: the network has padded
            the rows itself, as Longformer does up to its attention window.
    """
    _current.is_padded, _current.width = padded, width
    try:
        yield
    finally:
        _current.is_padded = _current.width = None


def _with_known_padding(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def build_mask(*args: Any, **options: Any) -> Any:
        mask = options.get("attention_mask")
        if mask is not None and mask.shape[-1] != _current.width:
            return original(*args, **options)
        if _current.is_padded:
            options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        elif _current.is_padded is False:
            options["attention_mask"] = None
        return original(*args, **options)

    build_mask.original = original  # type: ignore[attr-defined]
    return build_mask

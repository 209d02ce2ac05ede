"""Attention masks of padded batches, without a question to the device.

transformers makes no mask for a batch without padding, so that faster attention can run, and to find out it reads the
batch's padding back from the device: there the host waits for everything that it has started. But the host has packed
the batch, and knows; what it says holds for a network that masks padding and nothing else. transformers'
`AttentionMaskInterface` is handed in: one module owns that import.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

# The attention implementations whose masks transformers leaves out where it can.
ATTENTION_KINDS = ("sdpa", "eager")


class _BatchPadding(threading.local):
    """Whether the batch that this thread is computing has padding; None where nobody has said."""

    is_padded: bool | None = None


_now = _BatchPadding()


def install_mask_functions(interface: Any) -> None:
    """Let masks be made by what `running` says; where it says nothing, in this thread, they are made as before."""
    known = interface()
    for kind in ATTENTION_KINDS:
        if not hasattr(known[kind], "plain"):
            interface.register(kind, _told(known[kind]))


@contextmanager
def batch_padding(padded: bool) -> Iterator[None]:
    """Within it, this thread computes a batch with or without padding."""
    _now.is_padded = padded
    try:
        yield
    finally:
        _now.is_padded = None


def _told(plain: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(plain)
    def mask(*args: Any, **asked: Any) -> Any:
        if _now.is_padded:
            asked |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        elif _now.is_padded is False:
            asked["attention_mask"] = None
        return plain(*args, **asked)

    mask.plain = plain  # type: ignore[attr-defined]
    return mask

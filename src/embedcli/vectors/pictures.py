"""Pictures through matplotlib: spreads of a comparison, a map of vectors, the stages of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli import storage
from embedcli.contracts import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".pdf")
DOTS_PER_INCH = 150


def figure(path: str, width: float, height: float) -> Figure:
    """An empty figure, in inches. UsageError if `path` has no known ending or matplotlib is missing."""
    if not path.endswith(ENDINGS):
        raise UsageError(f"{path}: pictures end in {', '.join(ENDINGS)}", "choose such a name")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("pictures need matplotlib", "pip install 'embedcli[plot]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Figure, path: str) -> None:
    """Write a figure whole. The same content gives the same bytes."""
    with storage.replacing(path) as temporary:
        metadata: dict[str, Any] = {"Date": None} if path.endswith(".svg") else {}
        drawn.savefig(temporary, format=path.rsplit(".", 1)[1], dpi=DOTS_PER_INCH, metadata=metadata)


def draw_comparisons(found: Sequence[dict[str, Any]], path: str) -> None:
    """One row of panels per compared file: cosines, and neighbours kept."""
    drawn = figure(path, 9, 2.6 * len(found))
    panels = drawn.subplots(len(found), 2, squeeze=False)
    for (left, right), one in zip(panels, found, strict=True):
        spread = one["cosine_histogram"]
        if spread:
            edges = np.linspace(spread["from"], spread["to"], len(spread["counts"]) + 1)
            left.stairs(spread["counts"], edges, fill=True)
        left.set(title=one["second"]["path"], xlabel="cosine", ylabel="rows")
        kept = one["overlap_histogram"]
        right.bar(range(len(kept)), kept)
        right.set(xlabel=f"of {one['k']} neighbours kept", ylabel="rows")
    save(drawn, path)

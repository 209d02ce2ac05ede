"""Pictures through matplotlib: spreads of a comparison, a map of vectors, the stages of a run."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli import storage
from embedcli.core.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from embedcli.analysis.projection import EmbeddingMap

FIGURE_ENDINGS = (".png", ".svg", ".pdf")
DOTS_PER_INCH = 150
# After the one that matplotlib brings, which has Latin, Greek, Cyrillic and Arabic.
FALLBACK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "SimHei", "Malgun Gothic",
    "Noto Sans Devanagari", "Noto Sans Thai",
)  # fmt: skip


def new_figure(path: str, width: float, height: float) -> Figure:
    """An empty figure, in inches. UsageError if `path` has no known ending or matplotlib is missing."""
    if not path.endswith(FIGURE_ENDINGS):
        raise UsageError(f"{path}: pictures end in {', '.join(FIGURE_ENDINGS)}", "choose a name such as picture.png")
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("pictures need matplotlib", "pip install 'embedcli[plot]'") from None
    rcParams["font.family"] = ["DejaVu Sans", *list_installed_fonts()]
    return Figure(figsize=(width, height), layout="constrained")


def list_installed_fonts() -> list[str]:
    """Those of FONTS that this machine has: what one lacks, the next may have."""
    from matplotlib.font_manager import fontManager

    here = set(fontManager.get_font_names())
    return [name for name in FALLBACK_FONTS if name in here]


def save_figure(drawn: Figure, path: str) -> None:
    """Write a figure whole. The same content gives the same bytes."""
    with storage.replace_file_atomically(path) as temporary:
        metadata: dict[str, Any] = {"Date": None} if path.endswith(".svg") else {}
        with warnings.catch_warnings():
            # A box stands for what no font has; a line for each such sign, on stderr, says no more.
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            drawn.savefig(temporary, format=path.rsplit(".", 1)[1], dpi=DOTS_PER_INCH, metadata=metadata)


def draw_map(made: EmbeddingMap, path: str) -> None:
    """The map as a scatter plot with a legend or a colour bar."""
    drawn = new_figure(path, 9, 7)
    axes = drawn.subplots()
    x, y, area = made.points[:, 0], made.points[:, 1], min(30.0, 20_000 / len(made.points))
    color = made.color
    if color is None:
        axes.scatter(x, y, s=area, linewidths=0, alpha=0.8)
    elif color.names is None:
        shares = np.array([np.nan if value < 0 else value for value in color.values])
        shown = axes.scatter(x, y, s=area, c=shares, cmap="viridis", vmin=0, vmax=1, linewidths=0, alpha=0.8)
        drawn.colorbar(shown, label=color.name, ticks=[0, 1]).ax.set_yticklabels([color.low, color.high])
    else:
        values = np.array(color.values)
        for i, name in enumerate(color.names):
            axes.scatter(x[values == i], y[values == i], s=area, label=name, linewidths=0, alpha=0.8)
        drawn.legend(title=color.name, loc="outside right upper", frameon=False, markerscale=2)
    axes.set(title=f"{made.title}\n{made.description}", xticks=[], yticks=[], aspect="equal")
    save_figure(drawn, path)


def draw_comparisons(found: Sequence[dict[str, Any]], path: str) -> None:
    """One row of panels per compared file: cosines, and neighbours kept."""
    drawn = new_figure(path, 9, 2.6 * len(found))
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
    save_figure(drawn, path)


def draw_stages(made: Mapping[str, Any], path: str) -> None:
    """How busy each stage was: over time where the report says it, else in all. `.html` holds the picture as a page."""
    page = path.endswith(".html")
    drawn = new_figure("page.svg" if page else path, 9, 3)
    axes = drawn.subplots()
    axes.set(xlabel="seconds", title=f"{made['started']}  {made['reason']}")
    if made.get("timeline"):
        draw_timelines(axes, made)
    else:
        draw_stage_bars(axes, made)
    if page:
        save_figure_page(drawn, path, f"{made['started']}: stages of a run")
    else:
        save_figure(drawn, path)


def draw_timelines(axes: Any, made: Mapping[str, Any]) -> None:
    """One lane per stage: at each time, as high as its busy share."""
    width, busy = made["timeline"]["seconds"], made["timeline"]["busy"]
    for place, (name, shares) in enumerate(reversed(busy.items())):
        edges = np.minimum(np.arange(len(shares) + 1) * width, made["seconds"])
        color = "C3" if name == made["bottleneck"] else "C0"
        axes.stairs(place + 0.85 * np.array(shares), edges, baseline=place, fill=True, color=color)
    part = {name: made["stage_seconds"].get(name, 0.0) / (made["seconds"] or 1) for name in reversed(busy)}
    axes.set_yticks(np.arange(len(busy)) + 0.4, [f"{name}\n{share:.0%} busy" for name, share in part.items()])
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, made["seconds"] or 1), ylim=(-0.05, len(busy)))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def draw_stage_bars(axes: Any, made: Mapping[str, Any]) -> None:
    """Busy seconds of each stage beside the whole run; stages work at the same time, so bars may add up to more."""
    stages = {"whole run": made["seconds"], **made["stage_seconds"]}
    names = list(stages)
    colors = ["0.75" if name == "whole run" else "C3" if name == made["bottleneck"] else "C0" for name in names]
    drawn = axes.barh(names, list(stages.values()), color=colors)
    axes.bar_label(drawn, [f"{seconds:.1f} s" for seconds in stages.values()], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.12)


def save_figure_page(drawn: Figure, path: str, title: str) -> None:
    """A page that holds the picture and needs nothing else."""
    kept = io.StringIO()
    drawn.savefig(kept, format="svg", metadata={"Date": None})
    picture = kept.getvalue().partition("<svg")[2]
    page = f'<!doctype html>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n<svg{picture}'
    storage.write_bytes(path, page.encode())

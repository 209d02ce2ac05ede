"""Draw figures with matplotlib: comparisons, maps of vectors, stages of a run."""

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
# Those of figures that can also be web pages.
PAGE_ENDINGS = (*FIGURE_ENDINGS, ".html")
DOTS_PER_INCH = 150
# Fonts to try after the one of matplotlib, which has Latin, Greek, Cyrillic and Arabic.
FALLBACK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "SimHei", "Malgun Gothic",
    "Noto Sans Devanagari", "Noto Sans Thai",
)  # fmt: skip


def new_figure(path: str, width: float, height: float, endings: Sequence[str] = FIGURE_ENDINGS) -> Figure:
    """Create an empty figure, with width and height in inches.

    Args:
        path: Where it will be saved.
        width: Its width.
        height: Its height.
        endings: The extensions that the user may choose from.

    Raises:
        UsageError: `path` has an unknown extension, or matplotlib is not installed.
    """
    if not path.endswith(FIGURE_ENDINGS):
        raise UsageError(
            f"{path}: the extension must be one of {', '.join(endings)}", f"choose a name such as plot{endings[-1]}"
        )
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "matplotlib is needed to draw figures and is not installed", "pip install 'embedcli[plot]'"
        ) from None
    rcParams["font.family"] = ["DejaVu Sans", *list_installed_fonts()]
    return Figure(figsize=(width, height), layout="constrained")


def list_installed_fonts() -> list[str]:
    """Return the fallback fonts that this machine has."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return [name for name in FALLBACK_FONTS if name in installed]


def save_figure(figure: Figure, path: str) -> None:
    """Write a figure atomically. The same content gives the same bytes."""
    with storage.replace_file_atomically(path) as temporary:
        metadata: dict[str, Any] = {"Date": None} if path.endswith(".svg") else {}
        with warnings.catch_warnings():
            # matplotlib draws a box for a missing glyph and also warns about each one.
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            figure.savefig(temporary, format=path.rsplit(".", 1)[1], dpi=DOTS_PER_INCH, metadata=metadata)


def draw_map(embedding_map: EmbeddingMap, path: str) -> None:
    """Draw a map as a scatter plot with a legend or a colour bar."""
    figure = new_figure(path, 9, 7, PAGE_ENDINGS)
    axes = figure.subplots()
    x, y = embedding_map.points[:, 0], embedding_map.points[:, 1]
    area = min(30.0, 20_000 / len(x))
    color = embedding_map.color
    if color is None:
        axes.scatter(x, y, s=area, linewidths=0, alpha=0.8)
    elif color.names is None:
        fractions = np.array([np.nan if value < 0 else value for value in color.values])
        points = axes.scatter(x, y, s=area, c=fractions, cmap="viridis", vmin=0, vmax=1, linewidths=0, alpha=0.8)
        figure.colorbar(points, label=color.name, ticks=[0, 1]).ax.set_yticklabels([color.low, color.high])
    else:
        values = np.array(color.values)
        for i, name in enumerate(color.names):
            axes.scatter(x[values == i], y[values == i], s=area, label=name, linewidths=0, alpha=0.8)
        figure.legend(title=color.name, loc="outside right upper", frameon=False, markerscale=2)
    axes.set(title=f"{embedding_map.title}\n{embedding_map.description}", xticks=[], yticks=[], aspect="equal")
    save_figure(figure, path)


def draw_comparisons(comparisons: Sequence[dict[str, Any]], path: str) -> None:
    """Draw one row of panels per compared output: cosines, and neighbours in common."""
    figure = new_figure(path, 9, 2.6 * len(comparisons))
    panels = figure.subplots(len(comparisons), 2, squeeze=False)
    for (left, right), comparison in zip(panels, comparisons, strict=True):
        histogram = comparison["cosine_histogram"]
        if histogram:
            edges = np.linspace(histogram["from"], histogram["to"], len(histogram["counts"]) + 1)
            left.stairs(histogram["counts"], edges, fill=True)
        left.set(title=comparison["second"]["path"], xlabel="cosine", ylabel="rows")
        overlaps = comparison["overlap_histogram"]
        right.bar(range(len(overlaps)), overlaps)
        right.set(xlabel=f"of {comparison['k']} neighbours kept", ylabel="rows")
    save_figure(figure, path)


def draw_stages(report: Mapping[str, Any], path: str) -> None:
    """Draw how busy each stage of a run was, over time if the report has a timeline. `.html` gives a web page."""
    page = path.endswith(".html")
    figure = new_figure("page.svg" if page else path, 9, 3, PAGE_ENDINGS)
    axes = figure.subplots()
    axes.set(xlabel="seconds", title=f"{report['started']}  {report['reason']}")
    if report.get("timeline"):
        draw_timelines(axes, report)
    else:
        draw_stage_bars(axes, report)
    if page:
        save_figure_page(figure, path, f"{report['started']}: stages of a run")
    else:
        save_figure(figure, path)


def draw_timelines(axes: Any, report: Mapping[str, Any]) -> None:
    """Draw one lane per stage, whose height is the fraction of time that the stage was busy."""
    width, busy = report["timeline"]["seconds"], report["timeline"]["busy"]
    for lane, (name, shares) in enumerate(reversed(busy.items())):
        edges = np.minimum(np.arange(len(shares) + 1) * width, report["seconds"])
        color = "C3" if name == report["bottleneck"] else "C0"
        axes.stairs(lane + 0.85 * np.array(shares), edges, baseline=lane, fill=True, color=color)
    busy_shares = {name: report["stage_seconds"].get(name, 0.0) / (report["seconds"] or 1) for name in reversed(busy)}
    axes.set_yticks(np.arange(len(busy)) + 0.4, [f"{name}\n{share:.0%} busy" for name, share in busy_shares.items()])
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, report["seconds"] or 1), ylim=(-0.05, len(busy)))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def draw_stage_bars(axes: Any, report: Mapping[str, Any]) -> None:
    """Draw the busy seconds of each stage and of the whole run. Stages overlap, so their sum may be larger."""
    stages = {"whole run": report["seconds"], **report["stage_seconds"]}
    names = list(stages)
    colors = ["0.75" if name == "whole run" else "C3" if name == report["bottleneck"] else "C0" for name in names]
    bars = axes.barh(names, list(stages.values()), color=colors)
    axes.bar_label(bars, [f"{seconds:.1f} s" for seconds in stages.values()], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.12)


def save_figure_page(figure: Figure, path: str, title: str) -> None:
    """Write a web page that contains the figure and loads nothing else."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    picture = buffer.getvalue().partition("<svg")[2]
    page = f'<!doctype html>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n<svg{picture}'
    storage.write_bytes(path, page.encode())

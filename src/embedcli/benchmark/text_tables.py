"""Figures of a measurement as plain text of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WIDTH = 80
LABEL_WIDTH = 10
NAME_WIDTH = 30
CELL_WIDTHS = (8, 10, 8, 8, 8, 8)
# If other programs use more of the processors than this, times say little and ratios not much.
BUSY_SHARE = 0.1


def format_comparison(figures: Mapping[str, Any]) -> str:
    """The figures of a comparison as a text table."""
    blocks = [
        format_setup(figures),
        format_speeds(figures),
        format_ratios(figures),
        format_stages(figures),
        *([format_few_rows(figures)] if figures["ten_rows"] else []),
        *([format_missing(figures)] if figures["missing"] else []),
    ]
    return "\n\n".join("\n".join(block) for block in blocks)


def format_setup(figures: Mapping[str, Any]) -> list[str]:
    """The machine, the rows, the model, and how often each contender ran."""
    rows, model = figures["input"], figures["model"]
    text = f"{rows['rows']:,} of {', '.join(rows['names'])}, {rows['tokens']:,} tokens"
    if rows["duplicates"]:
        text += f", {rows['duplicates']:,} repeated texts"
    limit = f", at most {model['max_seq_length']} tokens" if model["max_seq_length"] else ""
    return [
        *format_machine(figures["machine"]),
        *with_label("rows", text),
        *with_label("model", f"{model['name']}, {model['dim']} dimensions{limit}"),
        *with_label("runs", f"{figures['rounds']} of each, in turn, each in a process of its own; medians"),
        *format_busy_warning(figures["contenders"].values()),
    ]


def format_busy_warning(contenders: Iterable[Mapping[str, Any]]) -> list[str]:
    """A warning if other programs used the processors during a run; nothing otherwise."""
    shares = [contender["others_share"] for contender in contenders if contender["others_share"] is not None]
    if max(shares, default=0.0) < BUSY_SHARE:
        return []
    share = format_percent(max(shares))
    return with_label("careful", f"during some runs other programs used up to {share} of the processors")


def format_machine(machine: Mapping[str, Any]) -> list[str]:
    """The processor, its cores and memory, the GPU, and the versions."""
    memory = f", {machine['memory_gb']:.0f} GB" if machine["memory_gb"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    processor = f"{machine['processor']}, {machine['cores']} cores{memory}, {machine['system']}"
    accelerator = machine.get("accelerator")
    return [
        *with_label("machine", processor),
        *(with_label("card", accelerator["name"]) if accelerator else []),
        *with_label("versions", f"python {machine['python']}, {versions}"),
    ]


def format_speeds(figures: Mapping[str, Any]) -> list[str]:
    """One line per contender: its speed while encoding, its padding, its times and its memory."""
    lines = [format_row("medians", ("rows/s", "tokens/s", "padding", "process", "encode", "memory"))]
    lines.append(format_row("", ("", "", "", "s", "s", "MB")))
    for name, contender in figures["contenders"].items():
        cells = (
            f"{contender['rows_per_second']:,.0f}",
            f"{contender['tokens_per_second']:,.0f}",
            format_percent(contender["padding_share"]),
            format_seconds(contender["process_seconds"]),
            format_seconds(contender["encode_seconds"]),
            f"{contender['peak_memory_mb']:,.0f}",
        )
        lines.append(format_row(name, cells))
    return lines


def format_ratios(figures: Mapping[str, Any]) -> list[str]:
    """One line per contender: its speedups over the baseline, its GFLOP/s, and its lowest cosine."""
    lines = textwrap.wrap(f"times faster than {figures['baseline']}, runs of the same round compared", WIDTH)
    lines += textwrap.wrap(format_best_products(figures), WIDTH)
    lines.append(format_row("", ("process", "encode", "cpu", "GFLOP/s", "of best", "cosine")))
    for name, contender in figures["contenders"].items():
        gflops = contender.get("useful_gflops")
        cells = (
            f"{contender['process_ratio']['median']:.2f}",
            f"{contender['encode_ratio']['median']:.2f}",
            f"{contender['cpu_ratio']['median']:.2f}",
            "" if gflops is None else f"{gflops:,.0f}",
            format_percent(contender.get("share_of_matrix_product")),
            format_cosine(contender["lowest_cosine"]),
        )
        lines.append(format_row(name, cells))
    return lines


def format_best_products(figures: Mapping[str, Any]) -> str:
    """The GFLOP/s that "of best" refers to; empty if there are none."""
    speeds = ", ".join(f"{speed:,.0f} GFLOP/s in {dtype}" for dtype, speed in figures["matrix_product_gflops"].items())
    accelerator = figures["machine"].get("accelerator")
    what = f"dense peak ({accelerator['source']})" if accelerator else "the machine's best matrix product"
    return f"{what}: {speeds}" if speeds else ""


def format_stages(figures: Mapping[str, Any]) -> list[str]:
    """From embedcli's reports, as shares of the encode seconds: an idle device, and tokenizing."""
    runs = {name: one for name, one in figures["contenders"].items() if "device_idle_share" in one}
    idle = ", ".join(f"{format_percent(run['device_idle_share'])} ({name})" for name, run in runs.items())
    tokenizing = ", ".join(f"{format_percent(run['tokenize_share'])} ({name})" for name, run in runs.items())
    return [
        *with_label("idle", f"device waiting for rows: {idle}"),
        *with_label("tokens", f"tokenizing: {tokenizing}"),
    ]


def format_few_rows(figures: Mapping[str, Any]) -> list[str]:
    """The times of a ten-row job."""
    times = figures["ten_rows"]["process_seconds"].items()
    text = ", ".join(f"{name} {value:.2f} s" for name, value in times)
    speedup = figures["ten_rows"]["process_ratio"]["median"]
    return with_label("ten rows", f"whole process: {text}; {speedup:.1f} times faster")


def format_missing(figures: Mapping[str, Any]) -> list[str]:
    """The contenders that did not take part, and why."""
    return [line for name, why in figures["missing"].items() for line in with_label("missing", f"{name}: {why}")]


def format_batch_tokens(figures: Mapping[str, Any]) -> str:
    """The figures of `--tune` as a text table: one line per token budget."""
    headings = ("rows/s", "tokens/s", "padding", "s", "MB", "")
    lines = [*format_machine(figures["machine"]), *with_label("model", figures["model"])]
    lines += with_label("rows", f"{figures['rows']:,}, medians of {figures['rounds']} runs")
    lines += ["", format_row("batch tokens", headings)]
    for budget in figures["budgets"]:
        cells = (
            f"{budget['rows_per_second']:,.0f}",
            f"{budget['tokens_per_second']:,.0f}",
            format_percent(budget["padding_share"]),
            f"{budget['encode_seconds']:.1f}",
            f"{budget['peak_memory_mb']:,.0f}",
            "default" if budget["batch_tokens"] == figures["default"] else "",
        )
        lines.append(format_row(f"{budget['batch_tokens']:,}", cells))
    return "\n".join(lines)


def format_row(name: str, cells: Sequence[str]) -> str:
    """A name and right-aligned cells."""
    aligned = (cell.rjust(width) for cell, width in zip(cells, CELL_WIDTHS, strict=False))
    return (name[:NAME_WIDTH].ljust(NAME_WIDTH) + "".join(aligned)).rstrip()


def with_label(label: str, text: str, width: int = LABEL_WIDTH) -> list[str]:
    """Lines of a label and its text, wrapped beside it."""
    lines = textwrap.wrap(text, WIDTH - width, break_long_words=False) or [""]
    return [(label if i == 0 else "").ljust(width) + line for i, line in enumerate(lines)]


def format_seconds(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


def format_percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def format_cosine(value: float) -> str:
    """A cosine with enough digits to show its distance from 1: 0.99993, or 1-3e-07."""
    if value >= 1:
        return "1"
    return f"1-{1 - value:.0e}" if value > 0.9999 else f"{value:.5f}"

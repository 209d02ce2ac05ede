"""The figures of a measurement as plain text of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WIDTH = 80
LABEL = 10
NAME = 30
# Above this share of the processors taken by other programs, times say little and ratios not much.
BUSY = 0.1


def comparison(made: Mapping[str, Any]) -> str:
    """What `compare` found, as people read it."""
    blocks = [
        setting(made),
        speeds(made),
        ratios(made),
        inside(made),
        *([few(made)] if made["ten_rows"] else []),
        *([missing(made)] if made["missing"] else []),
    ]
    return "\n\n".join("\n".join(block) for block in blocks)


def setting(made: Mapping[str, Any]) -> list[str]:
    """The machine, the rows, the model, and how often each ran."""
    rows, model = made["input"], made["model"]
    text = f"{rows['rows']:,} of {', '.join(rows['names'])}, {rows['tokens']:,} tokens read"
    if rows["duplicates"]:
        text += f", {rows['duplicates']:,} texts that came before"
    limit = f", {model['max_seq_length']} tokens at most" if model["max_seq_length"] else ""
    return [
        *on_machine(made["machine"]),
        *labelled("rows", text),
        *labelled("model", f"{model['name']}, {model['dim']} dimensions{limit}"),
        *labelled("runs", f"{made['rounds']} of each, in turn, each a process of its own; medians"),
        *disturbed(made["contenders"].values()),
    ]


def disturbed(measured: Iterable[Mapping[str, Any]]) -> list[str]:
    """A warning if other programs were at work."""
    shares = [its["others_share"] for its in measured if its["others_share"] is not None]
    if max(shares, default=0.0) < BUSY:
        return []
    return labelled("careful", f"during some runs other programs took up to {percent(max(shares))} of the processors")


def on_machine(machine: Mapping[str, Any]) -> list[str]:
    memory = f", {machine['memory_gb']:.0f} GB" if machine["memory_gb"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    where = f"{machine['processor']}, {machine['cores']} cores{memory}, {machine['system']}"
    card = machine.get("accelerator")
    cards = labelled("card", card["name"]) if card else []
    return [*labelled("machine", where), *cards, *labelled("versions", f"python {machine['python']}, {versions}")]


def speeds(made: Mapping[str, Any]) -> list[str]:
    """One line per contender: its speed while encoding, its padding, its times and its memory."""
    lines = [row("medians", ("rows/s", "tokens/s", "padding", "process", "encode", "memory"))]
    lines.append(row("", ("", "", "", "s", "s", "MB")))
    for name, its in made["contenders"].items():
        cells = (
            f"{its['rows_per_second']:,.0f}",
            f"{its['tokens_per_second']:,.0f}",
            percent(its["padding_share"]),
            seconds(its["process_seconds"]),
            seconds(its["encode_seconds"]),
            f"{its['peak_memory_mb']:,.0f}",
        )
        lines.append(row(name, cells))
    return lines


def ratios(made: Mapping[str, Any]) -> list[str]:
    """One line per contender: times faster than the baseline, the arithmetic it reaches, and its fidelity."""
    lines = textwrap.wrap(f"times faster than {made['baseline']}, each run beside its run of the same round", WIDTH)
    lines += textwrap.wrap(best(made), WIDTH)
    lines.append(row("", ("process", "encode", "cpu", "GFLOP/s", "of best", "cosine")))
    for name, its in made["contenders"].items():
        cells = (
            f"{its['process_ratio']['median']:.2f}",
            f"{its['encode_ratio']['median']:.2f}",
            f"{its['cpu_ratio']['median']:.2f}",
            "" if its.get("useful_gflops") is None else f"{its['useful_gflops']:,.0f}",
            percent(its.get("share_of_matrix_product")),
            cosine(its["lowest_cosine"]),
        )
        lines.append(row(name, cells))
    return lines


def best(made: Mapping[str, Any]) -> str:
    """What computing is compared with; empty if nothing was measured."""
    speeds = ", ".join(f"{speed:,.0f} GFLOP/s in {name}" for name, speed in made["matrix_product_gflops"].items())
    card = made["machine"].get("accelerator")
    what = f"dense peak ({card['source']})" if card else "the machine's best matrix product"
    return f"{what}: {speeds}" if speeds else ""


def inside(made: Mapping[str, Any]) -> list[str]:
    """What embedcli's reports say of the encode seconds: when its device stage had nothing to do, and tokenizing."""
    ours = {name: its for name, its in made["contenders"].items() if "device_idle_share" in its}
    idle = ", ".join(f"{percent(its['device_idle_share'])} ({name})" for name, its in ours.items())
    tokens = ", ".join(f"{percent(its['tokenize_share'])} ({name})" for name, its in ours.items())
    return labelled("idle", f"device stage waiting for rows: {idle}") + labelled("tokens", f"tokenizing: {tokens}")


def few(made: Mapping[str, Any]) -> list[str]:
    """What a ten-row job takes."""
    times = made["ten_rows"]["process_seconds"].items()
    text = ", ".join(f"{name} {value:.2f} s" for name, value in times)
    return labelled(
        "ten rows", f"whole process: {text}; {made['ten_rows']['process_ratio']['median']:.1f} times faster"
    )


def missing(made: Mapping[str, Any]) -> list[str]:
    """Who did not take part, and why."""
    return [line for name, why in made["missing"].items() for line in labelled("missing", f"{name}: {why}")]


def tuning(made: Mapping[str, Any]) -> str:
    """The curve of budgets."""
    heads = ("rows/s", "tokens/s", "padding", "s", "MB", "")
    lines = [*on_machine(made["machine"]), *labelled("model", made["model"])]
    lines += labelled("rows", f"{made['rows']:,}, medians of {made['rounds']} runs")
    lines += ["", row("batch tokens", heads)]
    for budget in made["budgets"]:
        cells = (
            f"{budget['rows_per_second']:,.0f}",
            f"{budget['tokens_per_second']:,.0f}",
            percent(budget["padding_share"]),
            f"{budget['encode_seconds']:.1f}",
            f"{budget['peak_memory_mb']:,.0f}",
            "default" if budget["batch_tokens"] == made["default"] else "",
        )
        lines.append(row(f"{budget['batch_tokens']:,}", cells))
    return "\n".join(lines)


def together(made: Mapping[str, Any]) -> str:
    """What `together` found: each runner's times, and its speed after the start beside one process."""
    lines = [*on_machine(made["machine"])]
    lines += labelled("rows", f"{made['rows']:,} in {made['files']} files")
    lines += labelled("runs", f"{made['rounds']} of each, in turn; medians; ratios are of runs of the same round")
    lines += disturbed(made["runners"].values())
    lines += ["", row("seconds", ("process", "start", "after", "ratio"))]
    for name, its in made["runners"].items():
        times = [seconds(its[key]) for key in ("process_seconds", "start_seconds", "working_seconds")]
        lines.append(row(name, (*times, f"{its['ratio']['median']:.2f}")))
    return "\n".join([*lines, *(["", *missing(made)] if made["missing"] else [])])


def shapes(made: Mapping[str, Any]) -> str:
    """What `shapes` found: for every size and kind of rows a line of embedcli's, one of the baseline's, and stages."""
    cells = [(name, kind, its) for name, kinds in made["shapes"].items() for kind, its in kinds.items()]
    first = cells[0][2]
    lines = [*on_machine(first["machine"]), *labelled("runs", f"{made['rounds']} of each, in turn; medians")]
    lines += [*disturbed(figures for _, _, its in cells for figures in its["contenders"].values()), ""]
    lines.append(row("medians", ("rows/s", "tokens/s", "times", "of best", "idle", "cosine")))
    shares = ["", "share of the encode seconds, stages side by side"]
    for name, kind, its in cells:
        ours, base = next(iter(its["contenders"])), its["baseline"]
        lines.append(f"{name} network, {kind} rows ({its['input']['rows']:,})")
        lines += [row(f"  {who}", shape_cells(its["contenders"][who])) for who in (ours, base)]
        own = its["contenders"][ours]
        spent = (f"{stage} {percent(s / own['encode_seconds'])}" for stage, s in own["stage_seconds"].items())
        shares += labelled(f"{name} {kind}", ", ".join(spent), 13)
    return "\n".join([*lines, *shares, "", *textwrap.wrap(best(first), WIDTH)]).rstrip()


def shape_cells(its: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{its['rows_per_second']:,.0f}",
        f"{its['tokens_per_second']:,.0f}",
        f"{its['encode_ratio']['median']:.2f}",
        percent(its.get("share_of_matrix_product")),
        percent(its.get("device_idle_share")),
        cosine(its["lowest_cosine"]),
    )


def memory(made: Mapping[str, Any]) -> str:
    """Peak memory by number of rows."""
    lines = [*on_machine(made["machine"]), "", row("rows", ("memory", "process", "rows/s"))]
    for run in made["runs"]:
        cells = (
            f"{run['peak_memory_mb']:,.0f} MB",
            f"{run['process_seconds']:.1f} s",
            f"{run['rows_per_second']:,.0f}",
        )
        lines.append(row(f"{run['rows']:,}", cells))
    return "\n".join([*lines, f"growth {made['growth_mb']:,.0f} MB; it may be {made['allowed_mb']:,.0f} MB"])


def row(name: str, cells: Sequence[str]) -> str:
    """A name and right-aligned cells that share the rest of the width."""
    width = (8, 10, 8, 8, 8, 8)
    return (name[:NAME].ljust(NAME) + "".join(cell.rjust(w) for cell, w in zip(cells, width, strict=False))).rstrip()


def labelled(label: str, text: str, width: int = LABEL) -> list[str]:
    """A label and its text, wrapped beside it."""
    lines = textwrap.wrap(text, WIDTH - width, break_long_words=False) or [""]
    return [(label if i == 0 else "").ljust(width) + line for i, line in enumerate(lines)]


def seconds(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def cosine(value: float) -> str:
    """Enough digits to see how far from 1: 0.99993, or 1-3e-07 nearer to it."""
    if value >= 1:
        return "1"
    return f"1-{1 - value:.0e}" if value > 0.9999 else f"{value:.5f}"

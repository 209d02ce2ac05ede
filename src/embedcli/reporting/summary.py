"""Text of the run summary: the lines that `encode` prints at the end and that `embedcli report` shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedcli.core.counts import format_count


def format_summary(report: Mapping[str, Any]) -> list[str]:
    """Format a run report as aligned lines.

    Args:
        report: The content of a report, as `RunReport.as_json` returns it.

    Returns:
        One line per fact, such as "rows      12 in, 10 embedded, 2 rejected".
    """
    rows, vector_space = report["rows"], report["space"]
    has_totals = "read" in rows  # a failed run has only its own counters
    lines = [("rows", format_rows(rows) if has_totals else f"{rows['this_run']:,} embedded by this run")]
    if report.get("reject_reasons"):
        from embedcli.reporting.rejects import format_rejects, suggest_for_rejects

        lines.append(("rejects", format_rejects(report)))
        lines += [("hint", text) for text in suggest_for_rejects(report)]
    if rows["resumed"]:
        lines.append(("resumed", f"{format_count(rows['resumed'], 'row was', 'rows were')} there already"))
    if report["changes"]:
        lines.append(("changes", ", ".join(f"{count:,} {name}" for name, count in report["changes"].items())))
    if has_totals:
        lines.append(("tokens", format_tokens(report)))
    if report["counters"]["batches"]:
        lines.append(("padding", f"{report['padding_share']:.1%} of the tokens computed"))
        lines.append(("speed", format_speed(report)))
        lines += [("start-up", text) for text in format_startup(report)]
        lines.append(("stages", format_stages(report)))
    if report.get("cost"):
        lines.append(("cost", format_cost(report["cost"])))
    lines += [("note", note) for note in list_recovered_problems(report)]
    if report["peak_memory_mb"] is not None:
        lines.append(("memory", f"{report['peak_memory_mb']:,.0f} MB at most"))
    if vector_space:
        lines.append(("model", format_model(vector_space)))
    lines += [("output", path) for path in report["files"]]
    return [f"{name:<8}  {text}" for name, text in lines]


def format_rows(rows: Mapping[str, int]) -> str:
    return f"{rows['read']:,} in, {rows['rows']:,} embedded, {rows['rejects']:,} rejected"


def format_tokens(report: Mapping[str, Any]) -> str:
    rows, truncated = report["rows"], report["truncated_rows"]
    text = f"{rows.get('tokens', 0):,}"
    if truncated:
        text += f"; {format_count(truncated, 'row')} ({truncated / max(1, rows['rows']):.1%}) truncated, "
        text += f"{report['unread_token_share']:.1%} of all tokens never read"
    return text


def format_speed(report: Mapping[str, Any]) -> str:
    """Format the speed while rows flowed; reports of earlier versions have only that of the whole run."""
    measured = report.get("embedding_speed") or report
    speed = f"{format_rate(measured['rows_per_second'])} rows/s, {format_rate(measured['tokens_per_second'])} tokens/s"
    return f"{speed}, {report['seconds']:.1f} s in all"


def format_rate(rate: float) -> str:
    """Format a rate without decimals, or with two digits if it is below 10: 1,800 or 0.36."""
    return f"{rate:,.0f}" if rate >= 9.95 else f"{rate:.2g}"


def format_startup(report: Mapping[str, Any]) -> list[str]:
    """Format the time until rows flowed, as a line of its own; none for reports of earlier versions."""
    seconds = report.get("startup_seconds")
    return [] if seconds is None else [f"{seconds:.1f} s before the first row"]


def format_stages(report: Mapping[str, Any]) -> str:
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report["stage_seconds"].items())
    return f"{times}; {report['bottleneck']} is the bottleneck"


def format_cost(cost: Mapping[str, Any]) -> str:
    unit = "tokens as the server counts them" if cost["counted_by"] == "server" else "tokens"
    return f"{cost['amount']:,.6g} for {cost['tokens']:,} {unit}, at {cost['price_per_mtok']:g} per million"


def list_recovered_problems(report: Mapping[str, Any]) -> list[str]:
    """List what is worth a look, and what went wrong during the run without harm to its result."""
    notes = []
    if report.get("duplicate_ids"):
        ids = format_count(report["duplicate_ids"], "id appears", "ids appear")
        notes.append(f"{ids} more than once in the output; embedcli inspect shows examples")
    if report["out_of_memory"]:
        limit = f"{report['batch_tokens']:,} tokens"
        notes.append(f"out of memory {format_count(report['out_of_memory'], 'time')}: batches were cut to {limit}")
    if report["retried_rows"]:
        rows = format_count(report["retried_rows"], "row had a vector", "rows had vectors")
        is_hosted = report["space"].get("engine") == "remote"
        action = "asked for again" if is_hosted else "encoded again in float32"
        notes.append(f"{rows} with NaN, infinity or only zeros, {action}")
    if report["damaged_parts"]:
        notes.append(
            f"{format_count(report['damaged_parts'], 'damaged part file was', 'damaged part files were')} written again"
        )
    return notes


def format_model(vector_space: Mapping[str, Any]) -> str:
    engine = ", ".join(str(vector_space[key]) for key in ("engine", "device", "dtype") if vector_space.get(key))
    return f"{vector_space.get('model')} ({engine}), {vector_space.get('dim')} dimensions"

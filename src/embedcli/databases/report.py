"""The report of a load in JSON, as `--report FILE` writes it, and the summary that is made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from embedcli import __version__, storage
from embedcli.core.counts import format_count
from embedcli.reporting.rejects import format_rejects
from embedcli.reporting.run_report import describe_rejects, peak_memory_mb, per_second

if TYPE_CHECKING:
    from embedcli.databases.address import TargetAddress
    from embedcli.databases.load_result import LoadOptions, LoadResult


@dataclass
class LoadReport:
    """Facts about one load.

    Attributes:
        output: The output.
        address: Where the table is.
        options: What was done beside sending rows.
        vector_column: The column of vectors that was asked for, if any.
        exit_code: The exit code of the process.
        reason: How the load ended.
        hint: What to do next.
        seconds: Duration.
        space: The vector space metadata of the rows.
        result: The counts so far; None before any row was looked at.
        notes: The notes of the load.
        started: When it began, in UTC.
    """

    output: str
    address: TargetAddress
    options: LoadOptions
    vector_column: str | None = None
    exit_code: int = 1
    reason: str = ""
    hint: str = ""
    seconds: float = 0.0
    space: Mapping[str, Any] = field(default_factory=dict)
    result: LoadResult | None = None
    notes: Sequence[str] = ()
    started: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")

    def as_json(self) -> dict[str, Any]:
        """Build the content of the report. Secrets in addresses are masked."""
        result = self.result
        return {
            "embedcli": __version__,
            "started": self.started,
            "seconds": round(self.seconds, 3),
            "exit_code": self.exit_code,
            "reason": self.reason,
            "hint": self.hint,
            "rows": None
            if result is None
            else {
                "output": result.rows,
                "sent": result.sent,
                "unchanged": result.unchanged,
                "removed": result.deleted,
                "rejected": result.rejects,
                "table": result.table_rows,
            },
            "rows_per_second": per_second(result.sent if result else 0, self.seconds),
            **describe_rejects(result.reject_summary if result else None),
            "index": result.index if result else None,
            "peak_memory_mb": peak_memory_mb(),
            "space": dict(self.space),
            "job": {
                "output": storage.mask_secrets(self.output),
                "target": str(self.address),
                "table": self.address.table,
                "vector_column": self.vector_column,
                **asdict(self.options),
            },
            "notes": list(self.notes),
        }


def format_load_summary(report: Mapping[str, Any]) -> list[str]:
    """Format the report of a load as aligned lines.

    Args:
        report: The content of a report, as `LoadReport.as_json` returns it.
    """
    rows, job = report["rows"], report["job"]
    facts = []
    if rows is not None:
        sent = f"{rows['sent']:,} sent, {rows['unchanged']:,} unchanged"
        facts.append(("rows", f"{rows['output']:,} in the output, {sent}"))
        if rows["removed"]:
            facts.append(("deleted", format_count(rows["removed"], "row")))
        if rows["rejected"]:
            is_known = report["reject_reasons"]
            facts.append(("rejects", format_rejects(report) if is_known else format_count(rows["rejected"], "row")))
        if rows["sent"]:
            facts.append(("speed", f"{report['rows_per_second']:,.0f} rows/s, {report['seconds']:.1f} s in all"))
    if report["index"]:
        facts.append(("index", report["index"]))
    size = "" if rows is None or rows["table"] is None else f": {format_count(rows['table'], 'row')}"
    facts.append(("table", f"{job['table']} in {job['target']}{size}"))
    return [f"{name:<8}  {text}" for name, text in facts]

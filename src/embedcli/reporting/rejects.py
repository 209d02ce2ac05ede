"""What the summary says about rejected rows: counts by reason, the first place, and what to try."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedcli.core.counts import format_count
from embedcli.core.types import RejectSummary
from embedcli.readers import row_batch

# A suggestion needs this many rejects of one kind, and this share of all rows.
MIN_REJECTS, MIN_SHARE = 3, 0.5
# What to try when most rows are rejected for one reason: the option, and a sentence with the values to give.
SUGGESTIONS = {
    row_batch.WRONG_WIDTH_REASON: "another separator? try --delimiter tab",
    row_batch.BAD_CSV_REASON: "quotes that are plain text? try --quote none",
    row_batch.BAD_ENCODING_REASON: "not UTF-8? try --encoding latin-1, or --encoding utf-16",
    row_batch.BAD_JSON_REASON: "not JSON lines? try --format csv, --format text or --format json",
    row_batch.NOT_OBJECT_REASON: "not JSON objects? try --format text, or --format csv",
    row_batch.MISSING_TEXT_REASON: "another column has the text? try --text-column COLUMN",
    row_batch.EMPTY_TEXT_REASON: "another column has the text? try --text-column COLUMN",
    row_batch.NOT_TEXT_REASON: "another column has the text? try --text-column COLUMN",
    row_batch.MISSING_FIELD_REASON: "other columns have the text? try another --template",
    row_batch.MISSING_ID_REASON: "another column has the ids? try --id-column COLUMN",
}


def format_rejects(report: Mapping[str, Any]) -> str:
    """Format counts by reason, the first place and the file: "2 bad JSON, 1 text is empty; first: in.jsonl:3; ..."."""
    reasons = {each["reason"]: each["rows"] for each in report["reject_reasons"]}
    text = RejectSummary(reasons, report["first_reject"]).format_reasons()
    return f"{text}; all in {report['rejects_path']}" if report["rejects_path"] else text


def suggest_for_rejects(report: Mapping[str, Any]) -> list[str]:
    """Return what to try if at least half of all rows were rejected for one reason; nothing otherwise."""
    most = report["reject_reasons"][0]
    if most["rows"] < max(MIN_REJECTS, MIN_SHARE * report["rows"].get("read", 0)):
        return []
    widths = row_batch.parse_wrong_width_reason(most.get("example", ""))
    # A header of several columns shows that the separator is right.
    if widths is not None and widths[1] > 1:
        return [describe_widths(*widths, has_header=report.get("job", {}).get("header", True))]
    suggestion = SUGGESTIONS.get(most["reason"])
    return [] if suggestion is None else [suggestion]


def describe_widths(found: int, expected: int, *, has_header: bool) -> str:
    """Say what may be wrong with rows that have another number of fields than the header."""
    fields = f"rows have {format_count(found, 'field')}, the {'header' if has_header else 'first row'} {expected}"
    if found > expected:
        return f"{fields}: a separator at the end of the lines, or in a text without quotes?"
    return f"{fields}: fields missing at the end of the lines, or another separator in the rows?"


def format_rejects_in_short(report: Mapping[str, Any]) -> str:
    """One line for a quiet run: how many rows were rejected, where the first one is and why, and where all are."""
    rejects, place = report["rows"]["rejects"], report["first_reject"]
    text = f"{format_count(rejects, 'row was', 'rows were')} rejected"
    reason = next((each["reason"] for each in report["reject_reasons"] if each["first"] == place), None)
    if reason is not None:
        text += f"; first: {place} ({reason})"
    return text + (f"; all in {report['rejects_path']}" if report["rejects_path"] else "")

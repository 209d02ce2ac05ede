"""The run report in JSON, as `--report FILE` writes it."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from embedcli import __version__, storage
from embedcli.core.errors import OutputError
from embedcli.core.job import Job
from embedcli.core.types import RejectSummary, RunResult

if TYPE_CHECKING:
    from embedcli.pipeline.metrics import MetricsCollector


@dataclass
class RunReport:
    """Facts about one run, from which the JSON report and the summary are made."""

    job: Job
    exit_code: int
    reason: str
    seconds: float
    started: str
    metrics: MetricsCollector
    result: RunResult | None = None
    reject_summary: RejectSummary | None = None
    hint: str = ""
    notes: list[str] = field(default_factory=list)
    price_per_mtok: float | None = None
    option_sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Build the content of the report. Secrets in addresses are masked; no other option holds a secret."""
        metrics, result = self.metrics, self.result
        totals = dict(result.totals) if result else {}
        tokens = totals.get("tokens", 0)
        return {
            "embedcli": __version__,
            "started": self.started,
            "seconds": round(self.seconds, 3),
            "exit_code": self.exit_code,
            "reason": self.reason,
            "hint": self.hint,
            "rows": totals | {"resumed": result.resumed_rows if result else 0, "this_run": metrics.rows},
            "lost_rows": result.lost_rows if result else 0,
            "truncated_rows": totals.get("truncated", 0),
            "unread_token_share": safe_ratio(totals.get("lost_tokens", 0), tokens),
            "padding_share": safe_ratio(metrics.padded_tokens - metrics.fed_tokens, metrics.padded_tokens),
            "rows_per_second": per_second(self.computed_rows(), self.seconds),
            "tokens_per_second": per_second(metrics.fed_tokens, self.seconds),
            "startup_seconds": round_or_none(metrics.startup_seconds),
            "embedding_speed": self.embedding_speed(),
            "stage_seconds": {name: round(value, 3) for name, value in metrics.seconds.items()},
            "timeline": metrics.timeline(),
            "bottleneck": slowest_stage(metrics),
            "forward_seconds": round(metrics.forward_seconds, 3),
            "device_idle_share": safe_ratio(metrics.idle_seconds, metrics.forward_seconds),
            "counters": {
                "batches": metrics.batches,
                "sequences": metrics.sequences,
                "fed_tokens": metrics.fed_tokens,
                "padded_tokens": metrics.padded_tokens,
                "reused": metrics.reused,
                "duplicates": metrics.duplicates,
            },
            "out_of_memory": metrics.out_of_memory,
            "batch_tokens": metrics.batch_tokens,
            "retried_rows": metrics.retried_rows,
            "changes": dict(result.changes) if result and result.changes else None,
            "damaged_parts": result.damaged_parts if result else 0,
            "usage": dict(result.usage) if result and result.usage else None,
            "cost": self.cost(),
            "peak_memory_mb": peak_memory_mb(),
            **describe_rejects((self.result.reject_summary if self.result else None) or self.reject_summary),
            "duplicate_ids": result.duplicate_ids if result else None,
            "space": dict(result.vector_space) if result else {},
            "files": list(result.files) if result else [],
            "job": {name: redact_option(name, value) for name, value in asdict(self.job).items()},
            "settings": {
                flag: {**option, "value": redact_option(flag.replace("-", "_"), option["value"])}
                for flag, option in self.option_sources.items()
            },
            "notes": self.notes,
        }

    def computed_rows(self) -> int:
        """Rows that this run has computed, those of unfinished chunks included: their tokens are counted as well."""
        return self.metrics.rows + (self.result.lost_rows if self.result else 0)

    def embedding_speed(self) -> dict[str, Any] | None:
        """Speed while rows flowed, without start-up and publishing; None if no row was embedded."""
        seconds = self.metrics.embedding_seconds
        if seconds is None:
            return None
        return {
            "seconds": round(seconds, 3),
            "rows_per_second": per_second(self.computed_rows(), seconds),
            "tokens_per_second": per_second(self.metrics.fed_tokens, seconds),
        }

    def cost(self) -> dict[str, Any] | None:
        """Compute the cost of this run: of the tokens that the server reports, else of those fed to the model."""
        if self.price_per_mtok is None:
            return None
        usage = self.result.usage if self.result else None
        counted = usage is not None and usage.get("tokens_reported", True)
        tokens = int(usage["tokens"]) if usage is not None and counted else self.metrics.fed_tokens
        return {
            "amount": price_of_tokens(tokens, self.price_per_mtok),
            "tokens": tokens,
            "price_per_mtok": self.price_per_mtok,
            "counted_by": "server" if counted else "embedcli",
        }


def describe_rejects(summary: RejectSummary | None) -> dict[str, Any]:
    """Return what a report says of the rejects: rows by reason, the place of the first one, and the file with all."""
    summary = summary or RejectSummary({}, "")
    reasons = [
        {
            "reason": reason,
            "rows": rows,
            "example": summary.examples.get(reason, reason),
            "first": summary.first_places.get(reason),
        }
        for reason, rows in summary.reasons.items()
    ]
    return {"reject_reasons": reasons, "first_reject": summary.first or None, "rejects_path": summary.path}


def price_of_tokens(tokens: float, price_per_mtok: float) -> float:
    """Compute the price of some tokens, in the currency of the price per million tokens."""
    return round(tokens * price_per_mtok / 1e6, 8)


def slowest_stage(metrics: MetricsCollector) -> str:
    return max(metrics.seconds, key=lambda name: metrics.seconds[name])


def redact_option(name: str, value: Any) -> Any:
    """Mask secrets in the value of an option; remove user and query from the address of an endpoint."""
    if isinstance(value, list | tuple):
        return [redact_option(name, item) for item in value]
    if name != "base_url" or not value:
        return storage.mask_secrets(value) if isinstance(value, str) else value
    scheme, separator, rest = str(value).partition("?")[0].rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def safe_ratio(part: float, whole: float) -> float:
    return round(part / whole, 6) if whole else 0.0


def round_or_none(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def per_second(count: float, seconds: float) -> float:
    return round(count / seconds, 3) if seconds else 0.0


def peak_memory_mb() -> float | None:
    """Return the largest resident size of this process and of its finished workers, in MB (10**6 bytes).

    None on Windows, which does not tell.
    """
    if sys.platform == "win32":
        return None
    import resource

    peak = max(resource.getrusage(scope).ru_maxrss for scope in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def check_report_path(path: str) -> None:
    """Check, before a run, that its report can be written.

    Raises:
        OutputError: The folder does not exist or cannot be written to, or the path is a folder.
        UsageError: The address can only be read.
    """
    storage.check_writable(path)
    storage.check_file_can_be_made(path)
    if storage.is_local(path) and storage.is_folder(path):
        raise OutputError(f"{path}: --report needs a file, and this is a folder", "name a file such as run.json")


def write_report(path: str, content: Mapping[str, Any]) -> None:
    """Write a report as JSON, atomically.

    Raises:
        OutputError: The file cannot be written.
    """
    from embedcli.outputs.writers import to_readable_json

    text = to_readable_json(content, indent=1) + "\n"
    # Put lists of numbers on one line. A line break inside a string is escaped, so only lists match.
    text = re.sub(r"\[\n[\d\s.,e-]+\]", lambda numbers: re.sub(r"\s+", " ", numbers[0]), text)
    storage.write_bytes(path, text.encode())

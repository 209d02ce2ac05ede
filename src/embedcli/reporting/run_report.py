"""Numbers for people: progress on stderr, the summary, the run report in JSON."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from embedcli import __version__, storage
from embedcli.core.job import Job
from embedcli.core.types import RunResult
from embedcli.outputs import writers

if TYPE_CHECKING:
    from embedcli.pipeline.metrics import MetricsCollector


@dataclass
class RunReport:
    """Everything one run has to say, as `--report` writes it."""

    job: Job
    exit_code: int
    reason: str
    seconds: float
    started: str
    metrics: MetricsCollector
    result: RunResult | None = None
    hint: str = ""
    notes: list[str] = field(default_factory=list)
    price_per_mtok: float | None = None
    option_sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The report's content, without the secrets that an address may hold: nothing else in a Job is one."""
        meter = self.metrics
        outcome = self.result
        totals = dict(outcome.totals) if outcome else {}
        tokens = totals.get("tokens", 0)
        return {
            "embedcli": __version__,
            "started": self.started,
            "seconds": round(self.seconds, 3),
            "exit_code": self.exit_code,
            "reason": self.reason,
            "hint": self.hint,
            "rows": totals | {"resumed": outcome.resumed_rows if outcome else 0, "this_run": meter.rows},
            "truncated_rows": totals.get("truncated", 0),
            "unread_token_share": safe_ratio(totals.get("lost_tokens", 0), tokens),
            "padding_share": safe_ratio(meter.padded_tokens - meter.fed_tokens, meter.padded_tokens),
            "rows_per_second": per_second(meter.rows, self.seconds),
            "tokens_per_second": per_second(meter.fed_tokens, self.seconds),
            "stage_seconds": {name: round(value, 3) for name, value in meter.seconds.items()},
            "timeline": meter.timeline(),
            "bottleneck": slowest_stage(meter),
            "forward_seconds": round(meter.forward_seconds, 3),
            "device_idle_share": safe_ratio(meter.idle_seconds, meter.forward_seconds),
            "counters": {
                "batches": meter.batches,
                "sequences": meter.sequences,
                "fed_tokens": meter.fed_tokens,
                "padded_tokens": meter.padded_tokens,
                "reused": meter.reused,
                "duplicates": meter.duplicates,
            },
            "out_of_memory": meter.out_of_memory,
            "batch_tokens": meter.batch_tokens,
            "retried_rows": meter.retried_rows,
            "changes": dict(outcome.changes) if outcome and outcome.changes else None,
            "damaged_parts": outcome.damaged_parts if outcome else 0,
            "usage": dict(outcome.usage) if outcome and outcome.usage else None,
            "cost": self.cost(),
            "peak_memory_mb": peak_memory_mb(),
            "space": dict(outcome.vector_space) if outcome else {},
            "files": list(outcome.files) if outcome else [],
            "job": {name: redact_option(name, value) for name, value in asdict(self.job).items()},
            "settings": {
                flag: {**one, "value": redact_option(flag.replace("-", "_"), one["value"])}
                for flag, one in self.option_sources.items()
            },
            "notes": self.notes,
        }

    def cost(self) -> dict[str, Any] | None:
        """What this run's tokens cost at the user's price: those the server counted, else those that were fed."""
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

    def format_summary(self) -> list[str]:
        """The run in a few aligned lines."""
        return format_summary(self.as_json())


def format_summary(made: Mapping[str, Any]) -> list[str]:
    """A report's content in a few aligned lines."""
    rows, space = made["rows"], made["space"]
    whole = "read" in rows  # a run that failed knows only what it has done itself
    lines = [("rows", format_rows(rows) if whole else f"{rows['this_run']:,} embedded by this run")]
    if rows["resumed"]:
        lines.append(("resumed", f"{rows['resumed']:,} rows were there already"))
    if made["changes"]:
        lines.append(("changes", ", ".join(f"{count:,} {name}" for name, count in made["changes"].items())))
    if whole:
        lines.append(("tokens", format_tokens(made)))
    if made["counters"]["batches"]:
        lines.append(("padding", f"{made['padding_share']:.1%} of the tokens computed"))
        speed = f"{made['rows_per_second']:,.0f} rows/s, {made['tokens_per_second']:,.0f} tokens/s"
        lines.append(("speed", f"{speed}, {made['seconds']:.1f} s in all"))
        lines.append(("stages", format_stages(made)))
    if made.get("cost"):
        lines.append(("cost", format_cost(made["cost"])))
    lines += [("note", note) for note in list_recovered_problems(made)]
    lines.append(("memory", f"{made['peak_memory_mb']:,.0f} MB at most"))
    if space:
        how = ", ".join(str(space[key]) for key in ("engine", "device", "dtype") if space.get(key))
        lines.append(("model", f"{space.get('model')} ({how}), {space.get('dim')} dimensions"))
    lines += [("output", path) for path in made["files"]]
    return [f"{name:<8}  {text}" for name, text in lines]


def format_rows(rows: Mapping[str, int]) -> str:
    return f"{rows['read']:,} in, {rows['rows']:,} embedded, {rows['rejects']:,} rejected"


def format_tokens(made: Mapping[str, Any]) -> str:
    rows = made["rows"]
    text = f"{rows.get('tokens', 0):,}"
    if made["truncated_rows"]:
        part = safe_ratio(made["truncated_rows"], rows["rows"])
        text += f"; {made['truncated_rows']:,} rows ({part:.1%}) truncated, "
        text += f"{made['unread_token_share']:.1%} of all tokens never read"
    return text


def price_of_tokens(tokens: float, price_per_mtok: float) -> float:
    """The price of some tokens, in the currency of the price per million tokens."""
    return round(tokens * price_per_mtok / 1e6, 8)


def format_cost(cost: Mapping[str, Any]) -> str:
    how = "tokens as the server counts them" if cost["counted_by"] == "server" else "tokens"
    return f"{cost['amount']:,.6g} for {cost['tokens']:,} {how}, at {cost['price_per_mtok']:g} per million"


def format_stages(made: Mapping[str, Any]) -> str:
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in made["stage_seconds"].items())
    return f"{times}; {made['bottleneck']} is the bottleneck"


def list_recovered_problems(made: Mapping[str, Any]) -> list[str]:
    """What went wrong and was mended."""
    found = []
    if made["out_of_memory"]:
        found.append(
            f"out of memory {made['out_of_memory']} times: batches were cut to {made['batch_tokens']:,} tokens"
        )
    if made["retried_rows"]:
        found.append(f"{made['retried_rows']} rows had non-finite vectors and were tried again in float32")
    if made["damaged_parts"]:
        found.append(f"{made['damaged_parts']} damaged parts were made again")
    return found


def slowest_stage(meter: MetricsCollector) -> str:
    return max(meter.seconds, key=lambda name: meter.seconds[name])


def redact_option(name: str, value: Any) -> Any:
    """A flag's value as it may be shown: addresses without secrets, that of an endpoint without user and query."""
    if isinstance(value, list | tuple):
        return [redact_option(name, one) for one in value]
    if name != "base_url" or not value:
        return storage.mask_secrets(value) if isinstance(value, str) else value
    scheme, separator, rest = str(value).partition("?")[0].rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def safe_ratio(part: float, whole: float) -> float:
    return round(part / whole, 6) if whole else 0.0


def per_second(count: float, seconds: float) -> float:
    return round(count / seconds, 3) if seconds else 0.0


def peak_memory_mb() -> float:
    """The largest resident size so far of this process or of a worker that has ended, in MB (10**6 bytes)."""
    import resource

    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def write_report(path: str, content: Mapping[str, Any]) -> None:
    """Write a report whole, or raise an OutputError."""
    text = writers.to_readable_json(content, indent=1) + "\n"
    # Numbers of a list stand on one line. A line break inside a text is written as \\n, so only lists match.
    text = re.sub(r"\[\n[\d\s.,e-]+\]", lambda numbers: re.sub(r"\s+", " ", numbers[0]), text)
    storage.write_bytes(path, text.encode())

"""Progress in words and numbers, the same in every renderer."""

from __future__ import annotations

from dataclasses import dataclass

from embedcli.reporting.progress.estimator import ProgressEstimate


@dataclass(frozen=True)
class Phase:
    """A part of a run that shows no rows, such as loading the model.

    Attributes:
        text: What happens, in a few words.
        started: The time when it began, in seconds.
        done_bytes: Bytes that are downloaded; None where nothing is.
        total_bytes: Bytes to download; None if nobody knows.
    """

    text: str
    started: float
    done_bytes: int | None = None
    total_bytes: int | None = None

    def describe(self, now: float) -> str:
        """What happens, for how long it has: `loading the model  0:00:03`."""
        parts = [self.text]
        if self.done_bytes is not None:
            total = f" of {format_size(self.total_bytes)}" if self.total_bytes else ""
            parts.append(f"{format_size(self.done_bytes)}{total}")
        return "  ".join([*parts, format_duration(now - self.started)])


def describe_numbers(estimate: ProgressEstimate, price_per_mtok: float | None = None) -> list[str]:
    """Describe progress in the order of importance: `43%`, `860/2,000 rows`, `0:00:22 left`, speeds, requests, cost.

    Args:
        estimate: The progress.
        price_per_mtok: Price per million tokens, to show the cost of a hosted model.
    """
    texts = [] if estimate.fraction is None else [format_percent(estimate.fraction)]
    total = "" if estimate.total is None else f"/{'~' if estimate.is_estimated else ''}{estimate.total:,}"
    texts.append(f"{estimate.done:,}{total} rows")
    if estimate.rows_per_second is not None:
        texts.append(f"{format_rate(estimate.rows_per_second)} rows/s")
    if estimate.tokens_per_second is not None:
        texts.append(f"{format_rate(estimate.tokens_per_second, compact=True)} tok/s")
    if estimate.requests:
        texts.append(f"{estimate.requests:,} requests")
        if price_per_mtok is not None:
            texts.append(f"cost {estimate.billed_tokens * price_per_mtok / 1e6:,.4g}")
    if estimate.eta_seconds is not None:
        texts.append(f"{format_duration(estimate.eta_seconds)} left")
    return texts


def format_percent(fraction: float) -> str:
    """A share in whole percent, rounded down: 100% means that all is done."""
    return f"{int(min(1.0, fraction) * 100 + 1e-9)}%"


def format_rate(rate: float, *, compact: bool = False) -> str:
    """A speed with two or three digits: 4.2, 52, 12,345; with `compact` 2.9k and 1.2M."""
    if compact:
        for limit, unit in ((1e6, "M"), (1e3, "k")):
            if rate >= limit:
                return f"{rate / limit:.{1 if rate < 100 * limit else 0}f}{unit}"
    return f"{rate:.1f}" if 0 < rate < 10 else f"{rate:,.0f}"


def format_duration(seconds: float) -> str:
    """A time as H:MM:SS, with days before it from one day on: 0:00:22, 2d 03:04:05."""
    minutes, second = divmod(int(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}d {hour:02}:{minute:02}:{second:02}" if days else f"{hour}:{minute:02}:{second:02}"


def format_size(count: float) -> str:
    """A number of bytes in a readable unit: 154.6 MB."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"

"""Progress on a terminal: one line with a bar while rows flow, and one with a spinner before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.text import Text

from embedcli.reporting.progress.estimator import ProgressEstimate
from embedcli.reporting.progress.renderer import Renderer
from embedcli.reporting.progress.wording import Phase, describe_numbers

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderResult

MIN_BAR_WIDTH, MAX_BAR_WIDTH = 6, 40
# What is left out on narrow terminals, the least important first.
OPTIONAL_UNITS = ("tok/s", "rows/s", "requests")


class RichRenderer(Renderer):
    """Draws with rich on a terminal. Output of others to stderr appears above the bar; stdout is left alone.

    Args:
        out: The terminal.
        price_per_mtok: Price per million tokens, to show the cost.
    """

    def __init__(self, out: TextIO, price_per_mtok: float | None = None) -> None:
        self._console = Console(file=out, emoji=False, highlight=False)
        self._price = price_per_mtok
        self._live: Live | None = None
        self._spinner: tuple[object, Spinner] | None = None

    def draw_phase(self, phase: Phase, now: float) -> None:
        key = phase.text, phase.started
        if self._spinner is None or self._spinner[0] != key:
            self._spinner = key, Spinner("dots" if self._console.encoding.startswith("utf") else "line")
        spinner = self._spinner[1]
        spinner.update(text=Text(phase.describe(now), no_wrap=True, overflow="ellipsis"))
        self._draw(spinner)

    def draw_progress(self, estimate: ProgressEstimate, now: float, *, is_final: bool = False) -> None:
        self._draw(ProgressLine(estimate, self._price))

    def _draw(self, renderable: ProgressLine | Spinner) -> None:
        if self._live is None:
            self._live = Live(
                renderable, console=self._console, auto_refresh=False, transient=True, redirect_stdout=False
            )
            self._live.start()
        self._live.update(renderable, refresh=True)

    def print_line(self, line: str) -> None:
        self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class ProgressLine:
    """`embedding ━━━━╸━━━━ 43%  860/2,000 rows  52 rows/s  2.9k tok/s  0:00:22 left` on one line of any width."""

    def __init__(self, estimate: ProgressEstimate, price_per_mtok: float | None) -> None:
        self._activity = estimate.activity
        self._fraction = estimate.fraction
        self._texts = describe_numbers(estimate, price_per_mtok)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width - len(self._activity) - MIN_BAR_WIDTH - 3
        numbers = "  ".join(fit_texts(self._texts, room))
        width = min(MAX_BAR_WIDTH, options.max_width - len(self._activity) - len(numbers) - 3)
        yield Text(f"{self._activity} ", end="")
        if self._fraction is not None and width >= MIN_BAR_WIDTH:
            yield ProgressBar(100, self._fraction * 100, width=width)
            yield Text(" ", end="")
        yield Text(numbers, no_wrap=True, overflow="ellipsis", end="")


def fit_texts(texts: list[str], width: int) -> list[str]:
    """The texts that fit into a width with two spaces between them; the least important are left out first."""
    kept = list(texts)
    for unit in OPTIONAL_UNITS:
        if len("  ".join(kept)) <= width:
            break
        kept = [text for text in kept if not text.endswith(unit)]
    return kept

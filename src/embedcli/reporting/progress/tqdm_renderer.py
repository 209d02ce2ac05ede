"""Progress as a tqdm bar, the convention of notebooks and scripts."""

from __future__ import annotations

from typing import Any, TextIO

from embedcli.reporting.progress.estimator import ProgressEstimate
from embedcli.reporting.progress.renderer import Renderer
from embedcli.reporting.progress.wording import Phase, describe_numbers

PROGRESS_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| "
UNKNOWN_TOTAL_FORMAT = "{desc}: "


class TqdmRenderer(Renderer):
    """Draws with `tqdm.auto`: a widget in a notebook, a line on a terminal.

    The numbers are those of the estimate: tqdm's own rate and remaining time would count resumed rows.

    Args:
        out: The stream; None for stderr as it is then.
        price_per_mtok: Price per million tokens, to show the cost.
    """

    def __init__(self, out: TextIO | None = None, price_per_mtok: float | None = None) -> None:
        self._out = out
        self._price = price_per_mtok
        self._bar: Any = None
        self._key: object = None

    def draw_phase(self, phase: Phase, now: float) -> None:
        bar = self._open((phase.text, phase.started), leave=False)
        bar.bar_format = "{desc}"
        bar.set_description_str(phase.describe(now))

    def draw_progress(self, estimate: ProgressEstimate, now: float, *, is_final: bool = False) -> None:
        bar = self._open(estimate.activity, leave=True)
        texts = describe_numbers(estimate, self._price)
        if estimate.total is None:
            bar.bar_format = UNKNOWN_TOTAL_FORMAT + "  ".join(texts)
        else:
            bar.total, texts = estimate.total, texts[1:]
            bar.bar_format = PROGRESS_FORMAT + "  ".join(texts)
        bar.n = estimate.done
        bar.set_description_str(estimate.activity, refresh=False)
        bar.refresh()
        if is_final:
            self.close()

    def _open(self, key: object, *, leave: bool) -> Any:
        if self._bar is None or key != self._key:
            from tqdm.auto import tqdm

            self.close()
            self._key = key
            # Drawn by the reporter's clock alone; a bar without a total must not be drawn when it is made.
            self._bar = tqdm(
                file=self._out, leave=leave, bar_format="{desc}", dynamic_ncols=True, miniters=1 << 62, maxinterval=0
            )
        return self._bar

    def print_line(self, line: str) -> None:
        from tqdm.auto import tqdm

        tqdm.write(line, file=self._out)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

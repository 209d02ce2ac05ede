"""How progress is drawn: the same numbers in every style, on terminals of every width."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from embedcli.reporting.progress.estimator import ProgressEstimate
from embedcli.reporting.progress.plain_renderer import PlainRenderer
from embedcli.reporting.progress.rich_renderer import ProgressLine, RichRenderer
from embedcli.reporting.progress.tqdm_renderer import TqdmRenderer
from embedcli.reporting.progress.wording import (
    Phase,
    describe_numbers,
    format_duration,
    format_percent,
    format_rate,
    format_size,
)

ESTIMATE = ProgressEstimate(
    done=860, total=2000, fraction=0.43, rows_per_second=52.4, tokens_per_second=2931.0, eta_seconds=22.6
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def line(width: int, **values: Any) -> str:
    out = io.StringIO()
    estimate = ProgressEstimate(**{**vars(ESTIMATE), **values})
    Console(file=out, width=width, force_terminal=True, color_system=None).print(ProgressLine(estimate, 0.5), end="")
    return out.getvalue()


def test_the_line_is_the_documented_one() -> None:
    shown = line(96)
    assert shown.startswith("embedding ━━━━")
    assert shown.endswith("━ 43%  860/2,000 rows  52 rows/s  2.9k tok/s  0:00:22 left")
    assert len(shown) <= 96


@pytest.mark.parametrize("width", range(20, 130, 5))
def test_the_line_fits_every_terminal(width: int) -> None:
    shown = line(width, done=123_456_789, total=987_654_321, is_estimated=True, requests=1234, billed_tokens=10**9)
    assert len(shown) <= width
    assert "\n" not in shown


def test_what_matters_most_stays_on_a_narrow_terminal() -> None:
    shown = line(60)
    assert "43%  860/2,000 rows" in shown
    assert "0:00:22 left" in shown
    assert "tok/s" not in shown


def test_numbers_of_hosted_and_unknown_totals() -> None:
    hosted = ProgressEstimate(done=5, total=40, is_estimated=True, fraction=0.125, requests=12, billed_tokens=2_000_000)
    assert describe_numbers(hosted, 0.02) == ["12%", "5/~40 rows", "12 requests", "cost 0.04"]
    assert describe_numbers(hosted) == ["12%", "5/~40 rows", "12 requests"]
    assert describe_numbers(ProgressEstimate(done=5, total=None)) == ["5 rows"]


def test_numbers_are_rounded_for_people() -> None:
    assert [format_percent(share) for share in (0, 0.009, 0.999, 1, 29 / 50)] == ["0%", "0%", "99%", "100%", "58%"]
    assert [format_rate(rate) for rate in (0, 4.26, 52.4, 12345.6)] == ["0", "4.3", "52", "12,346"]
    assert [format_rate(rate, compact=True) for rate in (950, 2931, 123_456, 2.5e6)] == ["950", "2.9k", "123k", "2.5M"]
    assert [format_duration(seconds) for seconds in (0, 22.9, 3725, 90_061)] == [
        "0:00:00", "0:00:22", "1:02:05", "1d 01:01:01",
    ]  # fmt: skip
    assert [format_size(count) for count in (999, 1500, 154_600_000, 2.5e9)] == [
        "999 bytes", "1.5 kB", "154.6 MB", "2.5 GB",
    ]  # fmt: skip


def test_a_download_shows_its_bytes() -> None:
    phase = Phase("downloading ann/small", 10.0, 1_500_000, 3_000_000)
    assert phase.describe(13.2) == "downloading ann/small  1.5 MB of 3.0 MB  0:00:03"


def plain_lines(seconds: int) -> Iterator[int]:
    """The seconds at which plain progress writes a line."""
    out = io.StringIO()
    renderer = PlainRenderer(out)
    for now in range(seconds):
        before = len(out.getvalue())
        renderer.draw_progress(ESTIMATE, float(now))
        if len(out.getvalue()) > before:
            yield now


def test_plain_lines_come_often_at_first() -> None:
    assert list(plain_lines(250)) == [10, 20, 30, 40, 50, 60, 120, 180, 240]


def test_plain_lines_have_the_numbers_of_the_bar() -> None:
    out = io.StringIO()
    renderer = PlainRenderer(out, prefix=lambda: "12:00 ")
    renderer.draw_phase(Phase("loading the model", 0.0), 0.0)
    renderer.draw_phase(Phase("loading the model", 0.0), 11.0)
    for now in (11.0, 21.0):
        renderer.draw_progress(ESTIMATE, now)
    assert out.getvalue().splitlines() == [
        "12:00 loading the model  0:00:11",
        "12:00 embedding  43%  860/2,000 rows  52 rows/s  2.9k tok/s  0:00:22 left",
    ]


def test_rich_leaves_only_lines() -> None:
    out = Terminal()
    renderer = RichRenderer(out)
    renderer.draw_phase(Phase("loading", 0.0), 1.0)
    renderer.print_line("a [bold]note[/] :smile:")
    renderer.draw_progress(ESTIMATE, 2.0)
    renderer.close()
    text = out.getvalue()
    assert "a [bold]note[/] :smile:" in text
    assert "loading  0:00:01" in text
    assert text.endswith("\x1b[2K"), "the last line is erased"


def test_tqdm_keeps_the_last_bar() -> None:
    out = io.StringIO()
    renderer = TqdmRenderer(out)
    renderer.draw_phase(Phase("loading", 0.0), 1.0)
    renderer.draw_progress(ESTIMATE, 2.0)
    renderer.print_line("a note")
    done = ProgressEstimate(done=2000, total=2000, fraction=1.0, rows_per_second=50.0, eta_seconds=0.0)
    renderer.draw_progress(done, 3.0, is_final=True)
    last = out.getvalue().rstrip("\n").rpartition("\r")[2]
    assert last.startswith("embedding: 100%|")
    assert last.endswith("2,000/2,000 rows  50 rows/s  0:00:00 left")
    assert "a note\n" in out.getvalue()

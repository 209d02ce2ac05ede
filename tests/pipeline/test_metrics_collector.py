"""Busy times of stages take constant memory and lose no second, however long a run is."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcli.pipeline.metrics import INITIAL_BIN_SECONDS, MAX_TIMELINE_BINS, MetricsCollector, StageTimeline

spans = st.lists(st.tuples(st.floats(0, 50), st.floats(0, 2000)), max_size=30)


@given(spans)
def test_busy_seconds_add_up_in_bounded_memory(given_spans: list[tuple[float, float]]) -> None:
    timeline, now, busy = StageTimeline(), 0.0, 0.0
    for idle, long in given_spans:
        timeline.add(now + idle, now + idle + long)
        now, busy = now + idle + long, busy + long
    assert sum(timeline.bins) == pytest.approx(busy, rel=1e-9, abs=1e-6)
    assert len(timeline.bins) <= MAX_TIMELINE_BINS
    assert timeline.bin_seconds == INITIAL_BIN_SECONDS or now >= timeline.bin_seconds * MAX_TIMELINE_BINS / 2
    assert all(-1e-9 <= seconds <= timeline.bin_seconds * (1 + 1e-9) for seconds in timeline.bins)


def test_bins_are_at_the_time_they_count() -> None:
    timeline = StageTimeline(bin_seconds=1.0)
    timeline.add(1.5, 3.25)
    assert timeline.bins == [0, 0.5, 1, 0.25]
    timeline.double_bin_width()
    assert (timeline.bins, timeline.bin_seconds) == ([0.5, 1.25], 2.0)
    assert timeline.busy_shares(4.0) == [0.438]
    assert timeline.bin_seconds == 2.0


def test_all_timelines_of_a_run_have_the_same_bin_width() -> None:
    meter = MetricsCollector()
    assert meter.timeline() is None
    meter.timelines["read"].add(0.0, 0.005)
    meter.timelines["forward"].add(10.0, 11.0)
    made = meter.timeline()
    assert made is not None
    assert {len(shares) for shares in made["busy"].values()} == {int(11 / made["seconds"]) + 1}
    assert sum(made["busy"]["forward"]) * made["seconds"] == pytest.approx(1.0, abs=0.01)


def test_every_count_of_a_worker_reaches_the_run() -> None:
    run, worker = MetricsCollector(), MetricsCollector()
    counts = {field.name for field in fields(MetricsCollector) if isinstance(getattr(run, field.name), int)}
    own = {"rows", "bytes_read"}
    for name in counts | {"idle_seconds", "forward_seconds"}:
        setattr(run, name, 10)
        setattr(worker, name, 4)
    run.seconds["read"], worker.seconds["read"] = 1.0, 2.0
    worker.timelines["read"].add(0.0, 2.0)
    run.add_worker(worker, 2, one_clock=True)
    summed = counts - own - {"batch_tokens"}
    assert len(summed) >= 9
    assert {name: getattr(run, name) for name in summed} == dict.fromkeys(summed, 14)
    assert {name: getattr(run, name) for name in own} == dict.fromkeys(own, 10)
    assert (run.batch_tokens, run.idle_seconds, run.forward_seconds) == (10, 12, 12)
    assert run.seconds["read"] == 3.0
    assert sum(run.timelines["read"].bins) == pytest.approx(1.0)
    run.add_worker(worker, 2, one_clock=False)
    assert sum(run.timelines["read"].bins) == pytest.approx(1.0)

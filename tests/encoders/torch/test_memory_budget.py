"""The token budget fits the device's memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
from embedcli import encoders
from embedcli.core.errors import DeviceOutOfMemoryError
from embedcli.core.job import Job
from embedcli.encoders.torch import memory_budget

GB = 10**9


@given(st.integers(1, 10**6), st.integers(1, 9000), st.integers(1, 10**12), st.integers(1, 10**7))
def test_a_batch_fits_and_holds_a_row(wanted: int, longest: int, free: int, each: int) -> None:
    found = memory_budget.fit_token_budget(wanted, longest, lambda: free, lambda tokens: each * tokens)
    assert found >= longest
    assert found <= max(wanted, longest)
    assert found == longest or found * each <= memory_budget.MAX_MEMORY_SHARE * free * 1.001


def test_a_large_card_gets_the_preferred_budget() -> None:
    assert memory_budget.fit_token_budget(65536, 512, lambda: 80 * GB, lambda tokens: 30_000 * tokens) == 65536


def test_a_small_card_gets_a_smaller_budget() -> None:
    assert memory_budget.fit_token_budget(65536, 512, lambda: 1 * GB, lambda tokens: 30_000 * tokens) == 13333


def test_a_card_that_the_trial_batch_does_not_fit_gets_single_rows() -> None:
    def full(_: int) -> int:
        raise DeviceOutOfMemoryError("out of memory")

    assert memory_budget.fit_token_budget(65536, 512, lambda: GB, full) == 512


def test_a_card_that_does_not_report_memory_gets_the_preferred_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: str) -> None:
        raise RuntimeError("The device doesn't support querying the available free memory")

    install_card(monkeypatch, "xpu", 0, 0)
    monkeypatch.setattr("torch.xpu.mem_get_info", fail)
    assert memory_budget.DeviceMemoryProbe("xpu:0").read_free_bytes() is None
    assert memory_budget.fit_token_budget(65536, 512, lambda: None, lambda tokens: tokens) == 65536


def test_the_trial_batch_has_the_longest_rows() -> None:
    tried: list[int] = []

    def peak(tokens: int) -> int:
        tried.append(tokens)
        return 1

    memory_budget.fit_token_budget(65536, 3000, lambda: GB, peak)
    assert tried == [6000]


def install_card(monkeypatch: pytest.MonkeyPatch, kind: str, free: int, peak: int) -> None:
    """Let torch count the memory of a card of a kind, of which a model takes a part."""
    functions: dict[str, Any] = {
        "memory_reserved": lambda device: 5000,
        "memory_allocated": lambda device: 3000,
        "mem_get_info": lambda device: (free, free),
        "reset_peak_memory_stats": lambda device: None,
        "max_memory_allocated": lambda device: 3000 + peak,
    }
    for name, function in functions.items():
        monkeypatch.setattr(f"torch.{kind}.{name}", function)


@pytest.mark.parametrize(
    ("device", "free", "wanted"), [("cuda:0", 10**12, 1536), ("cuda:0", 20_000, 256), ("xpu:0", 20_000, 256)]
)
def test_an_encoder_measures_the_card(device: str, free: int, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real batch of the longest rows, on the CPU, with the memory functions of a card replaced."""
    job = Job((), "", model=str(models.folder("all-MiniLM-L6-v2-shape")), device="cpu", engine="torch", threads=1)
    encoder: Any = encoders.load_encoder(job)
    before = encoder.batch_tokens
    ran: list[int] = []
    forward = encoder.forward

    def counted(tokens: Any, rows: Any) -> Any:
        ran.append(len(rows))
        return forward(tokens, rows)

    encoder.forward = counted
    install_card(monkeypatch, device.partition(":")[0], free, 2_000_000)
    encoder._fit_token_budget(memory_budget.DeviceMemoryProbe(device))
    assert (before, encoder.batch_tokens) == (1536, wanted)
    assert ran == [6]
    encoder.close()

"""Copies to and from a card are asynchronous, and vectors are checked on the card."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import models
from embedcli.core.encoder import NOT_FINITE_REASON
from embedcli.core.quantization import find_unusable
from embedcli.core.row_vectors import as_dense
from embedcli.encoders.torch.transfer import DeviceTransfer, PendingVectors
from embedcli.pipeline import engine
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.preparation import EncodingSettings
from fakes import chunk
from reference import encode, job, load, samples


class Card:
    """A tensor on a card, with torch's functions for it, which note their calls."""

    def __init__(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Any] = []
        for name in ("from_numpy", "empty", "isfinite"):
            monkeypatch.setattr(torch, name, getattr(self, name))
        for name in ("Event", "current_stream"):
            monkeypatch.setattr(getattr(torch, kind), name, getattr(self, name), raising=False)

    def note(self, *call: Any) -> Card:
        self.calls.append(call)
        return self

    def from_numpy(self, array: Any) -> Card:
        return self.note("from_numpy")

    def pin_memory(self) -> Card:
        return self.note("pin_memory")

    def to(self, device: str, **how: Any) -> Card:
        return self.note("to", device, how)

    shape, dtype, device = (2, 3), "float32", "card:1"

    def empty(self, shape: Any, **how: Any) -> Card:
        return self.note("empty", shape, how)

    def copy_(self, source: Any, **how: Any) -> Card:
        return self.note("copy_", how)

    def isfinite(self, vectors: Any) -> Card:
        return self.note("isfinite")

    def all(self) -> Card:
        return self.note("all")

    def any(self, dim: int) -> Card:
        return self.note("any", dim)

    def __and__(self, other: Any) -> Card:
        return self.note("and")

    def Event(self) -> Card:  # noqa: N802
        return self.note("Event")

    def current_stream(self, device: str) -> str:
        return f"stream of {device}"

    def record(self, stream: str) -> None:
        self.note("record", stream)


class ReadyEvent:
    """An event of copies that are done at once."""

    def record(self, stream: None) -> None:
        return None

    def synchronize(self) -> None:
        return None


@pytest.fixture
def host_as_card(monkeypatch: pytest.MonkeyPatch) -> None:
    use_host_as_card(monkeypatch)


def use_host_as_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let copies to and from a CUDA card stay in this machine's memory."""
    move, allocate = torch.Tensor.to, torch.empty

    def to(tensor: Any, *target: Any, **options: Any) -> Any:
        return tensor if target == ("cuda:0",) else move(tensor, *target, **options)

    def empty(*shape: Any, pin_memory: bool = False, **options: Any) -> Any:
        return allocate(*shape, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "Event", ReadyEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_copies_of_cards_with_events_are_asynchronous(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    card: Any = Card(kind, monkeypatch)
    copies = DeviceTransfer(f"{kind}:1")
    copies.to_device(np.zeros(3))
    assert card.calls == [("from_numpy",), ("pin_memory",), ("to", f"{kind}:1", {"non_blocking": True})]
    card.calls.clear()
    fetched = copies.to_host(card)
    assert [fetched.vectors, fetched.has_usable_vectors, fetched.ready_event] == [card] * 3
    home = [("empty", (2, 3), {"dtype": "float32", "pin_memory": True}), ("copy_", {"non_blocking": True})]
    look = [("isfinite",), ("all",), ("any", 1), ("all",), ("and",)]
    assert card.calls == [*look, *home, *home, ("Event",), ("record", "stream of card:1")]


@pytest.mark.usefixtures("host_as_card")
def test_vectors_that_are_stored_as_float16_are_copied_as_float16() -> None:
    vectors = torch.tensor([[1.0, 1e6], [0.1, 0.2]])
    fetched = DeviceTransfer("cuda:0", as_float16=True).to_host(vectors)
    assert fetched.vectors.dtype == torch.float16
    assert torch.equal(fetched.vectors, vectors.half())
    assert bool(fetched.has_usable_vectors), "the vectors were not checked before they were rounded"


@pytest.mark.usefixtures("host_as_card")
@pytest.mark.parametrize(
    ("flags", "half"),
    [
        ({"precision": "float16"}, True),
        ({"precision": "float16", "truncate_dim": 8}, False),
        ({"precision": "float16", "overflow": "pool"}, False),
        ({"precision": "int8"}, False),
        ({}, False),
    ],
)
def test_only_vectors_that_are_only_stored_as_float16_are_copied_as_float16(flags: Any, half: bool) -> None:
    texts = samples()[:40]
    encoder = load(models.folder("all-MiniLM-L6-v2-shape"), **flags)
    encoder._transfer = DeviceTransfer("cuda:0", as_float16=encoder._transfer._as_float16)
    kept = EncodingSettings.from_job(job(**flags), "")
    (made,) = engine.encode_chunks(iter([chunk(texts)]), encoder, kept, MetricsCollector(), RunControl())
    (exact,) = engine.encode_chunks(iter([chunk(texts)]), load_plain(), kept, MetricsCollector(), RunControl())
    vectors, exact_vectors = as_dense(made.vectors), as_dense(exact.vectors)
    assert np.array_equal(vectors, vectors.astype(np.float16)) == half
    np.testing.assert_array_equal(vectors.astype(np.float16), exact_vectors.astype(np.float16))


def load_plain() -> Any:
    return load(models.folder("all-MiniLM-L6-v2-shape"))


def test_copies_of_other_devices_are_synchronous(monkeypatch: pytest.MonkeyPatch) -> None:
    card: Any = Card("mps", monkeypatch)
    copies = DeviceTransfer("mps")
    copies.to_device(np.zeros(3))
    assert card.calls == [("from_numpy",), ("to", "mps", {})]
    assert copies.to_host(card) == PendingVectors(card)
    assert len(card.calls) == 2


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_the_installed_torch_has_the_functions_for_copies_and_budgets(kind: str) -> None:
    module = getattr(torch, kind)
    asked = ("Event", "current_stream", "mem_get_info", "memory_allocated", "memory_reserved", "max_memory_allocated")
    assert [name for name in (*asked, "reset_peak_memory_stats", "empty_cache") if not hasattr(module, name)] == []


@given(arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 4))))
def test_the_card_finds_what_the_host_would_find(vectors: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_host_as_card(patch)
        fetched = DeviceTransfer("cuda:0").to_host(torch.from_numpy(vectors))
    assert fetched.has_usable_vectors is not None
    assert bool(fetched.has_usable_vectors) == (not find_unusable(vectors).any())
    np.testing.assert_array_equal(fetched.vectors.numpy(), vectors)


@pytest.mark.usefixtures("host_as_card")
def test_the_host_checks_only_batches_that_failed_on_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = samples()[:60]
    encoder = load(models.folder("all-MiniLM-L6-v2-shape"))
    plain = encode(encoder, texts)
    encoder._transfer = DeviceTransfer("cuda:0")
    looks: list[int] = []

    def look(vectors: Any) -> Any:
        looks.append(len(vectors))
        return find_unusable(vectors)

    monkeypatch.setattr(engine, "find_unusable", look)
    whole = engine_run(encoder, texts)
    assert looks == []
    np.testing.assert_allclose(whole.vectors, plain, atol=1e-6)
    word = int(encoder.tokenize([texts[7]]).ids[2])
    encoder.model[0].auto_model.embeddings.word_embeddings.weight.data[word] = float("nan")
    broken = engine_run(encoder, texts)
    hit = [i for i, text in enumerate(texts) if word in encoder.tokenize([text]).ids]
    assert 7 in hit
    assert len(hit) < len(texts)
    assert sorted(set(range(len(texts))) - set(broken.rows.tolist())) == hit
    assert {reject.reason for reject in broken.rejects} == {NOT_FINITE_REASON}
    np.testing.assert_allclose(broken.vectors, plain[broken.rows], atol=1e-6)
    assert looks


def engine_run(encoder: Any, texts: list[str]) -> Any:
    settings = EncodingSettings(batch_tokens=256)
    (made,) = engine.encode_chunks(iter([chunk(texts)]), encoder, settings, MetricsCollector(), RunControl())
    return made

"""Batches without padding have the vectors of padded ones, or are not used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
from embedcli import encoders
from embedcli.core.errors import DeviceOutOfMemoryError, ModelError, UsageError
from embedcli.core.job import Job
from embedcli.encoders.tokenize.fast import build_tokens
from embedcli.encoders.torch import device as torch_device
from embedcli.encoders.torch import encoder as torch_encoder
from embedcli.encoders.torch import varlen_attention
from embedcli.encoders.torch.errors import translate_device_errors
from embedcli.pipeline import engine
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.preparation import EncodingSettings
from fakes import chunk
from reference import encode, lowest_cosine, row_by_row_attention, samples

UNPADDED = [
    "all-MiniLM-L6-v2-shape", "text2vec-base-multilingual", "text2vec-base-chinese-sentence", "multilingual-e5-base",
    "bge-small-en-v1.5", "instruct-model", "modernbert-embed-base", "gte-modernbert-base", "Qwen3-Embedding-0.6B",
    "embeddinggemma-300m",
]  # fmt: skip
PADDED = ["all-mpnet-base-v2", "deberta-v2-base", "own-code-model"]


@pytest.fixture
def torch() -> Any:
    """Imported by the first test that needs it, not in every process that only collects the tests."""
    import torch

    return torch


def load(name: str, **flags: Any) -> Any:
    job = Job((), "", model=str(models.folder(name)), device="cpu", engine="torch", trust_remote_code=True, **flags)
    return encoders.load_encoder(job)


def without_padding(encoder: Any) -> Any:
    encoder._remove_padding([row_by_row_attention])
    return encoder


@pytest.mark.parametrize("name", UNPADDED)
def test_vectors_are_those_of_the_padded_path(name: str) -> None:
    encoder = load(name)
    texts = samples()[:24]
    padded = encode(encoder, texts)
    flat = without_padding(encoder)
    assert flat.pad_to_multiple_of == 0
    assert flat._varlen is not None
    made = encode(flat, texts)
    assert not np.array_equal(made, padded), "the padded path was used"
    assert lowest_cosine(made, padded) >= 0.99999
    encoder.close()


def test_a_chunk_without_padding_is_tokenized_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load("all-MiniLM-L6-v2-shape")
    texts = samples()[:40]
    padded = encode(encoder, texts)
    assert encoder.portion_characters is None, "padded batches need rows of the same length, from all of the chunk"
    monkeypatch.setattr(torch_encoder, "PORTION_CHARACTERS", 500)
    sizes: list[int] = []
    plain = without_padding(encoder).tokenize

    def tokenize(texts: list[str]) -> Any:
        sizes.append(len(texts))
        return plain(texts)

    monkeypatch.setattr(encoder, "tokenize", tokenize)
    (made,) = engine.encode_chunks(iter([chunk(texts)]), encoder, EncodingSettings(), MetricsCollector(), RunControl())
    assert (sum(sizes), len(sizes) > 3) == (40, True)
    assert lowest_cosine(made.vectors, padded) >= 0.99999


@pytest.mark.parametrize("name", PADDED)
def test_networks_that_cannot_use_another_attention_stay_padded(name: str) -> None:
    encoder = without_padding(load(name))
    assert (encoder._varlen, encoder.pad_to_multiple_of) == (None, 8)
    texts = samples()[:6]
    assert lowest_cosine(encode(encoder, texts), encode(load(name), texts)) >= 0.99999


@pytest.mark.parametrize(
    ("name", "broken"), [("multilingual-e5-base", "first_position"), ("modernbert-embed-base", "window")]
)
def test_vectors_that_differ_are_noticed(name: str, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions from 0 in a network that counts from 2, and sliding windows that are ignored."""
    kernel: Any = row_by_row_attention
    if broken == "first_position":
        monkeypatch.setattr(varlen_attention, "first_position_number", lambda network: 0)
    else:

        def kernel(q: Any, k: Any, v: Any, bounds: Any, scale: float | None, window: tuple[int, int]) -> Any:
            return row_by_row_attention(q, k, v, bounds, scale, (1, 1))

    encoder = load(name)
    encoder._remove_padding([kernel])
    assert (encoder._varlen, encoder.pad_to_multiple_of) == (None, 8)
    texts = samples()[:6]
    assert lowest_cosine(encode(encoder, texts), encode(load(name), texts)) >= 0.99999


def test_a_failing_kernel_is_not_used() -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("no kernel image is available")

    encoder = load("all-MiniLM-L6-v2-shape")
    encoder._remove_padding([failing])
    assert (encoder._varlen, encoder.pad_to_multiple_of) == (None, 8)
    assert np.isfinite(encode(encoder, samples()[:4])).all()
    encoder._remove_padding([failing, row_by_row_attention])
    assert encoder._varlen is not None
    assert (encoder._varlen.kernel, encoder.pad_to_multiple_of) == (row_by_row_attention, 0), "the next one is"


def test_rows_are_tried_again_one_by_one_without_padding_too() -> None:
    encoder = without_padding(load("multilingual-e5-base"))
    tokens = encoder.tokenize(samples()[:5])
    rows = np.array([3, 1])
    together = encoder.collect(encoder.forward(tokens, rows))
    np.testing.assert_allclose(encoder.encode_float32(tokens, rows), together, atol=1e-5)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 3), st.randoms(use_true_random=False))
def test_flattened_rows_keep_their_tokens_and_positions(lengths: list[int], first: int, chance: Any) -> None:
    tokens = build_tokens([[100 * i + j for j in range(n)] for i, n in enumerate(lengths)], np.array(lengths, np.int32))
    rows = np.array(chance.sample(range(len(lengths)), chance.randint(1, len(lengths))))
    ids, places, bounds, longest = varlen_attention.flatten_rows(tokens, rows, first)
    assert longest == max(lengths[row] for row in rows)
    for row, start, stop in zip(rows, bounds, bounds[1:], strict=False):
        assert ids[start:stop].tolist() == [100 * row + j for j in range(lengths[row])]
        assert places[start:stop].tolist() == list(range(first, first + lengths[row]))


class Network:
    def __init__(self, width: int) -> None:
        self.config = type("Config", (), {"hidden_size": 4 * width, "num_attention_heads": 4})()


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "width", "there"),
    [
        ("cuda:0", "bfloat16", (9, 0), 64, True),
        ("cuda:0", "float16", (8, 0), 32, True),
        ("cuda:0", "float32", (9, 0), 64, False),
        ("cuda:0", "bfloat16", (7, 5), 64, False),
        ("cuda:0", "bfloat16", (9, 0), 20, False),
        ("cuda:0", "bfloat16", (9, 0), 512, False),
        ("cpu", "float32", (9, 0), 64, False),
        ("mps", "float16", (9, 0), 64, False),
    ],
)
def test_kernels_are_for_new_cards_and_half_precision(
    device: str, dtype: str, capability: tuple[int, int], width: int, there: bool, torch: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = varlen_attention.find_kernels(device, dtype, Network(width))
    assert bool(found) == there


@pytest.mark.parametrize("style", ["2.10", "2.12"])
@pytest.mark.parametrize("window", [varlen_attention.FULL_WINDOW, (-1, 0), (3, 3), (3, 0)])
def test_the_kernel_of_torch_is_called_by_its_signature(
    style: str, window: tuple[int, int], torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both signatures, each doing what `row_by_row_attention` does: the same numbers come out."""
    plain = row_by_row_attention

    def new(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        assert enable_gqa == (key.shape[1] != query.shape[1])
        return plain(query, key, value, varlen_attention.SequenceBounds(cu_seq_q, max_q), scale, window_size)

    def old(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return plain(
            query,
            key,
            value,
            varlen_attention.SequenceBounds(cu_seq_q, max_q),
            None,
            (-1, 0) if is_causal else (-1, -1),
        )

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", new if style == "2.12" else old)
    kernel = varlen_attention.torch_varlen_kernel()
    assert kernel is not None
    made = torch.Generator().manual_seed(1)
    q = torch.randn(11, 4, 8, generator=made)
    k, v = (torch.randn(11, 2, 8, generator=made) for _ in range(2))
    spans = varlen_attention.SequenceBounds(torch.tensor([0, 4, 11], dtype=torch.int32), 7)
    if style == "2.10" and window[0] > 0:
        with pytest.raises(varlen_attention.UnsupportedAttentionError):
            kernel(q, k, v, spans, 0.3, window)
        return
    torch.testing.assert_close(kernel(q, k, v, spans, 0.3, window), plain(q, k, v, spans, 0.3, window))


def test_the_installed_torch_has_a_known_signature(torch: Any) -> None:
    assert varlen_attention.torch_varlen_kernel() is not None


# Devices that refuse or fail


def test_a_failing_device_is_a_model_error_and_a_full_one_is_out_of_memory() -> None:
    with pytest.raises(DeviceOutOfMemoryError), translate_device_errors("cuda:0"):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
    with (
        pytest.raises(ModelError, match="cuda:0 failed: CUDA error: an illegal") as caught,
        translate_device_errors("cuda:0"),
    ):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")
    assert "run the same command again" in caught.value.hint
    with pytest.raises(RuntimeError, match="shapes"), translate_device_errors("cuda:0"):
        raise RuntimeError("shapes cannot be multiplied")


def test_no_such_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_device, "available_devices", lambda: ["cuda:0", "cuda:1", "cpu"])
    assert torch_device.select_device("auto") == "cuda:0"
    assert torch_device.select_device("cuda") == "cuda:0"
    with pytest.raises(UsageError, match=r"no device 'cuda:7' here") as caught:
        torch_device.select_device("cuda:7")
    assert "cuda:1" in caught.value.hint

"""An accelerator of this machine computes the vectors of the CPU, for all networks, with little memory and faults.

Without one these tests are skipped. `CARD=cpu` runs them on the CPU, to test the tests.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import jobs
import models
from embedcli import encoders
from embedcli.encoders.torch import device as torch_device
from embedcli.encoders.torch import varlen_attention
from embedcli.pipeline import engine
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.preparation import EncodingSettings
from fakes import chunk
from reference import encode, job, lowest_cosine, samples, sentence_transformer

FLAT = [
    "all-MiniLM-L6-v2-shape", "text2vec-base-multilingual", "multilingual-e5-base", "bge-small-en-v1.5",
    "modernbert-embed-base", "gte-modernbert-base", "Qwen3-Embedding-0.6B", "embeddinggemma-300m",
]  # fmt: skip
PADDED = ["all-mpnet-base-v2", "deberta-v2-base"]
MODEL = "all-MiniLM-L6-v2-shape"


@pytest.fixture(scope="module")
def card() -> str:
    """The best device here that is not the CPU."""
    found = os.environ.get("CARD") or torch_device.available_devices()[0]
    if found == "cpu" and "CARD" not in os.environ:
        pytest.skip("there is no accelerator here")
    return found


def load(card: str, name: str = MODEL, **flags: Any) -> Any:
    return encoders.load_encoder(job(models.folder(name), device=card, **flags))


def theirs(name: str, texts: list[str]) -> Any:
    """float32 [n, dim]: `encode` of sentence-transformers on the CPU."""
    return sentence_transformer(models.folder(name)).encode(texts, show_progress_bar=False)


@pytest.mark.parametrize("name", FLAT + PADDED)
def test_half_precision_is_near_and_float32_equal(name: str, card: str) -> None:
    texts = samples()[:40]
    wanted = theirs(name, texts)
    half = load(card, name)
    kernels = varlen_attention.find_kernels(half.device, half.dtype, half.model[0].auto_model)
    assert (half._varlen is not None) == (bool(kernels) and name in FLAT)
    assert lowest_cosine(encode(half, texts), wanted) >= 0.995
    exact = half.encode_float32(half.tokenize(texts), np.arange(len(texts)))
    assert lowest_cosine(exact, wanted) >= 0.99999
    half.close()
    single = load(card, name, dtype="float32")
    assert lowest_cosine(encode(single, texts), wanted) >= 0.99999
    single.close()


def test_the_bundled_model(card: str) -> None:
    texts = samples()
    encoder = encoders.load_encoder(job(device=card))
    made = encode(encoder, texts)
    assert lowest_cosine(made, sentence_transformer().encode(texts, show_progress_bar=False)) >= 0.999
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    encoder.close()


def test_a_whole_job_and_its_resume(card: str, tmp_path: Path) -> None:
    source = jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(3000))
    flags = ("--model", models.folder(MODEL), "--engine", "torch", "--chunk-rows", "512", "-q")
    whole, part, plain = (tmp_path / f"{name}.parquet" for name in ("whole", "part", "plain"))
    assert jobs.run("encode", source, whole, "--device", card, *flags).code == 0
    assert jobs.run("encode", source, part, "--device", card, "--stop-after", "1000", *flags).code == 75
    assert jobs.run("encode", source, part, "--device", card, *flags).code == 0
    assert jobs.run("encode", source, plain, "--device", "cpu", *flags).code == 0
    vectors = [np.stack(pq.read_table(path)["embedding"].to_numpy()) for path in (whole, part, plain)]
    assert pq.read_table(whole)["id"].equals(pq.read_table(plain)["id"])
    assert lowest_cosine(vectors[0], vectors[1]) >= 0.999
    assert lowest_cosine(vectors[0], vectors[2]) >= 0.995


def test_compiled_layers(card: str) -> None:
    texts = samples()[:40]
    encoder = load(card, compile=True)
    assert lowest_cosine(encode(encoder, texts, budget=256), theirs(MODEL, texts)) >= 0.995
    encoder.close()


def test_batches_that_do_not_fit_are_halved_and_lose_no_row(card: str) -> None:
    import torch

    encoder = load(card, max_seq_length=64)
    texts = samples()[:60]
    plain = encode(encoder, texts)
    start = encoder._run_model

    def tight(model: Any, tokens: Any, rows: Any) -> Any:
        if tokens.lengths[rows].sum() > 500:
            torch.empty(1 << 50, dtype=torch.uint8, device=encoder.device)
        return start(model, tokens, rows)

    encoder._run_model = tight
    meter = MetricsCollector()
    (made,) = engine.encode_chunks(
        iter([chunk(texts)]), encoder, EncodingSettings(batch_tokens=4000), meter, RunControl()
    )
    assert meter.out_of_memory > 0
    assert meter.batch_tokens <= 500
    assert made.rows.tolist() == list(range(60))
    assert lowest_cosine(made.vectors, plain) >= 0.999
    encoder.close()


def test_vectors_that_are_not_finite_are_found_on_the_card(card: str) -> None:
    encoder = load(card)
    texts = samples()[:60]
    plain = encode(encoder, texts)
    batch = encoder.forward(encoder.tokenize(texts), np.arange(60))
    encoder.collect(batch)
    assert encoder.has_verified_vectors(batch) == (batch.ready_event is not None)
    word = int(encoder.tokenize([texts[7]]).ids[2])
    for network in (encoder.model, encoder._load_float32_model()):
        network[0].auto_model.get_input_embeddings().weight.data[word] = float("nan")
    (made,) = engine.encode_chunks(iter([chunk(texts)]), encoder, EncodingSettings(), MetricsCollector(), RunControl())
    hit = [i for i, text in enumerate(texts) if word in encoder.tokenize([text]).ids]
    assert sorted(set(range(60)) - set(made.rows.tolist())) == hit
    assert lowest_cosine(made.vectors, plain[made.rows]) >= 0.999
    encoder.close()


def test_a_missing_device_is_an_error(card: str, tmp_path: Path) -> None:
    source = jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(3))
    ended = jobs.run("encode", source, tmp_path / "out.parquet", "--device", "cuda:97", "--engine", "torch")
    assert ended.code == 2
    assert "there is no device 'cuda:97' here" in ended.err

"""The compiled engine gives PyTorch's vectors for every architecture, at shapes it was never traced or probed at."""

from __future__ import annotations

import copy
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
from embedcli import encoders
from embedcli.core.encoder import Tokens
from embedcli.core.errors import DeviceOutOfMemoryError, ModelError, UsageError, first_line
from embedcli.encoders import equivalence
from embedcli.encoders.openvino import cache as openvino_cache
from embedcli.encoders.openvino import infer_requests
from embedcli.encoders.openvino import loader as openvino_loader
from embedcli.encoders.tokenize.fast import build_tokens
from embedcli.encoders.torch import export as torch_export
from reference import encode, encoded, job, load, lowest_cosine, samples, varied

SAME = 0.99999
TRUSTED = {"bilingual-embedding-base", "slow-tokenizer"}
BERT = "all-MiniLM-L6-v2-shape"
ARCHITECTURES = (
    BERT,
    "multilingual-e5-base",
    "all-mpnet-base-v2",
    "distiluse-base-multilingual-cased-v2",
    "modernbert-embed-base",
    "deberta-v2-base",
    "Qwen3-Embedding-0.6B",
    "embeddinggemma-300m",
    "instruct-model",
    "bilingual-embedding-base",
)
# Each a batch of rows of so many tokens: alone, wide beside narrow, many, and across the windows of 16 and the
# buckets of 16 that the small models have.
SHAPES = ((1,), (2,), (8,), (15, 17), (33,), (5, 9, 21), (100, 30, 2), (127, 128), (7,) * 9, (64, 64), (3, 90) * 4)


@cache
def openvino(name: str = BERT, **values: Any) -> Any:
    """The compiled encoder of a small model, forced, so that it cannot be PyTorch in disguise."""
    return encoders.load_encoder(
        job(models.folder(name), **{"device": "cpu", "engine": "openvino"} | defaults(name) | values)
    )


@cache
def torch(name: str = BERT, **values: Any) -> Any:
    return load(models.folder(name), **defaults(name) | values)


def defaults(name: str) -> dict[str, Any]:
    """Without instructions, as random rows may be shorter than those, and then nothing is left to pool."""
    return {"trust_remote_code": name in TRUSTED} | ({"as_": "none"} if name == "instruct-model" else {})


def random_tokens(lengths: tuple[int, ...], seed: int = 0) -> Tokens:
    """Rows of so many tokens, any ids that every small vocabulary has."""
    random = np.random.default_rng([seed, *lengths])
    rows = [random.integers(5, 400, length).tolist() for length in lengths]
    return build_tokens(rows, np.array(lengths, np.int32))


def together(encoder: Any, tokens: Tokens) -> Any:
    return encoder.collect(encoder.forward(tokens, np.arange(len(tokens.lengths))))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_same_vectors_at_every_shape(name: str) -> None:
    ours, theirs = openvino(name), torch(name)
    assert ours.vector_space()["engine"] == "openvino"
    assert theirs.vector_space()["engine"] == "torch"
    assert ours.dim == theirs.dim
    for shape in SHAPES:
        tokens = random_tokens(shape)
        wanted = theirs.encode_float32(tokens, np.arange(len(shape)))
        made = together(ours, tokens)
        assert lowest_cosine(made, wanted) >= SAME, shape
        np.testing.assert_allclose(np.linalg.norm(made, axis=1), np.linalg.norm(wanted, axis=1), rtol=1e-4)


@pytest.mark.parametrize("name", ["modernbert-embed-base", "Qwen3-Embedding-0.6B", "embeddinggemma-300m"])
def test_longer_than_the_probe(name: str) -> None:
    """The probe of a large model stops before its limit; what was traced must hold beyond."""
    ours, theirs = openvino(name), torch(name)
    tokens = random_tokens((512, 1, 300))
    assert lowest_cosine(together(ours, tokens), theirs.encode_float32(tokens, np.arange(3))) >= SAME


@pytest.mark.parametrize("name", [BERT, "e5-with-prompts", "embeddinggemma-300m"])
@pytest.mark.parametrize("role", ["query", "document"])
def test_texts_with_their_prompts(name: str, role: str) -> None:
    texts = [*samples()[::9], "a", "🙂", "長" * 400, "word " * 400]
    ours, theirs = openvino(name, as_=role), torch(name, as_=role)
    mine, other = ours.tokenize(texts), theirs.tokenize(texts)
    np.testing.assert_array_equal(mine.ids, other.ids)
    np.testing.assert_array_equal(mine.untruncated_lengths, other.untruncated_lengths)
    assert ours.vector_space()["prompt"] == theirs.vector_space()["prompt"]
    assert lowest_cosine(encode(ours, texts), encode(theirs, texts)) >= SAME


def test_instructions_left_out_of_pooling_are_part_of_the_network() -> None:
    vectors = {}
    for name in ("query", "clustering"):
        values: dict[str, Any] = {"as_": None, "prompt_name": name}
        ours, theirs = openvino("instruct-model", **values), torch("instruct-model", **values)
        vectors[name] = encode(ours, samples()[:9])
        assert lowest_cosine(vectors[name], encode(theirs, samples()[:9])) >= SAME
    assert lowest_cosine(*vectors.values()) < SAME


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", [BERT, "distiluse-base-multilingual-cased-v2"])
def test_normalize_is_outside_the_network(name: str, normalize: bool) -> None:
    """One cached network serves both; the first model normalises by itself and the second does not."""
    ours, theirs = openvino(name, normalize=normalize), torch(name, normalize=normalize)
    texts = samples()[:5]
    np.testing.assert_allclose(encode(ours, texts), encode(theirs, texts), rtol=1e-3, atol=1e-5)
    assert openvino_cache.cache_key(ours._asked.files, ours._recipe) == openvino_cache.cache_key(
        openvino(name)._asked.files, openvino(name)._recipe
    )


def test_a_lower_limit_uses_the_same_network() -> None:
    ours = openvino(max_seq_length=16)
    assert int(ours.tokenize(["word " * 100]).lengths[0]) == 16
    assert lowest_cosine(encode(ours, ["word " * 100]), encode(torch(max_seq_length=16), ["word " * 100])) >= SAME
    assert (
        len([entry for entry in openvino_loader.list_cached_models() if entry.name == ours.vector_space()["model"]])
        == 1
    )


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(0, 3))
def test_a_vector_does_not_depend_on_its_batch(lengths: list[int], seed: int) -> None:
    encoder = openvino()
    tokens = random_tokens(tuple(lengths), seed)
    np.testing.assert_allclose(
        together(encoder, tokens), encoder.encode_float32(tokens, np.arange(len(lengths))), rtol=1e-3, atol=1e-5
    )


def test_batches_in_flight_come_back_as_they_were_sent() -> None:
    encoder = openvino()
    tokens = random_tokens(tuple(range(1, 60)))
    batches = [np.array([i]) for i in range(59)]
    flying = [encoder.forward(tokens, rows) for rows in batches]
    assert len(flying) > encoder.max_in_flight
    made = np.concatenate([encoder.collect(output) for output in flying])
    np.testing.assert_allclose(made, encoder.encode_float32(tokens, np.arange(59)), rtol=1e-4, atol=1e-6)


def test_the_bundled_model_on_varied_rows() -> None:
    """Real weights, through sentence-transformers' own `encode`."""
    encoder = encoders.load_encoder(job(device="cpu", engine="auto"))
    texts = varied()[:160]
    assert encoder.vector_space()["engine"] == "openvino"
    assert lowest_cosine(encode(encoder, texts), encoded(texts)) >= SAME
    encoder.close()


def test_positions_that_are_not_there_are_not_used() -> None:
    """Custom code hides that two of its 514 positions hold no token: PyTorch fails there, OpenVINO would read zeros."""
    name = "bilingual-embedding-base"
    assert openvino(name)._network.facts["most_tokens"] == 512
    with pytest.raises(ModelError, match="it is known to take 512 tokens, and the limit is 514"):
        openvino(name, max_seq_length=514)


# Precision


def test_threads() -> None:
    assert openvino(threads=1)._main._compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert openvino(threads=1).max_in_flight == 2


def test_threads_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = openvino()._asked
    for share in (1, None):
        monkeypatch.setattr(openvino_loader, "cpu_quota", lambda share=share: share)
        assert openvino_loader.OpenVinoRuntime(asked)._threads == share


def has(dtype: str) -> bool:
    core = openvino_loader.OpenVinoRuntime(openvino()._asked)._core
    return openvino_loader.CPU_CAPABILITIES[dtype] in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_float32_is_asked_for() -> None:
    """OpenVINO takes bfloat16 by itself where the CPU has it."""
    precision = openvino()._main._compiled.get_property("INFERENCE_PRECISION_HINT")
    assert precision.get_type_name() == "f32"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_where_the_cpu_has_it(dtype: str) -> None:
    if not has(dtype):
        with pytest.raises(UsageError, match=f"no {dtype} instructions"):
            openvino(dtype=dtype)
        return
    ours = openvino(dtype=dtype)
    texts = samples()[:20]
    made, wanted = encode(ours, texts), encode(torch(), texts)
    assert ours.vector_space()["dtype"] == dtype
    assert 0.999 <= lowest_cosine(made, wanted) < 1 - 1e-7
    assert lowest_cosine(ours.encode_float32(ours.tokenize(texts), np.arange(20)), wanted) > lowest_cosine(made, wanted)


def test_half_precision_is_refused_where_the_cpu_has_it_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(openvino_loader.CPU_CAPABILITIES, "bfloat16", "BF16 OF ANOTHER CPU")
    with pytest.raises(UsageError, match="no bfloat16") as caught:
        encoders.load_encoder(job(models.folder(BERT), device="cpu", engine="auto", dtype="bfloat16"))
    assert "float32" in caught.value.hint


# What cannot be compiled


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDCLI_CACHE", str(tmp_path / "cache"))


def told(name: str = BERT, **values: Any) -> tuple[Any, list[str]]:
    """A fresh encoder, and the lines it told."""
    lines: list[str] = []
    values = {"device": "cpu", "engine": "auto"} | defaults(name) | values
    return encoders.load_encoder(job(models.folder(name), **values), notify=lines.append), lines


def refuse(*args: Any) -> Any:
    raise openvino_loader.NotConvertibleError("a reason")


@pytest.mark.usefixtures("own_cache")
def test_what_has_no_fast_tokenizer_runs_on_pytorch() -> None:
    encoder, lines = told("slow-tokenizer")
    assert encoder.vector_space()["engine"] == "torch"
    assert len([line for line in lines if "runs on PyTorch: it has no fast tokenizer" in line]) == 1


@pytest.mark.usefixtures("own_cache")
def test_what_cannot_be_converted_runs_on_pytorch_and_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(openvino_loader.OpenVinoRuntime, "convert", refuse)
        encoder, lines = told()
    assert encoder.vector_space()["engine"] == "torch"
    assert lines[-1].endswith("runs on PyTorch: a reason")
    assert [entry.reason for entry in openvino_loader.list_cached_models()] == ["a reason"]
    monkeypatch.setattr(openvino_loader, "OpenVinoRuntime", None)
    again, lines = told()
    assert again.vector_space()["engine"] == "torch"
    assert len(lines) == 1
    assert lines[0].endswith("runs on PyTorch: a reason")


@pytest.mark.usefixtures("own_cache")
def test_other_libraries_are_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(openvino_cache, "converter_versions", lambda: {"torch": "0.1"})
        patch.setattr(openvino_loader.OpenVinoRuntime, "convert", refuse)
        assert told()[0].vector_space()["engine"] == "torch"
    assert told()[0].vector_space()["engine"] == "openvino"
    assert [entry.reason for entry in openvino_loader.list_cached_models()] == [""]


@pytest.mark.usefixtures("own_cache")
def test_a_forced_engine_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_loader.OpenVinoRuntime, "convert", refuse)
    for _ in range(2):
        with pytest.raises(ModelError, match="--engine openvino: a reason"):
            told(engine="openvino")


@pytest.mark.usefixtures("own_cache")
def test_a_network_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the tracer had taken the pooling for a constant."""
    pipeline: Any = torch_export._build_module

    def off(encoder: Any) -> Any:
        made = pipeline(encoder)
        made.steps[1] = copy.deepcopy(made.steps[1])
        made.steps[1].pooling_mode = "max"
        return made

    monkeypatch.setattr(torch_export, "_build_module", off)
    encoder, lines = told()
    assert encoder.vector_space()["engine"] == "torch"
    assert "its vectors differ from PyTorch's" in lines[-1]
    assert lowest_cosine(encode(encoder, samples()[:5]), encode(torch(), samples()[:5])) >= SAME


@pytest.mark.usefixtures("own_cache")
def test_rows_of_padding_only_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without open rows in its masks a left-padded model gives NaN: the probe must see it."""
    monkeypatch.setattr(torch_export, "_traceable_masks", pytest.MonkeyPatch.context)
    encoder, lines = told("Qwen3-Embedding-0.6B")
    assert encoder.vector_space()["engine"] == "torch"
    assert "nan" in lines[-1]


@pytest.mark.usefixtures("own_cache")
def test_a_tokenizer_that_is_not_the_same_once_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalence, "tokenizes_alike", lambda *args: False)
    encoder, lines = told()
    assert encoder.vector_space()["engine"] == "torch"
    assert "tokenizer" in lines[-1]


@pytest.mark.usefixtures("own_cache")
def test_without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    encoder, lines = told()
    assert encoder.vector_space()["engine"] == "torch"
    assert "OpenVINO cannot be imported" in lines[-1]
    assert openvino_loader.list_cached_models() == []


# Memory


class Counting:
    """A compiled network that notes when its requests are made and started."""

    inputs = ()

    def __init__(self) -> None:
        self.seen: list[str] = []

    def get_property(self, name: str) -> int:
        return 2

    def create_infer_request(self) -> Counting:
        self.seen.append("made")
        return self

    def start_async(self, inputs: Any, share_inputs: bool) -> None:
        self.seen.append("started")

    def wait(self) -> None:
        pass


def test_no_request_is_made_while_others_run() -> None:
    """Making one waits for those that run, so that the second core would idle through the first batch."""
    compiled = Counting()
    requests = infer_requests.InferRequestPool(compiled)
    for _ in range(requests.count):
        requests.start(np.ones((1, 1), np.int64), np.ones((1, 1), np.int64))
    assert compiled.seen == ["made"] * 4 + ["started"] * 4
    # More than the lanes, as rows that are computed again take: nothing is refused.
    requests.start(np.ones((1, 1), np.int64), np.ones((1, 1), np.int64))
    requests.close()


class Refusing:
    """A compiled network whose requests fail with one message."""

    inputs = ()

    def __init__(self, message: str, late: bool) -> None:
        self.message, self.late = message, late

    def get_property(self, name: str) -> int:
        return 1

    def create_infer_request(self) -> Refusing:
        return self

    def start_async(self, inputs: Any, share_inputs: bool) -> None:
        if not self.late:
            raise RuntimeError(self.message)

    def wait(self) -> None:
        raise RuntimeError(self.message)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "message",
    [
        "Failed to allocate 8589934592 bytes of memory",
        "std::bad_alloc",
        "x\nCannot allocate memory",
        "Exception from src/node.cpp:823:\n[CPU] Subgraph node with name 'attention' can't allocate memory",
    ],
)
def test_a_refusal_to_allocate_is_out_of_memory(message: str, late: bool) -> None:
    requests = infer_requests.InferRequestPool(Refusing(message, late))
    with pytest.raises(DeviceOutOfMemoryError):
        requests.finish(requests.start(np.ones((1, 1), np.int64), np.ones((1, 1), np.int64)))
    requests.close()


def test_another_error_stays_itself() -> None:
    requests = infer_requests.InferRequestPool(Refusing("Exception from a.cpp:1:\nShapes do not match", True))
    running = requests.start(np.ones((1, 1), np.int64), np.ones((1, 1), np.int64))
    with pytest.raises(RuntimeError, match="Shapes do not match") as caught:
        requests.finish(running)
    assert first_line(caught.value) == "Shapes do not match"


def test_close_waits_for_what_nobody_collected() -> None:
    encoder, _ = told()
    tokens = random_tokens((30,) * 20)
    for _ in range(5):
        encoder.forward(tokens, np.arange(20))
    encoder.close()
    assert not encoder._main._running

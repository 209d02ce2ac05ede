"""OpenVINO computes PyTorch's vectors for every architecture, also at shapes it was never traced or probed with."""

from __future__ import annotations

import copy
import sys
from functools import cache
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
from embedcli.encoders.openvino import runtime as openvino_runtime
from embedcli.encoders.tokenize.fast import build_tokens
from embedcli.encoders.torch import export as torch_export
from reference import encode, encoded, job, load, lowest_cosine, samples, varied

SAME = 0.99999
TRUSTED = {"own-code-model", "slow-tokenizer"}
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
    "own-code-model",
)
# Batches, as the tokens of each row: single rows, long beside short ones, many rows, and rows longer than the attention
# windows and position buckets of 16 that the small models have.
SHAPES = ((1,), (2,), (8,), (15, 17), (33,), (5, 9, 21), (100, 30, 2), (127, 128), (7,) * 9, (64, 64), (3, 90) * 4)


@cache
def openvino(name: str = BERT, **values: Any) -> Any:
    """The OpenVINO encoder of a small model, with --engine openvino, so that it cannot be PyTorch."""
    return encoders.load_encoder(
        job(models.folder(name), **{"device": "cpu", "engine": "openvino"} | defaults(name) | values)
    )


@cache
def torch(name: str = BERT, **values: Any) -> Any:
    return load(models.folder(name), **defaults(name) | values)


def defaults(name: str) -> dict[str, Any]:
    """No instruction for instruct-model: random rows may be shorter than it, and then nothing is left to pool."""
    return {"trust_remote_code": name in TRUSTED} | ({"as_": "none"} if name == "instruct-model" else {})


def random_tokens(lengths: tuple[int, ...], seed: int = 0) -> Tokens:
    """Rows of the given lengths, with random ids that are in every small vocabulary."""
    random = np.random.default_rng([seed, *lengths])
    rows = [random.integers(5, 400, length).tolist() for length in lengths]
    return build_tokens(rows, np.array(lengths, np.int32))


def encode_in_one_batch(encoder: Any, tokens: Tokens) -> Any:
    return encoder.collect(encoder.forward(tokens, np.arange(len(tokens.lengths))))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_vectors_are_the_same_at_every_shape(name: str) -> None:
    ours, theirs = openvino(name), torch(name)
    assert ours.vector_space()["engine"] == "openvino"
    assert theirs.vector_space()["engine"] == "torch"
    assert ours.dim == theirs.dim
    for shape in SHAPES:
        tokens = random_tokens(shape)
        expected = theirs.encode_float32(tokens, np.arange(len(shape)))
        vectors = encode_in_one_batch(ours, tokens)
        assert lowest_cosine(vectors, expected) >= SAME, shape
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), np.linalg.norm(expected, axis=1), rtol=1e-4)


@pytest.mark.parametrize("name", ["modernbert-embed-base", "Qwen3-Embedding-0.6B", "embeddinggemma-300m"])
def test_rows_longer_than_the_probe_have_the_same_vectors(name: str) -> None:
    """The probe of a large model is shorter than its limit; the traced network must be right beyond it."""
    ours, theirs = openvino(name), torch(name)
    tokens = random_tokens((512, 1, 300))
    assert lowest_cosine(encode_in_one_batch(ours, tokens), theirs.encode_float32(tokens, np.arange(3))) >= SAME


@pytest.mark.parametrize("name", [BERT, "e5-with-prompts", "embeddinggemma-300m"])
@pytest.mark.parametrize("role", ["query", "document"])
def test_texts_with_prompts_have_the_same_vectors(name: str, role: str) -> None:
    texts = [*samples()[::9], "a", "🙂", "長" * 400, "word " * 400]
    ours, theirs = openvino(name, as_=role), torch(name, as_=role)
    tokens, expected = ours.tokenize(texts), theirs.tokenize(texts)
    np.testing.assert_array_equal(tokens.ids, expected.ids)
    np.testing.assert_array_equal(tokens.untruncated_lengths, expected.untruncated_lengths)
    assert ours.vector_space()["prompt"] == theirs.vector_space()["prompt"]
    assert lowest_cosine(encode(ours, texts), encode(theirs, texts)) >= SAME


def test_instructions_excluded_from_pooling_are_part_of_the_network() -> None:
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
    """Both settings use one cached network; the first model normalizes by itself, the second does not."""
    ours, theirs = openvino(name, normalize=normalize), torch(name, normalize=normalize)
    texts = samples()[:5]
    np.testing.assert_allclose(encode(ours, texts), encode(theirs, texts), rtol=1e-3, atol=1e-5)
    assert openvino_cache.cache_key(ours._request.files, ours._config) == openvino_cache.cache_key(
        openvino(name)._request.files, openvino(name)._config
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
        encode_in_one_batch(encoder, tokens),
        encoder.encode_float32(tokens, np.arange(len(lengths))),
        rtol=1e-3,
        atol=1e-5,
    )


def test_batches_in_flight_keep_their_order() -> None:
    encoder = openvino()
    tokens = random_tokens(tuple(range(1, 60)))
    batches = [np.array([i]) for i in range(59)]
    in_flight = [encoder.forward(tokens, rows) for rows in batches]
    assert len(in_flight) > encoder.max_in_flight
    vectors = np.concatenate([encoder.collect(output) for output in in_flight])
    np.testing.assert_allclose(vectors, encoder.encode_float32(tokens, np.arange(59)), rtol=1e-4, atol=1e-6)


def test_the_bundled_model_has_the_vectors_of_sentence_transformers() -> None:
    """Real weights on varied rows, compared with `encode` of sentence-transformers."""
    encoder = encoders.load_encoder(job(device="cpu", engine="auto"))
    texts = varied()[:160]
    assert encoder.vector_space()["engine"] == "openvino"
    assert lowest_cosine(encode(encoder, texts), encoded(texts)) >= SAME
    encoder.close()


def test_a_limit_above_the_real_positions_is_rejected() -> None:
    """Custom code hides that two of its 514 positions are unusable: PyTorch fails there, OpenVINO would read zeros."""
    name = "own-code-model"
    assert openvino(name)._config.max_positions == 512
    with pytest.raises(UsageError, match="514 is more than the 512 tokens"):
        openvino(name, max_seq_length=514)


# Threads and precision


def test_the_number_of_threads_is_passed_on() -> None:
    assert openvino(threads=1)._requests._compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert openvino(threads=1).max_in_flight == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_few_texts_run_on_one_stream_with_the_same_vectors(threads: int) -> None:
    many = openvino(threads=threads)
    blobs = sorted(many._network.folder.glob("*.blob"))
    given = job(models.folder(BERT), device="cpu", engine="openvino", threads=threads)
    few = encoders.load_encoder(given, few_texts=True)
    assert isinstance(few, openvino_loader.OpenVinoEncoder)
    assert few.max_in_flight == 2
    assert few._requests._compiled.get_property("INFERENCE_NUM_THREADS") == threads
    assert sorted(many._network.folder.glob("*.blob")) == blobs
    for lengths in SHAPES:
        tokens = random_tokens(lengths)
        expected = encode_in_one_batch(many, tokens)
        np.testing.assert_allclose(encode_in_one_batch(few, tokens), expected, atol=1e-6)
    few.close()


def test_the_cpu_quota_of_a_container_limits_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    request = openvino()._request
    for quota in (1, None):
        monkeypatch.setattr(openvino_runtime, "cpu_quota", lambda quota=quota: quota)
        assert openvino_runtime.OpenVinoRuntime(request)._threads == quota


def cpu_supports(dtype: str) -> bool:
    core = openvino_runtime.OpenVinoRuntime(openvino()._request)._core
    return openvino_runtime.CPU_CAPABILITIES[dtype] in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_float32_is_the_default() -> None:
    """By default OpenVINO would use bfloat16 where the CPU supports it."""
    precision = openvino()._requests._compiled.get_property("INFERENCE_PRECISION_HINT")
    assert precision.get_type_name() == "f32"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_where_the_cpu_supports_it(dtype: str) -> None:
    if not cpu_supports(dtype):
        with pytest.raises(UsageError, match=f"no {dtype} instructions"):
            openvino(dtype=dtype)
        return
    ours = openvino(dtype=dtype)
    texts = samples()[:20]
    vectors, expected = encode(ours, texts), encode(torch(), texts)
    assert ours.vector_space()["dtype"] == dtype
    cosine = lowest_cosine(vectors, expected)
    assert 0.999 <= cosine < 1 - 1e-7
    assert lowest_cosine(ours.encode_float32(ours.tokenize(texts), np.arange(20)), expected) > cosine


def test_half_precision_is_an_error_where_the_cpu_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(openvino_runtime.CPU_CAPABILITIES, "bfloat16", "BF16 OF ANOTHER CPU")
    with pytest.raises(UsageError, match="no bfloat16") as caught:
        encoders.load_encoder(job(models.folder(BERT), device="cpu", engine="auto", dtype="bfloat16"))
    assert "float32" in caught.value.hint


# Models that cannot be compiled


def load_with_notes(name: str = BERT, **values: Any) -> tuple[Any, list[str]]:
    """A new encoder, and the notes it gave."""
    lines: list[str] = []
    values = {"device": "cpu", "engine": "auto"} | defaults(name) | values
    return encoders.load_encoder(job(models.folder(name), **values), notify=lines.append), lines


def fail_to_convert(*args: Any) -> Any:
    raise openvino_runtime.NotConvertibleError("a reason")


@pytest.mark.usefixtures("own_cache")
def test_a_model_without_a_fast_tokenizer_runs_on_pytorch() -> None:
    encoder, lines = load_with_notes("slow-tokenizer")
    assert encoder.vector_space()["engine"] == "torch"
    assert len([line for line in lines if "runs on PyTorch: it has no fast tokenizer" in line]) == 1


@pytest.mark.usefixtures("own_cache")
def test_a_model_that_cannot_be_converted_runs_on_pytorch_and_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(openvino_runtime.OpenVinoRuntime, "convert", fail_to_convert)
        encoder, lines = load_with_notes()
    assert encoder.vector_space()["engine"] == "torch"
    assert lines[-1].endswith("runs on PyTorch: a reason")
    assert [entry.reason for entry in openvino_loader.list_cached_models()] == ["a reason"]
    monkeypatch.setattr(openvino_loader, "OpenVinoRuntime", None)
    again, lines = load_with_notes()
    assert again.vector_space()["engine"] == "torch"
    assert len(lines) == 1
    assert lines[0].endswith("runs on PyTorch: a reason")


@pytest.mark.usefixtures("own_cache")
def test_other_library_versions_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(openvino_cache, "converter_versions", lambda: {"torch": "0.1"})
        patch.setattr(openvino_runtime.OpenVinoRuntime, "convert", fail_to_convert)
        assert load_with_notes()[0].vector_space()["engine"] == "torch"
    assert load_with_notes()[0].vector_space()["engine"] == "openvino"
    assert [entry.reason for entry in openvino_loader.list_cached_models()] == [""]


@pytest.mark.usefixtures("own_cache")
def test_a_forced_engine_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_runtime.OpenVinoRuntime, "convert", fail_to_convert)
    for _ in range(2):
        with pytest.raises(ModelError, match="--engine openvino: a reason"):
            load_with_notes(engine="openvino")


@pytest.mark.usefixtures("own_cache")
def test_a_network_with_different_vectors_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if tracing had changed the pooling."""
    build_module: Any = torch_export._build_module

    def with_wrong_pooling(*arguments: Any) -> Any:
        wrong = build_module(*arguments)
        wrong.steps[1] = copy.deepcopy(wrong.steps[1])
        wrong.steps[1].pooling_mode = "max"
        return wrong

    monkeypatch.setattr(torch_export, "_build_module", with_wrong_pooling)
    encoder, lines = load_with_notes()
    assert encoder.vector_space()["engine"] == "torch"
    assert "its vectors differ from PyTorch's" in lines[-1]
    assert lowest_cosine(encode(encoder, samples()[:5]), encode(torch(), samples()[:5])) >= SAME


@pytest.mark.usefixtures("own_cache")
def test_vectors_that_are_not_finite_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the masks made for tracing, a left-padded model computes NaN: the probe must notice it."""
    monkeypatch.setattr(torch_export, "_traceable_masks", pytest.MonkeyPatch.context)
    encoder, lines = load_with_notes("Qwen3-Embedding-0.6B")
    assert encoder.vector_space()["engine"] == "torch"
    assert "nan" in lines[-1]


@pytest.mark.usefixtures("own_cache")
def test_a_tokenizer_that_changes_when_stored_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalence, "tokenizes_alike", lambda *args: False)
    encoder, lines = load_with_notes()
    assert encoder.vector_space()["engine"] == "torch"
    assert "tokenizer" in lines[-1]


@pytest.mark.usefixtures("own_cache")
def test_without_openvino_the_model_runs_on_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    encoder, lines = load_with_notes()
    assert encoder.vector_space()["engine"] == "torch"
    assert "OpenVINO cannot be imported" in lines[-1]
    assert openvino_loader.list_cached_models() == []


# Memory


class RecordingNetwork:
    """A compiled network that records when its requests are created and started."""

    inputs = ()

    def __init__(self) -> None:
        self.events: list[str] = []

    def get_property(self, name: str) -> int:
        return 2

    def create_infer_request(self) -> RecordingNetwork:
        self.events.append("created")
        return self

    def start_async(self, inputs: Any, share_inputs: bool) -> None:
        self.events.append("started")

    def wait(self) -> None:
        pass


def test_no_request_is_created_while_others_run() -> None:
    """Creating one waits for all running ones, so the second core would idle during the first batch."""
    compiled = RecordingNetwork()
    requests = infer_requests.InferRequestPool(compiled)
    for _ in range(requests.count):
        requests.start(np.ones((1, 1), np.int64), np.ones((1, 1), np.int64))
    assert compiled.events == ["created"] * 4 + ["started"] * 4
    # Rows that are encoded again can exceed the count: one more request is created.
    requests.start(np.ones((1, 1), np.int64), np.ones((1, 1), np.int64))
    requests.close()


class FailingNetwork:
    """A compiled network whose requests fail with one message."""

    inputs = ()

    def __init__(self, message: str, late: bool) -> None:
        self.message, self.late = message, late

    def get_property(self, name: str) -> int:
        return 1

    def create_infer_request(self) -> FailingNetwork:
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
def test_a_failed_allocation_is_out_of_memory(message: str, late: bool) -> None:
    requests = infer_requests.InferRequestPool(FailingNetwork(message, late))
    with pytest.raises(DeviceOutOfMemoryError):
        requests.finish(requests.start(np.ones((1, 1), np.int64), np.ones((1, 1), np.int64)))
    requests.close()


def test_another_error_is_not_translated() -> None:
    requests = infer_requests.InferRequestPool(FailingNetwork("Exception from a.cpp:1:\nShapes do not match", True))
    running = requests.start(np.ones((1, 1), np.int64), np.ones((1, 1), np.int64))
    with pytest.raises(RuntimeError, match="Shapes do not match") as caught:
        requests.finish(running)
    assert first_line(caught.value) == "Shapes do not match"


def test_close_waits_for_batches_in_flight() -> None:
    encoder, _ = load_with_notes()
    tokens = random_tokens((30,) * 20)
    for _ in range(5):
        encoder.forward(tokens, np.arange(20))
    encoder.close()
    assert not encoder._requests._running

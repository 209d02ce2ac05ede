"""Laws of the engine: each row once and in its place in batches of every size; faults lose no row."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from embedcli.core.errors import InputError, ModelError
from embedcli.core.quantization import find_unusable, truncate_and_normalize
from embedcli.core.types import Chunk, EncodedChunk, ReusedVectors
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.engine import encode_chunks
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.preparation import EncodingSettings, hash_texts, tokenize_chunk
from fakes import FailingEncoder, FakeEncoder, NanEncoder, TightEncoder, chunk

WORDS = ["amber", "basil", "cedar", "delta", "ember", "fjord", "grove"]
TEXTS = [" ".join(WORDS[: 1 + i % 7]) + f" n{i}" for i in range(50)]


@pytest.fixture(scope="module", params=[None, 1, 30], ids=["a chunk", "a text", "some texts"], autouse=True)
def _portion(request: pytest.FixtureRequest) -> Iterator[None]:
    """The results do not depend on the size of portions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeEncoder, "portion_characters", request.param)
        yield


def run(chunks: list[Chunk], encoder: Any, metrics: MetricsCollector | None = None, **values: Any) -> list[Any]:
    return list(
        encode_chunks(iter(chunks), encoder, EncodingSettings(**values), metrics or MetricsCollector(), RunControl())
    )


def expected(encoder: Any, texts: list[str]) -> Any:
    tokens = FakeEncoder.tokenize(encoder, texts)
    return encoder.encode_float32(tokens, np.arange(len(texts)))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(TEXTS), max_size=40), min_size=1, max_size=6),
    st.integers(1, 200),
    st.integers(1, 4),
)
def test_each_row_gets_its_own_vector(groups: list[list[str]], budget: int, max_in_flight: int) -> None:
    encoder = FakeEncoder(max_in_flight=max_in_flight, batch_tokens=budget)
    results = run([chunk(texts, seq=i) for i, texts in enumerate(groups)], encoder)
    assert [result.chunk.index_in_split for result in results] == list(range(len(groups)))
    for result, texts in zip(results, groups, strict=True):
        assert result.rows.tolist() == list(range(len(texts)))
        if texts:
            np.testing.assert_array_equal(result.vectors, expected(encoder, texts))
    assert encoder.most_in_flight <= max_in_flight


def test_budget_is_held_and_each_distinct_text_is_tokenized_and_encoded_once() -> None:
    encoder = FakeEncoder(batch_tokens=40)
    metrics = MetricsCollector()
    run([chunk(TEXTS * 3)], encoder, metrics)
    assert encoder.tokenized == TEXTS
    assert max(encoder.widths) <= 40
    assert sum(len(rows) for rows in encoder.forwards) == len(TEXTS)
    assert (metrics.sequences, metrics.duplicates) == (50, 100)


def test_counts_of_tokens_and_truncation() -> None:
    encoder = FakeEncoder(limit=3)
    result = run([chunk(["a b c d e", "a b", "a b c"])], encoder)[0]
    assert result.n_tokens.tolist() == [5, 2, 3]
    assert result.is_truncated.tolist() == [True, False, False]
    assert result.lost_tokens == 2


def test_rows_without_tokens_are_rejected_not_zero() -> None:
    result = run([chunk(["a", " ", "b"])], FakeEncoder())[0]
    assert result.rows.tolist() == [0, 2]
    assert [(reject.line, reject.reason, reject.id) for reject in result.rejects] == [(2, "no known word", "0-0-1")]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("max_in_flight", [1, 3])
@pytest.mark.parametrize("portion", [None, 400])
def test_out_of_memory_halves_the_budget_and_loses_nothing(late: bool, max_in_flight: int, portion: int | None) -> None:
    encoder = TightEncoder(room=30, late=late, max_in_flight=max_in_flight, batch_tokens=200)
    encoder.portion_characters = portion
    metrics = MetricsCollector()
    results = run([chunk(TEXTS, seq=i) for i in range(3)], encoder, metrics)
    for result in results:
        np.testing.assert_array_equal(result.vectors, expected(encoder, TEXTS))
    assert metrics.out_of_memory > 0
    assert metrics.batch_tokens <= 30
    assert encoder.in_flight == 0


def test_a_row_that_never_fits_is_named() -> None:
    with pytest.raises(ModelError, match=r"in\.jsonl:2: this row alone"):
        run([chunk(["a", "a b c d e"])], TightEncoder(room=4))


def test_non_finite_rows_are_retried_then_rejected() -> None:
    encoder, metrics = NanEncoder(), MetricsCollector()
    texts = ["fine one", "nan here", "always here", "fine two"]
    result = run([chunk(texts)], encoder, metrics)[0]
    assert result.rows.tolist() == [0, 1, 3]
    np.testing.assert_array_equal(result.vectors, expected(encoder, texts)[[0, 1, 3]])
    assert [reject.line for reject in result.rejects] == [3]
    assert metrics.retried_rows == 2


@given(arrays(np.float32, st.tuples(st.integers(0, 5), st.integers(0, 4))))
@example(np.array([[3e38, 1e38], [1e-30, 0], [0, 0], [np.inf, -np.inf], [np.nan, 1]], np.float32))
def test_rows_with_a_nan_an_infinity_or_only_zeros_are_unusable(vectors: Any) -> None:
    unusable = [bool(row.size) and (not np.isfinite(row).all() or not row.any()) for row in vectors]
    assert find_unusable(vectors).tolist() == unusable


@pytest.mark.parametrize("method", ["tokenize", "forward", "collect"])
def test_a_failing_stage_ends_the_run_with_its_own_error_and_no_thread(method: str) -> None:
    before = threading.active_count()
    chunks = [chunk(TEXTS, seq=i) for i in range(5)]
    with pytest.raises(ZeroDivisionError, match=f"{method} failed"):
        run(chunks, FailingEncoder(method, at=3))
    assert threading.active_count() == before


@pytest.mark.parametrize("fails_in", ["read", "tokenize"])
@pytest.mark.parametrize("max_in_flight", [1, 4])
def test_chunks_before_a_failing_one_are_finished(fails_in: str, max_in_flight: int) -> None:
    """Always, not only if their batches were collected before the error arrived."""

    def read() -> Iterator[Chunk]:
        for i in range(3):
            yield chunk(["a", f"b n{i}"], seq=i)
        if fails_in == "read":
            raise InputError("the third chunk is damaged", "repair it")
        yield chunk(["a b c d e"], seq=3)

    encoder = FakeEncoder(limit=3, max_in_flight=max_in_flight)
    overflow = EncodingSettings(overflow="error")
    finished: list[EncodedChunk] = []
    with pytest.raises(InputError):
        finished.extend(encode_chunks(read(), encoder, overflow, MetricsCollector(), RunControl()))
    assert [encoded.chunk.index_in_split for encoded in finished] == [0, 1, 2]


def test_few_chunks_are_in_flight() -> None:
    taken = 0

    def source() -> Iterator[Chunk]:
        nonlocal taken
        for i in range(40):
            taken += 1
            yield chunk(TEXTS, seq=i)

    stream = encode_chunks(source(), FakeEncoder(), EncodingSettings(), MetricsCollector(), RunControl())
    for done in range(1, 41):
        next(stream)
        # Two queues of depth 2, one chunk in each thread, one whose last batch is in flight.
        assert taken <= done + 9


def test_reused_rows_get_their_vectors_without_a_forward_pass() -> None:
    encoder = FakeEncoder()
    counts = (np.array([9], np.int32), np.array([True]), np.array([4], np.int32))
    known = ReusedVectors(np.array([1]), np.full((1, 8), 7, np.float32), *counts)
    result = run([chunk(["a b", "c d", "e f"])], encoder, reuse_lookup=lambda chunk, hashes: known)[0]
    assert result.vectors[1].tolist() == [7.0] * 8
    assert (result.n_tokens.tolist(), result.is_truncated.tolist()) == ([2, 9, 2], [False, True, False])
    assert result.lost_tokens == 4
    assert encoder.tokenized == ["a b", "e f"]


def test_overflow_error_names_the_row_before_any_forward_pass() -> None:
    encoder = FakeEncoder(limit=3)
    encoder.portion_characters = None
    with pytest.raises(InputError, match=r"in\.jsonl:2: the text has 5 tokens, and the encoder reads 3"):
        run([chunk(["a", "a b c d e"])], encoder, overflow="error")
    assert not encoder.forwards


def test_overflow_reject() -> None:
    result = run([chunk(["a", "a b c d e"])], FakeEncoder(limit=3), overflow="reject")[0]
    assert result.rows.tolist() == [0]
    assert result.rejects[0].reason == "too long: 5 tokens, and the encoder reads 3"


def test_a_stop_drops_the_chunk_that_is_being_encoded() -> None:
    control = RunControl()
    stream = encode_chunks(
        (chunk(TEXTS, seq=i) for i in range(10)), FakeEncoder(), EncodingSettings(), MetricsCollector(), control
    )
    next(stream)
    control.stop("SIGTERM")
    assert len(list(stream)) < 9


def test_a_limit_lets_whole_chunks_through_and_always_one() -> None:
    for limit, whole in ((1, 1), (50, 1), (51, 2), (500, 10)):
        control = RunControl(stop_after=limit)
        chunks = (chunk(TEXTS, seq=i) for i in range(10))
        assert len(list(encode_chunks(chunks, FakeEncoder(), EncodingSettings(), MetricsCollector(), control))) == whole
        assert (control.reason is not None) == (whole < 10)


def test_truncated_dimensions_are_renormalised() -> None:
    vectors = np.array([[3, 4, 12]], np.float32)
    np.testing.assert_allclose(truncate_and_normalize(vectors, 2, None), [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_array_equal(truncate_and_normalize(vectors, 2, False), [[3, 4]])
    assert truncate_and_normalize(vectors, None, None) is vectors


class WideEncoder(FakeEncoder):
    """Vectors beyond float16 for texts that begin with "amber", and zeros in the first dimensions for "basil"."""

    def _vector(self, tokens: Any, row: int) -> Any:
        made = super()._vector(tokens, row)
        first = int(tokens.ids[tokens.offsets[row]])
        if first == int(FakeEncoder.tokenize(self, ["amber"]).ids[0]):
            made = made * np.float32(1e6)
        if first == int(FakeEncoder.tokenize(self, ["basil"]).ids[0]):
            made[:2] = 0
        return made


@pytest.mark.parametrize("overflow", ["truncate", "split", "pool"])
def test_vectors_that_cannot_be_stored_are_rejected(overflow: Any) -> None:
    texts = ["cedar delta", "amber ember", "basil", "basil", "fjord"]
    for flags, refused, reason in (
        ({"precision": "float16"}, [1], "in 8 dimensions of float16 its vector would be zero or not finite"),
        ({"truncate_dim": 2}, [2, 3], "in 2 dimensions of float32 its vector would be zero or not finite"),
        ({"truncate_dim": 2, "precision": "float16", "normalize": False}, [1, 2, 3], "in 2 dimensions of float16"),
        ({}, [], ""),
    ):
        (made,) = run([chunk(texts)], WideEncoder(), overflow=overflow, **flags)
        assert made.rows.tolist() == [row for row in range(5) if row not in refused]
        assert [reject.line for reject in made.rejects] == [row + 1 for row in refused]
        assert all(reject.reason.startswith(reason) for reject in made.rejects)


@given(st.lists(st.text(max_size=9), max_size=30), st.integers(1, 40))
def test_portions_have_every_text_once_and_about_the_requested_size(texts: list[str], characters: int) -> None:
    encoder = FakeEncoder()
    encoder.portion_characters = characters
    made = list(tokenize_chunk(chunk(texts), encoder, EncodingSettings(), MetricsCollector()))
    parts = [portion.windows.sequences for portion in made]
    assert [text for part in parts for text in part] == list(dict.fromkeys(texts))
    assert [portion.first_text for portion in made] == [0, *accumulate(map(len, parts[:-1]))]
    assert len(parts) == 1 or all(parts)
    for part in parts:
        assert sum(map(len, part[:-1])) <= characters + 9
    encoder.portion_characters = None
    assert len(list(tokenize_chunk(chunk(texts), encoder, EncodingSettings(), MetricsCollector()))) == 1


def test_a_portion_is_yielded_before_the_next_one_is_tokenized() -> None:
    encoder = FakeEncoder()
    encoder.portion_characters = 1
    made = tokenize_chunk(chunk(["a", "b", "c"]), encoder, EncodingSettings(), MetricsCollector())
    first = next(made)
    assert (encoder.tokenized, first.chunk_in_progress.is_fully_tokenized, first.chunk_in_progress.is_done) == (
        ["a"],
        False,
        False,
    )
    assert [portion.first_text for portion in made] == [1, 2]
    assert first.chunk_in_progress.is_fully_tokenized


def test_hashes_depend_on_text_and_prompt() -> None:
    plain, prompted = hash_texts(["a", "b"], ""), hash_texts(["a", "b"], "query: ")
    assert len({row.tobytes() for row in (*plain, *prompted)}) == 4
    np.testing.assert_array_equal(hash_texts(["query: a"], ""), prompted[:1])


def test_every_row_counts_once_when_its_vector_is_there() -> None:
    texts = [TEXTS[i % 30] for i in range(40)] + ["", "unknown"]
    encoder, metrics, seen = FakeEncoder(max_in_flight=2), MetricsCollector(), list[int]()

    def look(chunk: Chunk, hashes: Any) -> ReusedVectors:
        ones = np.ones(3, np.int32)
        return ReusedVectors(np.arange(3), np.ones((3, encoder.dim), np.float32), ones, ones > 1, ones * 0)

    counts = metrics.progress
    chunks = [chunk(texts, seq=0), chunk(texts[::2], seq=1)]
    settings = EncodingSettings(reuse_lookup=look, overflow="split")
    stream = encode_chunks(
        iter(chunks), encoder, settings, metrics, RunControl(), lambda: seen.append(counts.embedded_rows)
    )
    list(stream)
    assert (counts.skipped_rows, counts.embedded_rows) == (6, 42 + 21 - 6)
    assert (counts.tokenized_rows, counts.tokenized_tokens) == (42 + 21, counts.embedded_tokens)
    assert counts.batches == metrics.batches
    assert seen == sorted(seen)
    steps = np.diff([0, *seen])
    assert steps.max() <= 2 * max(len(rows) for rows in encoder.forwards), "no row counts before its batch"


def test_chunks_that_were_taken_do_not_wait_for_the_garbage_collector() -> None:
    chunks: list[weakref.ref[Chunk]] = []

    def source() -> Iterator[Chunk]:
        for number in range(20):
            made = chunk([f"{text} {number}" for text in TEXTS], seq=number)
            chunks.append(weakref.ref(made))
            yield made
            del made

    gc.collect()
    gc.disable()
    try:
        most = 0
        stream = encode_chunks(source(), FakeEncoder(), EncodingSettings(), MetricsCollector(), RunControl())
        for _ in stream:
            most = max(most, sum(one() is not None for one in chunks))
    finally:
        gc.enable()
    # Read, tokenized and computed ahead, and the one just taken.
    assert most < 15

"""Windows of --overflow split and pool: results computed by hand, and every row's windows stay together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcli.core.errors import UsageError
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.engine import encode_chunks
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.preparation import EncodingSettings
from embedcli.pipeline.windows import (
    TextWindows,
    as_single_windows,
    map_rows_to_sequences,
    mean_pool_windows,
    merge_empty_windows,
    split_into_windows,
)
from fakes import FakeEncoder, chunk


@pytest.fixture(scope="module", params=[None, 1, 9], ids=["a chunk", "a text", "some texts"], autouse=True)
def _portion(request: pytest.FixtureRequest) -> Iterator[None]:
    """The results do not depend on the size of portions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeEncoder, "portion_characters", request.param)
        yield


class WindowEncoder(FakeEncoder):
    """Splits texts into windows of `limit` words; successive windows share `overlap` words."""

    def split_into_windows(self, text: str, overlap: int = 0) -> Sequence[tuple[int, int]]:
        words, spans, at = text.split(), [], 0
        while True:
            start = len(" ".join(words[:at])) + (at > 0)
            stop = start + len(" ".join(words[at : at + self.limit]))
            spans.append((start, stop))
            if at + self.limit >= len(words):
                return spans
            at += self.limit - overlap


def run(texts: list[str], **values: Any) -> Any:
    return next(
        encode_chunks(
            iter([chunk(texts)]), WindowEncoder(limit=3), EncodingSettings(**values), MetricsCollector(), RunControl()
        )
    )


def vector(text: str) -> Any:
    encoder = FakeEncoder(limit=99)
    return encoder.encode_float32(encoder.tokenize([text]), [0])[0]


def test_split_gives_one_row_per_window_with_its_characters() -> None:
    texts = ["a b c d e", "f g", "a b c d e"]
    result = run(texts, overflow="split", split_overlap=1)
    assert result.rows.tolist() == [0, 0, 1, 2, 2]
    spans = list(
        zip(result.extra_columns["char_start"].to_pylist(), result.extra_columns["char_end"].to_pylist(), strict=True)
    )
    assert result.extra_columns["window"].to_pylist() == [0, 1, 0, 0, 1]
    windows = [texts[row][start:stop] for row, (start, stop) in zip(result.rows, spans, strict=True)]
    assert windows == ["a b c", "c d e", "f g", "a b c", "c d e"]
    np.testing.assert_array_equal(result.vectors, np.stack([vector(window) for window in windows]))
    assert result.n_tokens.tolist() == [3, 3, 2, 3, 3]
    assert not result.is_truncated.any()


def test_pool_is_the_token_weighted_mean_renormalised() -> None:
    result = run(["a b c d", "f g"], overflow="pool")
    mean = (3 * vector("a b c") + 1 * vector("d")) / 4
    np.testing.assert_allclose(result.vectors[0], mean / np.linalg.norm(mean), rtol=1e-5)
    np.testing.assert_array_equal(result.vectors[1], vector("f g"))
    assert (result.rows.tolist(), result.n_tokens.tolist(), result.lost_tokens) == ([0, 1], [4, 2], 0)


def test_pool_without_normalizing_is_the_plain_mean() -> None:
    vectors = np.array([[2, 0], [0, 4], [1, 1]], np.float32)
    pooled = mean_pool_windows(vectors, np.array([1, 3, 5], np.int32), np.array([0, 2, 3]), False)
    np.testing.assert_allclose(pooled, np.array([[0.5, 3.0], [1, 1]]))


def test_a_text_with_one_unusable_window_is_rejected() -> None:
    class NanWindowEncoder(WindowEncoder):
        def collect(self, output: Any) -> Any:
            vectors = super().collect(output)
            tokens, rows = output
            vectors[tokens.lengths[rows] == 1] = np.nan
            return vectors

        def encode_float32(self, tokens: Any, rows: Any) -> Any:
            return np.full((len(rows), self.dim), np.nan, np.float32)

    encoded = next(
        encode_chunks(
            iter([chunk(["a b c d", "f g"])]),
            NanWindowEncoder(limit=3),
            EncodingSettings(overflow="split"),
            MetricsCollector(),
            RunControl(),
        )
    )
    assert encoded.rows.tolist() == [1]
    assert [reject.line for reject in encoded.rejects] == [1]


def test_an_encoder_that_cannot_split_is_an_error() -> None:
    with pytest.raises(UsageError, match="--overflow split needs"):
        next(
            encode_chunks(
                iter([chunk(["a b c d"])]),
                FakeEncoder(limit=3),
                EncodingSettings(overflow="split"),
                MetricsCollector(),
                RunControl(),
            )
        )


def test_windows_are_mapped_to_texts_and_rows() -> None:
    windows = split_into_windows(["ab", "c"], np.array([True, False]), lambda text: [(0, 1), (1, 2)])
    assert (windows.sequences, windows.text_indices.tolist()) == (["a", "b", "c"], [0, 0, 1])
    rows, source = map_rows_to_sequences(np.array([1, 0, 0]), windows.text_starts)
    assert (rows.tolist(), source.tolist()) == ([0, 1, 1, 2, 2], [2, 0, 1, 0, 1])
    assert as_single_windows(["x", "yz"]).character_spans.tolist() == [[0, 1], [0, 2]]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=5))
def test_windows_without_a_token_become_part_of_others(counts: list[list[int]]) -> None:
    """Window i of a text has the characters 2 * i and 2 * i + 1."""
    texts = ["ab" * len(some) for some in counts]
    spans = [(2 * i, 2 * i + 2) for some in counts for i in range(len(some))]
    starts = np.concatenate([[0], np.cumsum([len(some) for some in counts])]).astype(np.int64)
    before = TextWindows(["ab"] * len(spans), starts, np.array(spans, np.int64).reshape(-1, 2))
    made = merge_empty_windows(texts, before, np.array([count for some in counts for count in some]))
    for text, some, first, last in zip(texts, counts, made.text_starts, made.text_starts[1:], strict=False):
        assert last - first == max(1, sum(count > 0 for count in some))
        assert "".join(made.sequences[first:last]) == text
        assert (made.character_spans[first][0], made.character_spans[last - 1][1]) == (0, len(text))


class UnknownWordEncoder(WindowEncoder):
    """Does not know the word `x`, and splits texts without regard to that."""

    empty_reason = "no known word"

    def tokenize(self, texts: Sequence[str]) -> Any:
        return super().tokenize([" ".join(word for word in text.split() if word != "x") for text in texts])


@pytest.mark.parametrize("overflow", ["split", "pool"])
def test_unknown_words_at_the_end_of_a_text_do_not_reject_it(overflow: str) -> None:
    texts = ["a b c d x x x", "x x x a b c d", "x x x x x"]
    values: dict[str, Any] = {"overflow": overflow}
    result = next(
        encode_chunks(
            iter([chunk(texts)]),
            UnknownWordEncoder(limit=3),
            EncodingSettings(**values),
            MetricsCollector(),
            RunControl(),
        )
    )
    assert sorted(set(result.rows.tolist())) == [0, 1]
    assert [(reject.line, reject.reason) for reject in result.rejects] == [(3, "no known word")]
    if overflow == "split":
        starts, ends = result.extra_columns["char_start"].to_pylist(), result.extra_columns["char_end"].to_pylist()
        windows = [texts[row][start:end] for row, start, end in zip(result.rows, starts, ends, strict=True)]
        assert windows == ["a b c", "d x x x", "x x x a b c", "d"]

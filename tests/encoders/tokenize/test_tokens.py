"""Token ids are those of the model's own tokenizer at every limit, and padding keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import models
from embedcli.core.encoder import Tokens
from embedcli.core.errors import UsageError
from embedcli.encoders.tokenize import fallback as fallback_tokenizer
from embedcli.encoders.tokenize import fast as fast_module
from embedcli.encoders.tokenize import word_cache
from embedcli.encoders.tokenize.fast import FastTokenizer, pad_rows
from embedcli.models import resolve
from reference import job, load, samples, sentence_transformer, varied

# One model of each kind of tokenizer: WordPiece, Unigram, byte BPE padded on the left, BPE with byte fallback.
KINDS = [
    "all-MiniLM-L6-v2-shape",
    "text2vec-base-multilingual",
    "Qwen3-Embedding-0.6B",
    "embeddinggemma-300m",
    "all-mpnet-base-v2",
    "deberta-v2-base",
    "modernbert-embed-base",
]


@cache
def reference_tokenizer(name: str) -> Any:
    """The model's tokenizer as transformers loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(models.folder(name)), local_files_only=True)


def fast_tokenizer(name: str, **values: Any) -> FastTokenizer:
    """A FastTokenizer on a copy of the backend, because it changes settings."""
    return FastTokenizer(
        Tokenizer.from_str(reference_tokenizer(name).backend_tokenizer.to_str()), **({"limit": None} | values)
    )


@pytest.fixture(
    autouse=True, scope="module", params=[0, fast_module.MIN_PARALLEL_CHARACTERS], ids=["word-cache", "whole-texts"]
)
def _min_characters(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run every test with the word cache, where the tokenizer allows it, and without: the tokens are the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_module, "MIN_PARALLEL_CHARACTERS", request.param)
        yield


def split_rows(tokens: Tokens) -> list[list[int]]:
    return [row.tolist() for row in np.split(tokens.ids, tokens.offsets[1:-1])]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("prompt", ["", "query: ", "Instruct: retrieve\nQuery:"])
@pytest.mark.parametrize("limit", [5, 64])
def test_ids_are_those_of_the_models_own_tokenizer(name: str, prompt: str, limit: int) -> None:
    texts = varied(240)
    limit += len(reference_tokenizer(name)(prompt, add_special_tokens=False)["input_ids"])
    expected = reference_tokenizer(name)([prompt + text for text in texts], truncation=True, max_length=limit)[
        "input_ids"
    ]
    untruncated = reference_tokenizer(name)([prompt + text for text in texts], verbose=False)["input_ids"]
    tokens = fast_tokenizer(name, limit=limit, prompt=prompt).tokenize(texts)
    assert split_rows(tokens) == expected
    assert tokens.untruncated_lengths.tolist() == [len(ids) for ids in untruncated]


@pytest.mark.parametrize("name", KINDS)
@given(text=st.text(max_size=80), limit=st.integers(3, 40), side=st.sampled_from(["left", "right"]))
def test_ids_are_the_same_for_any_text_limit_and_side(name: str, text: str, limit: int, side: str) -> None:
    tokenizer = reference_tokenizer(name)
    tokenizer.truncation_side = side
    expected = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
    tokenizer.truncation_side = "right"
    assert split_rows(fast_tokenizer(name, limit=limit, cut_left=side == "left").tokenize([text])) == [expected]


def test_ids_of_the_bundled_model_are_those_of_transformers() -> None:
    texts = varied(300)
    folder = resolve.resolve_model(job()).path
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    tokens = FastTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), limit=256).tokenize(texts)
    assert split_rows(tokens) == reference(texts, truncation=True, max_length=256)["input_ids"]


@pytest.mark.parametrize("name", ["instruct-model", "Qwen3-Embedding-0.6B", "embeddinggemma-300m"])
@pytest.mark.parametrize("prompt", ["query: ", "x", "Represent the question for retrieving documents: "])
def test_the_prompt_length_is_that_of_sentence_transformers(name: str, prompt: str) -> None:
    expected = sentence_transformer(models.folder(name))[0]._get_prompt_length(prompt)
    assert fast_tokenizer(name, limit=128, prompt=prompt).prompt_length == expected


def test_an_absent_prompt_has_no_tokens() -> None:
    assert fast_tokenizer(KINDS[0]).prompt_length == 0


def test_slices_have_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    unsliced = fast_tokenizer(KINDS[1], limit=20).tokenize(samples())
    monkeypatch.setattr(word_cache, "SLICE_CHARACTERS", 100)
    monkeypatch.setattr(word_cache, "MAX_SLICE_CHARACTERS", 100)
    sliced = fast_tokenizer(KINDS[1], limit=20).tokenize(samples())
    np.testing.assert_array_equal(sliced.ids, unsliced.ids)
    np.testing.assert_array_equal(sliced.offsets, unsliced.offsets)
    np.testing.assert_array_equal(sliced.untruncated_lengths, unsliced.untruncated_lengths)


def test_no_texts_give_no_rows() -> None:
    tokens = fast_tokenizer(KINDS[0], limit=9).tokenize([])
    assert (len(tokens.ids), tokens.offsets.tolist(), len(tokens.untruncated_lengths)) == (0, [0], 0)


def test_a_limit_without_room_for_text_is_an_error() -> None:
    with pytest.raises(UsageError, match="2 leaves no room") as caught:
        fast_tokenizer(KINDS[0], limit=2)
    assert "at least 3" in caught.value.hint


@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_that_fills_the_limit_is_an_error(name: str) -> None:
    """Otherwise every row would have the same tokens."""
    prompt = "Represent this sentence for searching relevant passages: "
    with pytest.raises(UsageError, match=r"leaves no room for text beside \d special tokens and a prompt") as caught:
        fast_tokenizer(name, limit=8, prompt=prompt)
    least = int(caught.value.hint.removeprefix("use at least "))
    tokens = fast_tokenizer(name, limit=least, prompt=prompt).tokenize(["amber", "quartz"])
    assert split_rows(tokens)[0] != split_rows(tokens)[1]
    with pytest.raises(UsageError):
        fast_tokenizer(name, limit=least - 1, prompt=prompt)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    pad_to_multiple_of=st.sampled_from([1, 8, 16]),
    left=st.booleans(),
    most=st.sampled_from([None, 12, 100]),
)
def test_padding_keeps_every_token_in_its_row(
    lengths: list[int], pad_to_multiple_of: int, left: bool, most: int | None
) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = Tokens(np.arange(1, offsets[-1] + 1, dtype=np.int32), offsets, np.array(lengths, np.int32))
    chosen = np.arange(len(lengths))[::-1]
    ids, mask = pad_rows(tokens, chosen, pad_to_multiple_of, 0, left, most)
    assert ids.dtype == mask.dtype == np.int64
    assert [row[seen == 1].tolist() for row, seen in zip(ids, mask, strict=True)] == split_rows(tokens)[::-1]
    assert (ids[mask == 0] == 0).all()
    assert (mask == np.sort(mask, axis=1)[:, :: 1 if left else -1]).all()
    width, longest = ids.shape[1], max(lengths)
    assert longest <= width < longest + pad_to_multiple_of
    assert width % pad_to_multiple_of == 0 or (most is not None and width == max(longest, most))


@pytest.mark.parametrize("name", KINDS[:4])
@pytest.mark.parametrize("prompt", ["", "query: "])
@pytest.mark.parametrize("overlap", [0, 6])
def test_windows_fit_the_limit_and_cover_the_text(name: str, prompt: str, overlap: int) -> None:
    tokenizer = fast_tokenizer(name, limit=32, prompt=prompt)
    for text in [*samples()[::8], "", "word " * 300, "長" * 300, "🙂" * 60, "x" * 500, "a.\n\n\n" * 60]:
        windows = tokenizer.split_into_windows(text, overlap)
        assert (tokenizer.tokenize([text[start:stop] for start, stop in windows]).untruncated_lengths <= 32).all()
        assert (windows[0][0], windows[-1][1]) == (0, len(text))
        for (start, stop), (next_start, next_stop) in pairwise(windows):
            assert start < next_start <= stop < next_stop
            assert overlap or next_start == stop


def test_windows_end_at_sentences_or_words() -> None:
    tokenizer = fast_tokenizer(KINDS[0], limit=40)
    text = "Gulls read. They shout! " * 12
    assert all(text[start:stop].endswith((". ", "! ")) for start, stop in tokenizer.split_into_windows(text))
    words = text.replace(".", "").replace("!", "")
    windows = tokenizer.split_into_windows(words, 4)
    assert all(words[stop - 1].isspace() for _, stop in windows)
    assert all(words[start - 1].isspace() for start, _ in windows[1:])


def test_an_overlap_as_long_as_a_window_is_an_error() -> None:
    with pytest.raises(UsageError, match="--split-overlap 30"):
        fast_tokenizer(KINDS[0], limit=32).split_into_windows("word " * 90, 30)


def test_a_tokenizer_that_does_more_than_its_backend_is_noticed() -> None:
    assert fallback_tokenizer.matches_reference(reference_tokenizer(KINDS[0]), 64)

    class Shouting:
        backend_tokenizer = reference_tokenizer(KINDS[0]).backend_tokenizer
        truncation_side = "right"

        def __call__(self, texts: list[str], **values: Any) -> Any:
            return reference_tokenizer(KINDS[0])([text + "!" for text in texts], **values)

    assert not fallback_tokenizer.matches_reference(Shouting(), 64)


def test_a_slow_tokenizer_counts_and_truncates_by_itself() -> None:
    encoder = load(models.folder("slow-tokenizer"), trust_remote_code=True, max_seq_length=12, prompt="q: ")
    tokens = encoder.tokenize(["", "short", "much longer than that"])
    assert tokens.untruncated_lengths.tolist() == [5, 10, 26]
    assert tokens.lengths.tolist() == [5, 10, 12]
    assert encoder.fast_tokenizer is None
    assert encoder.split_into_windows("text") is None

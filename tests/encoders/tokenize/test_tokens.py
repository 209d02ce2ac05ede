"""Our tokens are the model's own, at every limit; the padded arrays hold them and nothing else."""

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
from embedcli.encoders.tokenize import fast as tokens_module
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
def own(name: str) -> Any:
    """The model's tokenizer as transformers loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(models.folder(name)), local_files_only=True)


def fast(name: str, **values: Any) -> FastTokenizer:
    """Ours, on a copy, so that neither sees the other's settings."""
    return FastTokenizer(Tokenizer.from_str(own(name).backend_tokenizer.to_str()), **({"limit": None} | values))


@pytest.fixture(autouse=True, scope="module", params=[0, tokens_module.MIN_PARALLEL_CHARACTERS], ids=["many", "few"])
def _few(request: pytest.FixtureRequest) -> Iterator[None]:
    """A few texts are tokenized whole, many by pieces where the tokenizer allows it: the tokens are the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens_module, "MIN_PARALLEL_CHARACTERS", request.param)
        yield


def rows(tokens: Tokens) -> list[list[int]]:
    return [row.tolist() for row in np.split(tokens.ids, tokens.offsets[1:-1])]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("prompt", ["", "query: ", "Instruct: retrieve\nQuery:"])
@pytest.mark.parametrize("limit", [5, 64])
def test_the_same_ids_as_the_models_own_tokenizer(name: str, prompt: str, limit: int) -> None:
    texts = varied(240)
    limit += len(own(name)(prompt, add_special_tokens=False)["input_ids"])
    theirs = own(name)([prompt + text for text in texts], truncation=True, max_length=limit)["input_ids"]
    whole = own(name)([prompt + text for text in texts], verbose=False)["input_ids"]
    made = fast(name, limit=limit, prompt=prompt).tokenize(texts)
    assert rows(made) == theirs
    assert made.untruncated_lengths.tolist() == [len(ids) for ids in whole]


@pytest.mark.parametrize("name", KINDS)
@given(text=st.text(max_size=80), limit=st.integers(3, 40), side=st.sampled_from(["left", "right"]))
def test_the_same_ids_whatever_the_text_limit_and_side(name: str, text: str, limit: int, side: str) -> None:
    tokenizer = own(name)
    tokenizer.truncation_side = side
    theirs = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
    tokenizer.truncation_side = "right"
    assert rows(fast(name, limit=limit, cut_left=side == "left").tokenize([text])) == [theirs]


def test_the_real_models_ids_are_its_own() -> None:
    texts = varied(300)
    folder = resolve.resolve_model(job()).path
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    made = FastTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), limit=256).tokenize(texts)
    assert rows(made) == theirs(texts, truncation=True, max_length=256)["input_ids"]


@pytest.mark.parametrize("name", ["instruct-model", "Qwen3-Embedding-0.6B", "embeddinggemma-300m"])
@pytest.mark.parametrize("prompt", ["query: ", "x", "Represent the question for retrieving documents: "])
def test_prompt_length_is_sentence_transformers_count(name: str, prompt: str) -> None:
    counted = sentence_transformer(models.folder(name))[0]._get_prompt_length(prompt)
    assert fast(name, limit=128, prompt=prompt).prompt_length == counted


def test_no_prompt_has_no_tokens() -> None:
    assert fast(KINDS[0]).prompt_length == 0


def test_slicing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fast(KINDS[1], limit=20).tokenize(samples())
    monkeypatch.setattr(word_cache, "SLICE_CHARACTERS", 100)
    monkeypatch.setattr(word_cache, "MAX_SLICE_CHARACTERS", 100)
    sliced = fast(KINDS[1], limit=20).tokenize(samples())
    np.testing.assert_array_equal(sliced.ids, whole.ids)
    np.testing.assert_array_equal(sliced.offsets, whole.offsets)
    np.testing.assert_array_equal(sliced.untruncated_lengths, whole.untruncated_lengths)


def test_no_text_no_rows() -> None:
    made = fast(KINDS[0], limit=9).tokenize([])
    assert (len(made.ids), made.offsets.tolist(), len(made.untruncated_lengths)) == (0, [0], 0)


def test_a_limit_without_room_for_text_is_refused() -> None:
    with pytest.raises(UsageError, match="2 leaves no room") as caught:
        fast(KINDS[0], limit=2)
    assert "at least 3" in caught.value.hint


@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_that_fills_the_limit_is_refused(name: str) -> None:
    """Every row would have the same tokens."""
    prompt = "Represent this sentence for searching relevant passages: "
    with pytest.raises(UsageError, match=r"leaves no room for text beside \d special tokens and a prompt") as caught:
        fast(name, limit=8, prompt=prompt)
    least = int(caught.value.hint.removeprefix("give at least "))
    made = fast(name, limit=least, prompt=prompt).tokenize(["amber", "quartz"])
    assert rows(made)[0] != rows(made)[1]
    with pytest.raises(UsageError):
        fast(name, limit=least - 1, prompt=prompt)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    pad_to_multiple_of=st.sampled_from([1, 8, 16]),
    left=st.booleans(),
    most=st.sampled_from([None, 12, 100]),
)
def test_pad_keeps_every_token_in_its_row(
    lengths: list[int], pad_to_multiple_of: int, left: bool, most: int | None
) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = Tokens(np.arange(1, offsets[-1] + 1, dtype=np.int32), offsets, np.array(lengths, np.int32))
    chosen = np.arange(len(lengths))[::-1]
    ids, mask = pad_rows(tokens, chosen, pad_to_multiple_of, 0, left, most)
    assert ids.dtype == mask.dtype == np.int64
    assert [row[seen == 1].tolist() for row, seen in zip(ids, mask, strict=True)] == rows(tokens)[::-1]
    assert (ids[mask == 0] == 0).all()
    assert (mask == np.sort(mask, axis=1)[:, :: 1 if left else -1]).all()
    width, longest = ids.shape[1], max(lengths)
    assert longest <= width < longest + pad_to_multiple_of
    assert width % pad_to_multiple_of == 0 or (most is not None and width == max(longest, most))


@pytest.mark.parametrize("name", KINDS[:4])
@pytest.mark.parametrize("prompt", ["", "query: "])
@pytest.mark.parametrize("overlap", [0, 6])
def test_windows_fit_the_limit_and_leave_no_character_out(name: str, prompt: str, overlap: int) -> None:
    tokenizer = fast(name, limit=32, prompt=prompt)
    for text in [*samples()[::8], "", "word " * 300, "長" * 300, "🙂" * 60, "x" * 500, "a.\n\n\n" * 60]:
        windows = tokenizer.split_into_windows(text, overlap)
        assert (tokenizer.tokenize([text[start:stop] for start, stop in windows]).untruncated_lengths <= 32).all()
        assert (windows[0][0], windows[-1][1]) == (0, len(text))
        for (start, stop), (later, end) in pairwise(windows):
            assert start < later <= stop < end
            assert overlap or later == stop


def test_windows_end_where_sentences_and_words_do() -> None:
    tokenizer = fast(KINDS[0], limit=40)
    text = "Gulls read. They shout! " * 12
    assert all(text[start:stop].endswith((". ", "! ")) for start, stop in tokenizer.split_into_windows(text))
    words = text.replace(".", "").replace("!", "")
    windows = tokenizer.split_into_windows(words, 4)
    assert all(words[stop - 1].isspace() for _, stop in windows)
    assert all(words[start - 1].isspace() for start, _ in windows[1:])


def test_an_overlap_as_long_as_a_window_is_refused() -> None:
    with pytest.raises(UsageError, match="--split-overlap 30"):
        fast(KINDS[0], limit=32).split_into_windows("word " * 90, 30)


def test_a_tokenizer_that_does_more_than_its_backend_is_used_itself() -> None:
    assert fallback_tokenizer.matches_reference(own(KINDS[0]), 64)

    class Shouting:
        backend_tokenizer = own(KINDS[0]).backend_tokenizer
        truncation_side = "right"

        def __call__(self, texts: list[str], **values: Any) -> Any:
            return own(KINDS[0])([text + "!" for text in texts], **values)

    assert not fallback_tokenizer.matches_reference(Shouting(), 64)


def test_a_slow_tokenizer_counts_and_cuts_as_itself() -> None:
    encoder = load(models.folder("slow-tokenizer"), trust_remote_code=True, max_seq_length=12, prompt="q: ")
    made = encoder.tokenize(["", "short", "much longer than that"])
    assert made.untruncated_lengths.tolist() == [5, 10, 26]
    assert made.lengths.tolist() == [5, 10, 12]
    assert encoder.fast_tokenizer is None
    assert not hasattr(encoder, "spans")

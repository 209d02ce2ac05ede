"""Tokenizing by pieces gives the tokenizer's own ids, whatever the text."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embedcli.core.batching import group_by_size
from embedcli.encoders.tokenize import word_cache
from static_models import MARKS, TEXTS, WORDS, byte_pairs, unigram, wordlevel, wordpiece

OPTIONS: list[dict[str, Any]] = [
    {},
    {"lowercase": False},
    {"strip_accents": False},
    {"handle_chinese_chars": False},
    {"clean_text": False},
    {"lowercase": False, "strip_accents": True, "clean_text": False},
]
# What is white space, a control or a mark to one library and not to another, and what changes when normalized.
ODD = (
    "\x00\x0b\x0c\x1c\x1f\x7f\x85\xa0\xad\u0130\u0301\u037e\u1680\u2028\u200b\u200d\u212a\u3000\u4e00\u9fff\uf900\ufffd"
)
TEXT = st.text() | st.lists(st.sampled_from([*WORDS, *MARKS, *ODD, *" \t\n\r", "THE", "中文", "[UNK]", "ß"])).map(
    "".join
)


def own_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def rows(made: tuple[Any, Any]) -> list[list[int]]:
    ids, offsets = made
    assert offsets[0] == 0
    assert offsets[-1] == len(ids)
    return [ids[start:stop].tolist() for start, stop in pairwise(offsets)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@example(TEXTS)
@example([])
@example(["", ""])
@example([*ODD, ODD, "e\u0301", "=\u0338", "!\u0301x", "中\u0301文"])
@given(st.lists(TEXT))
def test_ids_are_those_of_the_whole_texts(options: dict[str, Any], texts: list[str]) -> None:
    tokenizer = TOKENIZERS[str(options)]
    assert isinstance(tokenizer, word_cache.WordCacheTokenizer)
    assert rows(tokenizer(texts)) == own_ids(wordpiece(**options), texts)


TOKENIZERS = {str(options): word_cache.choose_tokenizer(wordpiece(**options), 2) for options in OPTIONS}


@given(st.lists(TEXT))
def test_a_word_level_model_too(texts: list[str]) -> None:
    assert rows(LEVELS(texts)) == own_ids(wordlevel(), texts)


LEVELS = word_cache.choose_tokenizer(wordlevel(), 1)


@pytest.mark.parametrize("make", [unigram, byte_pairs])
def test_other_tokenizers_read_whole_texts(make: Any) -> None:
    made = word_cache.choose_tokenizer(make(), 2)
    assert not isinstance(made, word_cache.WordCacheTokenizer)
    assert rows(made(TEXTS)) == own_ids(make(), TEXTS)


def test_words_that_could_merge_with_neighbours_are_not_split() -> None:
    from tokenizers import AddedToken, normalizers, pre_tokenizers

    spaced = wordpiece()
    spaced.add_tokens([AddedToken("quick brown", normalized=True)])
    lowered = wordpiece()
    lowered.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    runs = wordpiece()
    runs.pre_tokenizer = pre_tokenizers.Whitespace()
    assert word_cache.is_bert_style(wordpiece())
    assert [word_cache.is_bert_style(other) for other in (spaced, lowered, runs)] == [False, False, False]


def test_added_tokens_are_found_in_the_raw_text() -> None:
    from tokenizers import AddedToken

    tokenizer = wordpiece()
    tokenizer.add_tokens([AddedToken("fox jump", normalized=False), AddedToken("o.v", normalized=False)])
    texts = ["the fox jumps", "The FOX JUMPS o.ver it", "fox\njump", "the dog"]
    made = word_cache.choose_tokenizer(tokenizer, 1)
    assert isinstance(made, word_cache.WordCacheTokenizer)
    assert rows(made(texts)) == own_ids(tokenizer, texts)


def test_slices_and_a_full_memory_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_cache, "SLICE_CHARACTERS", 100)
    monkeypatch.setattr(word_cache, "MAX_SLICE_CHARACTERS", 100)
    monkeypatch.setattr(word_cache, "MAX_CACHED_WORDS", 5)
    texts = TEXTS * 3
    made = word_cache.choose_tokenizer(wordpiece(), 2)
    for _ in range(2):
        assert rows(made(texts)) == own_ids(wordpiece(), texts)


@given(st.lists(TEXT), st.integers(1, 40))
def test_slices_keep_every_text_in_order(texts: list[str], size: int) -> None:
    parts = [texts[start:stop] for start, stop in group_by_size(map(len, texts), size)]
    assert [text for part in parts for text in part] == texts
    assert all(parts)
    assert all(len(part) == 1 or sum(map(len, part)) <= size for part in parts)


@pytest.mark.parametrize(("characters", "threads", "size"), [(900, 2, 1000), (6000, 3, 2000), (9000, 1, 4000)])
def test_slices_are_large_as_long_as_all_threads_have_one(
    characters: int, threads: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_cache, "SLICE_CHARACTERS", 1000)
    monkeypatch.setattr(word_cache, "MAX_SLICE_CHARACTERS", 4000)
    assert (
        word_cache.WordCacheTokenizer(wordpiece(), threads)._choose_slice_size(["a" * 100] * (characters // 100))
        == size
    )


@given(st.lists(st.lists(st.integers(0, 9)), min_size=1), st.data())
def test_replaced_rows_are_replaced_and_no_others(before: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(range(len(before))), unique=True))
    new = [data.draw(st.lists(st.integers(10, 19))) for _ in chosen]
    expected = [new[chosen.index(i)] if i in chosen else row for i, row in enumerate(before)]
    assert (
        rows(word_cache.replace_ragged_rows(word_cache.flatten_rows(before), chosen, word_cache.flatten_rows(new)))
        == expected
    )


@given(st.lists(st.lists(st.lists(st.integers(0, 9)))))
def test_parts_are_joined_in_order(parts: list[list[list[int]]]) -> None:
    made = word_cache.concat_ragged([word_cache.flatten_rows(part) for part in parts])
    assert rows(made) == [row for part in parts for row in part]
    assert made[1].dtype == np.int64

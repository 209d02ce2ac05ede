"""Token counts before sending: exact where a tokenizer lies at hand, else an estimate that is said to be one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.encoders.hosted import token_counting
from embedcli.encoders.hosted.token_counting import (
    EstimatingCounter,
    HostedTexts,
    choose_token_counter,
    count_and_truncate,
    max_tokens_per_text,
)

OPENAI = Job(("in",), "out", model="openai:text-embedding-3-small")

# Texts with their length in cl100k_base tokens, counted with tiktoken 0.14.
COUNTED = [
    ("All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience "
     "and should act towards one another in a spirit of brotherhood.", 34),
    ("Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и "
     "должны поступать в отношении друг друга в духе братства.", 74),
    ("人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。", 52),
    ("모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 이성과 양심을 "
     "부여받았으며 서로 형제애의 정신으로 행동하여야 한다.", 85),
]  # fmt: skip


@pytest.mark.parametrize(("text", "tokens"), COUNTED)
def test_the_estimate_is_near_the_truth(text: str, tokens: int) -> None:
    assert EstimatingCounter().count([text])[0] == pytest.approx(tokens, rel=0.25)


@given(st.lists(st.text()))
def test_each_text_is_estimated_alone(texts: list[str]) -> None:
    together = EstimatingCounter().count(texts)
    assert together.tolist() == [int(EstimatingCounter().count([text])[0]) for text in texts]
    assert all((size == 0) == (text == "") for text, size in zip(texts, together, strict=True))


@given(st.text(), st.integers(0, 50))
def test_a_cut_is_the_longest_beginning_that_fits(text: str, limit: int) -> None:
    estimate = EstimatingCounter()
    head = estimate.truncate(text, limit)
    assert text.startswith(head)
    assert estimate.count([head])[0] <= limit
    if head != text:
        assert estimate.count([text[: len(head) + 1]])[0] > limit


@given(st.text(min_size=1))
def test_the_estimates_tokens_lie_in_order_and_cover_the_text(text: str) -> None:
    starts, stops = EstimatingCounter().token_spans(text)
    assert len(starts) == len(stops) == EstimatingCounter().count([text])[0]
    assert (starts[0], stops[-1]) == (0, len(text))
    assert (starts < stops).all()
    assert (np.diff(starts) >= 0).all()
    assert (np.diff(stops) >= 0).all()


@given(st.text(min_size=1), st.integers(7, 40), st.integers(0, 5))  # the prompt takes a token
def test_windows_lose_nothing_and_fit(text: str, limit: int, overlap: int) -> None:
    found = token_counting.cut_into_windows(text, "ab ", EstimatingCounter(), limit, overlap)
    assert (found[0][0], found[-1][1]) == (0, len(text))
    for (start, stop), (following, _) in pairwise(found):
        assert start < following <= stop
    assert all(
        EstimatingCounter().count(["ab " + text[start:stop]])[0] <= limit or stop - start == 1 for start, stop in found
    )


def test_an_overlap_that_leaves_nothing_new() -> None:
    with pytest.raises(UsageError, match="--split-overlap 5 leaves nothing new for a window of 5 tokens"):
        token_counting.cut_into_windows("words " * 20, "", EstimatingCounter(), 5, 5)
    assert token_counting.cut_into_windows("words " * 20, "", EstimatingCounter(), None, 5) == [(0, 120)]


def test_an_estimate_is_said_to_be_one() -> None:
    notes: list[str] = []
    made = choose_token_counter(OPENAI, notes.append)
    assert (made.name, made.is_exact) == ("estimate", False)
    assert len(notes) == 1
    assert "estimate" in notes[0]
    assert "tiktoken" in notes[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with a tokenizer of whole words between two special tokens."""
    words = {word: place for place, word in enumerate(["[CLS]", "[SEP]", "[UNK]", "one", "two", "three"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 0), ("[SEP]", 1)])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_the_models_own_tokenizer_counts_exactly(folder: Path) -> None:
    notes: list[str] = []
    made = choose_token_counter(Job(("in",), "out", model=f"openai:{folder}"), notes.append)
    assert made.is_exact
    assert notes == []
    assert made.count(["one two three two", "one", ""]).tolist() == [6, 3, 0]
    assert made.truncate("one  two three two", 5) == "one  two three"
    assert made.truncate("one two", 4) == "one two"
    assert made.truncate("one two", 2) == ""
    assert [part.tolist() for part in made.token_spans("one  two")] == [[0, 5], [3, 8]]
    assert token_counting.cut_into_windows("one two three two", "", made, 4, 0) == [(0, 8), (8, 17)]


def test_a_tokenizer_in_the_local_cache_is_found(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "cache" / "models--maker--model"
    (place / "snapshots" / "abc").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    (folder / "tokenizer.json").rename(place / "snapshots" / "abc" / "tokenizer.json")
    job = Job(("in",), "out", model="openai:maker/model", cache_dir=str(tmp_path / "cache"))
    assert choose_token_counter(job, print).name == "tokenizer of maker/model"


def test_a_chosen_tokenizer_counts_for_any_name(folder: Path) -> None:
    made = choose_token_counter(Job(("in",), "out", model="openai:any", tokenizer=str(folder)), print)
    assert made.is_exact
    assert made.count(["one two"]).tolist() == [4]
    with pytest.raises(UsageError, match=r"--tokenizer nowhere: there is no tokenizer\.json"):
        choose_token_counter(Job(("in",), "out", model="openai:any", tokenizer="nowhere"), print)


@pytest.mark.parametrize("name", ["a b", "../..", "x" * 200, "accounts/maker/models/e5"])
def test_names_that_are_not_hub_ids_are_estimated(name: str) -> None:
    assert choose_token_counter(Job(("in",), "out", model=f"openai:{name}"), lambda line: None).name == "estimate"


def test_a_damaged_vocabulary_is_not_replaced_over_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    file = tmp_path / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
    file.write_bytes(b"damaged")
    assert choose_token_counter(OPENAI, lambda line: None).name == "estimate"
    assert file.read_bytes() == b"damaged"


def test_tiktoken_counts_as_openai_does() -> None:
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"an": 256, b"and": 257}
    made = token_counting.TiktokenCounter(
        tiktoken.Encoding("tiny", pat_str=r"\w+|\W+", mergeable_ranks=ranks, special_tokens={})
    )
    assert made.count(["and ban", "<|endoftext|>", ""]).tolist() == [1 + 1 + 2, 13, 0]
    assert made.truncate("and ban", 3) == "and b"
    assert made.truncate("aé", 2) == "a"
    assert [part.tolist() for part in made.token_spans("and ban")] == [[0, 3, 4, 5], [3, 4, 5, 7]]
    assert [part.tolist() for part in made.token_spans("éa")] == [[0, 0, 1], [0, 1, 2]]


def test_prepare_counts_the_prompt_and_cuts_to_the_limit() -> None:
    tokens = count_and_truncate(["aaaa" * 20, "bb", ""], "", EstimatingCounter(), 5)
    assert isinstance(tokens.payload, HostedTexts)
    assert tokens.payload.texts == ["aaaa" * 5, "bb", ""]
    assert tokens.lengths.tolist() == [5, 1, 0]
    assert tokens.untruncated_lengths.tolist() == [20, 1, 0]
    assert len(tokens.ids) == tokens.offsets[-1]
    prompted = count_and_truncate(["bb"], "abcd" * 3, EstimatingCounter(), None)
    assert prompted.payload.texts == ["abcd" * 3 + "bb"]
    assert prompted.untruncated_lengths.dtype == np.int32
    assert prompted.untruncated_lengths.tolist() == [4]


def test_openais_limit_is_applied_only_to_exact_counts() -> None:
    assert max_tokens_per_text(OPENAI, exact=True) == 8192
    assert max_tokens_per_text(OPENAI, exact=False) is None
    assert max_tokens_per_text(Job(("in",), "out", model="openai:other"), exact=True) is None
    assert max_tokens_per_text(Job(("in",), "out", model="openai:other", max_seq_length=7), exact=False) == 7

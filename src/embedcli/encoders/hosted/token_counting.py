"""Count tokens for hosted models without a request: tiktoken, the model's own tokenizer, or an estimate.

Nothing is downloaded: tiktoken is used if its vocabulary is cached, a tokenizer if `tokenizer.json` is in the folder or
in the local Hugging Face cache under the model's name.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from embedcli.core.constants import HOSTED_PREFIX
from embedcli.core.encoder import Tokens
from embedcli.core.errors import UsageError
from embedcli.encoders.tokenize.text_windows import choose_window_spans

if TYPE_CHECKING:
    from embedcli.core.job import Job
    from embedcli.core.types import Float32Array, Int32Array, Int64Array

# The limit of every OpenAI embedding model, from the reference of POST /v1/embeddings.
OPENAI_MAX_TOKENS = 8192
OPENAI_MODELS = ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002")
CL100K_URL = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
CL100K_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"

# Tokens per character, by the first code point of a range: cl100k_base on the first articles of the Universal
# Declaration of Human Rights in 15 languages, and on code. ASCII is set apart below.
TOKENS_PER_CHARACTER: tuple[tuple[int, float], ...] = (
    (0x00, 0.25), (0x80, 1.3), (0x370, 0.95), (0x400, 0.55), (0x530, 1.1), (0x600, 0.85), (0x780, 1.1),
    (0x1E00, 1.5), (0x1F00, 1.1), (0x2000, 1.0), (0x2E80, 1.1), (0xFB00, 1.1), (0x10000, 2.4),
)  # fmt: skip
CAPITAL_TOKENS, DIGIT_TOKENS, PUNCTUATION_TOKENS, SPACE_TOKENS = 0.4, 0.5, 0.7, 0.05


@dataclass
class HostedTexts:
    """The payload of `Tokens`: texts as they are sent, and reasons of rejected rows."""

    texts: list[str]
    refusal_reasons: dict[int, str] = field(default_factory=dict)


class TokenCounter(Protocol):
    """Counts tokens. `name` is the method, `is_exact` whether the server will count the same."""

    name: str
    is_exact: bool

    def count(self, texts: Sequence[str]) -> Int32Array:
        """Count the tokens of each text, special tokens included: int32 [n], 0 only for an empty text."""

    def truncate(self, text: str, limit: int) -> str:
        """Return the longest prefix of `text` of at most `limit` tokens."""

    def token_spans(self, text: str) -> tuple[Int64Array, Int64Array]:
        """Return start and end of each token in characters, without special tokens: int64 [tokens], twice."""


class EstimatingCounter:
    """Estimates tokens from the scripts of a text."""

    name = "estimate"
    is_exact = False

    def count(self, texts: Sequence[str]) -> Int32Array:
        """Estimate the tokens of each text: int32 [n], at least 1 for a text that is not empty."""
        if not texts:
            return np.zeros(0, np.int32)
        lengths = np.array([len(text) for text in texts])
        sums = np.concatenate(([0.0], np.cumsum(tokens_per_character("".join(texts)), dtype=np.float64)))
        ends = np.cumsum(lengths)
        return np.asarray(np.ceil(sums[ends] - sums[ends - lengths] - 1e-6), np.int32)

    def truncate(self, text: str, limit: int) -> str:
        """Return the longest prefix of `text` whose estimate is at most `limit`."""
        return text[
            : int(np.searchsorted(np.cumsum(tokens_per_character(text), dtype=np.float64), limit, side="right"))
        ]

    def token_spans(self, text: str) -> tuple[Int64Array, Int64Array]:
        """Start and end tokens where the sum of the estimates passes an integer."""
        sums = np.cumsum(tokens_per_character(text), dtype=np.float64)
        whole = np.arange(math.ceil(sums[-1] - 1e-6) if len(sums) else 0)
        starts = np.searchsorted(sums, whole + 1e-6, side="right")
        return starts, np.minimum(np.searchsorted(sums, whole + 1 - 1e-6) + 1, len(text))


def tokens_per_character(text: str) -> Float32Array:
    """Estimate the tokens of each character: float32 [len(text)]."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    starts = np.array([start for start, _ in TOKENS_PER_CHARACTER], np.uint32)
    share = np.array([weight for _, weight in TOKENS_PER_CHARACTER], np.float32)
    made = share[np.searchsorted(starts, codes, side="right") - 1]
    ascii_ = codes < 0x80
    made[ascii_] = _ascii_weights()[codes[ascii_]]
    return made


@cache
def _ascii_weights() -> Float32Array:
    table = np.full(0x80, PUNCTUATION_TOKENS, np.float32)
    for code in range(0x80):
        if chr(code).isalpha():
            table[code] = TOKENS_PER_CHARACTER[0][1] if chr(code).islower() else CAPITAL_TOKENS
        elif chr(code).isdigit():
            table[code] = DIGIT_TOKENS
        elif chr(code).isspace():
            table[code] = SPACE_TOKENS
    return table


class TiktokenCounter:
    """OpenAI's own tokenizer."""

    name = "tiktoken cl100k_base"
    is_exact = True

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding

    def count(self, texts: Sequence[str]) -> Int32Array:
        """Count tokens as OpenAI does: int32 [n]."""
        encoded = self._encoding.encode_ordinary_batch(list(texts), num_threads=2)
        return np.array([len(ids) for ids in encoded], np.int32)

    def truncate(self, text: str, limit: int) -> str:
        """Return the text of the first `limit` tokens, or fewer if the last one ends inside a character."""
        head = self._encoding.decode_bytes(self._encoding.encode_ordinary(text)[:limit])
        return str(head.decode("utf-8", "ignore"))

    def token_spans(self, text: str) -> tuple[Int64Array, Int64Array]:
        """A token with part of a character starts at that character."""
        _, starts = self._encoding.decode_with_offsets(self._encoding.encode_ordinary(text))
        return np.array(starts, np.int64), np.array([*starts[1:], len(text)][: len(starts)], np.int64)


class ModelTokenizerCounter:
    """The tokenizer of the served model, from files on this machine."""

    is_exact = True

    def __init__(self, tokenizer: Any, name: str) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.name = f"tokenizer of {name}"

    def count(self, texts: Sequence[str]) -> Int32Array:
        """Count tokens with special tokens: int32 [n], 0 for an empty text."""
        encoded = self._tokenizer.encode_batch_fast(list(texts))
        return np.array([len(row.ids) if text else 0 for text, row in zip(texts, encoded, strict=True)], np.int32)

    def truncate(self, text: str, limit: int) -> str:
        """Return the text of the tokens that fit beside the special tokens."""
        plain = self._tokenizer.encode(text, add_special_tokens=False)
        room = limit - (len(self._tokenizer.encode(text).ids) - len(plain.ids))
        if room >= len(plain.ids):
            return text
        return text[: plain.offsets[room - 1][1]] if room > 0 else ""

    def token_spans(self, text: str) -> tuple[Int64Array, Int64Array]:
        """As the tokenizer reports them."""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        starts, stops = np.array(offsets, np.int64).reshape(-1, 2).T
        return starts.copy(), stops.copy()


def choose_token_counter(job: Job, notify: Callable[[str], None]) -> TokenCounter:
    """Choose the best counter for `job.model`, and report if it is an estimate. Uses no network and no key."""
    name = job.model.removeprefix(HOSTED_PREFIX)
    if job.tokenizer is not None:
        return _load_chosen_tokenizer(job.tokenizer, job.cache_dir)
    made = _load_tiktoken_counter() if name in OPENAI_MODELS else _load_tokenizer_counter(name, job.cache_dir)
    if made is not None:
        return made
    notify(f"token counts before sending are an estimate from the characters; for exact ones {_describe_remedy(name)}")
    return EstimatingCounter()


def _describe_remedy(name: str) -> str:
    if name in OPENAI_MODELS:
        fetch = "import tiktoken; tiktoken.get_encoding('cl100k_base')"
        return f"pip install 'embedcli[accurate-counts]', then once: python -c \"{fetch}\""
    return f"give --tokenizer, or fetch it into the local Hugging Face cache: hf download {name} tokenizer.json"


def max_tokens_per_text(job: Job, exact: bool) -> int | None:
    """Token limit of a text before sending: `--max-seq-length`, else OpenAI's limit if counts are exact."""
    if job.max_seq_length is not None:
        return job.max_seq_length
    known = job.model.removeprefix(HOSTED_PREFIX) in OPENAI_MODELS
    return OPENAI_MAX_TOKENS if known and exact else None


def count_and_truncate(texts: Sequence[str], prompt: str, count: TokenCounter, limit: int | None) -> Tokens:
    """Count the tokens of prompt + text, truncated to `limit`; the payload is a `HostedTexts`."""
    sent = [prompt + text for text in texts] if prompt else list(texts)
    full = count.count(sent)
    lengths = full.astype(np.int64)
    if limit is not None:
        for row in np.flatnonzero(full > limit):
            sent[row] = count.truncate(sent[row], limit)
            lengths[row] = limit if sent[row] else 0
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
    ids = np.zeros(int(offsets[-1]), np.int32)
    return Tokens(ids, offsets, full, HostedTexts(sent), is_estimated=not count.is_exact)


def record_cuts(tokens: Tokens, cut_lengths: Mapping[int, int]) -> None:
    """Record in `tokens` how much the server read of rows that it cut; estimates below that are raised."""
    tokens.cut_lengths.update(cut_lengths)
    for row, length in cut_lengths.items():
        tokens.untruncated_lengths[row] = max(int(tokens.untruncated_lengths[row]), length + 1)


def cut_into_windows(
    text: str, prompt: str, count: TokenCounter, limit: int | None, overlap: int
) -> list[tuple[int, int]]:
    """Split a text into windows (start, stop) in characters, each within `limit` tokens with the prompt.

    Raises:
        UsageError: The overlap leaves no new token in a window.
    """
    if limit is None:
        return [(0, len(text))]
    starts, stops = count.token_spans(text)
    room = limit - max(0, int(count.count([prompt + text])[0]) - len(starts))
    # Tokens that are parts of one character are merged, so that every window starts after the previous one.
    first = np.flatnonzero(np.diff(starts, prepend=-1))
    starts, stops = starts[first], stops[np.append(first[1:], len(stops)) - 1]
    return choose_window_spans(
        text, starts, stops, room, overlap, lambda window: int(count.count([prompt + window])[0]) - limit
    )


def _load_tiktoken_counter() -> TokenCounter | None:
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = folder or str(Path(tempfile.gettempdir(), "data-gym-cache"))
    # Checked here because tiktoken would download a missing or damaged vocabulary by itself.
    file = Path(folder, hashlib.sha1(CL100K_URL.encode(), usedforsecurity=False).hexdigest())
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != CL100K_SHA256:
        return None
    try:
        import tiktoken
    except ImportError:
        return None
    return TiktokenCounter(tiktoken.get_encoding("cl100k_base"))


def _load_chosen_tokenizer(name: str, cache_dir: str | None) -> TokenCounter:
    """The tokenizer of --tokenizer. Raises UsageError if it is not on this machine."""
    counter = _load_tokenizer_counter(name, cache_dir)
    if counter is None:
        raise UsageError(
            f"--tokenizer {name}: there is no tokenizer.json in a folder of this name or in the local cache of the hub",
            f"give a folder, or fetch it once: hf download {name} tokenizer.json",
        )
    return counter


def _load_tokenizer_counter(name: str, cache_dir: str | None) -> TokenCounter | None:
    file = Path(name, "tokenizer.json")
    if not file.is_file():
        cached = _find_cached_tokenizer(name, cache_dir)
        if cached is None:
            return None
        file = cached
    from tokenizers import Tokenizer

    return ModelTokenizerCounter(Tokenizer.from_file(str(file)), name)


def _find_cached_tokenizer(name: str, cache_dir: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "tokenizer.json", cache_dir=cache_dir)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None

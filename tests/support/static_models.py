"""Small static models for the tests, built with the classes of the tools that write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcli.core import batching
from embedcli.core.encoder import BaseEncoder
from embedcli.core.job import Job
from embedcli.encoders.static import encoder as static_encoder
from embedcli.models import resolve

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "it",
    "rains",
    "on",
    "stone",
    "bridges",
    "near",
    "café",
    "São",
    "Paulo",
]
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "rain, rain; (stone-bridges) near Café SÃO PAULO!",
    "unknownword xyzzy 12345 the",
    "  spaces\tand\nnewlines\r\nmixed \u00a0 with\u3000wide ones  ",
    "中文文本，和 English 混合。the quick 狐狸",
    "한국어 텍스트 und Straße, naïve façade",
    "fox " * 700,
    "a\u0301bc e\u0301 ﬁne Ⅷ \U0001f600 emoji the\x0bfox \x00 end\x7f",
    "[UNK] the [PAD] fox[UNK]dog",
    "x" * 5000 + " the fox " + "dog " * 30,
    ".",
]


LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789é"
# As in a real vocabulary, half of the tokens have more than a few letters: model2vec cuts by their median.
LONG = [f"filler{i:03d}" for i in range(400)]
MARKS = "!(),-./;[]{}_?\uff0c\u3002"


def wordpiece(**options: Any) -> Any:
    """A BERT-like tokenizer: some words, letters that begin and continue others, marks, Han characters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = [word.lower() for word in WORDS if word != "café"]
    letters = [*LETTERS, *(f"##{letter}" for letter in LETTERS if letter not in "qy")]
    letters += [*MARKS, *"中文本和狐", "The", *LONG]
    every = dict.fromkeys(["[PAD]", "[UNK]", *words, "cafe", "##ing", *letters])
    made = Tokenizer(models.WordPiece({token: i for i, token in enumerate(every)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(**options)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(["[PAD]", "[UNK]"])
    return made


def wordlevel() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["[UNK]", *dict.fromkeys(word.lower() for word in WORDS), "."])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def unigram() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = ["\u2581", *(f"\u2581{word.lower()}" for word in WORDS), *LETTERS, "the", "ing", "er", *LONG]
    scored = [("<unk>", 0.0), *((piece, -1.0 - i / 10) for i, piece in enumerate(dict.fromkeys(pieces)))]
    made = Tokenizer(models.Unigram(scored, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return made


def byte_pairs() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    merges = [("t", "h"), ("th", "e"), ("o", "x"), ("f", "ox"), ("\u0120", "the")]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges), *LONG]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made


def table(rows: int, dim: int = 16, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, dim), np.float32)


def load(path: Path, said: list[str] | None = None, **options: Any) -> static_encoder.StaticEncoder:
    """The encoder of the model at `path`, found and loaded as a job finds and loads it."""
    job = Job((), "", model=str(path), **options)
    return static_encoder.load_static_encoder(
        resolve.resolve_model(job), job, (said if said is not None else []).append
    )


def encode(encoder: BaseEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """All texts through tokenize, forward and collect, packed as the engine packs them."""
    tokens = encoder.tokenize(texts)
    made = np.zeros((len(texts), encoder.dim), np.float32)
    batches: Iterable[Any] = batching.pack_batches(
        tokens.lengths, lambda: encoder.batch_tokens, encoder.pad_to_multiple_of
    )
    for rows, output in [(rows, encoder.forward(tokens, rows)) for rows in batches]:
        vectors: Any = encoder.collect(output)
        made[rows] = vectors
    return made

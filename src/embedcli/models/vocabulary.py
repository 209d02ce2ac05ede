"""The vocabulary of a model: the words that the dimensions of sparse vectors stand for, and their fingerprint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path


def load_vocabulary(folder: Path, dim: int) -> dict[int, str]:
    """Load the words of a model by their number.

    Args:
        folder: The model.
        dim: Dimensions of its vectors.

    Returns:
        The words; empty if the model has no tokenizer.json, or other dimensions than words.
    """
    paths = sorted(folder.rglob("tokenizer.json"), key=lambda path: (len(path.parts), path))
    return read_words(paths[0], dim) if paths else {}


def read_words(path: Path, dim: int) -> dict[int, str]:
    """Read the words of a tokenizer.json; empty if they are not as many as the dimensions of vectors."""
    from tokenizers import Tokenizer

    words: dict[str, int] = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    return {number: word for word, number in words.items()} if len(words) == dim else {}


def fingerprint_vocabulary(words: Mapping[int, str]) -> str:
    """BLAKE2b-128 over the words in the order of their numbers, as a JSON list in UTF-8.

    Two models with the same fingerprint have the same word for each dimension.
    """
    text = json.dumps([words[number] for number in sorted(words)], ensure_ascii=False, separators=(",", ":"))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

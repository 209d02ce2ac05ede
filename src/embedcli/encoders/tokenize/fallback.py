"""Tokens for the models whose tokenizer is not a fast one, or whose input is not just token ids: slower, as correct."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.encoder import Tokens
from embedcli.encoders.tokenize.fast import FastTokenizer, build_tokens

if TYPE_CHECKING:
    from embedcli.core.types import Int64Array
    from embedcli.models.config import ModelConfig

# Scripts, case, an unknown sign, a special token in the text, an empty text and one beyond small limits.
COMPARISON_TEXTS = (
    "",
    " ",
    "Hello, World! naïve café",
    "向量 数据库。",
    "こんにちは",
    "Привет мир",
    "مرحبا",
    "🙂☃",
    "<s>[SEP]</s>",
    "a b " * 40,
)


class TransformersTokenizer:
    """A transformers tokenizer of any kind, called once for the whole text and once more for rows to be cut."""

    def __init__(self, tokenizer: Any, *, limit: int | None, prompt: str) -> None:
        self._tokenizer = tokenizer
        self._limit = limit
        self._prompt = prompt
        self.pad_id = tokenizer.pad_token_id or 0
        self.pads_left = tokenizer.padding_side == "left"
        self.prompt_length = self._count_prompt()

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Each text with its prompt, cut to the limit by the tokenizer itself."""
        prompted = [self._prompt + text for text in texts]
        rows = [list(row) for row in self._tokenizer(prompted, verbose=False)["input_ids"]] if prompted else []
        full = np.fromiter(map(len, rows), np.int32, len(rows))
        if self._limit is not None:
            for i in np.flatnonzero(full > self._limit):
                rows[i] = self._tokenizer(prompted[i], truncation=True, max_length=self._limit)["input_ids"]
        return build_tokens(rows, full)

    def _count_prompt(self) -> int:
        if not self._prompt:
            return 0
        ids = self._tokenizer(self._prompt, verbose=False)["input_ids"][: self._limit]
        return len(ids) - (ids[-1] in self._tokenizer.all_special_ids)


class PipelinePreprocessor:
    """The pipeline's own preprocessing, for models with other inputs: word lists, chat templates, routers.

    Nothing is known of their cut, so `full` equals the lengths.
    """

    prompt_length = 0

    def __init__(self, model: Any, recipe: ModelConfig) -> None:
        self._model = model
        self._prompt = recipe.prompt
        self._told = {"task": recipe.task} if recipe.task else {}
        if recipe.max_seq_length is not None and getattr(model, "max_seq_length", None) is not None:
            model.max_seq_length = recipe.max_seq_length

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """The texts themselves as payload, with the lengths their features have."""
        lengths = [self._length(text) for text in texts]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        full = np.array(lengths, np.int32)
        return Tokens(np.zeros(int(offsets[-1]), np.int32), offsets, full, payload=list(texts))

    def build_features(self, tokens: Tokens, rows: Int64Array, device: str) -> dict[str, Any]:
        """What the model takes for `rows`, on `device`."""
        made = self._preprocess([tokens.payload[row] for row in rows])
        return {name: value.to(device) if hasattr(value, "to") else value for name, value in made.items()}

    def _preprocess(self, texts: list[str]) -> dict[str, Any]:
        made: dict[str, Any] = self._model.preprocess(texts, prompt=self._prompt or None, **self._told)
        return made

    def _length(self, text: str) -> int:
        made = self._preprocess([text])
        if "sentence_lengths" in made:
            return int(made["sentence_lengths"][0])
        ids = made.get("input_ids", made.get("attention_mask"))
        return int(ids.shape[-1]) if ids is not None else 1


def matches_reference(own: Any, limit: int | None) -> bool:
    """Whether a FastTokenizer on this tokenizer's backend gives the ids the tokenizer itself gives."""
    backend = own.backend_tokenizer
    probe = type(backend).from_str(backend.to_str())
    smallest = len(backend.encode("").ids) + 1
    for most in (limit, smallest + 4):
        ours = FastTokenizer(probe, limit=most, cut_left=own.truncation_side == "left").tokenize(COMPARISON_TEXTS)
        cut = {"truncation": True, "max_length": most} if most is not None else {}
        theirs = own(list(COMPARISON_TEXTS), verbose=False, **cut)
        for i, ids in enumerate(theirs["input_ids"]):
            if ours.ids[ours.offsets[i] : ours.offsets[i + 1]].tolist() != ids:
                return False
        if any(any(types) for types in theirs.get("token_type_ids", ())):
            return False
    return True

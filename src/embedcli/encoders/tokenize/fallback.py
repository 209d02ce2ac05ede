"""Tokenize for models without a fast tokenizer, or whose inputs are more than token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.encoder import Tokens
from embedcli.encoders.tokenize.fast import FastTokenizer, build_tokens
from embedcli.models.files import ROUTER_MODULES

if TYPE_CHECKING:
    from embedcli.core.types import Int32Array, Int64Array
    from embedcli.models.config import ModelConfig

ROUTER_REASON = "it begins with a Router, which leads queries and documents through networks of their own"
# More tokens than any text has; transformers warns about larger limits.
NO_LIMIT = 10**9
# Several scripts, both cases, unknown characters, special tokens in the text, empty texts and one above small limits.
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
    """A transformers tokenizer of any kind, called a second time for rows above the token limit.

    Attributes:
        pad_id: The id of the padding token.
        pads_left: Whether rows are padded on the left.
        pad_token_type: The type of a padding token.
        prompt_length: Tokens of the prompt, as sentence-transformers counts them.
        not_fast_reason: Why the model has no `FastTokenizer`.
    """

    not_fast_reason = "it has no fast tokenizer"

    def __init__(self, tokenizer: Any, *, limit: int | None, prompt: str) -> None:
        self._tokenizer = tokenizer
        self._limit = limit
        self._prompt = prompt
        self.pad_id = tokenizer.pad_token_id or 0
        self.pads_left = tokenizer.padding_side == "left"
        self.pad_token_type = int(getattr(tokenizer, "pad_token_type_id", 0))
        self.prompt_length = self._count_prompt_tokens()

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenize each text with the prompt; the tokenizer itself truncates to the limit."""
        prompted = [self._prompt + text for text in texts]
        encodings = self._tokenizer(prompted, verbose=False) if prompted else {"input_ids": []}
        rows = [list(row) for row in encodings["input_ids"]]
        types = [list(row) for row in encodings.get("token_type_ids", ())]
        untruncated_lengths = np.fromiter(map(len, rows), np.int32, len(rows))
        if self._limit is not None:
            for i in np.flatnonzero(untruncated_lengths > self._limit):
                truncated = self._tokenizer(prompted[i], truncation=True, max_length=self._limit)
                rows[i] = truncated["input_ids"]
                if types:
                    types[i] = truncated["token_type_ids"]
        tokens = build_tokens(rows, untruncated_lengths)
        if types:
            tokens.token_types = np.fromiter(chain.from_iterable(types), np.int32, len(tokens.ids))
        return tokens

    def _count_prompt_tokens(self) -> int:
        if not self._prompt:
            return 0
        ids = self._tokenizer(self._prompt, verbose=False)["input_ids"][: self._limit]
        return len(ids) - (ids[-1] in self._tokenizer.all_special_ids)


class PipelinePreprocessor:
    """The model's own preprocessing, for inputs such as word lists, chat templates and routers.

    Texts that reach a limit of its modules are counted again without any.

    Attributes:
        not_fast_reason: Why the model has no `FastTokenizer`.
    """

    prompt_length = 0

    def __init__(self, model: Any, config: ModelConfig) -> None:
        self._model = model
        begins_with_router = type(model[0]).__name__ in ROUTER_MODULES
        self.not_fast_reason = ROUTER_REASON if begins_with_router else "its inputs are not only token ids"
        self._prompt = config.prompt
        self._task_arguments = {"task": config.task} if config.task else {}
        # One thread counts tokens with other limits while another one builds features.
        self._limits_lock = Lock()
        if config.max_seq_length is not None:
            _set_token_limits(model, dict.fromkeys(_read_token_limits(model), config.max_seq_length))
        self._limits = _read_token_limits(model)
        self._smallest_limit = min(self._limits.values(), default=None)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Keep the texts as payload, with the lengths of their features; the ids are all 0."""
        lengths = [self._count_tokens(text) for text in texts]
        untruncated = self._count_untruncated(texts, lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return Tokens(np.zeros(int(offsets[-1]), np.int32), offsets, untruncated, payload=list(texts))

    def build_features(self, tokens: Tokens, rows: Int64Array, device: str) -> dict[str, Any]:
        """The model's inputs for `rows` of `tokens`, with all tensors on `device`."""
        with self._limits_lock:
            features = self._preprocess([tokens.payload[row] for row in rows])
        return {name: value.to(device) if hasattr(value, "to") else value for name, value in features.items()}

    def _count_untruncated(self, texts: Sequence[str], lengths: Sequence[int]) -> Int32Array:
        untruncated = np.array(lengths, np.int32)
        smallest = self._smallest_limit
        full = [] if smallest is None else np.flatnonzero(untruncated >= smallest).tolist()
        if full:
            with self._limits_lock:
                _set_token_limits(self._model, dict.fromkeys(self._limits, NO_LIMIT))
                try:
                    for i in full:
                        untruncated[i] = max(lengths[i], self._count_tokens(texts[i]))
                finally:
                    _set_token_limits(self._model, self._limits)
        return untruncated

    def _preprocess(self, texts: list[str]) -> dict[str, Any]:
        features: dict[str, Any] = self._model.preprocess(texts, prompt=self._prompt or None, **self._task_arguments)
        return features

    def _count_tokens(self, text: str) -> int:
        features = self._preprocess([text])
        if "sentence_lengths" in features:
            return int(features["sentence_lengths"][0])
        ids = features.get("input_ids", features.get("attention_mask"))
        return int(ids.shape[-1]) if ids is not None else 1


def _read_token_limits(model: Any) -> dict[str, int]:
    """The limit of each module that gets texts and has one, by the module's name."""
    found = {
        name: getattr(module, "max_seq_length", None)
        for name, module in model.named_modules()
        if hasattr(module, "preprocess")
    }
    return {name: int(limit) for name, limit in found.items() if limit is not None and limit < NO_LIMIT}


def _set_token_limits(model: Any, limits: Mapping[str, int]) -> None:
    """Set the limits of modules: a router fails if one of its routes has none, so it is not asked itself."""
    modules = dict(model.named_modules())
    for name, limit in limits.items():
        with suppress(AttributeError):
            modules[name].max_seq_length = limit
        tokenizer: Any = getattr(modules[name], "tokenizer", None)
        # `SparseStaticEmbedding` reads the tokenizer's limit only, whatever its own attribute says.
        if getattr(tokenizer, "model_max_length", None) is not None:
            tokenizer.model_max_length = limit


def matches_reference(reference: Any, limit: int | None) -> bool:
    """Whether a FastTokenizer returns the same ids as a transformers tokenizer, which may do more than its backend.

    Args:
        reference: A fast tokenizer of transformers.
        limit: The token limit that will be used.
    """
    backend = reference.backend_tokenizer
    backend_copy = type(backend).from_str(backend.to_str())
    smallest_limit = len(backend.encode("").ids) + 1
    for max_length in (limit, smallest_limit + 4):
        tokenizer = FastTokenizer(backend_copy, limit=max_length, cut_left=reference.truncation_side == "left")
        tokens = tokenizer.tokenize(COMPARISON_TEXTS)
        truncation = {"truncation": True, "max_length": max_length} if max_length is not None else {}
        expected = reference(list(COMPARISON_TEXTS), verbose=False, **truncation)
        for i, ids in enumerate(expected["input_ids"]):
            if tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]].tolist() != ids:
                return False
        if any(any(types) for types in expected.get("token_type_ids", ())):
            return False
    return True

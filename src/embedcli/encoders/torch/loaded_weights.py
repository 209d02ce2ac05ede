"""Check that a loaded network has all its weights, and a vector for every token of its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedcli.core.errors import ModelError
from embedcli.models.files import ModelFiles

if TYPE_CHECKING:
    import torch

CHECK_TEXTS = ("a", "Every tensor that a vector depends on is read. 向量", "Two words")
WORD_TEXTS = ("words of a text", "слова", "文本", "نص", "12345")
INCOMPLETE_HINT = "fetch the model again, or save it again with sentence-transformers: model.save(PATH)"
SHOWN_NAMES = 3


@dataclass(frozen=True)
class LoadedNetwork:
    """A network of transformers and the names of tensors that it and its files do not have in common.

    Attributes:
        network: The network.
        missing: Tensors of the network that are not in the files; transformers fills them with random numbers.
        unexpected: Tensors of the files that the network has no place for.
        mismatched: Tensors that have one shape in the files and another in the network, with both.
    """

    network: Any
    missing: Sequence[str]
    unexpected: Sequence[str]
    mismatched: Sequence[tuple[str, Any, Any]]


@contextmanager
def record_networks() -> Iterator[list[LoadedNetwork]]:
    """Record every network that transformers loads in the body."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.__dict__["from_pretrained"]
    loaded: list[LoadedNetwork] = []

    def from_pretrained(cls: Any, *args: Any, **options: Any) -> Any:
        # Tensors of another shape are reported here, with both shapes, instead of by transformers, which names neither.
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        network, info = original.__func__(cls, *args, **options)
        names = [sorted(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")]
        loaded.append(LoadedNetwork(network, *names))
        return network

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment]
    try:
        yield loaded
    finally:
        PreTrainedModel.from_pretrained = original  # type: ignore[method-assign]


def check_weights(pipeline: Any, loaded: Sequence[LoadedNetwork], files: ModelFiles, task: str | None) -> None:
    """Refuse a pipeline whose vectors depend on tensors that its files lack, or that has fewer layers than its files.

    A missing tensor is filled with NaN. If a vector then is NaN, it depends on the tensor. Others, such as a pooler
    that mean pooling leaves out, may be missing, and stay NaN so that they can never change a vector unnoticed.

    Args:
        pipeline: The SentenceTransformer.
        loaded: Its networks, from `record_networks`.
        files: Its files, for the message.
        task: The route of a Router model, if any.

    Raises:
        ModelError: A tensor that is used is missing or has another shape, or the files have more layers than the
            network.
    """
    for name, stored, expected in (shapes for one in loaded for shapes in one.mismatched):
        raise ModelError(
            f"{files.path}: {name} has the shape {tuple(stored)}, and config.json asks for {tuple(expected)}",
            INCOMPLETE_HINT,
        )
    missing = [name for one in loaded for name in one.missing]
    if missing:
        unfillable = [name for one in loaded for name in one.missing if not _fill_with_nan(one.network, name)]
        if unfillable or not _has_finite_vectors(pipeline, task):
            raise ModelError(
                f"{files.path} lacks weights that its network needs: {_shorten(unfillable or missing)}", INCOMPLETE_HINT
            )
    left_over = [name for one in loaded for name in _find_left_over_layers(one)]
    if left_over:
        raise ModelError(
            f"{files.path} has weights that its network does not read: {_shorten(left_over)}",
            "correct config.json: it describes fewer layers than the weights have",
        )


def check_token_ids(pipeline: Any, files: ModelFiles) -> None:
    """Refuse a tokenizer that knows a token without a row in the embedding table.

    Raises:
        ModelError: The id of a token is outside the table, or the tokenizer has no vocabulary.
    """
    from torch import nn

    tokenizer, table = pipeline.tokenizer, _find_input_table(pipeline)
    if tokenizer is None or not isinstance(table, nn.Embedding):
        return
    if _knows_no_word(tokenizer):
        raise ModelError(
            f"the tokenizer in {files.path} knows no word: its vocabulary is missing or has another name than "
            f"{type(tokenizer).__name__} expects",
            "fetch the model again, with tokenizer.json or all files of its vocabulary",
        )
    vocabulary = tokenizer.get_vocab()
    token = max(vocabulary, key=vocabulary.__getitem__, default=None)
    if token is not None and vocabulary[token] >= table.num_embeddings:
        raise ModelError(
            f"the tokenizer and the weights in {files.path} do not belong together: the token {token!r} has the id "
            f"{vocabulary[token]}, and the embedding table has {table.num_embeddings} rows",
            "fetch the model again, or resize its token embeddings and save it again",
        )


def _knows_no_word(tokenizer: Any) -> bool:
    """Whether texts of several scripts become nothing but special and unknown tokens."""
    special = {*tokenizer.all_special_ids, tokenizer.unk_token_id}
    return all(special.issuperset(ids) for ids in tokenizer(list(WORD_TEXTS), verbose=False)["input_ids"])


def _find_input_table(pipeline: Any) -> Any:
    """The embedding table of the first module's network; None if it has none, as networks that read characters."""
    network = getattr(pipeline[0], "model", None)
    try:
        return network.get_input_embeddings() if network is not None else None
    except (AttributeError, NotImplementedError):
        return None


def _fill_with_nan(network: Any, name: str) -> bool:
    """Fill a tensor with NaN; False if it does not exist or holds integers."""
    import torch

    tensors: dict[str, torch.Tensor] = dict(network.named_parameters()) | dict(network.named_buffers())
    tensor = tensors.get(name)
    if tensor is None or not tensor.is_floating_point():
        return False
    with torch.no_grad():
        tensor.fill_(torch.nan)
    return True


def _has_finite_vectors(pipeline: Any, task: str | None) -> bool:
    import torch

    with torch.inference_mode():
        features = pipeline.preprocess(list(CHECK_TEXTS), **({"task": task} if task else {}))
        features = {
            name: value.to(pipeline.device) if hasattr(value, "to") else value for name, value in features.items()
        }
        vectors: torch.Tensor = pipeline(features)["sentence_embedding"]
        return bool(vectors.isfinite().all())


def _find_left_over_layers(one: LoadedNetwork) -> list[str]:
    """The unexpected tensors that are those of a layer of the network, but with another number."""
    names = {_without_numbers(name) for name in one.network.state_dict()}
    prefix = f"{one.network.base_model_prefix}."
    return [name for name in one.unexpected if _without_numbers(name.removeprefix(prefix)) in names]


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _shorten(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")

"""Check that a loaded network has all its weights, and a vector for every token of its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedcli.core.errors import ModelError
from embedcli.encoders.torch.run_texts import run_on_texts
from embedcli.models.config import ModelConfig
from embedcli.models.files import ModelFiles
from embedcli.models.weights import DOWNLOAD_AGAIN_HINT

if TYPE_CHECKING:
    import torch

CHECK_TEXTS = ("a", "Every tensor that a vector depends on is read. 向量", "Two words")
# Several scripts, digits and, for models of proteins, amino acids.
WORD_TEXTS = ("words of a text", "слова", "文本", "نص", "12345", "MKTAYIAKQR")
INCOMPLETE_HINT = "fetch the model again, or use the weights that config.json was written for"
OWN_CODE_HINT = "add --trust-remote-code to run the model's own code, after reading it"
HEAD_OR_BUFFER = re.compile(r"(^|\.)(position_ids|inv_freq|lm_head|cls|classifier|pooler|predictions)(\.|$)")
SHOWN_NAMES = 3
# Options with which a model's config files would choose other weights than those in its fingerprint, or fetch code.
FILE_OPTIONS = ("use_safetensors", "variant", "gguf_file", "use_kernels")


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
    """Record every network that transformers loads in the body, and load none but the weights of its fingerprint."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.__dict__["from_pretrained"]
    loaded: list[LoadedNetwork] = []

    def from_pretrained(cls: Any, *args: Any, **options: Any) -> Any:
        # Tensors of another shape are reported here, with both shapes, instead of by transformers, which names neither.
        # A Router may load its modules without the options of the pipeline, so unpickling is overruled here as well.
        options = {name: value for name, value in options.items() if name not in FILE_OPTIONS}
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "weights_only": True}
        network, info = original.__func__(cls, *args, **options)
        names = [sorted(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")]
        loaded.append(LoadedNetwork(network, *names))
        return network

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment]
    try:
        yield loaded
    finally:
        PreTrainedModel.from_pretrained = original  # type: ignore[method-assign]


def check_weights(pipeline: Any, loaded: Sequence[LoadedNetwork], files: ModelFiles, config: ModelConfig) -> None:
    """Refuse a pipeline whose vectors depend on tensors that its files lack, or that has fewer layers than its files.

    A missing tensor is filled with NaN. If a vector then is NaN, it depends on the tensor. Others, such as a pooler
    that mean pooling leaves out, may be missing, and stay NaN so that they can never change a vector unnoticed.

    Args:
        pipeline: The SentenceTransformer.
        loaded: Its networks, from `record_networks`.
        files: Its files, for the message.
        config: Its settings. For a model that is loaded as another architecture every tensor of the files must fit.

    Raises:
        ModelError: A tensor that is used is missing or has another shape, a tensor is damaged, or the files have more
            layers than the network.
    """
    for name, stored, expected in (shapes for one in loaded for shapes in one.mismatched):
        raise ModelError(
            f"{files.path}: {name} has the shape {tuple(stored)}, and config.json asks for {tuple(expected)}",
            INCOMPLETE_HINT,
        )
    for name in (name for one in loaded for name, tensor in one.network.named_parameters() if tensor.isnan().any()):
        raise ModelError(f"the weights in {files.path} are damaged: {name} contains NaN", DOWNLOAD_AGAIN_HINT)
    missing = [name for one in loaded for name in one.missing]
    if missing:
        unfillable = [name for one in loaded for name in one.missing if not _fill_with_nan(one.network, name)]
        if unfillable or not _has_finite_vectors(pipeline, config):
            raise ModelError(
                f"{files.path} lacks weights that its network needs: {_shorten(unfillable or missing)}",
                OWN_CODE_HINT if config.native else INCOMPLETE_HINT,
            )
    hint = OWN_CODE_HINT if config.native else "correct config.json: it describes fewer layers than the weights have"
    left_over = [name for one in loaded for name in _find_left_over(one, is_strict=bool(config.native))]
    if left_over:
        raise ModelError(
            f"{files.path} has weights that its network does not read: {_shorten(left_over)}",
            hint,
        )


def check_token_ids(pipeline: Any, files: ModelFiles) -> None:
    """Refuse a tokenizer that can give a token without a row in the embedding table.

    Each network of a Router is checked. Networks without such a table, which read characters, are left alone.

    Raises:
        ModelError: The id of a token is outside the table, or the tokenizer has no vocabulary.
    """
    from sentence_transformers.base.modules import Transformer

    for module in pipeline.modules():
        if isinstance(module, Transformer) and module.tokenizer is not None:
            row_count = _count_table_rows(module.model)
            if row_count is not None:
                _check_tokenizer(module.tokenizer, row_count, files)


def _check_tokenizer(tokenizer: Any, row_count: int, files: ModelFiles) -> None:
    if _knows_no_word(tokenizer):
        raise ModelError(
            f"the tokenizer in {files.path} knows no word: its vocabulary is missing or has another name than "
            f"{type(tokenizer).__name__} expects",
            "fetch the model again, with tokenizer.json or all files of its vocabulary",
        )
    token, token_id = _find_highest_token(tokenizer)
    if token_id >= row_count:
        raise ModelError(
            f"the tokenizer and the weights in {files.path} do not belong together: the token {token} has the id "
            f"{token_id}, and the embedding table has {row_count} rows",
            "fetch the model again, or resize its token embeddings and save it again",
        )


def _find_highest_token(tokenizer: Any) -> tuple[str, int]:
    """The token with the highest id, for a message: of the vocabulary, for padding, or added to every text."""
    tokens = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    # A template has ids of its own, which need not be those of the vocabulary.
    added = tokenizer("", verbose=False)["input_ids"]
    padding = [] if tokenizer.pad_token_id is None else [tokenizer.pad_token_id]
    highest = max([*tokens, *added, *padding], default=0)
    return repr(tokens[highest]) if highest in tokens else "that is added to every text", highest


def _knows_no_word(tokenizer: Any) -> bool:
    """Whether texts of several scripts become nothing but special and unknown tokens."""
    special = {*tokenizer.all_special_ids, tokenizer.unk_token_id}
    return all(special.issuperset(ids) for ids in tokenizer(list(WORD_TEXTS), verbose=False)["input_ids"])


def _count_table_rows(network: Any) -> int | None:
    """The number of rows of a network's embedding table; None if it has none, as networks that read characters."""
    from torch import nn

    try:
        table = network.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def _fill_with_nan(network: Any, name: str) -> bool:
    """Fill a tensor with NaN; False if it does not exist or holds integers."""
    import torch

    tensors: dict[str, torch.Tensor] = dict(network.named_parameters(remove_duplicate=False))
    tensors |= dict(network.named_buffers(remove_duplicate=False))
    tensor = tensors.get(name)
    if tensor is None or not tensor.is_floating_point():
        return False
    with torch.no_grad():
        tensor.fill_(torch.nan)
    return True


def _has_finite_vectors(pipeline: Any, config: ModelConfig) -> bool:
    output = "token_embeddings" if config.kind == "multi_vector" else "sentence_embedding"
    vectors: torch.Tensor = run_on_texts(pipeline, CHECK_TEXTS, config.task)[output]
    return bool(vectors.isfinite().all())


def _find_left_over(one: LoadedNetwork, *, is_strict: bool) -> list[str]:
    """The unexpected tensors that are those of a layer of the network, but with another number; if strict, all.

    Heads and buffers that a network does not need for embeddings never count.
    """
    if is_strict:
        return [name for name in one.unexpected if not HEAD_OR_BUFFER.search(name)]
    names = {_without_numbers(name) for name in one.network.state_dict()}
    prefix = f"{one.network.base_model_prefix}."
    return [name for name in one.unexpected if _without_numbers(name.removeprefix(prefix)) in names]


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _shorten(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")

"""Load a sentence-transformers pipeline and choose the tokenizer that feeds it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from embedcli.encoders.tokenize.fallback import PipelinePreprocessor, TransformersTokenizer, matches_reference
from embedcli.encoders.tokenize.fast import FastTokenizer
from embedcli.encoders.torch import adapters, attention_masks, head_layers, loaded_weights, own_code, splade
from embedcli.encoders.torch.errors import translate_load_errors
from embedcli.models.adapters import find_adapter_folders
from embedcli.models.code_view import local_model_folder
from embedcli.models.config import ModelConfig
from embedcli.models.files import ModelFiles
from embedcli.models.native import find_native_modules

PipelineTokenizer = FastTokenizer | TransformersTokenizer | PipelinePreprocessor


def load_pipeline(files: ModelFiles, config: ModelConfig, device: str, dtype: str) -> Any:
    """Load a model as a SentenceTransformer whose vectors have length 1 if and only if the job wants that.

    Sparse encoders are loaded as a SparseEncoder, multi-vector models as a MultiVectorEncoder, which stays as it is.

    Raises:
        ModelError: The model cannot be loaded, lacks weights, or its tokenizer does not fit its weights.
    """
    with (
        quiet_libraries(),
        translate_load_errors(files),
        _translate_own_code_errors(files, config),
        local_model_folder(files, config.native) as folder,
    ):
        import torch
        from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder

        attention_masks.install_mask_functions()
        if config.custom_code:
            own_code.install_removed_names()
            own_code.forget_other_code()
        with adapters.open_loadable_folder(files, folder) as loadable, loaded_weights.record_networks() as networks:
            kinds: dict[str, Any] = {"sparse": SparseEncoder, "multi_vector": MultiVectorEncoder}
            # Heads are added to the model's own pipeline.
            own_kind = "dense" if config.heads else config.kind
            pipeline = kinds.get(own_kind, SentenceTransformer)(
                str(loadable),
                device=device,
                # Only where the files need it: with the flag a model that transformers knows would run its own copy.
                trust_remote_code=bool(config.custom_code),
                local_files_only=True,
                # What config files say about unpickling is overruled.
                model_kwargs={"dtype": getattr(torch, dtype), "weights_only": True},
            )
        for loaded in networks:
            own_code.restore_buffers(loaded.network)
        loaded_weights.check_weights(pipeline.eval(), networks, files, config)
        if find_adapter_folders(files.path):
            adapters.merge_adapters(pipeline)
        loaded_weights.check_token_ids(pipeline, files)
        splade.install_fast_pooling(pipeline)
        if config.kind == "multi_vector" and not config.heads:
            return pipeline.eval()
        pipeline = _adjust_normalize_module(pipeline.eval(), config)
        if config.heads:
            head_layers.append_head_layers(pipeline, files, config)
        return pipeline


@contextmanager
def _translate_own_code_errors(files: ModelFiles, config: ModelConfig) -> Iterator[None]:
    """Raise ModelError if the model's own code needs a name that the installed transformers lacks."""
    try:
        yield
    except Exception as error:
        missing = own_code.find_missing_name(error) if config.custom_code else None
        if missing is None:
            raise
        has_equivalent = bool(find_native_modules(files.path, trusts_code=False))
        raise own_code.missing_name_error(files.name, missing, has_equivalent) from error


def choose_tokenizer(pipeline: Any, config: ModelConfig, threads: int) -> PipelineTokenizer:
    """Choose the fastest tokenizer that gives the model's own token ids.

    Args:
        pipeline: What `load_pipeline` returned.
        config: The model's settings, resolved for the job.
        threads: The number of threads that tokenize.

    Returns:
        A FastTokenizer if possible; else the model's own tokenizer, or, for input other than token ids and a mask, the
        preprocessing of the whole pipeline.
    """
    if not _takes_token_ids(pipeline, config):
        return PipelinePreprocessor(pipeline, config)
    own = pipeline.tokenizer
    backend = getattr(own, "backend_tokenizer", None)
    if backend is None or not matches_reference(own, config.max_seq_length):
        return TransformersTokenizer(own, limit=config.max_seq_length, prompt=config.prompt)
    return FastTokenizer(
        backend,
        limit=config.max_seq_length,
        prompt=config.prompt,
        pad_id=own.pad_token_id or 0,
        pads_left=own.padding_side == "left",
        cut_left=own.truncation_side == "left",
        threads=threads,
    )


def has_token_types(pipeline: Any) -> bool:
    """Whether the network takes token types (segment ids) beside token ids."""
    return "token_type_ids" in pipeline.tokenizer.model_input_names


def network_of(pipeline: Any) -> Any:
    """The transformers network of a pipeline; None if it begins with another module."""
    return getattr(pipeline[0], "model", None)


def count_attention_heads(pipeline: Any) -> int | None:
    """The attention heads of a layer; None if the network does not declare them."""
    heads = getattr(getattr(network_of(pipeline), "config", None), "num_attention_heads", None)
    return heads if isinstance(heads, int) else None


def declared_attention_type(pipeline: Any) -> str | None:
    """The kind of attention that a network with several kinds declares, as BigBird does; None for others."""
    network = network_of(pipeline)
    declared = getattr(getattr(network, "config", None), "attention_type", None)
    return declared if isinstance(declared, str) and hasattr(network, "set_attention_type") else None


def restore_attention_type(pipeline: Any, declared: str) -> None:
    """Undo what one short row does to BigBird: its network attends to all tokens of all rows from then on."""
    network = network_of(pipeline)
    if network.attention_type != declared:
        network.set_attention_type(declared)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Show no progress bars, and send the libraries' warnings to logging, which prints them only with -v."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    for name in ("transformers", "sentence_transformers", "huggingface_hub"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _adjust_normalize_module(pipeline: Any, config: ModelConfig) -> Any:
    from sentence_transformers.sentence_transformer import modules

    ends_with_normalize = isinstance(pipeline[-1], modules.Normalize)
    if ends_with_normalize and not config.normalize:
        del pipeline[-1]
    elif config.normalize and not ends_with_normalize:
        pipeline.append(modules.Normalize())
    return pipeline


def _takes_token_ids(pipeline: Any, config: ModelConfig) -> bool:
    """Whether the pipeline begins with a text transformer whose input is token ids and a mask, nothing else."""
    from sentence_transformers.sentence_transformer.modules import Transformer
    from sentence_transformers.sparse_encoder.modules import MLMTransformer

    first = pipeline[0]
    if type(first) not in (Transformer, MLMTransformer) or pipeline.tokenizer is None:
        return False
    if "text" not in first.modality_config:
        return False
    # A saved pipeline with a chat template is fed through it; a raw folder's template was not made for embedding.
    return "message" not in first.modality_config or not config.is_saved_pipeline

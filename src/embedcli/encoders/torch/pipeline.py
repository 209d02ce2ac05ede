"""Load a sentence-transformers pipeline and choose the tokenizer that feeds it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from embedcli.encoders.tokenize.fallback import PipelinePreprocessor, TransformersTokenizer, matches_reference
from embedcli.encoders.tokenize.fast import FastTokenizer
from embedcli.encoders.torch import attention_masks, loaded_weights
from embedcli.encoders.torch.errors import translate_load_errors
from embedcli.models.code_view import local_model_folder
from embedcli.models.config import ModelConfig
from embedcli.models.files import ModelFiles

PipelineTokenizer = FastTokenizer | TransformersTokenizer | PipelinePreprocessor


def load_pipeline(files: ModelFiles, config: ModelConfig, device: str, dtype: str) -> Any:
    """Load a model as a SentenceTransformer whose vectors have length 1 if and only if the job wants that.

    Raises:
        ModelError: The model cannot be loaded, lacks weights, or its tokenizer does not fit its weights.
    """
    with quiet_libraries(), translate_load_errors(files), local_model_folder(files) as folder:
        import torch
        from sentence_transformers import SentenceTransformer

        attention_masks.install_mask_functions()
        with loaded_weights.record_networks() as networks:
            pipeline = SentenceTransformer(
                str(folder),
                device=device,
                # Only where the files need it: with the flag a model that transformers knows would run its own copy.
                trust_remote_code=bool(config.custom_code),
                local_files_only=True,
                # What config files say about unpickling is overruled.
                model_kwargs={"dtype": getattr(torch, dtype), "weights_only": True},
            )
        loaded_weights.check_token_ids(pipeline, files)
        loaded_weights.check_weights(pipeline.eval(), networks, files, config.task)
        return _adjust_normalize_module(pipeline.eval(), config)


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

    first = pipeline[0]
    if type(first) is not Transformer or pipeline.tokenizer is None or "text" not in first.modality_config:
        return False
    # A saved pipeline with a chat template is fed through it; a raw folder's template was not made for embedding.
    return "message" not in first.modality_config or not config.is_saved_pipeline

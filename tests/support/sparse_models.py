"""Small sparse encoders in the layouts that sentence-transformers writes and reads, with random weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import models


def build_masked_lm(folder: Path, *, layers: int = 2) -> Path:
    """A BERT with a head for masked words and its tokenizer, as `naver/splade-*` in their raw layout."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    folder.mkdir(parents=True)
    torch.manual_seed(3)
    build: Any = PreTrainedTokenizerFast
    tokenizer = build(tokenizer_object=models.bert_tokenizer(), **models.BERT, model_max_length=64)
    size = models.SIZE | {"num_hidden_layers": layers}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **size)
    network = BertForMaskedLM(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.35)
    # Most words of a vocabulary have no weight in a text.
    torch.nn.init.constant_(network.cls.predictions.bias, -1.5)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_splade(folder: Path, work: Path, **pooling: Any) -> Any:
    """A SPLADE model as sentence-transformers saves it. Returns the SparseEncoder."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import SpladePooling, Transformer

    network = Transformer(str(build_masked_lm(work / "masked-lm")), transformer_task="fill-mask")
    return save(folder, network, SpladePooling(**pooling), kind=SparseEncoder)


def build_inference_free(folder: Path, work: Path, *, weightless: Sequence[str] = ()) -> Any:
    """Queries by a table of one weight per word, documents by SPLADE, as the opensearch models. Returns the encoder.

    The tokens of the texts in `weightless` have the weight 0.
    """
    import torch
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import Router, SparseStaticEmbedding, SpladePooling, Transformer

    network = Transformer(str(build_masked_lm(work / "masked-lm")), transformer_task="fill-mask")
    torch.manual_seed(4)
    weights = torch.rand(len(network.tokenizer))
    for text in weightless:
        weights[network.tokenizer(text)["input_ids"]] = 0
    table = SparseStaticEmbedding(network.tokenizer, weights)
    routes: Any = {"query": [table], "document": [network, SpladePooling()]}
    return save(folder, Router(routes, default_route="document"), kind=SparseEncoder)


def build_top_k(folder: Path) -> Any:
    """A dense model whose vectors become the 8 largest of 64 numbers (CSR). Returns the SparseEncoder."""
    import torch
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

    torch.manual_seed(5)
    network = Transformer(str(models.folder("text2vec-base-chinese")))
    return save(folder, network, Pooling(32), SparseAutoEncoder(32, hidden_dim=64, k=8), kind=SparseEncoder)


def save(folder: Path, *parts: Any, kind: Any) -> Any:
    """Save a pipeline, and return it."""
    pipeline = kind(modules=list(parts), device="cpu")
    pipeline.save(str(folder), create_model_card=False)
    return pipeline.eval()


def rewrite_as_published(folder: Path) -> Any:
    """Rewrite a saved model as sentence-transformers 5.0 saved it, like `naver/splade-v3`. Returns the SparseEncoder.

    The network was an `MLMTransformer`, and its folder had a `sentence_bert_config.json` of two settings.
    """
    from sentence_transformers import SparseEncoder

    package = "sentence_transformers.sparse_encoder.models"
    for path in (folder / "modules.json", *folder.glob("**/router_config.json")):
        text = path.read_text("utf-8")
        text = text.replace("sentence_transformers.base.modules.transformer.Transformer", f"{package}.MLMTransformer")
        path.write_text(re.sub(r"sentence_transformers\.sparse_encoder\.modules\.\w+\.", f"{package}.", text), "utf-8")
    for path in folder.glob("**/sentence_bert_config.json"):
        path.write_text('{"max_seq_length": 48, "do_lower_case": false}', "utf-8")
    return SparseEncoder(str(folder), device="cpu").eval()

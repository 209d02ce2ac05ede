"""Small multi-vector models (ColBERT) with random weights, in the three layouts that are published."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import models

DIM = 16
TOKENIZER = {"query": "[Q] ", "document": "[D] "}


def tokenizer_with(words: tuple[str, ...]) -> Any:
    """A WordPiece tokenizer with further words in its vocabulary, as BERT has [unused0], that no text is split into."""
    from tokenizers import Tokenizer

    content = json.loads(models.bert_tokenizer().to_str())
    vocabulary = content["model"]["vocab"]
    for word in words:
        vocabulary[word] = len(vocabulary)
    return Tokenizer.from_str(json.dumps(content))


def build_network(folder: Path, words: tuple[str, ...] = (), *, limit: int = 128) -> Any:
    """A raw BERT folder. Returns the network."""
    from transformers import BertConfig, BertModel

    tokenizer = tokenizer_with(words)
    config = BertConfig(vocab_size=tokenizer.get_vocab_size() + 2, max_position_embeddings=limit, **models.SIZE)
    network = BertModel(config)
    models.save(folder, network, tokenizer, models.BERT, limit)
    return network


def random_projection() -> Any:
    """float32 [16, 32]."""
    import torch

    return torch.randn(DIM, models.SIZE["hidden_size"], generator=torch.Generator().manual_seed(6))


def build_multi_vector(
    folder: Path, work: Path, *, has_skiplist: bool = True, pool_factor: int | None = None, strategy: str = "fixed"
) -> Any:
    """A model as sentence-transformers saves it, with markers and an expansion to 12 tokens. Returns the encoder."""
    import torch
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask

    build_network(work / "network")
    expansion: Any = {"strategy": strategy, "attend": False, "length": 12}
    network = Transformer(str(work / "network"), document_length=40, query_expansion=expansion)
    projection = Dense(
        models.SIZE["hidden_size"], DIM, bias=False, activation_function=torch.nn.Identity(),
        init_weight=random_projection(), module_input_name="token_embeddings",
    )  # fmt: skip
    mask = MultiVectorMask(skiplist_words=list(string.punctuation) if has_skiplist else None)
    parts = [network, projection, mask, Normalize(module_input_name="token_embeddings")]
    parts += [HierarchicalTokenPooling(pool_factor)] if pool_factor else []
    encoder = MultiVectorEncoder(modules=parts, prompts=dict(TOKENIZER), device="cpu")
    encoder.save(str(folder), create_model_card=False)
    return encoder.eval()


def build_pylate(folder: Path, *, attend: bool = False, model_type: str | None = "ColBERT") -> None:
    """A model as PyLate saves it: a Transformer and a Dense, with all that is ColBERT's beside them in one file.

    The markers are tokens of the vocabulary that PyLate adds with `tokenizer.add_tokens(["[Q] ", "[D] "])`.
    """
    from safetensors.torch import save_file
    from transformers import PreTrainedTokenizerFast

    build_network(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(list(TOKENIZER.values()))
    tokenizer.save_pretrained(folder)
    listed = [("", "sentence_transformers.models.Transformer"), ("1_Dense", "pylate.models.Dense.Dense")]
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(listed)]
    models.write(folder / "modules.json", modules)
    models.write(folder / "sentence_bert_config.json", {"max_seq_length": 39, "do_lower_case": False})
    settings = {
        "__version__": {"sentence_transformers": "4.0.2", "transformers": "4.48.2", "pytorch": "2.5.1"},
        "prompts": {}, "default_prompt_name": None, "similarity_fn_name": "MaxSim",
        "query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 16, "document_length": 40,
        "attend_to_expansion_tokens": attend, "skiplist_words": list(string.punctuation),
    }  # fmt: skip
    settings |= {} if model_type is None else {"model_type": model_type}
    models.write(folder / "config_sentence_transformers.json", settings)
    dense = {"in_features": models.SIZE["hidden_size"], "out_features": DIM, "bias": False}
    activation = {"activation_function": "torch.nn.modules.linear.Identity"}
    models.write(folder / "1_Dense" / "config.json", dense | activation)
    save_file({"linear.weight": random_projection()}, folder / "1_Dense" / "model.safetensors", {"format": "pt"})


def build_original(folder: Path, **metadata: Any) -> None:
    """A model as the original ColBERT saves it: the projection among the weights, the rest in artifact.metadata."""
    from safetensors.torch import save_file

    network = build_network(folder, ("[unused0]", "[unused1]"))
    tensors = {f"bert.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors | {"linear.weight": random_projection()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    models.write(folder / "config.json", config | {"architectures": ["HF_ColBERT"]})
    settings = {
        "query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_token": "[Q]", "doc_token": "[D]",
        "attend_to_mask_tokens": False, "query_maxlen": 14, "doc_maxlen": 30, "mask_punctuation": True, "dim": DIM,
        "similarity": "cosine", "checkpoint": "bert-base-uncased",
    }  # fmt: skip
    models.write(folder / "artifact.metadata", settings | metadata)

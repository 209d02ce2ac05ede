"""Convert a BERT model with mean pooling from its Hugging Face folder to GGUF. Runs where gguf and safetensors are.

python scripts/servers/convert_gguf.py MODEL_FOLDER OUTPUT.gguf
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

TENSOR_NAMES = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm": "token_embd_norm",
}
LAYER_NAMES = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
SPECIAL_TOKENS = {
    "unk": "[UNK]",
    "sep": "[SEP]",
    "pad": "[PAD]",
    "mask": "[MASK]",
}


def convert(folder: Path, target: Path) -> None:
    """Write the model as GGUF with float32 weights.

    Args:
        folder: Holds `config.json`, `tokenizer.json` (WordPiece) and `model.safetensors`.
        target: The file to write.
    """
    from gguf import GGUFWriter, PoolingType

    config = json.loads((folder / "config.json").read_text("utf-8"))
    writer = GGUFWriter(target, "bert")
    writer.add_name(folder.name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType.MEAN)
    add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text("utf-8")))
    for name, tensor in list_tensors(folder, config["num_hidden_layers"]):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: Any, tokenizer: dict[str, Any]) -> None:
    """Add a WordPiece vocabulary; llama.cpp marks the start of a word, and not, as BERT does, its continuation."""
    from gguf import TokenType

    vocabulary = tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token if token in special else mark_word_start(token) for token in tokens])
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_type_count(2)
    for name, token in SPECIAL_TOKENS.items():
        getattr(writer, f"add_{name}_token_id")(vocabulary[token])
    writer.add_bos_token_id(vocabulary["[CLS]"])
    writer.add_eos_token_id(vocabulary["[SEP]"])


def mark_word_start(token: str) -> str:
    """Return a WordPiece token in the form of llama.cpp."""
    return token[2:] if token.startswith("##") and len(token) > 2 else f"▁{token}"


def list_tensors(folder: Path, layers: int) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """Return the names of GGUF and the float32 weights of the model, without its pooler."""
    from safetensors.numpy import load_file

    names = dict(TENSOR_NAMES)
    for layer in range(layers):
        names.update({f"encoder.layer.{layer}.{name}": f"blk.{layer}.{new}" for name, new in LAYER_NAMES.items()})
    tensors = []
    for name, weights in load_file(folder / "model.safetensors").items():
        module, _, kind = name.removeprefix("bert.").rpartition(".")
        if (new := names.get(f"{module}.{kind}")) or (new := names.get(module)):
            full_name = new if new.endswith(".weight") else f"{new}.{kind}"
            tensors.append((full_name, weights.astype(np.float32)))
    return tensors


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))

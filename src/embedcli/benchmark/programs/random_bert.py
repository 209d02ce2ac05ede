"""A network of BERT's kind with random weights: a program of its own; needs torch and transformers.

usage: network.py TARGET_FOLDER LAYERS WIDTH WORDS PADDING_ID    config.json and model.safetensors, 512 tokens at most
"""

from __future__ import annotations

import sys

# As in BERT and MiniLM: heads of 64 numbers, or narrower ones where that would be fewer than 12, and four times the
# width in between.
HEAD = 64
FEWEST_HEADS = 12
POSITIONS = 512


def main() -> None:
    import torch
    from transformers import BertConfig, BertModel

    layers, width, words, padding = map(int, sys.argv[2:])
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(FEWEST_HEADS, width // HEAD),
        intermediate_size=4 * width,
        max_position_embeddings=POSITIONS,
        pad_token_id=padding,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(sys.argv[1])


if __name__ == "__main__":
    main()

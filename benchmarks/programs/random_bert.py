"""Create a BERT model with random weights. Runs on its own, without embedcli; needs torch and transformers.

    python random_bert.py TARGET_FOLDER LAYERS WIDTH VOCABULARY_SIZE PADDING_ID [words]

Writes config.json and model.safetensors; the model reads 512 tokens at most. With `words` it has the head that SPLADE
models have, which gives each token a number per word of the vocabulary.
"""

from __future__ import annotations

import sys

# As in BERT and MiniLM: heads of 64 dimensions, narrower where that would be fewer than 12 heads, and a feed-forward
# layer of four times the width.
HEAD_WIDTH = 64
MIN_HEADS = 12
MAX_TOKENS = 512
WEIGHT_SPREAD = 0.08
# A word has a weight from so many standard deviations above the mean on: a few hundred words of a row, as in SPLADE.
WEIGHT_FROM = 2.5


def main() -> None:
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertModel

    layers, width, vocabulary_size, padding_id = map(int, sys.argv[2:6])
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(MIN_HEADS, width // HEAD_WIDTH),
        intermediate_size=4 * width,
        max_position_embeddings=MAX_TOKENS,
        pad_token_id=padding_id,
    )
    if sys.argv[6:] != ["words"]:
        BertModel(config, add_pooling_layer=False).save_pretrained(sys.argv[1])
        return
    config.initializer_range = WEIGHT_SPREAD
    network = BertForMaskedLM(config)
    torch.nn.init.constant_(network.cls.predictions.bias, -WEIGHT_FROM * WEIGHT_SPREAD * width**0.5)
    network.save_pretrained(sys.argv[1])


if __name__ == "__main__":
    main()

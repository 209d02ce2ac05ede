"""Export a transformer to ONNX. Runs without embedcli; needs torch, transformers and onnx.

usage: to_onnx.py MODEL_FOLDER TARGET.onnx    token embeddings in float32, any number of rows and tokens
"""

from __future__ import annotations

import sys
from typing import Any

ONNX_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
ONNX_OUTPUT = "last_hidden_state"


def main() -> None:
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="eager").eval()
    names = ONNX_INPUTS if getattr(model.config, "type_vocab_size", 0) > 1 else ONNX_INPUTS[:2]

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any) -> Any:
            return self.model(**dict(zip(names, values, strict=True))).last_hidden_state

    ones = torch.ones(2, 16, dtype=torch.long)
    example = tuple(ones * 0 if name == "token_type_ids" else ones for name in names)
    torch.onnx.export(
        Hidden(),
        example,
        sys.argv[2],
        input_names=list(names),
        output_names=[ONNX_OUTPUT],
        dynamic_axes={name: {0: "rows", 1: "tokens"} for name in (*names, ONNX_OUTPUT)},
        opset_version=17,
        dynamo=False,
    )


if __name__ == "__main__":
    main()

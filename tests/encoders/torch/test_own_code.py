"""Code that was written for transformers 4 runs when it is trusted; what is still missing is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import models
import own_code as published
import reference
from embedcli.core.errors import ModelError
from embedcli.encoders.torch import own_code


def test_the_installed_transformers_cannot_run_it(tmp_path: Path) -> None:
    """The stand-in fails where the published code fails."""
    folder = published.with_code_beside("bilingual-embedding-small", tmp_path / "model")
    code = (
        "import sys; from sentence_transformers import SentenceTransformer\n"
        "SentenceTransformer(sys.argv[1], device='cpu', local_files_only=True, trust_remote_code=True)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "transformers.onnx" in ended.stderr or "find_pruneable_heads_and_indices" in ended.stderr


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from transformers.modeling_utils import a_name_that_is_gone", "transformers.modeling_utils"),
        ("import transformers.a_module_that_is_gone", "transformers.a_module_that_is_gone"),
    ],
)
def test_a_name_that_is_still_missing_is_said(tmp_path: Path, line: str, name: str) -> None:
    folder = published.with_code_beside("bilingual-embedding-small", tmp_path / "model")
    file = folder / "modeling.py"
    file.write_text(f"{line}\n{file.read_text()}")
    with pytest.raises(ModelError) as refused:
        reference.load(folder, trust_remote_code=True)
    assert name in refused.value.message
    assert "leave --trust-remote-code out" in refused.value.hint
    assert reference.encode(reference.load(folder), ["text"]).shape == (1, models.SIZE["hidden_size"])


def test_a_method_that_is_still_missing_is_said(tmp_path: Path) -> None:
    folder = published.with_code_beside("bilingual-embedding-small", tmp_path / "model")
    file = folder / "modeling.py"
    file.write_text(file.read_text().replace("shape = input_ids.size()", "shape = self.get_a_method_that_is_gone()"))
    with pytest.raises(ModelError, match="get_a_method_that_is_gone"):
        reference.load(folder, trust_remote_code=True)


def test_code_of_a_model_loaded_before_is_not_used(tmp_path: Path) -> None:
    """Two folders with the same configuration code, and other code for the network."""
    own = published.with_code_beside("bilingual-embedding-small", tmp_path / "one" / "model")
    other = published.with_code_beside("bilingual-embedding-small", tmp_path / "two" / "model")
    file = other / "modeling.py"
    file.write_text(file.read_text().replace("shape = input_ids.size()", "raise RuntimeError('code of the other')"))
    with pytest.raises(ModelError, match="code of the other"):
        reference.load(other, trust_remote_code=True)
    assert reference.encode(reference.load(own, trust_remote_code=True), ["text"]).any()
    with pytest.raises(ModelError, match="code of the other"):
        reference.load(other, trust_remote_code=True)


class Network:
    dtype = torch.float32

    class config:  # noqa: N801 - as transformers calls it
        is_decoder = False


def test_masks() -> None:
    mask = torch.tensor([[1, 1, 0]])
    extended = own_code.get_extended_attention_mask(Network(), mask, (1, 3))
    lowest = torch.finfo(torch.float32).min
    assert extended.tolist() == [[[[0.0, 0.0, lowest]]]]
    assert own_code.invert_attention_mask(Network(), mask).tolist() == extended.tolist()
    assert own_code.get_head_mask(Network(), None, 2) == [None, None]
    assert own_code.get_head_mask(Network(), torch.tensor([1.0, 0.0]), 2).shape == (2, 1, 2, 1, 1)
    with pytest.raises(ValueError, match="shape"):
        own_code.get_extended_attention_mask(Network(), mask[0], (3,))


def test_pruning() -> None:
    from transformers import pytorch_utils

    heads, index = own_code.find_pruneable_heads_and_indices({1}, 3, 2, set())
    assert (heads, index.tolist()) == ({1}, [0, 1, 4, 5])
    heads, index = own_code.find_pruneable_heads_and_indices({0, 2}, 2, 2, {0})
    assert (heads, index.tolist()) == ({2}, [0, 1])
    layer = nn.Linear(3, 6)
    rows: Any = torch.tensor([0, 4])
    pruned = pytorch_utils.prune_linear_layer(layer, rows)
    assert torch.equal(pruned.weight, layer.weight[[0, 4]])
    assert torch.equal(pruned.bias, layer.bias[[0, 4]])

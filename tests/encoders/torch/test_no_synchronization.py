"""Starting a batch neither reads a number from the device nor copies one to it.

torch's meta device replaces the card: its tensors have no contents, so that reading one fails.
"""

from __future__ import annotations

import shutil
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import head_models
import models
from embedcli.encoders.torch import attention_masks, varlen_attention
from reference import encode, load, lowest_cosine, row_by_row_attention, samples, sentence_transformer

NETWORKS = [
    "all-MiniLM-L6-v2-shape", "text2vec-base-multilingual", "multilingual-e5-base", "bge-small-en-v1.5",
    "modernbert-embed-base", "gte-modernbert-base", "Qwen3-Embedding-0.6B", "embeddinggemma-300m",
]  # fmt: skip
PADDED = ["all-mpnet-base-v2", "deberta-v2-base"]
# A number that the network's own code copies to the device for every padded batch.
KNOWN = {"embeddinggemma-300m": {"masking_utils.py"}, "deberta-v2-base": {"modeling_deberta_v2.py"}}
MODEL = "all-MiniLM-L6-v2-shape"


class CopyRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the source files of operations from tensors of the host to tensors of the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.files: set[str] = set()
        self.kernels: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        ends = {leaf.device.type for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)}
        moved = {leaf.device.type for leaf in given} == {"cpu"} and ends == {"meta"}
        if moved or any(leaf.device.type == "cpu" and leaf.dim() for leaf in given):
            frames = [frame.filename for frame in traceback.extract_stack()[:-1] if "/torch/" not in frame.filename]
            self.files.add(frames[-1].rpartition("/")[2])
        if "attn" in func._schema.name:
            self.kernels.append(func._schema.name)
        return made


def on_meta_device(encoder: Any) -> Any:
    """The encoder in bfloat16 on the meta device."""
    encoder._should_prepack = False
    encoder.model = encoder.model.to(torch.bfloat16).to("meta")
    encoder.dtype = "bfloat16"
    encoder._transfer.to_device = lambda array: torch.from_numpy(array).to("meta")
    return encoder


def start(encoder: Any) -> CopyRecorder:
    """Start one batch of rows of many lengths, and record what it copies."""
    made, copied = forward(encoder)
    assert (made.vectors.device.type, made.vectors.dtype) == ("meta", torch.float32)
    assert made.vectors.shape == (20, encoder.dim)
    return copied


def forward(encoder: Any) -> tuple[Any, CopyRecorder]:
    tokens, rows = encoder.tokenize(samples()[:20]), np.arange(20)
    features, batch = encoder._build_features(tokens, rows)
    encoder._build_features = lambda *_: (features, batch)
    copied = CopyRecorder()
    with copied:
        made = encoder.forward(tokens, rows)
    return made, copied


@pytest.mark.parametrize("name", NETWORKS + PADDED)
def test_padded_batches_are_started_without_waiting(name: str) -> None:
    assert start(on_meta_device(load(models.folder(name)))).files <= KNOWN.get(name, set())


def test_batches_of_several_heads_are_started_without_waiting(tmp_path: Path) -> None:
    """The places of the tokens go to the device as the batch does, in a copy that nobody waits for."""
    folder = head_models.build_bge_m3(tmp_path / "model")
    encoder = on_meta_device(load(folder, heads=("dense", "sparse", "multi_vector")))
    encoder._transfer.to_device = lambda array: torch.empty(array.shape, dtype=torch.int64, device="meta")
    made, copied = forward(encoder)
    assert copied.files == set()
    assert {pending.values.vectors.device.type for pending in made.values()} == {"meta"}


@pytest.mark.parametrize("name", NETWORKS)
def test_batches_without_padding_are_started_without_waiting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel of the installed torch, which looks at the shapes and types that it is given."""
    # An operator that compilers do not look into gives the meta device a shape, and calls no kernel.
    monkeypatch.setattr(varlen_attention._registered, "attention", None)
    encoder = load(models.folder(name))
    encoder._remove_padding([row_by_row_attention])
    kernel = varlen_attention.torch_varlen_kernel()
    assert kernel is not None
    encoder._varlen = varlen_attention.VarlenBatcher(kernel, encoder._varlen.first_position)
    copied = start(on_meta_device(encoder))
    assert copied.files == set()
    assert copied.kernels


def test_a_synchronization_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = on_meta_device(load(models.folder(MODEL)))
    monkeypatch.setattr(attention_masks._BatchPadding, "__setattr__", lambda *_: None)
    with pytest.raises(RuntimeError, match="meta"):
        start(encoder)


@pytest.mark.parametrize("name", [MODEL, "Qwen3-Embedding-0.6B", "all-mpnet-base-v2"])
def test_only_batches_with_padding_have_a_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(models.folder(name))
    lengths = encoder.tokenize(samples()).lengths
    full, part = (
        samples()[np.flatnonzero((lengths % encoder.pad_to_multiple_of == 0) == whole)[0]] for whole in (True, False)
    )
    encode(encoder, [full])
    made: list[bool] = []
    for kind in attention_masks.ATTENTION_KINDS:
        monkeypatch.setitem(registry(), kind, recording(masks_of(kind), made))
    for texts, masked in (([full], False), ([part], True), ([full, part], True)):
        made.clear()
        vectors = encode(encoder, texts)
        assert set(made) == {masked}
        wanted = sentence_transformer(models.folder(name)).encode(texts, show_progress_bar=False)
        assert lowest_cosine(vectors, wanted) >= 0.999999


def registry() -> Any:
    from transformers import AttentionMaskInterface

    return AttentionMaskInterface._global_mapping


def masks_of(kind: str) -> Any:
    return registry()[kind]


def recording(plain: Any, made: list[bool]) -> Any:
    def mask(*args: Any, **asked: Any) -> Any:
        result = plain(*args, **asked)
        made.append(result is not None)
        return result

    return mask


def test_other_computations_are_masked_as_before() -> None:
    """In the same process, outside of `batch_padding`."""
    load(models.folder(MODEL))
    for kind in attention_masks.ATTENTION_KINDS:
        asked: dict[str, Any] = {"batch_size": 2, "q_length": 3, "kv_length": 3, "allow_is_bidirectional_skip": True}
        asked |= {"allow_is_causal_skip": False, "mask_function": lambda b, h, q, k: k >= 0}
        whole, part = torch.ones(2, 3, dtype=torch.bool), torch.tensor([[True, True, True], [True, False, False]])
        assert masks_of(kind)(attention_mask=whole, **asked) is None
        assert torch.equal(
            masks_of(kind)(attention_mask=part, **asked), masks_of(kind).original(attention_mask=part, **asked)
        )


MASKING = """
from transformers import XLMRobertaModel

from .config import RolledConfig


class RolledModel(XLMRobertaModel):
    config_class = RolledConfig

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask * (input_ids % 3 > 0), **kwargs)
"""


def test_a_mask_of_a_models_own_code_is_kept(tmp_path: Path) -> None:
    """In a batch without padding too."""
    folder = tmp_path / "masking"
    shutil.copytree(models.folder("own-code-model"), folder)
    (folder / "modeling.py").write_text(MASKING, "utf-8")
    encoder = load(folder, trust_remote_code=True, max_seq_length=16)
    texts = [text for text in samples() if len(text) > 100][:5]
    assert set(encoder.tokenize(texts).lengths.tolist()) == {16}
    theirs = sentence_transformer(folder, trust=True)
    theirs.max_seq_length = 16
    assert lowest_cosine(encode(encoder, texts), theirs.encode(texts, show_progress_bar=False)) >= 0.999999

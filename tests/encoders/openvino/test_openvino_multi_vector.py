"""Multi-vector models on OpenVINO give the vectors of `MultiVectorEncoder`, in every batch and at later starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multi_vector_models as built
import reference
from embedcli import encoders
from embedcli.core.errors import ModelError, UsageError
from embedcli.core.multi_vectors import MultiVectors
from embedcli.encoders.openvino import runtime
from embedcli.encoders.tokenize.token_selection import QueryExpansion, TokenSelection
from embedcli.encoders.torch import multi_vector

Build = Callable[[Path, Path], Any]

LAYOUTS: dict[str, Build] = {
    "sentence-transformers": built.build_multi_vector,
    "no-skiplist": lambda folder, work: built.build_multi_vector(folder, work, has_skiplist=False),
    "expanded-to-a-minimum": lambda folder, work: built.build_multi_vector(folder, work, strategy="min"),
    "pylate": lambda folder, work: built.build_pylate(folder),
    "pylate-attending": lambda folder, work: built.build_pylate(folder, attend=True),
    "original": lambda folder, work: built.build_original(folder),
    "original-attending": lambda folder, work: built.build_original(
        folder, attend_to_mask_tokens=True, mask_punctuation=False
    ),
}
SUPPORT = Path(__file__).parents[2] / "support"
LATER_START = """
import sys
import numpy as np
from embedcli import encoders
from embedcli.core.job import Job
job = Job(inputs=(), output="", model=sys.argv[1], device="cpu", as_="query")
encoder = encoders.load_encoder(job)
print(encoder.collect(encoder.forward(encoder.tokenize(["Is it?"]), np.arange(1))).values.tolist())
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMBEDCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    built.build_multi_vector(tmp_path / "model", tmp_path)
    return tmp_path / "model"


def texts() -> list[str]:
    return [*reference.samples()[::9], "", "a", "...", "Is it? Yes, it is!", "[SEP] [Q] [unused0]", "word " * 200]


def load(folder: Path, **values: Any) -> Any:
    """The OpenVINO encoder, so that it cannot be PyTorch."""
    return reference.load(folder, **({"engine": "openvino"} | values))


def load_with_notes(folder: Path, **values: Any) -> tuple[Any, list[str]]:
    lines: list[str] = []
    job = reference.job(folder, **{"engine": "auto", "device": "cpu", "threads": 1} | values)
    return encoders.load_encoder(job, notify=lines.append), lines


def encode(encoder: Any, texts: list[str], size: int) -> list[Any]:
    """The vectors of each text, in batches of `size` rows that are in flight at the same time."""
    tokens = encoder.tokenize(texts)
    batches = [np.arange(start, min(start + size, len(texts))) for start in range(0, len(texts), size)]
    found: list[Any] = []
    for at in range(0, len(batches), encoder.max_in_flight):
        some = batches[at : at + encoder.max_in_flight]
        for batch, output in zip(some, [encoder.forward(tokens, batch) for batch in some], strict=True):
            vectors = encoder.collect(output)
            assert isinstance(vectors, MultiVectors)
            assert vectors.shape == (len(batch), encoder.dim)
            assert vectors.values.dtype == np.float32
            found += np.split(vectors.values, vectors.offsets[1:-1])
    return found


def expected(folder: Path, texts: list[str], role: str) -> list[Any]:
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(folder), device="cpu", local_files_only=True)
    encode = partial(model.encode_query if role == "query" else model.encode_document, convert_to_numpy=True)
    return [encode(text) for text in texts]


def assert_close(ours: list[Any], theirs: list[Any], bound: float) -> None:
    assert [len(row) for row in ours] == [len(row) for row in theirs]
    for mine, own in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, own, atol=bound)


@pytest.mark.parametrize("role", ["document", "query"])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_vectors_are_those_of_sentence_transformers_in_every_batch(tmp_path: Path, layout: str, role: str) -> None:
    LAYOUTS[layout](tmp_path / "model", tmp_path)
    encoder = load(tmp_path / "model", as_=role)
    alone = encode(encoder, texts(), 1)
    assert_close(alone, expected(tmp_path / "model", texts(), role), 1e-4)
    for size in (3, 7, len(texts())):
        assert_close(encode(encoder, texts(), size), alone, 1e-5)
    again = encoder.encode_float32(encoder.tokenize(texts()), np.arange(len(texts())))
    np.testing.assert_allclose(again.values, np.concatenate(alone), atol=1e-5)
    assert len(encoder.encode_float32(encoder.tokenize([]), np.arange(0))) == 0


def test_queries_are_filled_up_to_their_width_where_rows_are_not_padded(folder: Path) -> None:
    encoder = load(folder, as_="query")
    whole = encode(encoder, texts(), 4)
    encoder.pad_to_multiple_of = 1  # as for a network whose vectors depend on padding
    assert_close(encode(encoder, texts(), 1), whole, 1e-5)


def test_it_is_chosen_by_itself(folder: Path) -> None:
    encoder, lines = load_with_notes(folder)
    assert encoder.vector_space()["engine"] == "openvino"
    assert encoder.vector_space()["task"] == "document"
    assert lines[-1] == f"compiling {folder} for this CPU (only once)"
    _, lines = load_with_notes(folder)
    assert "compiling" not in lines[-1]


def test_a_later_start_has_the_same_vectors_without_pytorch(folder: Path, cache: Path) -> None:
    first = encode(load(folder, as_="query"), ["Is it?"], 1)[0]
    ended = subprocess.run(
        [sys.executable, "-c", LATER_START, str(folder)],
        env={**os.environ, "EMBEDCLI_CACHE": str(cache)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    np.testing.assert_allclose(np.array(json.loads(ended.stdout)), first, atol=1e-6)
    assert not {"torch", "transformers", "sentence_transformers"} & set(ended.stderr.split())


@pytest.mark.parametrize("factor", [2, 5])
def test_tokens_are_pooled_as_on_pytorch(folder: Path, factor: int) -> None:
    ours = encode(load(folder, pool_factor=factor), texts(), 4)
    assert_close(ours, encode(reference.load(folder, pool_factor=factor), texts(), 1), 1e-4)
    assert sum(map(len, ours)) < sum(map(len, encode(load(folder), texts(), 4))) * 0.7


def test_a_pooling_saved_with_the_model_runs_on_pytorch(tmp_path: Path) -> None:
    built.build_multi_vector(tmp_path / "model", tmp_path, pool_factor=2)
    encoder, lines = load_with_notes(tmp_path / "model")
    assert encoder.vector_space()["engine"] == "torch"
    assert "its module HierarchicalTokenPooling may change which vectors a row has" in lines[-1]
    with pytest.raises(ModelError, match="cannot run with --engine openvino"):
        load(tmp_path / "model")


def test_what_pytorch_computes_instead_is_pooled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise runtime.NotConvertibleError("a reason")

    with monkeypatch.context() as patch:
        patch.setattr(runtime.OpenVinoRuntime, "convert", fail)
        encoder, _ = load_with_notes(folder, pool_factor=3)
    assert encoder.vector_space()["engine"] == "torch"
    assert_close(encode(encoder, texts(), 1), encode(reference.load(folder, pool_factor=3), texts(), 1), 1e-5)


@pytest.mark.parametrize("role", ["document", "query"])
def test_vectors_of_half_precision_have_length_one(folder: Path, role: str) -> None:
    try:
        encoder = load(folder, as_=role, dtype="bfloat16")
    except UsageError as error:
        assert "no bfloat16 instructions" in str(error)  # noqa: PT017 - the only other outcome
        return
    exact = encode(load(folder, as_=role), texts()[:5], 2)
    for row, own in zip(encode(encoder, texts()[:5], 2), exact, strict=True):
        np.testing.assert_allclose(np.linalg.norm(row, axis=1), 1, atol=1e-5)
        assert (row * own).sum(axis=1).min() > 0.99


@pytest.mark.parametrize("role", ["document", "query"])
def test_a_selection_of_other_tokens_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    monkeypatch.setattr(multi_vector, "read_token_selection", lambda *args: TokenSelection(skipped_ids=(9,)))
    encoder, lines = load_with_notes(folder, as_=role)
    assert encoder.vector_space()["engine"] == "torch"
    assert "its vectors have the shape" in lines[-1]


def test_vectors_of_other_tokens_are_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many vectors, but those of the padding on the right instead of those of the tokens on the left."""
    prepare: Any = TokenSelection.prepare

    def mirror(self: TokenSelection, ids: Any, mask: Any) -> Any:
        ids, mask, is_kept = prepare(self, ids, mask)
        return ids, mask, is_kept[:, ::-1]

    monkeypatch.setattr(TokenSelection, "prepare", mirror)
    encoder, lines = load_with_notes(folder)
    assert encoder.vector_space()["engine"] == "torch"
    assert "its vectors differ from PyTorch's" in lines[-1]


def test_padding_and_skipped_tokens_are_left_out() -> None:
    ids, mask = np.array([[4, 7, 8, 0], [4, 5, 0, 0]]), np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    taken = TokenSelection(skipped_ids=(7, 0)).prepare(ids, mask)
    assert taken[2].tolist() == [[True, False, True, False], [True, True, False, False]]
    expansion = QueryExpansion(3, 9, is_attended=False)
    filled, attended, is_kept = TokenSelection(expansion, keeps_expansion=True).prepare(ids, mask)
    assert (filled.tolist(), attended.tolist()) == ([[4, 7, 8, 0], [4, 5, 9, 0]], mask.tolist())
    assert is_kept.tolist() == [[True, True, True, False], [True, True, True, False]]
    assert TokenSelection(expansion).prepare(ids, mask)[2].tolist() == (mask > 0).tolist()
    seen = TokenSelection(QueryExpansion(3, 9, is_attended=True)).prepare(ids, mask)
    assert seen[1].tolist() == seen[2].astype(int).tolist() == [[1, 1, 1, 0], [1, 1, 1, 0]]
    assert ids.tolist() == [[4, 7, 8, 0], [4, 5, 0, 0]]

"""Models with different modules for queries and documents: the role is part of the vector space metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedcli
import models
from embedcli.analysis.evaluate import EncodersByPrompt
from embedcli.analysis.verify import verify_against_input
from embedcli.core.errors import ResumeError, UsageError
from embedcli.encoders import load_encoder
from embedcli.models.config import ModelConfig, read_model_config
from embedcli.models.resolve import resolve_model
from embedcli.outputs.dataset import open_dataset
from reference import encode, job, load, lowest_cosine, samples
from routers import build_first_router, build_nested_router, build_old_router, build_static_router

SAME = 0.9999
ROLES: Any = ("query", "document")


def router(folder: Path, **how: Any) -> Any:
    """A transformer, its pooling, and a Dense module for each role: the layout of asymmetric models."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    torch.manual_seed(1)
    network = modules.Transformer(str(models.folder("m3e-base")))
    ways: Any = {role: [modules.Dense(32, 16)] for role in ROLES}
    made = SentenceTransformer(modules=[network, modules.Pooling(32), modules.Router(ways, **how)], device="cpu")
    made.save(str(folder), create_model_card=False)
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of such a model, and the vectors of sentence-transformers for ten rows in each role."""
    folder = tmp_path_factory.mktemp("router") / "model"
    made = router(folder, default_route="document")
    texts = samples()[:10]
    return folder, {"query": made.encode_query(texts), "document": made.encode_document(texts)}


@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize("role", ROLES)
def test_a_router_after_the_pooling_gets_the_role(model: Any, role: Any, engine: str) -> None:
    folder, wanted = model
    encoder = load(folder, as_=role, engine=engine)
    assert lowest_cosine(encode(encoder, samples()[:10]), wanted[role]) >= SAME
    assert encoder.vector_space()["task"] == role


@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize("build", [build_first_router, build_static_router, build_nested_router, build_old_router])
def test_each_layout_gives_the_vectors_of_sentence_transformers(build: Any, engine: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    build(tmp_path / "model")
    reference = SentenceTransformer(str(tmp_path / "model"), device="cpu", local_files_only=True)
    for role, expected in (
        ("query", [reference.encode_query(text) for text in samples()[:10]]),
        ("document", [reference.encode_document(text) for text in samples()[:10]]),
    ):
        encoder = load(tmp_path / "model", as_=role, engine=engine)
        assert lowest_cosine(encode(encoder, samples()[:10]), np.array(expected)) >= 0.999999


def test_a_note_says_that_a_router_keeps_a_model_from_being_converted(tmp_path: Path) -> None:
    build_first_router(tmp_path / "model", default_route="document")
    notes: list[str] = []
    load_encoder(job(tmp_path / "model", as_="query", device="cpu", engine="auto"), notify=notes.append)
    assert "it begins with a Router, which leads queries and documents through networks of their own" in str(notes)
    assert "fast tokenizer" not in str(notes)


def test_the_limit_and_the_pooling_are_those_of_the_route(tmp_path: Path) -> None:
    build_first_router(tmp_path / "first", default_route="document")
    for role, limit in (("query", 12), ("document", 40), (None, 40)):
        config = read_config(tmp_path / "first", as_=role)
        assert (config.max_seq_length, config.max_positions, config.pooling) == (limit, 512, "mean")
    with pytest.raises(UsageError, match="more than the 512 tokens"):
        read_config(tmp_path / "first", as_="query", max_seq_length=600)
    build_static_router(tmp_path / "static")
    assert read_config(tmp_path / "static", as_="query").max_seq_length is None
    assert read_config(tmp_path / "static", as_="document").max_seq_length == 512


def read_config(folder: Path, **values: Any) -> ModelConfig:
    return read_model_config(resolve_model(job(folder, **values)), job(folder, **values))


def test_another_role_is_another_vector_space(model: Any, tmp_path: Path) -> None:
    folder, wanted = model
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.parquet"
    rows.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(samples()[:10])))
    flags: dict[str, Any] = {"model": folder, "device": "cpu", "engine": "torch"}
    embedcli.encode_file(rows, out, as_="query", **flags)
    again: list[dict[str, Any]] = [{}, {"update": True}]
    for more in again:
        with pytest.raises(ResumeError, match=r"other settings: --as|task was"):
            embedcli.encode_file(rows, out, as_="document", **more, **flags)
    with pytest.raises(ResumeError, match="task was"):
        embedcli.encode_file(rows, tmp_path / "other.parquet", as_="document", reuse=(str(out),), **flags)
    finished = open_dataset(str(out))
    made = np.concatenate([block.vectors for block in finished.read_blocks()])
    assert lowest_cosine(made, wanted["query"]) >= SAME
    assert all(check.passed for check in verify_against_input(finished, (), None, device="cpu", engine="torch"))


def test_eval_encodes_queries_and_documents_by_their_role(model: Any) -> None:
    folder, wanted = model
    own = EncodersByPrompt(job(folder, device="cpu"), lambda line: None)
    for role in ROLES:
        encoded = own.encode(samples()[:10], job(folder, device="cpu", as_=role))
        assert lowest_cosine(encoded.require_all(), wanted[role]) >= SAME
    own.close()


def test_a_router_without_a_default_needs_the_role(tmp_path: Path) -> None:
    made = router(tmp_path / "model", allow_empty_key=False)
    with pytest.raises(UsageError, match="has no default") as caught:
        load(tmp_path / "model")
    assert caught.value.hint == "add --as query or --as document"
    reference = made.encode_query(samples()[:3])
    assert lowest_cosine(encode(load(tmp_path / "model", as_="query"), samples()[:3]), reference) >= SAME

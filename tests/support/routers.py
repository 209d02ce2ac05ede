"""Models that encode queries and documents differently, built and saved by sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models


def transformer(name: str, limit: int | None = None) -> Any:
    from sentence_transformers.sentence_transformer import modules

    network = modules.Transformer(str(models.folder(name)))
    if limit is not None:
        network.max_seq_length = limit
    return network


def save_router(folder: Path, *parts: Any) -> Any:
    """Save a pipeline, and return it."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(1)
    pipeline = SentenceTransformer(modules=list(parts), device="cpu")
    pipeline.save(str(folder), create_model_card=False)
    return pipeline


def build_first_router(folder: Path, **options: Any) -> Any:
    """A network of its own for each role, with limits of 12 and 40 tokens: the router's files are in the root."""
    from sentence_transformers.sentence_transformer import modules

    routes: Any = {
        "query": [transformer("text2vec-base-chinese", 12), modules.Pooling(32)],
        "document": [transformer("m3e-base", 40), modules.Pooling(32), modules.Dense(32, 32)],
    }
    return save_router(folder, modules.Router(routes, **options), modules.Normalize())


def build_static_router(folder: Path) -> Any:
    """A table of static vectors for queries, and a network for documents."""
    from sentence_transformers.sentence_transformer import modules
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(models.folder("potion-base-8M") / "tokenizer.json"))
    routes: Any = {
        "query": [modules.StaticEmbedding(tokenizer, embedding_dim=16)],
        "document": [transformer("m3e-base"), modules.Pooling(32), modules.Dense(32, 16)],
    }
    return save_router(folder, modules.Router(routes), modules.Normalize())


def build_last_router(folder: Path, **options: Any) -> Any:
    """A Dense module for each role behind a shared network: the router is in a subfolder."""
    from sentence_transformers.sentence_transformer import modules

    routes: Any = {role: [modules.Dense(32, 16)] for role in ("query", "document")}
    return save_router(folder, transformer("m3e-base"), modules.Pooling(32), modules.Router(routes, **options))


def build_nested_router(folder: Path) -> Any:
    """A router whose routes are routers."""
    from sentence_transformers.sentence_transformer import modules

    def inner() -> Any:
        routes: Any = {role: [modules.Dense(32, 16)] for role in ("query", "document")}
        return modules.Router(routes)

    outer: Any = {"query": [inner()], "document": [inner()]}
    return save_router(folder, transformer("m3e-base"), modules.Pooling(32), modules.Router(outer))


def build_old_router(folder: Path) -> None:
    """The last router under its old name and with its old file name."""
    build_last_router(folder)
    (router,) = folder.glob("*/router_config.json")
    router.rename(router.with_name("config.json"))
    listed = json.loads((folder / "modules.json").read_text("utf-8"))
    listed[-1]["type"] = "sentence_transformers.models.Asym"
    models.write(folder / "modules.json", listed)

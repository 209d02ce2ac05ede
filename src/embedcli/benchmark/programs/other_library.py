"""Encode rows with another library, as its own users would. Runs without embedcli.

usage: other_library.py SETTINGS.json

Settings: library (a key of LIBRARIES), model (a folder), rows (JSONL with `text`), vectors (.npy to write), facts
(JSON to write), batch_sizes, and the settings of the library: device, dtype, threads, prompt, max_seq_length,
normalize, truncate_dim, backend, onnx_file (in the model's folder), dim, kind ("sparse" for a SparseEncoder,
"multi_vector" for a MultiVectorEncoder) and task (the role of its texts). With several batch sizes, each is timed and
no vectors are written. Vectors of tokens are written row after row, and the facts say how many each row has.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Settings = dict[str, Any]
EncodeFunction = Callable[[Sequence[str], int], Any]


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    started = time.perf_counter()
    with open(settings["rows"], encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    encode = LIBRARIES[settings["library"]](settings)
    facts: dict[str, Any] = {"load_seconds": time.perf_counter() - started, "encode_seconds": {}}
    sizes = settings["batch_sizes"]
    if len(sizes) > 1:
        # A library's first call sets things up; the choice of a batch size must not depend on it.
        encode(texts[:32], 32)
    for size in sizes:
        started = time.perf_counter()
        vectors = encode(texts, size)
        facts["encode_seconds"][str(size)] = time.perf_counter() - started
    if len(sizes) == 1:
        if settings.get("kind") == "multi_vector":
            facts["vectors_per_row"] = [len(row) for row in vectors]
            vectors = np.concatenate(vectors)
        dense = vectors.to_dense().float() if settings.get("kind") == "sparse" else vectors
        np.save(settings["vectors"], np.asarray(dense, np.float32))
    Path(settings["facts"]).write_text(json.dumps(facts), "utf-8")


def load_sentence_transformers(settings: Settings) -> EncodeFunction:
    """`SentenceTransformer.encode`, in the requested number format whatever that of the files."""
    if settings.get("threads"):
        importlib.import_module("torch").set_num_threads(settings["threads"])
    if settings.get("kind") == "sparse":
        return load_sparse_encoder(settings)
    if settings.get("kind") == "multi_vector":
        return load_multi_vector_encoder(settings)
    backend = settings.get("backend", "torch")
    choice = {"dtype": settings["dtype"]} if backend == "torch" else {"file_name": settings["onnx_file"]}
    model = importlib.import_module("sentence_transformers").SentenceTransformer(
        settings["model"],
        device=settings["device"],
        truncate_dim=settings["truncate_dim"],
        trust_remote_code=settings["trust_remote_code"],
        backend=backend,
        model_kwargs=choice,
    )
    if settings["max_seq_length"]:
        model.max_seq_length = settings["max_seq_length"]

    def encode(texts: Sequence[str], batch_size: int) -> Any:
        return model.encode(
            texts,
            batch_size=batch_size,
            prompt=settings["prompt"] or None,
            normalize_embeddings=settings["normalize"],
            show_progress_bar=False,
            convert_to_tensor=settings["dtype"] != "float32",
        )

    if settings["dtype"] == "float32":
        return encode
    return lambda texts, batch_size: encode(texts, batch_size).float().cpu().numpy()


def load_sparse_encoder(settings: Settings) -> EncodeFunction:
    """`SparseEncoder.encode` as its own users call it: the result is a sparse tensor."""
    model = importlib.import_module("sentence_transformers").SparseEncoder(
        settings["model"],
        device=settings["device"],
        trust_remote_code=settings["trust_remote_code"],
        model_kwargs={"dtype": settings["dtype"]},
    )
    if settings["max_seq_length"]:
        model.max_seq_length = settings["max_seq_length"]

    def encode(texts: Sequence[str], batch_size: int) -> Any:
        prompt = settings["prompt"] or None
        return model.encode(texts, batch_size=batch_size, prompt=prompt, show_progress_bar=False, save_to_cpu=True)

    return encode


def load_multi_vector_encoder(settings: Settings) -> EncodeFunction:
    """`MultiVectorEncoder.encode` as its own users call it: the result is a list of arrays [tokens, dim]."""
    model = importlib.import_module("sentence_transformers").MultiVectorEncoder(
        settings["model"],
        device=settings["device"],
        trust_remote_code=settings["trust_remote_code"],
        model_kwargs={"dtype": settings["dtype"]},
    )
    task = settings["task"]
    expansion = model[0].query_expansion if task == "query" else None
    has_fixed_width = expansion is not None and expansion["strategy"] == "fixed"
    options: dict[str, Any] = {"task": task, "prompt": settings["prompt"] or None}
    if settings["max_seq_length"] and not has_fixed_width:
        options["processing_kwargs"] = {"text": {"max_length": settings["max_seq_length"]}}

    def encode(texts: Sequence[str], batch_size: int) -> Any:
        return model.encode(texts, batch_size=batch_size, convert_to_numpy=True, show_progress_bar=False, **options)

    return encode


def load_model2vec(settings: Settings) -> EncodeFunction:
    """`StaticModel.encode` with parallel workers for any number of rows."""
    model = importlib.import_module("model2vec").StaticModel.from_pretrained(
        settings["model"], normalize=settings["normalize"], force_download=False
    )
    prompt, limit = settings["prompt"], settings["max_seq_length"]

    def encode(texts: Sequence[str], batch_size: int) -> Any:
        prompted = [prompt + text for text in texts] if prompt else list(texts)
        return model.encode(prompted, max_length=limit, batch_size=batch_size, multiprocessing_threshold=0)

    return encode


def load_fastembed(settings: Settings) -> EncodeFunction:
    """`TextEmbedding.embed` with the ONNX file as a custom model, with the same limit as the other contenders."""
    library = importlib.import_module("fastembed")
    description = importlib.import_module("fastembed.common.model_description")
    library.TextEmbedding.add_custom_model(
        model="local/model",
        pooling=getattr(description.PoolingType, settings["pooling"].upper()),
        normalization=settings["normalize"],
        sources=description.ModelSource(hf="local/model"),
        dim=settings["dim"],
        model_file="model.onnx",
    )
    with tempfile.TemporaryDirectory() as folder:
        copy_flat(settings, Path(folder))
        model = library.TextEmbedding("local/model", specific_model_path=folder, threads=settings["threads"])
    prompt = settings["prompt"]
    return lambda texts, size: np.stack(list(model.embed([prompt + text for text in texts], batch_size=size)))


def load_light_embed(settings: Settings) -> EncodeFunction:
    """`TextEmbedding.encode` with the ONNX file as a local model, with the same limit as the other contenders."""
    with tempfile.TemporaryDirectory() as folder:
        copy_flat(settings, Path(folder))
        model = importlib.import_module("light_embed").TextEmbedding(
            folder,
            device="cpu",
            model_config={
                "onnx_file": "model.onnx",
                "pooling_mode": settings["pooling"],
                "normalize": settings["normalize"],
            },
        )
    prompt = settings["prompt"]
    return lambda texts, size: model.encode([prompt + text for text in texts], batch_size=size)


def copy_flat(settings: Settings, folder: Path) -> None:
    """Lay out a model in one folder, with model.onnx and the limit in the tokenizer's configuration."""
    model = Path(settings["model"])
    for file in model.glob("*.json"):
        shutil.copy(file, folder)
    (folder / "model.onnx").symlink_to((model / settings["onnx_file"]).resolve())
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["model_max_length"] = settings["max_seq_length"] or config.get("model_max_length", 512)
    path.write_text(json.dumps(config), "utf-8")


LIBRARIES: dict[str, Callable[[Settings], EncodeFunction]] = {
    "sentence-transformers": load_sentence_transformers,
    "model2vec": load_model2vec,
    "fastembed": load_fastembed,
    "light-embed": load_light_embed,
}


if __name__ == "__main__":
    main()

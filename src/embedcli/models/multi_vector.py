"""Settings of multi-vector models (ColBERT) that are known before they are loaded: prompts, limits, projection.

Three layouts are read, each as `MultiVectorEncoder` of sentence-transformers does it: its own, PyLate's and that of the
original ColBERT (a raw folder with the architecture HF_ColBERT and an artifact.metadata).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.models.files import WEIGHT_FILES, read_json_object
from embedcli.models.limits import TRANSFORMER_CONFIGS
from embedcli.models.weights import read_header

MultiVectorRole = Literal["query", "document"]

SAVED_SETTINGS = "config_sentence_transformers.json"
ORIGINAL_ARCHITECTURE = "HF_ColBERT"
ORIGINAL_METADATA = "artifact.metadata"
PYLATE_TYPE = "ColBERT"
# Any of these keys in config_sentence_transformers.json marks a model of PyLate.
PYLATE_KEYS = (
    "query_length", "document_length", "query_expansion", "do_query_expansion", "attend_to_expansion_tokens",
    "attend_to_mask_tokens", "query_prefix", "document_prefix", "skiplist_words",
)  # fmt: skip
# The width of queries where a model of PyLate or of the original ColBERT names none.
DEFAULT_QUERY_LENGTH = 32


@dataclass(frozen=True)
class MultiVectorSettings:
    """How a multi-vector model reads texts of one role.

    Attributes:
        role: The role; documents unless the job asks for queries.
        prompts: The saved prompts by name, markers such as "[D] " included.
        limit: The longest row in tokens, prompt and special tokens included; None: what the network accepts.
        has_fixed_width: Whether every row is filled up to `limit` with mask tokens, so that no other limit makes sense.
        has_normalize: Whether the last thing that happens to a vector is that it is scaled to length 1.
        missing: What is assumed in place of files that are missing, as half a sentence for each, about the model.
    """

    role: MultiVectorRole
    prompts: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    has_fixed_width: bool = False
    has_normalize: bool = False
    missing: tuple[str, ...] = ()


def read_multi_vector_settings(
    folder: Path, modules: Sequence[tuple[str, str]], job: Job, network_folder: Path
) -> MultiVectorSettings:
    """Read the settings of a multi-vector model for the role of a job.

    Args:
        folder: The model's folder.
        modules: Its pipeline, from `read_modules`.
        job: The job.
        network_folder: The folder of its Transformer module.

    Raises:
        UsageError: The job sets another limit for queries that all have the same width.
    """
    role: MultiVectorRole = "query" if job.as_ == "query" else "document"
    saved = read_json_object(folder / SAVED_SETTINGS)
    is_original = not (folder / "modules.json").is_file()
    legacy = _read_original(folder) if is_original else _read_pylate(saved)
    own = next((config for name in TRANSFORMER_CONFIGS if (config := read_json_object(network_folder / name))), {})
    limit, has_fixed_width = _resolve_limit(role, {**legacy, **own})
    if has_fixed_width and job.max_seq_length not in (None, limit):
        raise UsageError(
            f"every query of {job.model} has {limit} tokens, so that --max-seq-length cannot change it",
            "leave --max-seq-length out",
        )
    kinds = {kind.rpartition(".")[2] for kind, _ in modules}
    has_normalize = is_original or saved.get("model_type") != "MultiVectorEncoder" or "Normalize" in kinds
    has_pooling = any(kind.endswith("TokenPooling") for kind in kinds)
    prompts = _read_original_prompts(folder) if is_original else _read_prompts(saved)
    missing = describe_missing_files(folder, modules, network_folder, has_limit="document_length" in {**legacy, **own})
    return MultiVectorSettings(role, prompts, limit, has_fixed_width, has_normalize and not has_pooling, missing)


def describe_missing_files(
    folder: Path, modules: Sequence[tuple[str, str]], network_folder: Path, *, has_limit: bool
) -> tuple[str, ...]:
    """What is assumed because files are missing, without a word from sentence-transformers, which assumes the same.

    Args:
        folder: The model's folder.
        modules: Its pipeline, from `read_modules`.
        network_folder: The folder of its Transformer module.
        has_limit: Whether its files name the longest document.

    Returns:
        For each file half a sentence that goes on after the model's name.
    """
    if not (folder / "modules.json").is_file():
        if (folder / ORIGINAL_METADATA).is_file():
            return ()
        return (
            f"has no {ORIGINAL_METADATA}: the markers [unused0] and [unused1], queries of {DEFAULT_QUERY_LENGTH} "
            "tokens, no other limit than the network's, and no vectors of punctuation are assumed",
        )
    missing = []
    masks = [folder / path for kind, path in modules if kind.rpartition(".")[2] == "MultiVectorMask"]
    if not (folder / SAVED_SETTINGS).is_file():
        rest = "" if masks else ", and vectors of all tokens, punctuation included,"
        missing.append(f"has no {SAVED_SETTINGS}: no markers before queries and documents{rest} are assumed")
    if not has_limit and not any((network_folder / name).is_file() for name in TRANSFORMER_CONFIGS):
        missing.append(
            f"has no {TRANSFORMER_CONFIGS[0]}: no other limit than the network's, and no fill-up, are assumed"
        )
    if any(not (mask / "config.json").is_file() for mask in masks):
        missing.append("has no config.json of its mask: vectors of all tokens, punctuation included, are assumed")
    return tuple(missing)


def has_loadable_projection(folder: Path, modules: Sequence[tuple[str, str]]) -> bool:
    """Whether the files of a multi-vector model hold the projection of its tokens, if it needs one.

    sentence-transformers gives a model without one random weights, and says so only in its log.

    Args:
        folder: The model's folder.
        modules: Its pipeline, from `read_modules`.
    """
    if (folder / "modules.json").is_file():
        saved = read_json_object(folder / SAVED_SETTINGS).get("model_type")
        return saved in ("MultiVectorEncoder", PYLATE_TYPE) or any(
            kind.rpartition(".")[2] == "Dense" for kind, _ in modules
        )
    architectures = read_json_object(folder / "config.json").get("architectures") or []
    if ORIGINAL_ARCHITECTURE not in architectures:
        return False
    weights = folder / WEIGHT_FILES[0]
    return has_projection(folder) if weights.is_file() else (folder / "pytorch_model.bin").is_file()


def has_projection(folder: Path) -> bool:
    """Whether the weights have a layer beside the network, as the original ColBERT's projection of every token."""
    weights = folder / WEIGHT_FILES[0]
    return weights.is_file() and "linear.weight" in read_header(weights)


def _resolve_limit(role: MultiVectorRole, knobs: Mapping[str, Any]) -> tuple[int | None, bool]:
    """The token limit of a role, and whether every row has exactly that many tokens."""
    if role == "document":
        return knobs.get("document_length"), False
    expansion, length = knobs.get("query_expansion"), knobs.get("query_length")
    if not expansion:
        return length, False
    if expansion.get("strategy") == "fixed":
        return expansion.get("length"), True
    return (None if length is None else max(length, expansion["length"])), False


def _read_pylate(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the Transformer that a model of PyLate keeps in config_sentence_transformers.json."""
    if not any(key in saved for key in PYLATE_KEYS):
        return {}
    knobs = {key: saved[key] for key in ("query_length", "document_length") if saved.get(key) is not None}
    if "query_expansion" in saved:
        return knobs | {"query_expansion": saved["query_expansion"]}
    if saved.get("do_query_expansion") is False:
        return knobs | {"query_expansion": None}
    length = knobs.pop("query_length", None) or DEFAULT_QUERY_LENGTH
    return knobs | {"query_expansion": {"strategy": "fixed", "length": length}}


def _read_original(folder: Path) -> dict[str, Any]:
    """The settings of the Transformer by the artifact.metadata of the original ColBERT."""
    metadata = read_json_object(folder / ORIGINAL_METADATA)
    length = metadata.get("query_maxlen") or DEFAULT_QUERY_LENGTH
    document = metadata.get("doc_maxlen")
    knobs: dict[str, Any] = {"query_expansion": {"strategy": "fixed", "length": length}}
    return knobs if document is None else knobs | {"document_length": document}


def _read_original_prompts(folder: Path) -> dict[str, str]:
    """The markers of the original ColBERT, which stand before the text."""
    metadata = read_json_object(folder / ORIGINAL_METADATA)
    markers = {"query": "query_token_id", "document": "doc_token_id"}
    defaults = {"query": "[unused0]", "document": "[unused1]"}
    return {role: (metadata.get(key) or defaults[role]) + " " for role, key in markers.items()}


def _read_prompts(saved: Mapping[str, Any]) -> dict[str, str]:
    """The saved prompts, behind the prefixes that PyLate keeps beside them."""
    prompts = {name: text for name, text in (saved.get("prompts") or {}).items() if text is not None}
    for role in ("query", "document"):
        if f"{role}_prefix" in saved:
            prefix = saved[f"{role}_prefix"] or ""
            prompts[role] = prefix + prompts.get(role, "").removeprefix(prefix)
    return prompts

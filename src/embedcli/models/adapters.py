"""Adapters (LoRA and others of PEFT): small changes to the weights of a base model, which is another model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from embedcli.core.errors import ModelError
from embedcli.models.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    AdapterBase,
    ModelFiles,
    find_tokenizer_file,
    has_own_base,
    read_json_object,
    walk_modules,
)


@dataclass(frozen=True)
class AdapterReference:
    """What an adapter says about its base model.

    Attributes:
        subfolder: The folder of the adapter's module in the model, with slashes; empty for the model's own folder.
        base: A hub id or a path.
        revision: Branch, tag or commit of the base; None: the main branch.
    """

    subfolder: str
    base: str
    revision: str | None


def find_adapter_folders(folder: Path) -> list[str]:
    """The subfolders of a model that contain an adapter, with slashes; empty for the model's own folder."""
    if not folder.is_dir():
        return []
    paths = dict.fromkeys(path for kind, path in walk_modules(folder) if kind.rpartition(".")[2] == "Transformer")
    return [path for path in paths if (folder / path / ADAPTER_CONFIG).is_file()]


def read_adapter_references(folder: Path) -> list[AdapterReference]:
    """The base models that a model's adapters need beside the model's own files.

    Raises:
        ModelError: An adapter names no base model.
    """
    return [_read_reference(folder, path) for path in find_adapter_folders(folder) if not has_own_base(folder / path)]


def add_adapter_bases(files: ModelFiles, find_base: Callable[[AdapterReference], ModelFiles]) -> ModelFiles:
    """The model together with the base models of its adapters, which its fingerprint then covers.

    Args:
        files: The model's own files.
        find_base: Finds a complete base model.

    Raises:
        ModelError: A base model is missing or is an adapter itself, or an adapter is a pickle.
    """
    for subfolder in find_adapter_folders(files.path):
        _refuse_pickle(files, files.path / subfolder)
    bases = []
    for reference in read_adapter_references(files.path):
        base = _find_base(files, reference, find_base)
        if find_adapter_folders(base.path) or base.kind != "transformer":
            kind = "an adapter itself" if base.kind == "transformer" else "a static model"
            raise ModelError(
                f"{files.name} is an adapter of {base.name}, which is {kind}",
                "use another model, or merge the base model first",
            )
        bases.append(AdapterBase(reference.subfolder, base))
    if not bases:
        return files
    lines = [files.fingerprint, *(f"{base.subfolder}\0{base.files.fingerprint}" for base in bases)]
    fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return replace(files, fingerprint=fingerprint, bases=tuple(bases))


def tokenizer_folder(files: ModelFiles, subfolder: str) -> Path:
    """The folder with the tokenizer of a Transformer module: its own, or that of its adapter's base model."""
    own, base = files.path / subfolder, files.find_base(subfolder)
    return own if base is None or find_tokenizer_file(own) else base


def _read_reference(folder: Path, subfolder: str) -> AdapterReference:
    path = folder / subfolder / ADAPTER_CONFIG
    config = read_json_object(path)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{path} names no base model, which the adapter needs", 'add "base_model_name_or_path" to that file'
        )
    inside = path.parent / base
    # As with PEFT a relative path counts from the working directory; from the adapter's folder, copies can be moved.
    is_beside = not Path(base).exists() and inside.is_dir()
    revision = config.get("revision")
    return AdapterReference(subfolder, str(inside) if is_beside else base, str(revision) if revision else None)


def _refuse_pickle(files: ModelFiles, folder: Path) -> None:
    weights, pickle = (folder / name for name in ADAPTER_WEIGHTS)
    if pickle.is_file() and not weights.is_file():
        raise ModelError(
            f"{files.name} keeps its adapter in a pickle ({pickle.name}), which could run code",
            "load it where you trust it with peft and save it again: model.save_pretrained(PATH)",
        )


def _find_base(
    files: ModelFiles, reference: AdapterReference, find_base: Callable[[AdapterReference], ModelFiles]
) -> ModelFiles:
    try:
        return find_base(reference)
    except ModelError as error:
        raise ModelError(f"{files.name} is an adapter and needs its base model: {error}", error.hint) from error

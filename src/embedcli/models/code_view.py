"""A temporary folder in which a model's own files and its code repositories are together."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedcli.models.code import REPOSITORY_SEPARATOR, CodeReference
from embedcli.models.code_repositories import list_code_files, read_code_references
from embedcli.models.files import IGNORED_FOLDERS, CodeRepository, ModelFiles, read_json
from embedcli.models.native import NativeEquivalent

# The files in which a model names classes.
NAMING_FILES = {"config.json", "tokenizer_config.json", "modules.json", "router_config.json"}


@contextmanager
def local_model_folder(files: ModelFiles, native: Mapping[Path, NativeEquivalent]) -> Iterator[Path]:
    """Provide a folder from which a model can be loaded without any look at the hub.

    It is the model's own folder if the model names no repository and has no equivalent. Otherwise it is a temporary
    folder of links to the model's files. Each code repository is a subfolder of it, and 'owner/name--module.Class' in
    the configuration is replaced by the module in that subfolder. Libraries look up 'owner/name' on the hub. A model
    that names itself is a code repository here. A module with an equivalent has the configuration of that.

    Args:
        files: The model.
        native: The equivalents of modules in transformers, by the relative path of their config.json.
    """
    references = read_code_references(files)
    repositories = list(files.code_repositories)
    if any(reference.repository == files.name for reference in references):
        repositories.append(CodeRepository(files.name, files.path))
    if not repositories and not native:
        yield files.path
        return
    with tempfile.TemporaryDirectory(prefix="embedcli-") as temporary:
        # Libraries derive the names of imported modules from that of the folder.
        folder = Path(temporary) / "model"
        _link_files(files.path, folder)
        subfolders = {}
        for number, repository in enumerate(repositories):
            subfolders[repository.name] = name = f"code_{number}_{_hash_code(repository, references)}"
            _link_files(repository.path, folder / name)
        for file in sorted(folder.rglob("*.json")):
            if file.name in NAMING_FILES:
                _replace_file(file, subfolders)
        for path, equivalent in native.items():
            (folder / path).unlink()
            (folder / path).write_text(json.dumps(equivalent.config), "utf-8")
        yield folder


def _link_files(source: Path, folder: Path) -> None:
    """Create a folder with the same subfolders as `source` and links to all files in them."""
    for root, names, files in os.walk(source, followlinks=True):
        names[:] = [name for name in names if name not in IGNORED_FOLDERS]
        target = folder / Path(root).relative_to(source)
        target.mkdir(parents=True)
        for name in files:
            (target / name).symlink_to(Path(root).resolve() / name)


def _hash_code(repository: CodeRepository, references: tuple[CodeReference, ...]) -> str:
    """A hash of the code that would run, in hexadecimal digits.

    In one process, transformers runs the network that it loaded first for a class of configurations. In the path of
    the modules, the hash makes the classes of two versions of the code different, also in files that are the same.
    """
    digest = hashlib.sha256()
    for file in list_code_files(repository, references):
        path = repository.path / file
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{file}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _replace_file(file: Path, subfolders: dict[str, str]) -> None:
    """Replace the link to a configuration by a copy with local names, if that differs."""
    content = read_json(file)
    local = _with_local_names(content, subfolders)
    if local != content:
        file.unlink()
        file.write_text(json.dumps(local), "utf-8")


def _with_local_names(value: Any, subfolders: dict[str, str]) -> Any:
    """A JSON value in which the names of classes in code repositories are those of files in subfolders."""
    if isinstance(value, dict):
        return {key: _with_local_names(item, subfolders) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_local_names(item, subfolders) for item in value]
    if not isinstance(value, str):
        return value
    repository, separator, class_path = value.rpartition(REPOSITORY_SEPARATOR)
    return f"{subfolders[repository]}/{class_path}" if separator and repository in subfolders else value

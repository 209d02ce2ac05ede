"""A temporary folder in which a model's own files and its code repositories are together."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedcli.models.code import REPOSITORY_SEPARATOR
from embedcli.models.files import IGNORED_FOLDERS, CodeRepository, ModelFiles, read_json

# The files in which a model names classes.
NAMING_FILES = {"config.json", "tokenizer_config.json", "modules.json", "router_config.json"}


@contextmanager
def local_model_folder(files: ModelFiles) -> Iterator[Path]:
    """Provide a folder from which a model can be loaded without any look at the hub.

    It is the model's own folder if the model has no code repositories. Otherwise it is a temporary folder of links to
    the model's files, in which each code repository is a subfolder, and 'owner/name--module.Class' in the
    configuration is replaced by the module in that subfolder. Libraries look up the former on the hub.
    """
    if not files.code_repositories:
        yield files.path
        return
    with tempfile.TemporaryDirectory(prefix="embedcli-") as temporary:
        # Libraries derive the names of imported modules from that of the folder.
        folder = Path(temporary) / "model"
        _link_files(files.path, folder)
        subfolders = {}
        for number, repository in enumerate(files.code_repositories):
            subfolders[repository.name] = _link_repository(repository, folder, number)
        for file in sorted(folder.rglob("*.json")):
            if file.name in NAMING_FILES:
                _replace_file(file, subfolders)
        yield folder


def _link_files(source: Path, folder: Path) -> None:
    """Create a folder with the same subfolders as `source` and links to all files in them."""
    for root, names, files in os.walk(source, followlinks=True):
        names[:] = [name for name in names if name not in IGNORED_FOLDERS]
        target = folder / Path(root).relative_to(source)
        target.mkdir(parents=True)
        for name in files:
            (target / name).symlink_to(Path(root).resolve() / name)


def _link_repository(repository: CodeRepository, folder: Path, number: int) -> str:
    """Link a repository into a subfolder whose name can be imported and is not in use. Returns the name."""
    name = f"code_{number}"
    while (folder / name).exists():
        name += "_"
    _link_files(repository.path, folder / name)
    return name


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

"""The Python code that a model names: which repositories, files and classes would run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from embedcli.core.errors import ModelError
from embedcli.models.files import read_json, read_json_object

# Modules with a pipeline for each route in subfolders; Asym is the old name of Router.
ROUTER_MODULES = {"Router", "Asym"}
# Between a repository and a class: 'owner/name--modeling.Model'.
REPOSITORY_SEPARATOR = "--"
REPOSITORY_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
CLASS_PATH = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)+", re.ASCII)


@dataclass(frozen=True)
class CodeReference:
    """A class that loading a model would import from code that is in no library.

    Attributes:
        repository: The hub repository with the code, as OWNER/NAME; None: the model's own folder.
        file: The Python file, relative to the root of the repository or folder.
        class_name: The class.
    """

    repository: str | None
    file: str
    class_name: str


def find_custom_code(folder: Path, modules: list[tuple[str, str]]) -> tuple[CodeReference, ...]:
    """Find the classes that loading a model would import from its code; empty if all classes are in libraries.

    Args:
        folder: The model's folder.
        modules: Its pipeline, from `read_modules`.

    Raises:
        ModelError: A file cannot be read, or names code in a way that is not allowed.
    """
    every_module = [*modules, *_read_routes(folder, modules)]
    sources = [folder / path for kind, path in every_module if "." in kind or kind == "Transformer"]
    references = [parse_code_reference(kind, folder / "modules.json") for kind, _ in every_module if "." in kind]
    for source in sources:
        references += _read_auto_map(source, with_known_architectures=False)
    if references:
        # Trust is given to the model as a whole: transformers then prefers the model's code to its own classes.
        for source in sources:
            references += _read_auto_map(source, with_known_architectures=True)
    return tuple(dict.fromkeys(references))


def parse_code_reference(reference: object, source: Path) -> CodeReference:
    """Parse 'modeling.Model' or 'owner/name--modeling.Model'.

    Args:
        reference: The value in a model's configuration.
        source: The file that contains it, for the error message.

    Raises:
        ModelError: It is not of that form. The parts become paths and addresses, so nothing else may be in them.
    """
    text = reference if isinstance(reference, str) else ""
    repository, separator, class_path = text.rpartition(REPOSITORY_SEPARATOR)
    if (separator and not is_repository_name(repository)) or not CLASS_PATH.fullmatch(class_path):
        raise ModelError(
            f"{source} names Python code as {reference!r}, which is neither module.Class nor owner/name--module.Class",
            "fix the name in that file, or use another model",
        )
    module, _, class_name = class_path.rpartition(".")
    return CodeReference(repository or None, f"{module.replace('.', '/')}.py", class_name)


def is_repository_name(name: str) -> bool:
    """Whether `name` is OWNER/NAME as the hub allows it."""
    return bool(REPOSITORY_NAME.fullmatch(name)) and ".." not in name and REPOSITORY_SEPARATOR not in name


def format_code_references(references: Iterable[CodeReference]) -> str:
    """List files with their classes for people, as 'modeling.py (Model), owner/name: config.py (Config)'."""
    return ", ".join(
        f"{f'{reference.repository}: ' if reference.repository else ''}{reference.file} ({reference.class_name})"
        for reference in references
    )


def list_repositories(references: Iterable[CodeReference]) -> tuple[str, ...]:
    """List the other repositories among `references`, each once, sorted."""
    return tuple(sorted({reference.repository for reference in references if reference.repository}))


def _read_routes(folder: Path, modules: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The modules of all routes as (class name, subfolder), as `read_modules` gives those of the pipeline."""
    for kind, path in modules:
        if kind not in ROUTER_MODULES:
            continue
        config = read_json_object(folder / path / "router_config.json") or read_json_object(
            folder / path / "config.json"
        )
        for name, route_type in (config.get("types") or {}).items():
            is_own = not str(route_type).startswith("sentence_transformers.")
            yield str(route_type) if is_own else str(route_type).rpartition(".")[2], f"{path}/{name}".strip("/")


def _read_auto_map(folder: Path, *, with_known_architectures: bool) -> list[CodeReference]:
    """The classes that transformers would import from the model's code."""
    config_file, tokenizer_file = folder / "config.json", folder / "tokenizer_config.json"
    config = read_json_object(config_file)
    references: list[CodeReference] = []
    if with_known_architectures or not _is_known_architecture(str(config.get("model_type", ""))):
        for names in _auto_map(config).values():
            references += _parse_all(names, config_file)
    return references + _parse_all(_auto_map(read_json_object(tokenizer_file)).get("AutoTokenizer"), tokenizer_file)


def _auto_map(config: dict[str, Any]) -> dict[str, Any]:
    """The classes of a configuration. An old form is a list: the slow and the fast tokenizer."""
    classes = config.get("auto_map") or {}
    return classes if isinstance(classes, dict) else {"AutoTokenizer": classes}


def _parse_all(names: Any, source: Path) -> list[CodeReference]:
    """Parse a name or a list of names, in which None stands for a class that does not exist."""
    listed = names if isinstance(names, list | tuple) else [names]
    return [parse_code_reference(name, source) for name in listed if name is not None]


def _is_known_architecture(model_type: str) -> bool:
    """Whether transformers implements this architecture: it then ignores the model's code, unless that is trusted."""
    spec = find_spec("transformers") if model_type else None
    folders = (spec.submodule_search_locations if spec else None) or ()
    return any((Path(folder) / "models" / model_type.replace("-", "_")).is_dir() for folder in folders)


def has_custom_code(folder: Path) -> bool:
    """Whether a model's configuration refers to Python files."""
    modules = folder / "modules.json"
    types = [str(module.get("type", "")) for module in read_json(modules)] if modules.is_file() else []
    configs = [folder / name for name in ("config.json", "tokenizer_config.json") if (folder / name).is_file()]
    return any(not kind.startswith("sentence_transformers.") for kind in types) or any(
        "auto_map" in read_json(config) for config in configs
    )

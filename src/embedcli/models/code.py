"""The Python code that comes with a model: which files and classes would run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from embedcli.models.files import read_json_object, walk_modules


def find_custom_code(folder: Path) -> tuple[str, ...]:
    """The Python files, each with its class, that loading a model would run; empty if all classes are in libraries."""
    references: list[str] = []
    for kind, path in walk_modules(folder):
        if "." in kind:
            references.append(kind)
        if "." in kind or kind == "Transformer":
            references += _read_auto_map(folder / path)
    return tuple(dict.fromkeys(_format_code_reference(reference) for reference in references))


def _read_auto_map(folder: Path) -> list[str]:
    """The classes that transformers would import from the model's own code."""
    config = read_json_object(folder / "config.json")
    references: list[str] = []
    if not _is_known_architecture(str(config.get("model_type", ""))):
        references += list((config.get("auto_map") or {}).values())
    tokenizers = (read_json_object(folder / "tokenizer_config.json").get("auto_map") or {}).get("AutoTokenizer")
    return references + ([tokenizers] if isinstance(tokenizers, str) else [name for name in tokenizers or () if name])


def _format_code_reference(reference: str) -> str:
    """'modeling.Model' as 'modeling.py (Model)'; 'owner/repo--modeling.Model' keeps its repository."""
    repo, _, path = reference.rpartition("--")
    module, _, kind = path.rpartition(".")
    return f"{repo + ': ' if repo else ''}{module.replace('.', '/')}.py ({kind})"


def _is_known_architecture(model_type: str) -> bool:
    """Whether transformers implements this architecture: it then ignores the model's code, unless that is trusted."""
    spec = find_spec("transformers") if model_type else None
    folders = (spec.submodule_search_locations if spec else None) or ()
    return any((Path(folder) / "models" / model_type.replace("-", "_")).is_dir() for folder in folders)


def has_custom_code(folder: Path) -> bool:
    """Whether the configuration of a model or of one of its modules refers to Python files."""
    modules = list(walk_modules(folder))
    configs = [
        folder / path / name
        for path in {"", *(path for _, path in modules)}
        for name in ("config.json", "tokenizer_config.json")
    ]
    return any("." in kind for kind, _ in modules) or any("auto_map" in read_json_object(config) for config in configs)

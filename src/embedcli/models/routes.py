"""The route that texts take through a model with a Router: the modules of one role."""

from __future__ import annotations

import ast
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from embedcli.models.files import ROUTER_MODULES, read_routes, walk_modules


def list_routed_modules(folder: Path, modules: list[tuple[str, str]], task: str | None) -> list[tuple[str, str]]:
    """List the modules that a text passes, with each router replaced by the modules of its route.

    Args:
        folder: The model's folder.
        modules: Its pipeline, from `read_modules`.
        task: "query", "document" or None for the default route.

    Returns:
        The modules as (class name, subfolder). A router without such a route stays, as does one inside itself.
    """
    kinds = {path: kind for kind, path in walk_modules(folder) if kind not in ROUTER_MODULES or path}

    def follow(kind: str, path: str, depth: int) -> list[tuple[str, str]]:
        names = _read_route(read_routes(folder / path), task) if kind in ROUTER_MODULES and depth < len(kinds) else []
        inner = [(PurePosixPath(path) / name).as_posix() for name in names]
        if not inner or not all(place in kinds for place in inner):
            return [(kind, path)]
        return [module for place in inner for module in follow(kinds[place], place, depth + 1)]

    return [module for kind, path in modules for module in follow(kind, path, 0)]


def find_input_module(folder: Path, modules: list[tuple[str, str]], task: str | None) -> tuple[str, str]:
    """The module that gets the texts, as (class name, subfolder): of a router, the first of its route."""
    return list_routed_modules(folder, modules[:1], task)[0]


def _read_route(config: dict[str, Any], task: str | None) -> list[str]:
    """The names of the modules for texts of a task, chosen in the order of sentence-transformers; empty if unknown."""
    structure, parameters = config.get("structure") or {}, config.get("parameters") or {}
    mappings: dict[Any, str] = {}
    for key, name in (parameters.get("route_mappings") or {}).items():
        with suppress(ValueError, SyntaxError):
            mappings[ast.literal_eval(key)] = name
    routes = [mappings.get(key) for key in ((task, "text"), (task, None), (None, "text"), (None, None))]
    routes += [name for name in (task, "text") if name in structure]
    if task is None:
        first = next(iter(structure), None) if parameters.get("allow_empty_key", True) else None
        routes.append(parameters.get("default_route") or first)
    return next((list(structure[name]) for name in routes if name in structure), [])

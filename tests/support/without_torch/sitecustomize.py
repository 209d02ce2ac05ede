"""Hides large libraries from every Python process that has this folder in PYTHONPATH, as if they were not installed."""

from __future__ import annotations

import importlib.metadata
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

HIDDEN = {"torch", "transformers", "sentence_transformers", "sklearn", "scipy"}
DISTRIBUTIONS = {"torch", "transformers", "sentence-transformers", "scikit-learn", "scipy"}

find_spec = PathFinder.find_spec
version = importlib.metadata.version


def find_visible(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
    return None if name.partition(".")[0] in HIDDEN else find_spec(name, path, target)


def version_of_visible(name: str) -> str:
    if name in DISTRIBUTIONS:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)


vars(importlib.metadata)["version"] = version_of_visible
PathFinder.find_spec = find_visible  # type: ignore[method-assign,assignment]

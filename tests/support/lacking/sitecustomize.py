"""Run at the start of every Python process that has this folder in PYTHONPATH: hides what TESTS_LACK names."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

LARGE_LIBRARIES = {
    "torch": "torch",
    "transformers": "transformers",
    "sentence_transformers": "sentence-transformers",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
}
FUNCTIONS_OF_POSIX = {
    os: ("fchmod", "statvfs", "sysconf", "O_NOFOLLOW"),
    signal: ("SIGHUP", "pthread_sigmask"),
}
MODULES_OF_POSIX = ("grp", "pwd", "termios")


def hide_large_libraries() -> None:
    """PyTorch and what comes with it can neither be found nor have a version, as if they were not installed."""
    find_spec, version = PathFinder.find_spec, importlib.metadata.version

    def find_visible(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return None if name.partition(".")[0] in LARGE_LIBRARIES else find_spec(name, path, target)

    def version_of_visible(name: str) -> str:
        if name in LARGE_LIBRARIES.values():
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    PathFinder.find_spec = find_visible  # type: ignore[method-assign,assignment]
    vars(importlib.metadata)["version"] = version_of_visible


def hide_posix() -> None:
    """The functions and modules that Windows lacks are gone."""
    for module, names in FUNCTIONS_OF_POSIX.items():
        for name in names:
            delattr(module, name)
    os.supports_fd.discard(os.chmod)
    for name in MODULES_OF_POSIX:
        sys.modules[name] = None  # type: ignore[assignment]


{"torch": hide_large_libraries, "posix": hide_posix}[os.environ["TESTS_LACK"]]()

"""embedcli: batch text embedding from tables to vectors."""

from __future__ import annotations

# Type checkers read this as true. Importing typing takes 20 ms, in which Ctrl-C would print a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

__all__ = [
    "EmbedcliError",
    "FileResult",
    "InputError",
    "Model",
    "ModelError",
    "MtebModel",
    "OutputError",
    "ResumeError",
    "UsageError",
    "__version__",
    "embed_table",
    "encode_file",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import embedcli` loads no library."""
    if name not in __all__:
        raise AttributeError(f"module 'embedcli' has no attribute {name!r}")
    from importlib import import_module

    home = "embedcli.core.errors" if name.endswith("Error") else "embedcli.api"
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    """List the public names, without submodules and imports."""
    return __all__

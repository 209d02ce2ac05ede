"""What the shell offers for values: names of known models, and columns of the file that is already typed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import typer

PREVIEW_ROWS = 20


def complete_models(incomplete: str) -> list[str]:
    """Return the known models whose name or Hub ID begins with what is typed."""
    from embedcli.models.registry import MODEL_REGISTRY

    names = [entry.alias for entry in MODEL_REGISTRY] + [entry.hub_id for entry in MODEL_REGISTRY]
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


def complete_columns(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the columns of the first input on the command line that begin with what is typed.

    Only the beginning of a file on this machine is read; what cannot be read has no columns.
    """
    for path in typed_paths(ctx):
        if Path(path).is_file():
            return [name for name in read_columns(path) if name.startswith(incomplete)]
    return []


def complete_kept_columns(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the kept columns of the output on the command line that begin with what is typed."""
    from embedcli.core.errors import EmbedcliError
    from embedcli.outputs.dataset import open_dataset

    for path in typed_paths(ctx):
        if Path(path).exists():
            with suppress(EmbedcliError, OSError):
                return [name for name in open_dataset(path).kept_columns if name.startswith(incomplete)]
    return []


def typed_paths(ctx: typer.Context) -> Iterable[str]:
    """Yield the arguments of the command that are typed so far."""
    for param in ctx.command.params:
        value = ctx.params.get(param.name or "") if param.param_type_name == "argument" else None
        yield from [value] if isinstance(value, str) else value or ()
    # What is left when the option that is completed has no value yet.
    yield from ctx.args


def read_columns(path: str) -> list[str]:
    from embedcli.core.errors import EmbedcliError
    from embedcli.readers.preview import preview_input

    with suppress(EmbedcliError, OSError):
        return list(preview_input(path, None, "utf-8", PREVIEW_ROWS).flat_column_types)
    return []


# Completions by field of Job.
COMPLETIONS: dict[str, Callable[..., list[str]]] = {
    "model": complete_models,
    "text_column": complete_columns,
    "id_column": complete_columns,
    "keep": complete_columns,
}

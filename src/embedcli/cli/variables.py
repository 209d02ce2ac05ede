"""Options from EMBEDCLI_ variables: an unknown name is an error, and a bad value is blamed on its variable."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, get_origin

from embedcli.cli.foreign_options import FOREIGN_OPTIONS
from embedcli.core.errors import UsageError
from embedcli.core.job_options import job_field_types, validate_option

PREFIX = "EMBEDCLI_"
# Variables that are read outside the options.
OTHER_VARIABLES = ("EMBEDCLI_CACHE", "EMBEDCLI_VERBOSE", "EMBEDCLI_CONFIG")


def check_variable_names(own_options: Iterable[Any], list_all_options: Callable[[], Iterable[Any]]) -> None:
    """Raise UsageError for a variable that begins with EMBEDCLI_ and that no command reads.

    Args:
        own_options: The options of the command that runs.
        list_all_options: Returns the options of all commands, which must all be imported for it.
    """
    known = {*OTHER_VARIABLES, *(option.envvar for option in own_options if option.envvar)}
    others = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    if others:
        known |= {option.envvar for option in list_all_options() if option.envvar}
    for name in others:
        if name not in known:
            foreign = describe_foreign_variable(name, os.environ[name])
            if foreign:
                raise UsageError(f"{name} is not a variable of embedcli", foreign)
            similar = get_close_matches(name.removeprefix(PREFIX), [one.removeprefix(PREFIX) for one in known], 1)
            hint = f"did you mean {PREFIX}{similar[0]}?" if similar else f"remove it: unset {name}"
            raise UsageError(f"{name} is not a variable of embedcli", hint)


def describe_foreign_variable(name: str, value: str) -> str:
    """The hint for a variable named like an option of other programs; empty if embedcli has no option for it."""
    foreign = FOREIGN_OPTIONS.get("--" + name.removeprefix(PREFIX).lower().replace("_", "-"))
    if foreign is None or foreign.position != "here" or not foreign.takes_value or not foreign.replacement:
        return ""
    if foreign.factor != 1 and value.isdecimal():
        value = str(int(value) * foreign.factor)
    variable = PREFIX + foreign.replacement[0].removeprefix("--").replace("-", "_").upper()
    return f"{foreign.advice.replace(foreign.replacement[0], variable)}: {variable}={value}"


def check_variable_values(ctx: Any, options: Iterable[Any]) -> None:
    """Raise UsageError, which names the variable, for a value that is not valid for its job option.

    Args:
        ctx: Context of a command.
        options: Its options.
    """
    for option in options:
        source = ctx.get_parameter_source(option.name)
        if source is None or source.name != "ENVIRONMENT" or option.name not in job_field_types():
            continue
        value = ctx.params.get(option.name)
        if value is None or (
            get_origin(job_field_types()[option.name]) is tuple and not isinstance(value, list | tuple)
        ):
            continue
        try:
            validate_option(option.name, value)
        except UsageError as error:
            raise UsageError(f"{option.envvar}: {error.message}", error.hint) from None

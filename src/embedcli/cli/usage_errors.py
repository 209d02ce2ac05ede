"""Errors of the command line itself, in the words of embedcli: unknown options and commands, missing and bad values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import typer

from embedcli.cli.examples import EXAMPLES
from embedcli.cli.suggestions import (
    all_names,
    drop_extra_arguments,
    find_option,
    list_options_hint,
    suggest_command,
    suggest_option,
    suggest_value,
    with_command,
)
from embedcli.core.errors import UsageError
from embedcli.core.job_options import VALUE_HINTS, job_field_types, validate_option

# The base class of all errors that Typer reports itself.
REPORTED = typer.BadParameter.__mro__[2]
# By the beginning of the name of the type.
VALUE_DESCRIPTIONS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


class UnknownCommandError(Exception):
    """A name in the place of a command that is none.

    Attributes:
        ctx: Context of the group of commands.
        name: The name as typed.
    """

    def __init__(self, ctx: Any, name: str) -> None:
        super().__init__(name)
        self.ctx = ctx
        self.name = name


def as_usage_error(error: Any, arguments: Sequence[str]) -> UsageError:
    """Return an error that Typer or a group of commands raised, with one suggestion.

    Args:
        error: An UnknownCommandError or an error of Typer.
        arguments: Command line without the name of the program.
    """
    ctx: Any = getattr(error, "ctx", None)
    if isinstance(error, UnknownCommandError):
        return UsageError(
            f"{error.name!r} is not a command of {ctx.command_path}", suggest_command(arguments, ctx, error.name)
        )
    option = getattr(error, "option_name", None)
    if ctx is None and option is not None:
        return UsageError(f"{option} has no value", f"give one after it: {option} VALUE")
    if ctx is None:
        return UsageError(describe(error), "`embedcli --help` lists the commands")
    if isinstance(error, typer.BadParameter):
        value = find_value(error.param, ctx, arguments) if error.param is not None else None
        return missing_value(error, ctx) if value is None else bad_value(error, ctx, arguments, value)
    if option is not None:
        return misused_option(error, ctx, option, arguments)
    return unexpected_arguments(error, ctx, arguments)


def misused_option(error: Any, ctx: Any, option: str, arguments: Sequence[str]) -> UsageError:
    """Return the error for an unknown option, for one without its value, or for a switch with one."""
    if hasattr(error, "possibilities"):
        message = f"{ctx.command_path} has no option {option}"
        return UsageError(message, suggest_option(arguments, ctx, option))
    params = [param for param in ctx.command.params if option in all_names(param)]
    if not params:
        return UsageError(describe(error), list_options_hint(ctx))
    if params[0].is_flag:
        return UsageError(f"{option} takes no value", f"use {option} alone")
    return UsageError(f"{option} has no value", f"give one: {option} {params[0].make_metavar(ctx)}")


def unexpected_arguments(error: Any, ctx: Any, arguments: Sequence[str]) -> UsageError:
    extra, kept = drop_extra_arguments(arguments, ctx)
    if not extra:
        return UsageError(describe(error), f"see `{ctx.command_path} --help`")
    names = " and ".join(repr(name) for name in extra)
    return UsageError(f"{ctx.command_path} has no place for {names}", with_command("leave it out", kept))


def missing_value(error: Any, ctx: Any) -> UsageError:
    """Return the error for an argument or an option that must be given."""
    if error.param is None:
        return UsageError(describe(error), list_options_hint(ctx))
    name = error.param.metavar or (error.param.name or "").upper()
    examples = EXAMPLES.get(ctx.command_path.partition(" ")[2], ())
    return UsageError(f"{ctx.command_path} needs {name}", examples[0] if examples else list_options_hint(ctx))


def bad_value(error: Any, ctx: Any, arguments: Sequence[str], value: str) -> UsageError:
    """Return the error for a value that an option does not accept, with what set it."""
    param = error.param
    source = ctx.get_parameter_source(param.name)
    from_variable = source is not None and source.name == "ENVIRONMENT"
    option = max(param.opts, key=len)
    prefix = f"{param.envvar}: " if from_variable else ""
    choices = getattr(param.type, "choices", None)
    if choices:
        typed = () if from_variable else arguments
        hint = VALUE_HINTS.get((param.name, value)) or suggest_value(typed, value, map(str, choices))
        return UsageError(f"{prefix}{option} {value!r} is not a valid choice", hint)
    if param.name in job_field_types():
        try:
            validate_option(param.name, value)
        except UsageError as refusal:
            return UsageError(prefix + refusal.message, refusal.hint)
    expected = next((text for name, text in VALUE_DESCRIPTIONS.items() if param.type.name.startswith(name)), None)
    if expected is None:
        return UsageError(f"{prefix}{option} {value!r}: {describe(error)}", list_options_hint(ctx))
    minimum, maximum = (getattr(param.type, name, None) for name in ("min", "max"))
    if maximum is not None:
        limits = f"{expected} from {minimum} to {maximum}"
    elif minimum is not None and is_below(value, minimum):
        return UsageError(f"{prefix}{option} {value} is too small", f"give {minimum} or more")
    else:
        limits = expected if minimum is None else f"{expected}, {minimum} or more"
    return UsageError(f"{prefix}{option} {value!r} is not {limits}", f"give {limits}")


def is_below(value: str, minimum: float) -> bool:
    """Whether the text of a value is a number below a minimum."""
    try:
        return float(value) < minimum
    except ValueError:
        return False


def find_value(param: Any, ctx: Any, arguments: Sequence[str]) -> str | None:
    """Return the text of an option's value on the command line or in its variable; None if it has none."""
    for name in all_names(param):
        at = find_option(arguments, name)
        if at is not None:
            _, has_value, value = arguments[at].partition("=")
            return value if has_value else next(iter(arguments[at + 1 : at + 2]), None)
    source = ctx.get_parameter_source(param.name)
    return os.environ.get(str(param.envvar)) if source is not None and source.name == "ENVIRONMENT" else None


def describe(error: Any) -> str:
    """Return Typer's own message, for what has no message here."""
    return f"{error.message}"

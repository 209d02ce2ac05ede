"""The command that a person probably meant, made from the one that was typed."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from embedcli.cli.foreign_options import DRY_RUN, FOREIGN_COMMANDS, FOREIGN_OPTIONS, ForeignOption

# The dashes that all options share make other names alike: --workers and --no-peers have 0.63.
OPTION_SIMILARITY = 0.7


def suggest_option(arguments: Sequence[str], ctx: Any, option: str) -> str:
    """Return a hint for an option that a command does not have: the option that is meant, and the whole command.

    Args:
        arguments: Command line without the name of the program.
        ctx: Context of the command.
        option: The option as typed, without a value.
    """
    known = list_option_names(ctx.command)
    name = option.replace("_", "-")
    foreign = FOREIGN_OPTIONS.get(name)
    if name == DRY_RUN and is_encode(ctx):
        return with_command("use plan", replace_by_plan(arguments, ctx))
    if foreign is not None and name not in known and is_applicable(foreign, known, ctx):
        return with_command(foreign.advice, replace_foreign(arguments, ctx, option, foreign))
    similar = [name] if name in known else get_close_matches(name, known, 1, OPTION_SIMILARITY)
    if not similar or not option.startswith("--"):
        return list_options_hint(ctx)
    return with_command(f"did you mean {similar[0]}?", rename_option(arguments, option, similar[0]))


def suggest_command(arguments: Sequence[str], ctx: Any, name: str) -> str:
    """Return a hint for a command that does not exist; a file in its place is taken for the input of encode."""
    commands = [command for command, made in ctx.command.commands.items() if not made.hidden]
    start = list(arguments).index(name) if name in arguments else 0
    similar = get_close_matches(name.lower(), commands, 1)
    meant = FOREIGN_COMMANDS.get(name.lower()) or (similar[0] if similar else "")
    if meant in commands:
        return with_command(f"did you mean {meant}?", [*arguments[:start], meant, *arguments[start + 1 :]])
    if "encode" in commands and (Path(name).exists() or Path(name).suffix):
        return with_command("use encode", [*arguments[:start], "encode", *arguments[start:]])
    return f"`{ctx.command_path} --help` lists the commands"


def suggest_value(arguments: Sequence[str], value: str, choices: Iterable[str]) -> str:
    """Return a hint for a value that is none of the choices."""
    choices = list(choices)
    similar = get_close_matches(value, choices, 1, 0.5)
    if not similar:
        return f"choose from {', '.join(choices)}"
    changed = [replace_value(token, value, similar[0]) for token in arguments]
    return with_command(f"did you mean {similar[0]}?", changed if changed != list(arguments) else None)


def drop_extra_arguments(arguments: Sequence[str], ctx: Any) -> tuple[list[str], list[str]]:
    """Return the arguments that a command has no place for, and the command line without them."""
    start = find_start(arguments, ctx)
    room = sum(param.nargs for param in ctx.command.params if param.param_type_name == "argument")
    groups = list(group_tokens(ctx.command, arguments[start:]))
    positions = [at for at, (option, _) in enumerate(groups) if option is None][room:]
    kept = [token for at, (_, tokens) in enumerate(groups) if at not in positions for token in tokens]
    return [groups[at][1][0] for at in positions], [*arguments[:start], *kept]


def with_command(advice: str, arguments: Sequence[str] | None) -> str:
    """Return a hint that ends with the command to type, if there is one."""
    if arguments is None:
        return advice
    return f"{advice.removesuffix(':')}{'' if advice.endswith('?') else ':'} embedcli {shlex.join(arguments)}"


def list_options_hint(ctx: Any) -> str:
    return f"`{ctx.command_path} --help` lists the options"


def list_option_names(command: Any) -> list[str]:
    """Return all names of the options of a command, such as -m and --model."""
    return [name for param in command.params if param.param_type_name == "option" for name in all_names(param)]


def all_names(param: Any) -> list[str]:
    return [*param.opts, *param.secondary_opts]


def is_encode(ctx: Any) -> bool:
    return bool(ctx.parent and ctx.info_name == "encode" and "plan" in ctx.parent.command.commands)


def is_applicable(foreign: ForeignOption, known: Iterable[str], ctx: Any) -> bool:
    """Whether a command has what replaces an option."""
    if foreign.position != "here":
        return any(param.param_type_name == "argument" for param in ctx.command.params)
    return all(name in known for name in foreign.replacement if name.startswith("--"))


def rename_option(arguments: Sequence[str], option: str, name: str) -> list[str] | None:
    """Return the command line with another name for an option, which may be followed by = and a value."""
    at = find_option(arguments, option)
    if at is None:
        return None
    return [*arguments[:at], name + arguments[at][len(option) :], *arguments[at + 1 :]]


def find_option(arguments: Sequence[str], option: str) -> int | None:
    """Return the place of an option on the command line; None if it is part of a group such as -qv."""
    return next((at for at, token in enumerate(arguments) if token.partition("=")[0] == option), None)


def replace_foreign(arguments: Sequence[str], ctx: Any, option: str, foreign: ForeignOption) -> list[str] | None:
    """Return the command line with the replacement of an option of other programs; None if its value is missing."""
    at = find_option(arguments, option)
    if at is None:
        return None
    _, has_value, value = arguments[at].partition("=")
    stop = at + 1
    if foreign.takes_value and not has_value:
        if stop == len(arguments):
            return None
        value, stop = arguments[stop], stop + 1
    if foreign.factor != 1:
        with suppress(ValueError):
            value = str(int(value) * foreign.factor)
    replacement = [part.format(value) for part in foreign.replacement]
    before, after = list(arguments[:at]), list(arguments[stop:])
    if foreign.position == "last":
        return [*before, *after, *replacement]
    if foreign.position == "first":
        start = find_start(arguments, ctx)
        return [*before[:start], *replacement, *before[start:], *after]
    return [*before, *replacement, *after]


def replace_by_plan(arguments: Sequence[str], ctx: Any) -> list[str]:
    """Return `plan` with the inputs of encode and those of its options that plan has too."""
    start = find_start(arguments, ctx)
    known = list_option_names(ctx.parent.command.commands["plan"])
    groups = [group for group in group_tokens(ctx.command, arguments[start:]) if group[0] in (None, *known)]
    places = [at for at, (option, _) in enumerate(groups) if option is None]
    kept = [tokens for at, (_, tokens) in enumerate(groups) if len(places) < 2 or at != places[-1]]
    return [*arguments[: start - 1], "plan", *(token for tokens in kept for token in tokens)]


def find_start(arguments: Sequence[str], ctx: Any) -> int:
    """Return where the arguments of the command itself start on the command line."""
    start = 0
    for name in ctx.command_path.split()[1:]:
        with suppress(ValueError):
            start = list(arguments).index(name, start) + 1
    return start


def group_tokens(command: Any, tokens: Sequence[str]) -> Iterator[tuple[str | None, list[str]]]:
    """Yield each option with its value, and each argument with None for the option."""
    params = {name: param for param in command.params if param.opts for name in all_names(param)}
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        name, has_value, _ = token.partition("=")
        if not token.startswith("-") or token == "-":
            yield None, [token]
            continue
        param = params.get(name)
        needs_value = param is not None and not param.is_flag and not has_value and rest
        yield name, [token, rest.pop(0)] if needs_value else [token]


def replace_value(token: str, old: str, new: str) -> str:
    name, has_value, value = token.partition("=")
    if token == old:
        return new
    return f"{name}={new}" if has_value and value == old else token

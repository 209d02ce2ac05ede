"""Flags from a file: embedcli.toml or [tool.embedcli], and where each value of a run came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand
from typer.models import OptionInfo
from typer.utils import get_params_from_function

from embedcli.cli.console import note
from embedcli.cli.entrypoint import guarded
from embedcli.core.errors import EmbedcliError, UsageError
from embedcli.core.job_options import kinds_of, value_of

OWN_FILE = "embedcli.toml"
SHARED_FILE = "pyproject.toml"
EXAMPLES = {str: '"words"', int: "8", float: "0.5", bool: "true or false"}
SPELLED_EXAMPLES = {"part_size": '"256MB"', "shard": '"3/16"', "max_rejects": '"0.1%"'}
LINE = "command line"
Given = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Option:
    """A flag of one command: its long spelling without dashes, its parameter, its type and lower bound."""

    flag: str
    parameter: str
    kind: Any
    several: bool
    minimum: float | None
    variable: str | None

    def value(self, given: Any) -> Any:
        """A value of the file as the command takes it. ValueError, with what is wanted, for any other."""
        if not self.several:
            return self._one(given)
        return [self._one(item) for item in (given if isinstance(given, list) else [given])]

    def _one(self, given: Any) -> Any:
        choices = get_args(self.kind) if get_origin(self.kind) is Literal else ()
        if choices:
            if given in choices:
                return given
            near = get_close_matches(str(given), choices, 1)
            raise ValueError(f'did you mean "{near[0]}"?' if near else f"choose from {', '.join(choices)}")
        # As in Python: a number of bytes or of rows needs no quotes.
        number = type(given) is int and (self.kind is float or self.parameter in SPELLED_EXAMPLES)
        if type(given) is not self.kind and not number:
            raise ValueError(self._example())
        if self.minimum is not None and given < self.minimum:
            raise ValueError(f"the least is {self.minimum:g}")
        if self.parameter in kinds_of():
            try:
                value_of(self.parameter, given)
            except UsageError as error:
                raise ValueError(self._example() if self.parameter in SPELLED_EXAMPLES else error.hint) from None
        return given

    def _example(self) -> str:
        """What to write, in TOML."""
        example = SPELLED_EXAMPLES.get(self.parameter, EXAMPLES[self.kind])
        return f"write {self.flag} = {'[' * self.several}{example}{']' * self.several}"


@dataclass
class Settings:
    """What the configuration file gives: `defaults` by command and parameter, as Typer's default_map."""

    file: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)
    error: EmbedcliError | None = None


class Command(TyperCommand):
    """A command whose flags may come from the configuration file; it says which ones do."""

    def invoke(self, ctx: Any) -> Any:
        return guarded(self._configured)(ctx)

    def _configured(self, ctx: Any) -> Any:
        settings = ctx.find_root().obj
        if settings is not None and settings.error is not None:
            raise settings.error
        # A command that follows a run says this itself, in its own lines and in its report.
        if "progress" not in ctx.params and not ctx.params.get("quiet"):
            for line in announced(given(ctx)):
                note(line)
        return super().invoke(ctx)


def announced(settings: Given) -> list[str]:
    """A sentence on the flags that come from the configuration file; none if none do."""
    told = {flag: one["from"] for flag, one in settings.items() if one["from"] not in (LINE, variable(flag))}
    flags = ", ".join(f"--{flag}" for flag in told)
    return [f"From {next(iter(told.values()))}: {flags}."] if told else []


def configure(ctx: typer.Context, file: str | None, app: typer.Typer) -> None:
    """Take the defaults of all commands from the configuration file, if there is one.

    An error in the file waits until a command runs: no --help is lost to it.
    """
    ctx.obj = settings = Settings()
    try:
        found = table_of(file)
        if found is not None:
            settings.file, table = found
            settings.defaults = defaults(table, settings.file, options_of(app))
            ctx.default_map = settings.defaults
    except EmbedcliError as error:
        settings.error = error


def table_of(file: str | None) -> tuple[str, dict[str, Any]] | None:
    """The file's name and its settings: `file`, else of the current folder embedcli.toml, else pyproject.toml."""
    if file is not None:
        content = read(file)
        return file, content.get("tool", {}).get("embedcli", {}) if Path(file).name == SHARED_FILE else content
    if Path(OWN_FILE).is_file():
        return OWN_FILE, read(OWN_FILE)
    if Path(SHARED_FILE).is_file() and b"embedcli" in Path(SHARED_FILE).read_bytes():
        table = read(SHARED_FILE).get("tool", {}).get("embedcli")
        return None if table is None else (SHARED_FILE, table)
    return None


def read(file: str) -> dict[str, Any]:
    """A TOML file. UsageError if it cannot be read."""
    import tomllib

    try:
        return tomllib.loads(Path(file).read_text("utf-8"))
    except OSError as error:
        raise UsageError(
            f"{file}: cannot be read: {error.strerror}", "check the path that --config or EMBEDCLI_CONFIG gives"
        ) from None
    except ValueError as error:
        raise UsageError(f"{file}: is not TOML: {error}", 'write lines such as model = "all-MiniLM-L6-v2"') from None


Commands = dict[str, Any]


@cache
def options_of(app: typer.Typer) -> Commands:
    """The options of every command by their names; a group's commands one level deeper."""
    found: Commands = {}
    for command in app.registered_commands:
        assert command.callback
        found[command.name or command.callback.__name__] = {one.flag: one for one in options(command.callback)}
    for group in app.registered_groups:
        assert group.typer_instance
        found[str(group.typer_instance.info.name)] = options_of(group.typer_instance)
    return found


def options(command: Callable[..., Any]) -> Iterator[Option]:
    for name, parameter in get_params_from_function(command).items():
        info, kind = parameter.default, parameter.annotation
        if not isinstance(info, OptionInfo):
            continue
        if NoneType in get_args(kind):
            kind = next(part for part in get_args(kind) if part is not NoneType)
        several = get_origin(kind) is list
        long = next(one for one in info.param_decls or () if one.startswith("--"))
        flag = long.split("/")[0].removeprefix("--")
        variable = info.envvar if isinstance(info.envvar, str) else None
        yield Option(flag, name, get_args(kind)[0] if several else kind, several, info.min, variable)


def defaults(table: Mapping[str, Any], file: str, commands: Commands) -> dict[str, Any]:
    """The file's values by command and parameter. UsageError naming the file and the key that is not right."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    for key in plain:
        refuse_unknown(key, file, commands)
    made = spread(plain, file, commands)
    for name, inner in table.items():
        if isinstance(inner, dict):
            if name not in commands:
                raise UsageError(f"{file}: [{name}] is no command of embedcli", nearest(name, commands, "[{}]"))
            merge(made[name], own(inner, file, name, commands[name]))
    return made


def spread(plain: Mapping[str, Any], file: str, commands: Commands) -> dict[str, Any]:
    """Values outside any table: for each command the flags that read an EMBEDCLI_ variable too."""
    made: dict[str, Any] = {}
    for name, options in commands.items():
        if any(isinstance(part, dict) for part in options.values()):
            made[name] = spread(plain, file, options)
            continue
        shared = {one.flag: one for one in options.values() if one.variable}
        values = {key: value for key, value in plain.items() if dashed(key) in shared}
        made[name] = own(values, file, "", shared)
    return made


def own(values: Mapping[str, Any], file: str, table: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """One table's values by parameter, each checked."""
    made: dict[str, Any] = {}
    for key, given in values.items():
        where = f"{file}: {key}" + (f" in [{table}]" if table else "")
        option = options.get(dashed(key))
        if option is None:
            raise UsageError(f"{where} is no flag of embedcli {table.replace('.', ' ')}", nearest(key, options))
        if isinstance(option, dict):
            if not isinstance(given, dict):
                raise UsageError(f"{where} is a command, not a flag", f"write its flags under [{table}.{key}]")
            made[key] = own(given, file, f"{table}.{key}", option)
            continue
        try:
            made[option.parameter] = option.value(given)
        except ValueError as error:
            raise UsageError(f"{where}: {given!r} does not fit", str(error)) from None
    return made


def merge(made: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict):
            merge(made[key], value)
        else:
            made[key] = value


def refuse_unknown(key: str, file: str, commands: Commands) -> None:
    """UsageError for a key outside tables that no command would take from there."""
    flat = [(name, one) for name, options in flattened(commands) for one in options.values()]
    if any(one.flag == dashed(key) and one.variable for _, one in flat):
        return
    owners = ", ".join(f"[{name}]" for name, one in flat if one.flag == dashed(key))
    if owners:
        several = "one of " * ("," in owners)
        raise UsageError(f"{file}: {key} is not a flag of every command", f"write it under {several}{owners}")
    if key in commands:
        raise UsageError(f"{file}: {key} is a command, not a flag", f"write its flags under [{key}]")
    known = {one.flag for _, one in flat if one.variable}
    raise UsageError(f"{file}: {key} is no flag of embedcli", nearest(key, known | set(commands)))


def flattened(commands: Commands, prefix: str = "") -> Iterator[tuple[str, dict[str, Option]]]:
    for name, options in commands.items():
        if any(isinstance(part, dict) for part in options.values()):
            yield from flattened(options, f"{prefix}{name}.")
        else:
            yield prefix + name, options


def nearest(key: str, known: Any, form: str = "{}") -> str:
    """What to write instead of an unknown name."""
    near = get_close_matches(dashed(key), sorted(known), 1, 0.5)
    return f"did you mean {form.format(near[0])}?" if near else "`embedcli encode --help` lists the flags"


def variable(flag: str) -> str:
    """The environment variable of a flag, if it has one: --text-column reads EMBEDCLI_TEXT_COLUMN."""
    return "EMBEDCLI_" + flag.replace("-", "_").upper()


def dashed(key: str) -> str:
    return key.replace("_", "-")


def given(ctx: Any) -> Given:
    """Each flag that is not left at its default: its value, and whether command line, variable or file gave it."""
    settings = ctx.find_root().obj
    made: Given = {}
    for parameter in ctx.command.params:
        flag = next((one[2:] for one in parameter.opts if one.startswith("--")), None)
        source = getattr(ctx.get_parameter_source(parameter.name), "name", "DEFAULT")
        if flag is None or source == "DEFAULT":
            continue
        said = {"DEFAULT_MAP": settings.file if settings else "", "ENVIRONMENT": str(parameter.envvar)}
        made[flag] = {"value": ctx.params.get(parameter.name), "from": said.get(source, LINE)}
    return made

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

from embedcli.cli.console import print_note
from embedcli.cli.entrypoint import handle_errors
from embedcli.core.errors import EmbedcliError, UsageError
from embedcli.core.job_options import job_field_types, validate_option

CONFIG_FILE = "embedcli.toml"
PYPROJECT_FILE = "pyproject.toml"
TOML_EXAMPLES = {str: '"words"', int: "8", float: "0.5", bool: "true or false"}
TEXT_OPTION_EXAMPLES = {"part_size": '"256MB"', "shard": '"3/16"', "max_rejects": '"0.1%"'}
COMMAND_LINE = "command line"
OptionSources = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class CommandOption:
    """A flag of one command: its long spelling without dashes, its parameter, its type and lower bound."""

    flag: str
    parameter: str
    value_type: Any
    is_list: bool
    minimum: float | None
    environment_variable: str | None

    def parse_value(self, given: Any) -> Any:
        """A value of the file as the command takes it. ValueError, with what is wanted, for any other."""
        if not self.is_list:
            return self._one(given)
        return [self._one(item) for item in (given if isinstance(given, list) else [given])]

    def _one(self, given: Any) -> Any:
        choices = get_args(self.value_type) if get_origin(self.value_type) is Literal else ()
        if choices:
            if given in choices:
                return given
            near = get_close_matches(str(given), choices, 1)
            raise ValueError(f'did you mean "{near[0]}"?' if near else f"choose from {', '.join(choices)}")
        # As in Python: a number of bytes or of rows needs no quotes.
        number = type(given) is int and (self.value_type is float or self.parameter in TEXT_OPTION_EXAMPLES)
        if type(given) is not self.value_type and not number:
            raise ValueError(self._example())
        if self.minimum is not None and given < self.minimum:
            raise ValueError(f"the least is {self.minimum:g}")
        if self.parameter in job_field_types():
            try:
                validate_option(self.parameter, given)
            except UsageError as error:
                raise ValueError(self._example() if self.parameter in TEXT_OPTION_EXAMPLES else error.hint) from None
        return given

    def _example(self) -> str:
        """What to write, in TOML."""
        example = TEXT_OPTION_EXAMPLES.get(self.parameter, TOML_EXAMPLES[self.value_type])
        return f"write {self.flag} = {'[' * self.is_list}{example}{']' * self.is_list}"


@dataclass
class ConfigDefaults:
    """What the configuration file gives: `defaults` by command and parameter, as Typer's default_map."""

    config_file: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)
    error: EmbedcliError | None = None


class ConfigurableCommand(TyperCommand):
    """A command whose flags may come from the configuration file; it says which ones do."""

    def invoke(self, ctx: Any) -> Any:
        return handle_errors(self._configured)(ctx)

    def _configured(self, ctx: Any) -> Any:
        settings = ctx.find_root().obj
        if settings is not None and settings.error is not None:
            raise settings.error
        # A command that follows a run says this itself, in its own lines and in its report.
        if "progress" not in ctx.params and not ctx.params.get("quiet"):
            for line in describe_config_options(collect_given_options(ctx)):
                print_note(line)
        return super().invoke(ctx)


def describe_config_options(settings: OptionSources) -> list[str]:
    """A sentence on the flags that come from the configuration file; none if none do."""
    told = {
        flag: one["from"]
        for flag, one in settings.items()
        if one["from"] not in (COMMAND_LINE, environment_variable(flag))
    }
    flags = ", ".join(f"--{flag}" for flag in told)
    return [f"From {next(iter(told.values()))}: {flags}."] if told else []


def load_config(ctx: typer.Context, file: str | None, app: typer.Typer) -> None:
    """Take the defaults of all commands from the configuration file, if there is one.

    An error in the file waits until a command runs: no --help is lost to it.
    """
    ctx.obj = settings = ConfigDefaults()
    try:
        found = find_config_table(file)
        if found is not None:
            settings.config_file, table = found
            settings.defaults = build_defaults(table, settings.config_file, collect_options(app))
            ctx.default_map = settings.defaults
    except EmbedcliError as error:
        settings.error = error


def find_config_table(file: str | None) -> tuple[str, dict[str, Any]] | None:
    """The file's name and its settings: `file`, else of the current folder embedcli.toml, else pyproject.toml."""
    if file is not None:
        content = read_toml(file)
        return file, content.get("tool", {}).get("embedcli", {}) if Path(file).name == PYPROJECT_FILE else content
    if Path(CONFIG_FILE).is_file():
        return CONFIG_FILE, read_toml(CONFIG_FILE)
    if Path(PYPROJECT_FILE).is_file() and b"embedcli" in Path(PYPROJECT_FILE).read_bytes():
        table = read_toml(PYPROJECT_FILE).get("tool", {}).get("embedcli")
        return None if table is None else (PYPROJECT_FILE, table)
    return None


def read_toml(file: str) -> dict[str, Any]:
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


CommandOptions = dict[str, Any]


@cache
def collect_options(app: typer.Typer) -> CommandOptions:
    """The options of every command by their names; a group's commands one level deeper."""
    found: CommandOptions = {}
    for command in app.registered_commands:
        assert command.callback
        found[command.name or command.callback.__name__] = {one.flag: one for one in iterate_options(command.callback)}
    for group in app.registered_groups:
        assert group.typer_instance
        found[str(group.typer_instance.info.name)] = collect_options(group.typer_instance)
    return found


def iterate_options(command: Callable[..., Any]) -> Iterator[CommandOption]:
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
        yield CommandOption(flag, name, get_args(kind)[0] if several else kind, several, info.min, variable)


def build_defaults(table: Mapping[str, Any], file: str, commands: CommandOptions) -> dict[str, Any]:
    """The file's values by command and parameter. UsageError naming the file and the key that is not right."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    for key in plain:
        reject_unknown_key(key, file, commands)
    made = spread_to_commands(plain, file, commands)
    for name, inner in table.items():
        if isinstance(inner, dict):
            if name not in commands:
                raise UsageError(f"{file}: [{name}] is no command of embedcli", suggest_name(name, commands, "[{}]"))
            merge_defaults(made[name], parse_table(inner, file, name, commands[name]))
    return made


def spread_to_commands(plain: Mapping[str, Any], file: str, commands: CommandOptions) -> dict[str, Any]:
    """Values outside any table: for each command the flags that read an EMBEDCLI_ variable too."""
    made: dict[str, Any] = {}
    for name, options in commands.items():
        if any(isinstance(part, dict) for part in options.values()):
            made[name] = spread_to_commands(plain, file, options)
            continue
        shared = {one.flag: one for one in options.values() if one.environment_variable}
        values = {key: value for key, value in plain.items() if with_dashes(key) in shared}
        made[name] = parse_table(values, file, "", shared)
    return made


def parse_table(values: Mapping[str, Any], file: str, table: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """One table's values by parameter, each checked."""
    made: dict[str, Any] = {}
    for key, given in values.items():
        where = f"{file}: {key}" + (f" in [{table}]" if table else "")
        option = options.get(with_dashes(key))
        if option is None:
            raise UsageError(f"{where} is no flag of embedcli {table.replace('.', ' ')}", suggest_name(key, options))
        if isinstance(option, dict):
            if not isinstance(given, dict):
                raise UsageError(f"{where} is a command, not a flag", f"write its flags under [{table}.{key}]")
            made[key] = parse_table(given, file, f"{table}.{key}", option)
            continue
        try:
            made[option.parameter] = option.parse_value(given)
        except ValueError as error:
            raise UsageError(f"{where}: {given!r} does not fit", str(error)) from None
    return made


def merge_defaults(made: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict):
            merge_defaults(made[key], value)
        else:
            made[key] = value


def reject_unknown_key(key: str, file: str, commands: CommandOptions) -> None:
    """UsageError for a key outside tables that no command would take from there."""
    flat = [(name, one) for name, options in flatten_commands(commands) for one in options.values()]
    if any(one.flag == with_dashes(key) and one.environment_variable for _, one in flat):
        return
    owners = ", ".join(f"[{name}]" for name, one in flat if one.flag == with_dashes(key))
    if owners:
        several = "one of " * ("," in owners)
        raise UsageError(f"{file}: {key} is not a flag of every command", f"write it under {several}{owners}")
    if key in commands:
        raise UsageError(f"{file}: {key} is a command, not a flag", f"write its flags under [{key}]")
    known = {one.flag for _, one in flat if one.environment_variable}
    raise UsageError(f"{file}: {key} is no flag of embedcli", suggest_name(key, known | set(commands)))


def flatten_commands(commands: CommandOptions, prefix: str = "") -> Iterator[tuple[str, dict[str, CommandOption]]]:
    for name, options in commands.items():
        if any(isinstance(part, dict) for part in options.values()):
            yield from flatten_commands(options, f"{prefix}{name}.")
        else:
            yield prefix + name, options


def suggest_name(key: str, known: Any, form: str = "{}") -> str:
    """What to write instead of an unknown name."""
    near = get_close_matches(with_dashes(key), sorted(known), 1, 0.5)
    return f"did you mean {form.format(near[0])}?" if near else "`embedcli encode --help` lists the flags"


def environment_variable(flag: str) -> str:
    """The environment variable of a flag, if it has one: --text-column reads EMBEDCLI_TEXT_COLUMN."""
    return "EMBEDCLI_" + flag.replace("-", "_").upper()


def with_dashes(key: str) -> str:
    return key.replace("_", "-")


def collect_given_options(ctx: Any) -> OptionSources:
    """Each flag that is not left at its default: its value, and whether command line, variable or file gave it."""
    settings = ctx.find_root().obj
    made: OptionSources = {}
    for parameter in ctx.command.params:
        flag = next((one[2:] for one in parameter.opts if one.startswith("--")), None)
        source = getattr(ctx.get_parameter_source(parameter.name), "name", "DEFAULT")
        if flag is None or source == "DEFAULT":
            continue
        said = {"DEFAULT_MAP": settings.config_file if settings else "", "ENVIRONMENT": str(parameter.envvar)}
        made[flag] = {"value": ctx.params.get(parameter.name), "from": said.get(source, COMMAND_LINE)}
    return made

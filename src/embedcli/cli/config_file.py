"""Options from a configuration file, and a record of where each option of a run came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_origin

import typer
from typer.core import TyperGroup

from embedcli.cli.console import print_note
from embedcli.cli.entrypoint import handle_errors
from embedcli.cli.help import CommandWithHelp
from embedcli.cli.variables import check_variable_names, check_variable_values
from embedcli.core.errors import EmbedcliError, UsageError
from embedcli.core.job_options import job_field_types, validate_option

CONFIG_FILE = "embedcli.toml"
PYPROJECT_FILE = "pyproject.toml"
COMMAND_LINE = "command line"
TYPE_DESCRIPTIONS = {str: "a string", bool: "true or false", int: "a whole number", float: "a number"}
# Option by its long name without dashes -> {"value": ..., "from": ...}, as in the run report.
OptionSources = dict[str, dict[str, Any]]
# Click's options by command ("encode", "batch.export") and long name without dashes.
CommandOptions = dict[str, dict[str, Any]]


@dataclass
class ConfigState:
    """The configuration file in use, if any, and what is wrong with it."""

    file: str = ""
    error: EmbedcliError | None = None


class ConfigurableCommand(CommandWithHelp):
    """A command whose options may come from the configuration file; it prints which ones do."""

    def invoke(self, ctx: Any) -> Any:
        return handle_errors(self._invoke_configured)(ctx)

    def _invoke_configured(self, ctx: Any) -> Any:
        root = ctx.find_root()
        config = root.obj
        if isinstance(root.command, TyperGroup):
            check_variable_names(command_options(ctx.command).values(), lambda: iterate_options(root.command))
        check_variable_values(ctx, command_options(ctx.command).values())
        if config is not None and config.error is not None:
            raise config.error
        # Commands that show progress print these lines themselves, between their own, and put them in the report.
        if "progress" not in ctx.params and not ctx.params.get("quiet"):
            for line in describe_config_options(collect_given_options(ctx)):
                print_note(line)
        return super().invoke(ctx)


def load_config(ctx: typer.Context, file: str | None) -> None:
    """Make the configuration file's values the default values of all commands.

    An error in the file is raised only when a command runs, so that --help always works.

    Args:
        ctx: Context of the whole program, not of a command.
        file: The file that the user named; None to look in the current folder.
    """
    ctx.obj = config = ConfigState()
    try:
        config.file, table = read_config_table(file)
        ctx.default_map = build_defaults(table, config.file, ctx) if table else {}
    except EmbedcliError as error:
        config.error = error


def collect_given_options(ctx: Any) -> OptionSources:
    """Return the options that are not left at their defaults: value, and what set it."""
    config = ctx.find_root().obj
    given: OptionSources = {}
    for name, option in command_options(ctx.command).items():
        source = ctx.get_parameter_source(option.name)
        if source is None or source.name == "DEFAULT":
            continue
        origins = {"DEFAULT_MAP": config.file if config else "", "ENVIRONMENT": str(option.envvar)}
        given[name] = {"value": ctx.params.get(option.name), "from": origins.get(source.name, COMMAND_LINE)}
    return given


def describe_config_options(given: OptionSources) -> list[str]:
    """Return a line that lists the options set by the configuration file; no line if there are none."""
    from_file = {
        name: option["from"]
        for name, option in given.items()
        if option["from"] not in (COMMAND_LINE, environment_variable(name))
    }
    names = ", ".join(f"--{name}" for name in from_file)
    return [f"From {next(iter(from_file.values()))}: {names}."] if from_file else []


def environment_variable(name: str) -> str:
    """Return the environment variable of a job option: EMBEDCLI_TEXT_COLUMN for text-column."""
    return "EMBEDCLI_" + name.replace("-", "_").upper()


def read_config_table(file: str | None) -> tuple[str, dict[str, Any]]:
    """Read the file that applies: `file`, else embedcli.toml, else [tool.embedcli] of pyproject.toml.

    Returns:
        The file's name and its settings; ("", {}) if there is no file.

    Raises:
        UsageError: The file cannot be read.
    """
    if file is None:
        candidates = [name for name in (CONFIG_FILE, PYPROJECT_FILE) if Path(name).is_file()]
        if not candidates or (candidates[0] == PYPROJECT_FILE and b"embedcli" not in Path(PYPROJECT_FILE).read_bytes()):
            return "", {}
        file = candidates[0]
    content = read_toml(file)
    return file, content.get("tool", {}).get("embedcli", {}) if Path(file).name == PYPROJECT_FILE else content


def read_toml(file: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(Path(file).read_text("utf-8"))
    except OSError as error:
        raise UsageError(
            f"{file}: cannot be read: {error.strerror}", "check the path that --config or EMBEDCLI_CONFIG gives"
        ) from None
    except ValueError as error:
        raise UsageError(f"{file}: is not TOML: {error}", 'write lines such as model = "all-MiniLM-L6-v2"') from None


def collect_options(group: Any, prefix: str = "") -> CommandOptions:
    """Return the options of all commands of a Click group and of the groups in it."""
    options: CommandOptions = {}
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            options |= collect_options(command, f"{prefix}{name}.")
        else:
            options[prefix + name] = command_options(command)
    return options


def iterate_options(group: Any) -> Iterator[Any]:
    """Yield the options of all commands of a Click group."""
    for options in collect_options(group).values():
        yield from options.values()


def command_options(command: Any) -> dict[str, Any]:
    """Return a command's Click options by long name without dashes."""
    options = (parameter for parameter in command.params if parameter.param_type_name == "option")
    return {next(name[2:] for name in option.opts if name.startswith("--")): option for option in options}


def build_defaults(table: Mapping[str, Any], file: str, ctx: typer.Context) -> dict[str, Any]:
    """Check a file's settings and turn them into Click's default_map.

    A value outside any table applies to every command that has the option and reads its EMBEDCLI_ variable;
    a value in the table of a command overrides it.

    Raises:
        UsageError: A key or a value is wrong; the message names file, table and key.
    """
    options = collect_options(ctx.command)
    sections = {path for command in options for path in (command, command.split(".")[0])}
    defaults: dict[str, Any] = {}
    for section, key, value in iterate_settings(table, file, sections):
        where = f"{file}: {key}" + (f" in [{section}]" if section else "")
        name, path = key.replace("_", "-"), f"{section}.{key}" if section else key
        if path in sections:
            raise UsageError(f"{where} is a command, not an option", f"write its options under [{path}]")
        targets = {
            command: available[name]
            for command, available in options.items()
            if name in available and (command == section or (not section and available[name].envvar))
        }
        if not targets:
            raise unknown_key_error(where, name, section, options)
        for command, option in targets.items():
            values = value if option.multiple and isinstance(value, list) else [value]
            for item in values:
                check_value(where, option, item, ctx)
            command_defaults = defaults
            for part in command.split("."):
                command_defaults = command_defaults.setdefault(part, {})
            command_defaults[option.name] = values if option.multiple else value
    return defaults


def iterate_settings(
    table: Mapping[str, Any], file: str, sections: Iterable[str], section: str = ""
) -> Iterator[tuple[str, str, Any]]:
    """Yield section, key and value; of each table, first the values and then the tables in it."""
    for key, value in sorted(table.items(), key=lambda item: isinstance(item[1], dict)):
        path = f"{section}.{key}" if section else key
        if not isinstance(value, dict):
            yield section, key, value
        elif path in sections:
            yield from iterate_settings(value, file, sections, path)
        else:
            raise UsageError(f"{file}: [{path}] is not a command of embedcli", suggest_name(path, sections, "[{}]"))


def check_value(where: str, option: Any, value: Any, ctx: typer.Context) -> None:
    """Raise UsageError unless the option accepts the value: job options by Job's rules, others by Click's."""
    if option.name in job_field_types():
        is_list = get_origin(job_field_types()[option.name]) is tuple
        try:
            validate_option(option.name, [value] if is_list else value)
        except UsageError as error:
            raise UsageError(f"{where}: {error.message}", error.hint) from None
        return
    try:
        kind = type(option.type.convert(str(value), option, ctx))
    except typer.BadParameter as error:
        raise UsageError(f"{where}: {error.message}", "`embedcli COMMAND --help` lists the options") from None
    # Click also accepts "8" for 8 and 1 for true; TOML has types of its own.
    if type(value) is not kind and (type(value), kind) != (int, float):
        wanted = TYPE_DESCRIPTIONS[kind]
        raise UsageError(f"{where}: {value!r} is not {wanted}", f"write {wanted}")


def unknown_key_error(where: str, name: str, section: str, options: CommandOptions) -> UsageError:
    """Return the error for a key that no command accepts in this place."""
    if section:
        known = options.get(section, {})
        return UsageError(
            f"{where} is not an option of embedcli {section.replace('.', ' ')}", suggest_name(name, known)
        )
    owners = [f"[{command}]" for command, available in options.items() if name in available]
    if owners:
        one_of = "one of " if len(owners) > 1 else ""
        hint = f"write it under {one_of}{', '.join(owners)}"
        return UsageError(f"{where} is not an option of every command", hint)
    shared = {name for available in options.values() for name, option in available.items() if option.envvar}
    return UsageError(f"{where} is not an option of embedcli", suggest_name(name, shared | set(options)))


def suggest_name(name: str, known: Iterable[str], form: str = "{}") -> str:
    """Return a hint with the known name that is most like `name`."""
    similar = get_close_matches(name, sorted(known), 1, 0.5)
    return f"did you mean {form.format(similar[0])}?" if similar else "`embedcli encode --help` lists the options"

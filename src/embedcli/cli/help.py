"""Help texts: examples first, options in panels; `-h` shows the common options, `--help` all."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from embedcli.cli.console import has_color, print_styled
from embedcli.cli.examples import EXAMPLES
from embedcli.cli.option_groups import COMMON_OPTIONS, OWN_PANEL, PANELS, find_panel
from embedcli.core.terminal import escape_for_terminal

# Lines longer than this are hard to read, however wide the terminal is.
MAX_WIDTH = 120
HELP_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": MAX_WIDTH}
# Commands with at most this many options have one help text: all of it.
MAX_SHORT_OPTIONS = 22
IS_SHORT = "embedcli.short_help"


class CommandWithHelp(TyperCommand):
    """A command with the help texts of this module."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        remember_help_length(ctx, args)
        return super().parse_args(ctx, args)

    def get_help_option(self, ctx: Any) -> Any:
        return with_styled_help(super().get_help_option(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return collect_usage(self, ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        format_head(self, ctx, formatter)
        format_panels(self, ctx, formatter)


class GroupWithHelp(TyperGroup):
    """A group of commands with the help texts of this module; without arguments it prints them, as a usage error."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            print_styled(format_help_text(ctx, has_color(sys.stderr)), sys.stderr)
            ctx.exit(2)
        remember_help_length(ctx, args)
        return super().parse_args(ctx, args)

    def get_help_option(self, ctx: Any) -> Any:
        return with_styled_help(super().get_help_option(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        format_head(self, ctx, formatter)
        format_commands(self, formatter, bool(ctx.color))
        format_panels(self, ctx, formatter)


def remember_help_length(ctx: Any, args: list[str]) -> None:
    """Note in the context whether the short help was asked for: `-h`, not `--help`."""
    ctx.meta[IS_SHORT] = "-h" in args and "--help" not in args


def with_styled_help(option: Any) -> Any:
    """Return the help option with a callback that prints the help with colour, and exits."""

    def show_help(ctx: Any, _: Any, is_given: bool) -> None:
        if is_given and not ctx.resilient_parsing:
            print_styled(format_help_text(ctx, has_color(sys.stdout)), sys.stdout)
            ctx.exit()

    if option is not None:
        option.callback = show_help
        option.help = "Show the common options (-h) or all of them (--help), and exit."
    return option


def format_help_text(ctx: Any, is_colored: bool) -> str:
    """Return the help of the command of a context, with escape sequences for colours if asked for."""
    ctx.color = is_colored
    return str(ctx.get_help())


def collect_usage(command: Any, ctx: Any) -> list[str]:
    """Return the options and arguments of the usage line; arguments that may be left out are in brackets."""
    arguments = [param for param in command.get_params(ctx) if param.param_type_name == "argument"]
    names = [(param.metavar or param.name.upper(), param.required) for param in arguments]
    return [command.options_metavar, *(name if required else f"[{name}]" for name, required in names)]


def format_head(command: Any, ctx: Any, formatter: Any) -> None:
    """Write usage, description and examples; for the short help only the first paragraph of the description."""
    is_colored = bool(ctx.color)
    pieces = " ".join(command.collect_usage_pieces(ctx))
    formatter.write_usage(ctx.command_path, pieces, style("Usage", is_colored, bold=True) + ": ")
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    formatter.write_paragraph()
    with formatter.indentation():
        formatter.write_text("\n\n".join(paragraphs[:1] if is_short(command, ctx) else paragraphs))
    examples = EXAMPLES.get(command_name(ctx), ())
    if examples:
        with formatter.section(heading("Examples", is_colored)):
            for example in examples:
                formatter.write(f"  {example}\n")


def command_name(ctx: Any) -> str:
    """Return the command as typed after the program's name: "batch export"; empty for the program itself."""
    return str(ctx.command_path.partition(" ")[2]) if ctx.parent else ""


def is_short(command: Any, ctx: Any) -> bool:
    return bool(ctx.meta.get(IS_SHORT)) and len(command.get_params(ctx)) > MAX_SHORT_OPTIONS


def format_panels(command: Any, ctx: Any, formatter: Any) -> None:
    """Write the arguments, and then the options of each panel."""
    params = [param for param in command.get_params(ctx) if not param.hidden]
    is_colored, short, is_group = bool(ctx.color), is_short(command, ctx), isinstance(command, TyperGroup)
    panels: dict[str, list[Any]] = {"Arguments": []} | {panel: [] for panel in PANELS}
    for param in params:
        if param.param_type_name == "argument":
            panels["Arguments"].append(param)
        elif not short or param.name in COMMON_OPTIONS or find_panel(param.name) == OWN_PANEL:
            panels[OWN_PANEL if is_group else panel_of(param)].append(param)
    for panel, members in panels.items():
        records = [(param, param.get_help_record(ctx)) for param in sort_members(panel, members)]
        rows = [(option_names(param, record[0]), record[1]) for param, record in records if record]
        write_rows(formatter, panel, rows, is_colored)
    if short:
        count = sum(param.param_type_name == "option" for param in params)
        formatter.write_paragraph()
        formatter.write_text(f"`{ctx.command_path} --help` lists all {count} options and explains more.")


def sort_members(panel: str, members: list[Any]) -> list[Any]:
    """Return the options of a panel in its order, those that it does not name first."""
    order = {name: place for place, name in enumerate(PANELS.get(panel, ()))}
    return sorted(members, key=lambda param: order.get(param.name, -1))


def panel_of(param: Any) -> str:
    """Return the panel of an option: the one that its declaration names, else by its name."""
    return param.rich_help_panel if param.rich_help_panel in PANELS else find_panel(param.name)


def option_names(param: Any, shown: str) -> str:
    """Return the first column of an entry: an argument in capitals, as in the usage line."""
    return (param.metavar or param.name.upper()) if param.param_type_name == "argument" else shown


def format_commands(group: Any, formatter: Any, is_colored: bool) -> None:
    """Write the commands in panels, each with the first sentence of its description."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for name, command in group.commands.items():
        if not command.hidden:
            panel = command.rich_help_panel if isinstance(command.rich_help_panel, str) else "Commands"
            panels.setdefault(panel, []).append((name, first_sentence(command.help or "")))
    width = max(len(name) for rows in panels.values() for name, _ in rows)
    for panel, rows in panels.items():
        write_rows(formatter, panel, [(name.ljust(width), text) for name, text in rows], is_colored)


def first_sentence(text: str) -> str:
    """Return the first paragraph of a description as one line, up to its first full stop."""
    line = " ".join(inspect.cleandoc(text).split("\n\n")[0].split())
    return line.split(". ")[0].rstrip(".") + "."


def write_rows(formatter: Any, title: str, rows: list[tuple[str, str]], is_colored: bool) -> None:
    if rows:
        with formatter.section(heading(title, is_colored)):
            formatter.write_dl(
                [(style(name, is_colored, fg="cyan"), escape_for_terminal(text or "")) for name, text in rows]
            )


def heading(title: str, is_colored: bool) -> str:
    return style(title, is_colored, bold=True)


def style(text: str, is_colored: bool, **look: Any) -> str:
    """Return text with the escape sequences of a look, or unchanged."""
    return typer.style(text, **look) if is_colored else text

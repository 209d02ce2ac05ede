"""The groups of commands, and the program as a whole: every error of the command line is printed in one form."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import typer
from typer.main import get_command

from embedcli.cli.config_file import ConfigurableCommand
from embedcli.cli.entrypoint import report_error
from embedcli.cli.help import GroupWithHelp
from embedcli.core.signals import EXIT_INTERRUPTED


class CommandGroup(GroupWithHelp):
    """A group that says which command is meant when a name is not one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            from embedcli.cli.usage_errors import UnknownCommandError

            raise UnknownCommandError(ctx, name)
        return super().resolve_command(ctx, args)


class CommandHome(NamedTuple):
    """Where a command is written and shown.

    Attributes:
        panel: The panel of the program's help that lists it.
        module: The module with its function, or with the Typer application of a group of commands.
        attribute: The name of either.
    """

    panel: str
    module: str
    attribute: str


class CommandTable(Mapping[str, Any]):
    """Click's commands by name; each is imported and built when it is first asked for."""

    def __init__(self, homes: Mapping[str, CommandHome]) -> None:
        self._homes = homes
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = build_command(name, self._homes[name])
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)


def build_command(name: str, home: CommandHome) -> Any:
    """Import a command and build it for Click."""
    app = getattr(import_module(home.module), home.attribute)
    if not isinstance(app, typer.Typer):
        function, app = app, typer.Typer(rich_markup_mode=None, add_completion=False)
        app.command(name, cls=ConfigurableCommand)(function)
    command: Any = get_command(app)
    command.rich_help_panel = home.panel
    return command


class Program(CommandGroup):
    """The program. Errors of the command line end it as all others do: with a message, a hint and an exit code.

    Subclasses name the commands in `homes`. Only the one that runs is imported.
    """

    homes: ClassVar[Mapping[str, CommandHome]]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = CommandTable(self.homes)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        settings = (prog_name, complete_var, False, windows_expand_args)
        if not standalone_mode:
            return super().main(args, *settings, **extra)
        try:
            code = super().main(args, *settings, **extra)
        except typer.Abort:
            sys.exit(EXIT_INTERRUPTED)
        except Exception as error:
            from embedcli.cli.usage_errors import REPORTED, UnknownCommandError, as_usage_error

            if not isinstance(error, (REPORTED, UnknownCommandError)):
                raise
            typed = sys.argv[1:] if args is None else list(args)
            sys.exit(report_error(as_usage_error(error, typed)))
        sys.exit(code if isinstance(code, int) else 0)

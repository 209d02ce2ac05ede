"""The groups of commands, and the program as a whole: every error of the command line is printed in one form."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer

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


class Program(CommandGroup):
    """The program. Errors of the command line end it as all others do: with a message, a hint and an exit code."""

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

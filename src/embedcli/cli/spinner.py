"""A spinner on stderr for commands that print nothing until they are done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from embedcli.cli.console import print_note


@contextmanager
def show_spinner(text: str, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Show a spinner with the elapsed time while the block runs, if stderr is a terminal.

    Args:
        text: What happens, in a few words.
        quiet: Show neither the spinner nor notes.

    Yields:
        The function that prints a note, above the spinner if there is one.
    """
    if quiet:
        yield discard_note
    elif not sys.stderr.isatty():
        yield print_note
    else:
        from embedcli.reporting.progress import ProgressReporter

        with ProgressReporter("rich") as reporter:
            reporter.on_phase(text)
            yield reporter.notify


def discard_note(text: str) -> None:
    """Print nothing: for --quiet."""

"""What Python programs see of a run: notes as log records, and tqdm bars."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from embedcli.core.types import RunObserver

Notify = Callable[[str], None]

# `logging.basicConfig(level="INFO")` shows what the command line prints.
log = logging.getLogger("embedcli")


def log_note(text: str) -> None:
    """Log a note at INFO, with the logger "embedcli"."""
    log.info("%s", text)


class NotifyObserver(RunObserver):
    """An observer that passes messages on and shows no progress."""

    def __init__(self, notify: Notify) -> None:
        self._notify = notify

    def notify(self, text: str) -> None:
        self._notify(text)


@contextmanager
def watch_progress(show_progress_bar: bool | None, notify: Notify) -> Iterator[RunObserver]:
    """Yield the observer of a run: one with a tqdm bar, or one that only passes messages on."""
    if not wants_progress_bar(show_progress_bar):
        yield NotifyObserver(notify)
        return
    from embedcli.reporting.progress import SHOW_AFTER_SECONDS, ProgressReporter

    # A bar that was asked for appears at once; otherwise none is shown for what is over in a moment.
    show_after = 0.0 if show_progress_bar else SHOW_AFTER_SECONDS
    with ProgressReporter("tqdm", show_after=show_after, receive_note=notify) as reporter:
        yield reporter


def wants_progress_bar(show_progress_bar: bool | None) -> bool:
    """Whether to show a bar; None leaves it to the level of the logger and to where the output goes."""
    if show_progress_bar is not None:
        return show_progress_bar
    is_visible = is_notebook() or (sys.stderr is not None and sys.stderr.isatty())
    return is_visible and log.isEnabledFor(logging.INFO)


def is_notebook() -> bool:
    """Whether this is the process of a notebook, as tqdm decides it."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config

"""The one place where errors become sentences and exit codes, and where process-wide settings are made."""

from __future__ import annotations

import atexit
import functools
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import typer

from embedcli.core.errors import EmbedcliError

VERBOSE_VARIABLE = "EMBEDCLI_VERBOSE"
# What the variable of a flag says when it is off, as the commands that have the flag read it.
FALSE_VALUES = ("", "0", "f", "false", "n", "no", "off")
ARENA_VARIABLE = "MALLOC_ARENA_MAX"
# What shells show for a program that SIGPIPE ended: 128 and its number.
EXIT_PIPE_CLOSED = 141
# Of tokenizers, and of numpy's BLAS, torch and pyarrow.
THREAD_VARIABLES = ("RAYON_NUM_THREADS", "OMP_NUM_THREADS")
# mallopt's number for it, in glibc's malloc.h
M_ARENA_MAX = -8


class InterruptedBySignal(BaseException):
    """A signal that came before rows flowed, or a second one after it: leave at once."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.exit_code = 130 if name == "SIGINT" else 75


def run_and_exit_fast(program: Callable[[], None]) -> None:
    """Run a whole program, and end its process without taking the libraries down, which takes them 0.1 s and more.

    Threads are joined and what libraries want to do at exit is done before: the first to register comes last.
    """
    code: int | None = None

    def leave() -> None:
        if code is None:
            return
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            return  # the interpreter has its own words and exit code for this
        os._exit(code)

    atexit.register(leave)
    try:
        program()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else None
        raise


def handle_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Run a command so that each error ends in one or two lines on stderr and the right exit code."""

    @functools.wraps(command)
    def inner(*args: Any, **values: Any) -> None:
        try:
            command(*args, **values)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort):
            raise
        except BaseException as error:  # noqa: BLE001  this is the boundary
            raise typer.Exit(report_error(error)) from None

    return inner


def report_error(error: BaseException) -> int:
    """Say what happened; the exit code for it. A traceback only when verbose.

    Whoever reads what a command shows may stop at any line (`| head`): nothing is said, as with other programs.
    """
    discard_broken_stdout()
    if isinstance(error, BrokenPipeError):
        return EXIT_PIPE_CLOSED
    message, hint, code = describe_error(error)
    if os.environ.get(VERBOSE_VARIABLE, "").strip().lower() not in FALSE_VALUES:
        traceback.print_exception(error)
    lines = [f"error: {message}"] + ([f"hint: {hint}"] if hint else [])
    for line in lines:
        print(line.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)  # noqa: T201
    return code


def describe_error(error: BaseException) -> tuple[str, str, int]:
    """An error's sentence, what to type next, and its exit code."""
    if isinstance(error, EmbedcliError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, KeyboardInterrupt | InterruptedBySignal):
        return "interrupted", "run the same command again to go on", getattr(error, "code", 130)
    if isinstance(error, MemoryError):
        return "out of memory", "lower --chunk-rows or --batch-tokens", 1
    if isinstance(error, OSError):
        from embedcli.storage import hint_for_os_error

        return f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), hint_for_os_error(error), 1
    kind = type(error).__name__
    return f"unexpected {kind}: {error}", "this is a defect: run again with -v and report what it prints", 1


def discard_broken_stdout() -> None:
    """If stdout takes no more, point it at nowhere, so that the interpreter's last flush cannot fail."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def set_environment(flags: Mapping[str, Any], verbose: bool = False) -> None:
    """Before any library is imported: no telemetry, no network if --offline, tracebacks if verbose."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if flags.get("offline"):
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TRANSFORMERS_OFFLINE"] = "1"
    if verbose:
        os.environ[VERBOSE_VARIABLE] = "1"
    limit_threads_to_quota()
    if flags:
        limit_malloc_arenas()
        from embedcli.core.startup import block_pandas_import

        block_pandas_import()


def limit_threads_to_quota() -> None:
    """No more threads than a limit on processor time is worth, in libraries that count the machine's cores."""
    from embedcli.core.cpu import cpu_quota

    share = cpu_quota()
    if share is not None:
        for name in THREAD_VARIABLES:
            os.environ.setdefault(name, str(share))


def limit_malloc_arenas() -> None:
    """One heap per core, here and in workers, and none of Arrow's own, unless the user's environment says otherwise.

    glibc has eight heaps per core, and each keeps what its threads have freed: with these two a million short rows
    take 270 MB instead of 370, in the same time. Other C libraries have no such setting.
    """
    import ctypes

    from embedcli.core.cpu import count_usable_cores

    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    heaps = os.environ.setdefault(ARENA_VARIABLE, str(max(2, count_usable_cores())))
    with suppress(AttributeError, OSError, ValueError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, int(heaps))

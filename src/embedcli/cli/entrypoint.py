"""Start and end of the process: settings made before libraries load, and errors as messages and exit codes."""

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

from embedcli.cli.console import print_labelled
from embedcli.core.errors import EmbedcliError
from embedcli.core.signals import (
    EXIT_INTERRUPTED,
    INTERRUPTED_HINT,
    INTERRUPTED_MESSAGE,
    InterruptedBySignal,
    find_interruption,
    ignore,
    set_stop_handler,
)

VERBOSE_VARIABLE = "EMBEDCLI_VERBOSE"
# Values of a boolean option's environment variable that Click reads as false.
FALSE_VALUES = ("", "0", "f", "false", "n", "no", "off")
ARENA_VARIABLE = "MALLOC_ARENA_MAX"
EXIT_REJECTS = 3
# What shells report for a program that SIGPIPE ended: 128 + 13.
EXIT_PIPE_CLOSED = 141
BLAS_THREADS_VARIABLE = "OPENBLAS_NUM_THREADS"
# Read by tokenizers, and by numpy's BLAS, torch and pyarrow.
THREAD_VARIABLES = ("RAYON_NUM_THREADS", "OMP_NUM_THREADS")
# From glibc's malloc.h.
M_ARENA_MAX = -8


def run_and_exit_fast(program: Callable[[], None]) -> None:
    """Run a whole program and end its process without unloading the libraries.

    Unloading takes 0.07 s of a ten-row job with word vectors and 1.2 s with the PyTorch engine.
    Threads are joined and the libraries' own exit handlers run before: handlers run in reverse order of registration,
    and this one is registered first.
    """
    code: int | None = None

    def exit_now() -> None:
        if code is None:
            return
        try:
            sys.stdout.flush()
        except (OSError, ValueError) as error:
            # A failed command has already printed its error.
            os._exit(code or report_error(error))
        os._exit(code)

    def exit_on_signal(name: str) -> None:
        os._exit(code or 0)

    atexit.register(exit_now)
    try:
        program()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else None
        if code is not None:
            set_stop_handler(exit_on_signal)
        raise
    except InterruptedBySignal as error:
        set_stop_handler(ignore)
        code = report_error(error)
        sys.exit(code)
    except OSError as error:  # stdout cannot be written, and no command has said so
        code = report_error(error)
        sys.exit(code)


def handle_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that every error becomes a message on stderr and an exit code."""

    @functools.wraps(command)
    def wrapper(*args: Any, **values: Any) -> None:
        try:
            command(*args, **values)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort):
            raise
        except BaseException as error:  # noqa: BLE001  all errors end here
            set_stop_handler(ignore)
            raise typer.Exit(report_error(error)) from None

    return wrapper


def report_error(error: BaseException) -> int:
    """Print an error and its hint on stderr, with a traceback in verbose mode.

    A closed pipe prints nothing, as in other programs: the reader (`| head`) may stop at any line.

    Returns:
        The exit code.
    """
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    if isinstance(error, BrokenPipeError):
        return EXIT_PIPE_CLOSED
    message, hint, code = describe_error(error)
    if os.environ.get(VERBOSE_VARIABLE, "").strip().lower() not in FALSE_VALUES:
        traceback.print_exception(error)
    print_labelled("error", message, "red")
    if hint:
        print_labelled("hint", hint, "cyan")
    return code


def describe_error(error: BaseException) -> tuple[str, str, int]:
    """Return an error's message, its hint (may be empty) and its exit code."""
    error = find_interruption(error)
    if isinstance(error, EmbedcliError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, InterruptedBySignal):
        return INTERRUPTED_MESSAGE, error.hint, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED_MESSAGE, INTERRUPTED_HINT, EXIT_INTERRUPTED
    if isinstance(error, MemoryError):
        return "out of memory", "lower --chunk-rows or --batch-tokens", 1
    if isinstance(error, OSError):
        from embedcli.storage import hint_for_os_error

        return f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), hint_for_os_error(error), 1
    kind = type(error).__name__
    return f"unexpected {kind}: {error}", "this is a bug: run again with -v and report the traceback", 1


def set_environment(flags: Mapping[str, Any], verbose: bool = False, *, uses_arrow: bool = True) -> None:
    """Set environment variables that libraries read when they are imported.

    Args:
        flags: The command's job options by field of Job; empty for commands that load no model.
        verbose: Print tracebacks of errors.
        uses_arrow: Whether a command with job options always needs pyarrow, which is then imported without pandas.
    """
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
    if flags and uses_arrow:
        from embedcli.core.startup import block_pandas_import

        block_pandas_import()


def limit_threads_to_quota() -> None:
    """Limit the threads of libraries that count the machine's cores to the container's processor quota."""
    from embedcli.core.cpu import cpu_quota

    quota = cpu_quota()
    if quota is not None:
        for name in THREAD_VARIABLES:
            os.environ.setdefault(name, str(quota))


def limit_blas_threads() -> None:
    """Let numpy's OpenBLAS start no threads, for commands that multiply no large matrices with numpy.

    The user's environment variable takes precedence. Each thread waits actively for work when numpy is imported: on two
    idle cores of an AMD EPYC (Zen 4) the import takes 0.077 processor seconds instead of 0.134.
    """
    os.environ.setdefault(BLAS_THREADS_VARIABLE, "1")


def limit_malloc_arenas() -> None:
    """Limit glibc's malloc to one arena per core, here and in workers, and let Arrow use malloc too.

    The user's environment variables take precedence. By default glibc keeps eight arenas per core, and each keeps
    memory that its threads have freed: encoding a million short rows peaks at 200 MB instead of 310 MB.
    Other C libraries have no such setting.
    """
    import ctypes

    from embedcli.core.cpu import count_usable_cores

    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    arenas = os.environ.setdefault(ARENA_VARIABLE, str(max(2, count_usable_cores())))
    with suppress(AttributeError, OSError, ValueError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, int(arenas))

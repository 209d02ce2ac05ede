"""`embedcli bench`: measured figures as a table on stdout, what is going on on stderr, everything as JSON."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from embedcli.cli.entrypoint import guarded, set_environment
from embedcli.cli.options import BY_NAME, ENCODER_FLAGS, INPUT_FLAGS, Quiet, takes
from embedcli.core.errors import EmbedcliError, UsageError
from embedcli.core.job import Job

Notify = Callable[[str], None]
Table = Callable[[dict[str, Any]], str]
# The width that small published static models have.
STATIC_DIMENSIONS = 256
# What is measured on rows that bench makes.
OWN_ROWS = ("--memory", "--shapes")


@guarded
@takes((*ENCODER_FLAGS, *INPUT_FLAGS))
def bench(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT", help="Rows to encode; not needed with --memory or --shapes.")
    ] = None,
    *,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Runs of each, in turn.")] = 3,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Only the first N rows.")] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Rows per second by --batch-tokens.")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Peak memory with 10,000 and with 1,000,000 rows.")] = False,
    static: Annotated[
        bool, typer.Option("--static", help="Static vectors, made with the model's tokenizer, beside model2vec.")
    ] = False,
    shapes: Annotated[
        str | None,
        typer.Option(
            "--shapes", metavar="SIZES", help="Random networks: small,base,large or some of them, rows of three kinds."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="One process beside N, and beside Ray with N workers.")
    ] = None,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Other libraries too, where installed.")] = True,
    peer_python: Annotated[
        str, typer.Option("--peer-python", help="Python of another environment, where peers are installed.")
    ] = "",
    json: Annotated[str | None, typer.Option("--json", help="Write all figures as JSON.")] = None,
    quiet: Quiet = False,
    flags: dict[str, Any],
) -> None:
    """Measure embedcli beside SentenceTransformer.encode, and beside other libraries that are installed.

    The same rows go through each in turn, each run a process of its own. The table has medians; ratios
    are of runs of the same round. What each figure means stands in docs/speed.md.
    """
    from embedcli.reporting import run_report

    set_environment(flags)
    given = {"--memory": memory, "--tune": tune, "--static": static, "--shapes": shapes, "--workers": workers}
    mode = mode_of([flag for flag, value in given.items() if value not in (None, False)], paths)
    values = {"rounds": rounds, "rows": rows, "peers": peers, "peer_python": peer_python}
    asked = Asked(tuple(paths or ()), flags, values)
    made, table = measured(mode, given.get(mode), asked, quietly if quiet else say)
    sys.stdout.write(table(made) + "\n")
    if json is not None:
        run_report.write_json(json, made)
    if mode == "--memory" and made["growth_mb"] > made["allowed_mb"]:
        raise EmbedcliError("memory grows with the number of rows", "this is a defect: please report the table")


def mode_of(modes: Sequence[str], paths: list[str] | None) -> str:
    """The flag that says what is measured, "" for none.

    UsageError if two flags say it, for rows where none are read, and for none where some are.
    """
    if len(modes) > 1:
        raise UsageError(f"{modes[0]} and {modes[1]} do not go together", "leave one of them out")
    mode = modes[0] if modes else ""
    if mode in OWN_ROWS and paths:
        raise UsageError(f"bench {mode} makes its own rows", f"leave {paths[0]} out")
    if mode not in OWN_ROWS and not paths:
        raise UsageError("bench needs rows to encode", "embedcli bench in.jsonl")
    return mode


@dataclass(frozen=True)
class Asked:
    """What was typed: inputs, the flags of the job, and values of `compare.Request`."""

    paths: tuple[str, ...]
    flags: dict[str, Any]
    values: dict[str, Any]

    def request(self, *paths: str, **changed: Any) -> Any:
        """The `compare.Request`, with other inputs and changed flags."""
        from embedcli.benchmark.compare import Request

        flags = self.flags | changed
        return Request(Job(inputs=paths or self.paths, output="-", **flags), arguments(flags), **self.values)


def measured(mode: str, value: Any, asked: Asked, notify: Notify) -> tuple[dict[str, Any], Table]:
    """The figures that a mode asks for, and what makes a table of them; `value` is what its flag was given."""
    from embedcli.benchmark import text_tables

    match mode:
        case "--memory":
            return measured_memory(notify), text_tables.memory
        case "--tune":
            return measured_budgets(asked, notify), text_tables.tuning
        case "--shapes":
            return measured_shapes(asked, value, notify), text_tables.shapes
        case "--workers":
            return measured_workers(asked, value, notify), text_tables.together
    return measured_field(asked, mode == "--static", notify), text_tables.comparison


def measured_memory(notify: Notify) -> dict[str, Any]:
    from embedcli.benchmark import memory

    return memory.measure(notify)


def measured_budgets(asked: Asked, notify: Notify) -> dict[str, Any]:
    from embedcli.benchmark.tune_batch import tune

    return tune(asked.request(), notify)


def measured_shapes(asked: Asked, names: str, notify: Notify) -> dict[str, Any]:
    from embedcli.benchmark.random_models import shapes

    def asking(model: Path, rows: Path) -> Any:
        return replace(asked.request(str(rows), model=str(model)), rows=None, peers=False, few=False)

    return shapes([name.strip() for name in names.split(",")], asked.request(), asking, notify)


def measured_workers(asked: Asked, workers: int, notify: Notify) -> dict[str, Any]:
    from embedcli.benchmark.workers import together

    return together(asked.request(), workers, notify)


def measured_field(asked: Asked, static: bool, notify: Notify) -> dict[str, Any]:
    """The comparison; with `static`, on vectors made for it with the tokenizer of the model."""
    from embedcli.benchmark.compare import compare

    if not static:
        return compare(asked.request(), notify)
    from embedcli.benchmark.static_models import borrowed_model
    from embedcli.models import resolve

    own = resolve.resolve(asked.request().job)
    with tempfile.TemporaryDirectory(prefix="embedcli-bench-") as name:
        made = borrowed_model(Path(name) / "static", own.folder, STATIC_DIMENSIONS)
        return compare(asked.request(model=str(made)), notify)


def arguments(flags: Mapping[str, Any]) -> tuple[str, ...]:
    """The encoder flags that differ from their defaults, as they would be typed."""
    found: list[str] = []
    for name in ENCODER_FLAGS:
        value = flags[name]
        if value == getattr(Job, name):
            continue
        spelled = BY_NAME[name].decls.split(",")[-1].split("/")
        if isinstance(value, bool):
            found.append(spelled[0] if value else spelled[-1])
        else:
            found += [spelled[0], str(value)]
    return tuple(found)


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def quietly(line: str) -> None:
    """Say nothing."""

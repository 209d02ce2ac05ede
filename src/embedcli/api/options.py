"""The keyword arguments of the Python API, with their types, and the job that they make."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Literal, TypedDict, TypeVar, get_type_hints

from embedcli.core.constants import TOKENS_PER_TEXT
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.job_options import validate_options
from embedcli.core.types import (
    Dtype,
    InferenceEngine,
    InputFormat,
    OutputFormat,
    Overflow,
    Precision,
    Role,
    VectorKind,
)

PathLike = str | os.PathLike[str]
# Options of `embedcli encode` that are not options of functions, and what these have instead.
ONLY_COMMAND_LINE = {
    "report": "leave it out: the counts, the files and the exit code are in the result",
    "price_per_mtok": "leave it out: the tokens are in the result",
    "progress": "use show_progress_bar=True",
    "quiet": "use show_progress_bar=False",
    "verbose": 'use logging: logging.getLogger("embedcli").setLevel("DEBUG")',
}
Function = TypeVar("Function", bound=Callable[..., Any])


class ModelOptions(TypedDict, total=False):
    """The options of a model and its texts: those of `embedcli encode` with underscores, `as_` for --as."""

    revision: str | None
    trust_remote_code: bool
    code_revision: str | None
    offline: bool
    cache_dir: PathLike | None
    as_: Role | None
    prompt_name: str | None
    prompt: str | None
    max_seq_length: int | None
    overflow: Overflow
    split_overlap: int
    heads: str | Sequence[VectorKind] | None
    normalize: bool | None
    truncate_dim: int | None
    precision: Precision
    top_k_terms: int | None
    min_weight: float | None
    pool_factor: int | None
    device: str
    engine: InferenceEngine
    dtype: Dtype
    compile: bool
    batch_tokens: int | None
    threads: int | None
    base_url: str | None
    request_field: str | Sequence[str]
    omit_field: str | Sequence[str]
    rpm: int | None
    tpm: int | None
    max_concurrency: int | None
    tokenizer: str | None
    request_timeout: float
    retry_cap: float
    patience: float


class FileOptions(ModelOptions, total=False):
    """The options of `embedcli encode`, with underscores."""

    format: InputFormat | None
    to: OutputFormat | None
    encoding: str
    delimiter: str | None
    quote: str | None
    escape: str | None
    header: bool
    skip_lines: int
    text_column: str | None
    id_column: str | None
    template: str | None
    keep: str | Sequence[str]
    chunk_rows: int | None
    on_bad_row: Literal["reject", "fail"]
    max_rejects: str | int | None
    overwrite: bool
    update: bool
    max_removed: str | int
    reuse: PathLike | Sequence[PathLike]
    runner: Literal["local", "processes", "ray"]
    workers: int | None
    ray_address: str | None
    num_cpus: float | None
    num_gpus: float | None
    part_size: str | int
    shard: str | tuple[int, int] | None
    ranges_from: PathLike | None
    limit: int | None
    stop_after: int | None
    max_seconds: float | None


def with_options(options: type, defaults_of: Callable[..., Any] = Job) -> Callable[[Function], Function]:
    """Show the options that a function takes as `**options` one by one in `help()` and to notebooks.

    Args:
        options: The TypedDict of the options.
        defaults_of: A function with the same parameters, for their defaults.

    Returns:
        A decorator that sets `__signature__`.
    """

    defaults = inspect.signature(defaults_of).parameters

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        explicit = [value for value in signature.parameters.values() if value.kind is not value.VAR_KEYWORD]
        listed = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name].default, annotation=hint)
            for name, hint in get_type_hints(options).items()
        ]
        function.__signature__ = signature.replace(parameters=[*explicit, *listed])  # type: ignore[attr-defined]
        return function

    return decorate


def build_job(
    inputs: Iterable[PathLike], output: PathLike, model: PathLike, options: dict[str, Any], function: str
) -> Job:
    """Return the job of a call.

    Args:
        inputs: The inputs; none for texts in memory.
        output: The output; "-" for texts in memory.
        model: The model.
        options: The other options.
        function: The name of the function that was called: "encode_file" takes all options, others those of a model.

    Raises:
        UsageError: An option is unknown, is of no use for the function, or has a wrong value.
    """
    known = FileOptions if function == "encode_file" else ModelOptions
    unknown = [name for name in options if name not in known.__annotations__]
    if unknown:
        raise describe_unknown_option(unknown[0], options[unknown[0]], function)
    job = Job(
        inputs=tuple(read_path(path, "input") for path in inputs),
        output=read_path(output, "output"),
        model=read_path(model, "model"),
        **validate_options(options),
    )
    if job.overflow == "split" and function != "encode_file":
        raise UsageError("overflow='split' gives a text several vectors", "use overflow='pool' for one vector per text")
    return job


def read_path(value: Any, what: str) -> str:
    """The text of a path or a name. Raises UsageError for a value of another type."""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    raise UsageError(f"{what}={value!r} is neither a str nor a path", f"give the {what} as a str or a pathlib.Path")


def describe_unknown_option(name: str, value: Any, function: str) -> UsageError:
    """The error for an option that a function does not take."""
    if name in FileOptions.__annotations__:
        return UsageError(
            f"{name!r} is not an option of {function}: it is about files",
            "leave it out, or use embedcli.encode_file",
        )
    if name == "batch_size" and isinstance(value, int):
        advice = f"use batch_tokens, {TOKENS_PER_TEXT} per text: batch_tokens={value * TOKENS_PER_TEXT}"
        return UsageError(f"{name!r} is not an option of {function}", advice)
    if name in ONLY_COMMAND_LINE:
        return UsageError(f"{name!r} is an option of the command line, not of {function}", ONLY_COMMAND_LINE[name])
    known = FileOptions if function == "encode_file" else ModelOptions
    similar = ["as_"] if name == "as" else get_close_matches(name, known.__annotations__, 1)
    hint = "they are those of `embedcli encode --help`, with underscores"
    return UsageError(f"{name!r} is not an option of {function}", f"did you mean {similar[0]!r}?" if similar else hint)

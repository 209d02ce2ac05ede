"""The flags of the job, once: each becomes a Typer option, an EMBEDCLI_ variable and a field of Job."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal

import typer

from embedcli.core.job import Job
from embedcli.core.job_options import validate_options
from embedcli.core.types import Dtype, InferenceEngine, InputFormat, OutputFormat, Overflow, Precision, Role


@dataclass(frozen=True)
class Flag:
    """One option: `name` is the Job field, `kind` its type on the command line, `decls` its spellings."""

    name: str
    value_type: Any
    spellings: str
    help: str
    panel: str = ""
    default: Any = None


JOB_FLAGS = (
    Flag("model", str, "-m,--model", "Model: a name from `embedcli models`, a hub id, a folder, or openai:NAME."),
    Flag("revision", str, "--revision", "Branch, tag or commit of a hub model."),
    Flag("trust_remote_code", bool, "--trust-remote-code", "Run Python code that comes with the model."),
    Flag("offline", bool, "--offline", "Never touch the network."),
    Flag("cache_dir", str, "--cache-dir", "Where hub models are kept."),
    Flag("text_column", str, "--text-column", "Column to embed, or a field (_source.title); guessed when not given."),
    Flag("id_column", str, "--id-column", "Column with the ids; guessed when not given, else row numbers."),
    Flag("template", str, "--template", "Text made of columns: 'title: {title} body: {body}'; {name?} may be missing."),
    Flag("keep", list[str], "--keep", "Column to carry over to the output; repeatable."),
    Flag("format", InputFormat, "--format", "Input format, when the name does not tell."),
    Flag("encoding", str, "--encoding", "Text encoding of the input."),
    Flag("to", OutputFormat, "--to", "Output format, when the name does not tell."),
    Flag("as_", Role, "--as", "Which of the model's prompts to use."),
    Flag("prompt_name", str, "--prompt-name", "A prompt of the model, by its name."),
    Flag("prompt", str, "--prompt", "Text put before every row, as it is."),
    Flag("max_seq_length", int, "--max-seq-length", "Tokens read of each row, at most."),
    Flag("overflow", Overflow, "--overflow", "What to do with rows longer than that."),
    Flag(
        "split_overlap", int, "--split-overlap", "Tokens shared by neighbouring windows of --overflow split and pool."
    ),
    Flag("normalize", bool, "--normalize/--no-normalize", "Vectors of length 1, or not; default: as the model does."),
    Flag("truncate_dim", int, "--truncate-dim", "Keep the first N dimensions, then renormalise."),
    Flag("precision", Precision, "--precision", "What is stored."),
    Flag("ranges_from", str, "--ranges-from", "Take the int8/uint8 ranges of another output, not from a sample."),
    Flag("device", str, "--device", "auto, cpu, cuda, cuda:1, cuda:0,cuda:1, mps, xpu."),
    Flag("engine", InferenceEngine, "--engine", "What computes."),
    Flag("dtype", Dtype, "--dtype", "Number format of the computation."),
    Flag(
        "compile",
        bool,
        "--compile/--no-compile",
        "Compile the PyTorch engine's network: slow to start, for long runs on a card.",
    ),
    Flag("batch_tokens", int, "--batch-tokens", "Padded tokens per batch."),
    Flag("chunk_rows", int, "--chunk-rows", "Rows per part: what a kill can cost."),
    Flag("threads", int, "--threads", "CPU threads for the computation."),
    Flag("on_bad_row", Literal["reject", "fail"], "--on-bad-row", "Put bad rows aside, or stop at the first."),
    Flag("max_rejects", str, "--max-rejects", "Fail beyond this number, or share (0.1%), of rejected rows."),
    Flag(
        "overwrite",
        bool,
        "--overwrite",
        "Replace an existing output and forget unfinished parts; without it the next run goes on.",
    ),
    Flag("update", bool, "--update", "Replace a finished output, keeping the vectors of unchanged rows."),
    Flag("reuse", list[str], "--reuse", "Take vectors of equal texts from another finished output; repeatable."),
    Flag("limit", int, "--limit", "Stop after about N rows (whole chunks); the next run goes on."),
    Flag("max_seconds", float, "--max-seconds", "Stop after about N seconds (whole chunks); the next run goes on."),
    Flag("part_size", str, "--part-size", "Vectors per file of a folder output, about.", default="256MB"),
    Flag("shard", str, "--shard", "Do share K of N (3/16) of the input; the last to end merges."),
    Flag("runner", Literal["local", "processes", "ray"], "--runner", "Where it runs: here, a process per device, Ray."),
    Flag("workers", int, "--workers", "Processes, or actors on a Ray cluster."),
    Flag("ray_address", str, "--ray-address", "Address of a Ray cluster; without it, this machine alone."),
    Flag("num_cpus", float, "--num-cpus", "Processors that each Ray actor reserves.  [default: 1]"),
    Flag("num_gpus", float, "--num-gpus", "GPUs, or a share of one, that each Ray actor reserves."),
    Flag("base_url", str, "--base-url", "Endpoint of an openai: model; its key comes from OPENAI_API_KEY."),
    Flag("rpm", int, "--rpm", "Requests per minute, at most."),
    Flag("tpm", int, "--tpm", "Tokens per minute, at most."),
    Flag("max_concurrency", int, "--max-concurrency", "Requests under way at once."),
    Flag("request_timeout", float, "--request-timeout", "Seconds one request may take."),
    Flag("retry_cap", float, "--retry-cap", "Longest wait before a retry, in seconds, whatever the server asks."),
    Flag("patience", float, "--patience", "Seconds to keep trying one request before giving up."),
)
FLAGS_BY_NAME = {flag.name: flag for flag in JOB_FLAGS}
MODEL_FLAGS = ("model", "revision", "trust_remote_code", "offline", "cache_dir")
INPUT_FLAGS = ("text_column", "id_column", "template", "format", "encoding")
ENCODER_FLAGS = (
    *MODEL_FLAGS, "as_", "prompt_name", "prompt", "max_seq_length", "normalize", "truncate_dim",
    "device", "engine", "dtype", "compile", "batch_tokens", "threads", "base_url", "rpm", "tpm", "max_concurrency",
)  # fmt: skip
ALL_FLAGS = tuple(FLAGS_BY_NAME)

QuietFlag = Annotated[
    bool, typer.Option("-q", "--quiet", help="Errors only.", envvar="EMBEDCLI_QUIET", show_envvar=False)
]
VerboseFlag = Annotated[
    bool, typer.Option("-v", "--verbose", help="Tracebacks of errors.", envvar="EMBEDCLI_VERBOSE", show_envvar=False)
]
ReportOption = Annotated[
    str | None,
    typer.Option("--report", help="Write the run report as JSON.", envvar="EMBEDCLI_REPORT", show_envvar=False),
]
ProgressOption = Annotated[
    Literal["auto", "rich", "plain", "none"],
    typer.Option("--progress", help="How progress is shown.", envvar="EMBEDCLI_PROGRESS", show_envvar=False),
]
PriceOption = Annotated[
    float | None,
    typer.Option(
        "--price-per-mtok",
        min=0,
        help="Price of a million tokens: shows the cost.",
        envvar="EMBEDCLI_PRICE_PER_MTOK",
        show_envvar=False,
    ),
]


def with_job_options(names: Iterable[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options `names`; it receives them as one dict `flags` of Job fields."""
    chosen = [FLAGS_BY_NAME[name] for name in names]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]

        def wrapper(**values: Any) -> None:
            given = {flag.name: values.pop(flag.name) for flag in chosen}
            command(**values, flags=validate_options(given))

        extra = [build_parameter(flag) for flag in chosen]
        wrapper.__signature__ = inspect.Signature([*own, *extra])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in [*own, *extra]}
        wrapper.__doc__ = command.__doc__
        wrapper.__name__ = command.__name__
        return wrapper

    return decorate


def build_parameter(flag: Flag) -> inspect.Parameter:
    """The Typer option of a flag, with Job's default and its EMBEDCLI_ variable."""
    default = _default(flag.name) if flag.default is None else flag.default
    kind = flag.value_type if default is not None else flag.value_type | None
    decls = flag.spellings.split(",")
    option = typer.Option(*decls, help=flag.help, envvar=environment_name(flag), show_envvar=False)
    value = list(default) if isinstance(default, tuple) else default
    return inspect.Parameter(
        flag.name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=Annotated[kind, option]
    )


def environment_name(flag: Flag) -> str:
    """EMBEDCLI_ and the long spelling: --text-column is EMBEDCLI_TEXT_COLUMN."""
    long = flag.spellings.split(",")[-1].split("/")[0]
    return "EMBEDCLI_" + long.removeprefix("--").replace("-", "_").upper()


def _default(name: str) -> Any:
    field = next(field for field in fields(Job) if field.name == name)
    return None if field.default is MISSING else field.default

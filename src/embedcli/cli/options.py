"""Options of a job: each is a Typer option, an EMBEDCLI_ environment variable and a field of Job."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Annotated, Any, Literal

import typer

from embedcli.cli.completion import COMPLETIONS, complete_models
from embedcli.cli.option_groups import REPORT_PANEL, choose_metavar, find_panel
from embedcli.core.job import Job
from embedcli.core.job_options import validate_options
from embedcli.core.types import Dtype, InferenceEngine, InputFormat, OutputFormat, Overflow, Precision, Role


@dataclass(frozen=True)
class Flag:
    """An option of a job.

    Attributes:
        name: Field of Job.
        value_type: Type on the command line.
        spellings: Names as typed, separated by commas.
        help: Text for --help.
        default: Default on the command line if it differs from Job's.
    """

    name: str
    value_type: Any
    spellings: str
    help: str
    default: Any = None


JOB_FLAGS = (
    Flag("model", str, "-m,--model", "Model: a name listed by `embedcli models`, a Hub ID, a folder, or openai:NAME."),
    Flag("revision", str, "--revision", "Branch, tag or commit of a Hub model."),
    Flag("trust_remote_code", bool, "--trust-remote-code", "Run Python code that comes with the model."),
    Flag(
        "code_revision",
        str,
        "--code-revision",
        "Branch, tag or commit of the model's code, if that is in another Hub repository.",
    ),
    Flag("offline", bool, "--offline", "Never use the network."),
    Flag("cache_dir", str, "--cache-dir", "Folder for downloaded models."),
    Flag(
        "text_column", str, "--text-column", "Column to embed, or a nested field (_source.title); guessed if not given."
    ),
    Flag("id_column", str, "--id-column", "Column with the ids; guessed if not given, else row numbers."),
    Flag(
        "template",
        str,
        "--template",
        "Build the text from columns: 'title: {title} body: {body}'; {name?} is optional.",
    ),
    Flag("keep", list[str], "--keep", "Copy this column to the output; repeatable."),
    Flag("format", InputFormat, "--format", "Input format, if the file name does not show it."),
    Flag("encoding", str, "--encoding", "Text encoding of the input."),
    Flag("delimiter", str, "--delimiter", "Character between the fields of CSV or TSV, or its name: tab, semicolon."),
    Flag("quote", str, "--quote", 'Character around fields of CSV or TSV, or none; default: " in CSV, none in TSV.'),
    Flag("escape", str, "--escape", "Character that takes the next one literally, such as backslash."),
    Flag("header", bool, "--header/--no-header", "The first row of CSV or TSV names the columns, or is a row."),
    Flag("skip_lines", int, "--skip-lines", "Lines of CSV or TSV before the header or the first row."),
    Flag("to", OutputFormat, "--to", "Output format, if the file name does not show it."),
    Flag("as_", Role, "--as", "Which of the model's prompts to use: the one for queries, for documents, or none."),
    Flag("prompt_name", str, "--prompt-name", "Use the model's prompt with this name."),
    Flag("prompt", str, "--prompt", "Text to put before every row, unchanged."),
    Flag("max_seq_length", int, "--max-seq-length", "Maximum tokens per row."),
    Flag("overflow", Overflow, "--overflow", "How to handle rows with more tokens than the maximum."),
    Flag(
        "split_overlap", int, "--split-overlap", "Tokens that neighbouring windows of --overflow split and pool share."
    ),
    Flag(
        "heads",
        str,
        "--heads",
        "Vectors to compute of BGE-M3, several separated by commas: dense (the default), sparse, multi_vector.",
    ),
    Flag(
        "normalize",
        bool,
        "--normalize/--no-normalize",
        "Scale vectors to length 1, or not; default: as the model does.",
    ),
    Flag("truncate_dim", int, "--truncate-dim", "Keep the first N dimensions and normalize again."),
    Flag("precision", Precision, "--precision", "Number format of the stored vectors."),
    Flag("top_k_terms", int, "--top-k-terms", "Sparse vectors: keep the N largest weights of each row."),
    Flag("min_weight", float, "--min-weight", "Sparse vectors: keep only weights of at least this size."),
    Flag("pool_factor", int, "--pool-factor", "Multi-vector models: merge the tokens of a document to 1/N as many."),
    Flag(
        "ranges_from", str, "--ranges-from", "Use the int8/uint8 ranges of this output instead of sampling the input."
    ),
    Flag("device", str, "--device", "Device: auto, cpu, cuda, cuda:1, cuda:0,cuda:1, mps or xpu."),
    Flag("engine", InferenceEngine, "--engine", "Inference engine."),
    Flag("dtype", Dtype, "--dtype", "Number format of the computation."),
    Flag(
        "compile",
        bool,
        "--compile/--no-compile",
        "Compile the model with torch.compile: slow to start, for long runs on a GPU.",
    ),
    Flag("batch_tokens", int, "--batch-tokens", "Maximum tokens per batch, padding included."),
    Flag(
        "chunk_rows", int, "--chunk-rows", "Rows per checkpoint; at most this much work is lost if the run is killed."
    ),
    Flag("threads", int, "--threads", "CPU threads for the computation."),
    Flag(
        "on_bad_row",
        Literal["reject", "fail"],
        "--on-bad-row",
        "Write bad rows to a rejects file, or fail at the first.",
    ),
    Flag("max_rejects", str, "--max-rejects", "Fail if more rows than this number or percentage (0.1%) are rejected."),
    Flag(
        "overwrite",
        bool,
        "--overwrite",
        "Replace an existing output and discard unfinished work instead of resuming it.",
    ),
    Flag("update", bool, "--update", "Update a finished output, keeping the vectors of unchanged rows."),
    Flag(
        "max_removed",
        str,
        "--max-removed",
        "Keep the old output if a new one would lack more of its rows than this number or percentage.",
    ),
    Flag("reuse", list[str], "--reuse", "Take the vectors of equal texts from this finished output; repeatable."),
    Flag("limit", int, "--limit", "Embed only the first N rows of the input."),
    Flag("stop_after", int, "--stop-after", "Stop after about N rows (whole chunks); the next run continues."),
    Flag("max_seconds", float, "--max-seconds", "Stop after about N seconds (whole chunks); the next run continues."),
    Flag(
        "part_size",
        str,
        "--part-size",
        "Approximate size of the vectors in each file of a folder output.",
        default="256MB",
    ),
    Flag("shard", str, "--shard", "Process shard K of N (3/16); the last shard to finish publishes the output."),
    Flag(
        "runner",
        Literal["local", "processes", "ray"],
        "--runner",
        "Run in this process, in one process per device, or on Ray.",
    ),
    Flag("workers", int, "--workers", "Number of processes, or of actors on a Ray cluster."),
    Flag("ray_address", str, "--ray-address", "Address of a Ray cluster; default: this machine only."),
    Flag("num_cpus", float, "--num-cpus", "CPUs that each Ray actor reserves.  [default: 1]"),
    Flag("num_gpus", float, "--num-gpus", "GPUs, or a fraction of one, that each Ray actor reserves."),
    Flag("base_url", str, "--base-url", "Endpoint of an openai: model; the API key is read from OPENAI_API_KEY."),
    Flag(
        "request_field",
        list[str],
        "--request-field",
        "Send this field with every request to an openai: model, NAME=VALUE; VALUE is JSON or a string; repeatable.",
    ),
    Flag("omit_field", list[str], "--omit-field", "Never send this request field, e.g. dimensions; repeatable."),
    Flag("rpm", int, "--rpm", "Maximum requests per minute."),
    Flag("tpm", int, "--tpm", "Maximum tokens per minute."),
    Flag(
        "tokenizer",
        str,
        "--tokenizer",
        "Tokenizer of an openai: model, for token counts: folder or cached name.",
    ),
    Flag("max_concurrency", int, "--max-concurrency", "Maximum concurrent requests; default: adaptive, up to 64."),
    Flag("request_timeout", float, "--request-timeout", "Timeout of a request, in seconds."),
    Flag(
        "retry_cap", float, "--retry-cap", "Maximum delay before a retry, in seconds, even if the server asks for more."
    ),
    Flag("patience", float, "--patience", "Seconds to keep retrying a request before giving up."),
)
FLAGS_BY_NAME = {flag.name: flag for flag in JOB_FLAGS}
MODEL_FLAGS = ("model", "revision", "trust_remote_code", "code_revision", "offline", "cache_dir")
CSV_FLAGS = ("delimiter", "quote", "escape", "header", "skip_lines")
INPUT_FLAGS = ("text_column", "id_column", "template", "format", "encoding", *CSV_FLAGS)
ENCODER_FLAGS = (
    *MODEL_FLAGS, "as_", "prompt_name", "prompt", "max_seq_length", "normalize", "truncate_dim",
    "device", "engine", "dtype", "compile", "batch_tokens", "threads", "base_url", "request_field", "omit_field",
    "tokenizer", "rpm", "tpm", "max_concurrency",
)  # fmt: skip
ALL_FLAGS = tuple(FLAGS_BY_NAME)
# Defaults of commands that somebody waits for: a server that is not there should not hold them up for hours.
INTERACTIVE_DEFAULTS = {"patience": 60.0}

QuietFlag = Annotated[
    bool, typer.Option("-q", "--quiet", help="Print errors only.", envvar="EMBEDCLI_QUIET", show_envvar=False)
]
VerboseFlag = Annotated[
    bool,
    typer.Option("-v", "--verbose", help="Print tracebacks of errors.", envvar="EMBEDCLI_VERBOSE", show_envvar=False),
]
MovedModelOption = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        metavar="MODEL",
        help="Where the same model is now; default: as recorded.",
        autocompletion=complete_models,
    ),
]
ReportOption = Annotated[
    str | None,
    typer.Option(
        "--report",
        metavar="PATH",
        help="Write a report of the run to this JSON file.",
        envvar="EMBEDCLI_REPORT",
        show_envvar=False,
        rich_help_panel=REPORT_PANEL,
    ),
]
ProgressOption = Annotated[
    Literal["auto", "rich", "tqdm", "plain", "none"],
    typer.Option(
        "--progress",
        help="How to show progress: a bar by rich (terminals only) or tqdm, or plain lines; auto: a bar on a terminal.",
        envvar="EMBEDCLI_PROGRESS",
        show_envvar=False,
    ),
]


def refuse_not_finite(value: float | None) -> float | None:
    """Return a number; an error for infinity and NaN, which no comparison with a minimum refuses."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


PriceOption = Annotated[
    float | None,
    typer.Option(
        "--price-per-mtok",
        min=0,
        callback=refuse_not_finite,
        metavar="PRICE",
        help="Price per million tokens, to show the cost.",
        envvar="EMBEDCLI_PRICE_PER_MTOK",
        show_envvar=False,
    ),
]


def with_job_options(
    names: Iterable[str], defaults: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command with job options, which it receives validated in the dict `flags`, by field of Job.

    Args:
        names: Fields of Job.
        defaults: Defaults of this command that differ from Job's, by field.
    """
    changed = {name: replace(FLAGS_BY_NAME[name], default=value) for name, value in (defaults or {}).items()}
    chosen = [(FLAGS_BY_NAME | changed)[name] for name in names]

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
    """Return an option for Typer, with Job's default and its EMBEDCLI_ variable."""
    default = _default(flag.name) if flag.default is None else flag.default
    kind = flag.value_type if default is not None else flag.value_type | None
    decls = flag.spellings.split(",")
    option = typer.Option(
        *decls,
        help=flag.help,
        envvar=environment_name(flag),
        show_envvar=False,
        metavar=choose_metavar(flag.name, flag.value_type),
        rich_help_panel=find_panel(flag.name),
        autocompletion=COMPLETIONS.get(flag.name),
    )
    value = list(default) if isinstance(default, tuple) else default
    return inspect.Parameter(
        flag.name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=Annotated[kind, option]
    )


def environment_name(flag: Flag) -> str:
    """Return an option's environment variable: EMBEDCLI_TEXT_COLUMN for --text-column."""
    long = flag.spellings.split(",")[-1].split("/")[0]
    return "EMBEDCLI_" + long.removeprefix("--").replace("-", "_").upper()


def _default(name: str) -> Any:
    field = next(field for field in fields(Job) if field.name == name)
    return None if field.default is MISSING else field.default

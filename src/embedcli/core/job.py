"""The job: everything the user asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from embedcli.core.constants import DEFAULT_MODEL
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

# How delimited files are written. Of these only what is not the default is part of a job's identity, so that jobs of
# versions without these options go on.
CSV_DEFAULTS = {"delimiter": None, "quote": None, "escape": None, "header": True, "skip_lines": 0}
LATER_DEFAULTS = {
    "limit": None,
    "tokenizer": None,
    "top_k_terms": None,
    "min_weight": None,
    "pool_factor": None,
    **CSV_DEFAULTS,
}


@dataclass(frozen=True)
class Job:
    """One embedding job. The fields are named after the options of `embedcli encode`; `as_` is --as.

    `job_options.validate_options` checks the values. The run report lists the fields in this order.
    """

    # Files
    inputs: tuple[str, ...]
    output: str
    format: InputFormat | None = None
    to: OutputFormat | None = None
    # Reading rows
    encoding: str = "utf-8"
    delimiter: str | None = None
    quote: str | None = None
    escape: str | None = None
    header: bool = True
    skip_lines: int = 0
    text_column: str | None = None
    id_column: str | None = None
    template: str | None = None
    keep: tuple[str, ...] = ()
    # The model
    model: str = DEFAULT_MODEL
    revision: str | None = None
    trust_remote_code: bool = False
    code_revision: str | None = None
    offline: bool = False
    cache_dir: str | None = None
    # How texts are encoded
    as_: Role | None = None
    prompt_name: str | None = None
    prompt: str | None = None
    max_seq_length: int | None = None
    overflow: Overflow = "truncate"
    split_overlap: int = 0
    # The vectors
    heads: tuple[VectorKind, ...] | None = None
    normalize: bool | None = None
    truncate_dim: int | None = None
    precision: Precision = "float32"
    top_k_terms: int | None = None
    min_weight: float | None = None
    pool_factor: int | None = None
    # Inference: device, engine and the sizes that decide its speed
    device: str = "auto"
    engine: InferenceEngine = "auto"
    dtype: Dtype = "auto"
    compile: bool = False
    batch_tokens: int | None = None
    chunk_rows: int | None = None
    threads: int | None = None
    # Rejects
    on_bad_row: Literal["reject", "fail"] = "reject"
    max_rejects: str | None = None
    # An output that exists already
    overwrite: bool = False
    update: bool = False
    max_removed: str = "50%"
    reuse: tuple[str, ...] = ()
    # Processes and machines, and how a folder output is divided among them
    runner: Literal["local", "processes", "ray"] = "local"
    workers: int | None = None
    ray_address: str | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    part_size: int = 256_000_000
    shard: tuple[int, int] | None = None
    # Hosted models
    base_url: str | None = None
    request_field: tuple[str, ...] = ()
    omit_field: tuple[str, ...] = ()
    tokenizer: str | None = None
    rpm: int | None = None
    tpm: int | None = None
    max_concurrency: int | None = None
    request_timeout: float = 600
    retry_cap: float = 3600
    patience: float = 8 * 3600
    # Value ranges of int8 and uint8
    ranges_from: str | None = None
    # The first rows only, and partial runs
    limit: int | None = None
    stop_after: int | None = None
    max_seconds: float | None = None

    def identity(self) -> dict[str, Any]:
        """The options that decide the rows, their texts and the stored form of their vectors, as JSON values.

        A job is resumed only if they are the same. The model is not among them: see `encoders.encoder_identity`.
        """
        names = (
            "inputs", "format", "encoding", "text_column", "id_column", "template", "keep", "overflow",
            "split_overlap", "normalize", "truncate_dim", "precision", "ranges_from", "chunk_rows",
        )  # fmt: skip
        every = asdict(self)
        later = (name for name, default in LATER_DEFAULTS.items() if every[name] != default)
        return {name: list(every[name]) if isinstance(every[name], tuple) else every[name] for name in (*names, *later)}

"""The job: everything the user asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]
    Rows = NDArray[np.int64]
    Bools = NDArray[np.bool_]
from embedcli.core.types import (
    DEFAULT_MODEL,
    Dtype,
    InferenceEngine,
    InputFormat,
    OutputFormat,
    Overflow,
    Precision,
    Role,
)


@dataclass(frozen=True)
class Job:
    """All the user asked for. Field names are the flag names."""

    inputs: tuple[str, ...]
    output: str
    format: InputFormat | None = None
    to: OutputFormat | None = None
    encoding: str = "utf-8"
    text_column: str | None = None
    id_column: str | None = None
    template: str | None = None
    keep: tuple[str, ...] = ()
    model: str = DEFAULT_MODEL
    revision: str | None = None
    trust_remote_code: bool = False
    offline: bool = False
    cache_dir: str | None = None
    as_: Role | None = None
    prompt_name: str | None = None
    prompt: str | None = None
    max_seq_length: int | None = None
    overflow: Overflow = "truncate"
    split_overlap: int = 0
    normalize: bool | None = None
    truncate_dim: int | None = None
    precision: Precision = "float32"
    device: str = "auto"
    engine: InferenceEngine = "auto"
    dtype: Dtype = "auto"
    compile: bool = False
    batch_tokens: int | None = None
    chunk_rows: int | None = None
    threads: int | None = None
    on_bad_row: Literal["reject", "fail"] = "reject"
    max_rejects: str | None = None
    overwrite: bool = False
    update: bool = False
    reuse: tuple[str, ...] = ()
    runner: Literal["local", "processes", "ray"] = "local"
    workers: int | None = None
    ray_address: str | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    part_size: int = 256_000_000
    shard: tuple[int, int] | None = None
    base_url: str | None = None
    rpm: int | None = None
    tpm: int | None = None
    max_concurrency: int | None = None
    request_timeout: float = 600
    retry_cap: float = 3600
    patience: float = 8 * 3600
    ranges_from: str | None = None
    limit: int | None = None
    max_seconds: float | None = None

    def identity(self) -> dict[str, Any]:
        """What decides the rows and their texts: no speed knob, no output path, no model (see `encoders.identity`)."""
        names = (
            "inputs", "format", "encoding", "text_column", "id_column", "template", "keep", "overflow",
            "split_overlap", "normalize", "truncate_dim", "precision", "ranges_from", "chunk_rows",
        )  # fmt: skip
        every = asdict(self)
        return {name: list(every[name]) if isinstance(every[name], tuple) else every[name] for name in names}

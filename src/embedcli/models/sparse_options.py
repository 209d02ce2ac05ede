"""Options of a job that a sparse encoder cannot follow, and those that only a sparse encoder can."""

from __future__ import annotations

from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.types import VectorKind

SPARSE_PRECISIONS = ("float32", "float16")


def check_options_for_kind(job: Job, kind: VectorKind) -> None:
    """Check that the options of a job fit the kind of vectors that its model computes.

    Raises:
        UsageError: One of them makes no sense for such vectors.
    """
    if kind == "dense":
        for flag, value in (("--top-k-terms", job.top_k_terms), ("--min-weight", job.min_weight)):
            if value is not None:
                raise UsageError(
                    f"{flag} is for sparse vectors, and {job.model} computes dense ones",
                    f"leave {flag} out, or use a sparse encoder such as SPLADE",
                )
        return
    refused = (
        ("--truncate-dim", job.truncate_dim is not None, "use --top-k-terms N to keep the N largest weights of a row"),
        ("--normalize", bool(job.normalize), "leave --normalize out: sparse vectors are compared by their dot product"),
        ("--overflow pool", job.overflow == "pool", "use --overflow split, which writes a row for each window"),
        ("a .npy output", writes_npy(job), "use a name that ends in .parquet, .arrow, .jsonl or .lance"),
        (f"--precision {job.precision}", job.precision not in SPARSE_PRECISIONS, "use --precision float32 or float16"),
    )
    for flag, is_given, hint in refused:
        if is_given:
            raise UsageError(f"{flag} makes no sense for the sparse vectors of {job.model}", hint)


def writes_npy(job: Job) -> bool:
    """Whether a job writes .npy files, one array of [rows, dimensions]."""
    return job.to == "npy" or (job.to is None and job.output.lower().endswith(".npy"))

"""Options of a job that fit only some kinds of vectors."""

from __future__ import annotations

from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.types import Precision, VectorKind
from embedcli.models.heads import no_heads_error

SPARSE_PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "uint8")
MULTI_VECTOR_PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "uint8")


def check_options_for_kind(job: Job, kind: VectorKind, heads: tuple[VectorKind, ...] = ()) -> None:
    """Check that the options of a job fit the kind of vectors that its model computes.

    Args:
        job: The job.
        kind: The kind; of several heads that of the first.
        heads: The heads that are computed; empty for the model's own vectors.

    Raises:
        UsageError: One of them makes no sense for such vectors.
    """
    kinds = heads or (kind,)
    if job.heads not in (None, kinds):
        raise no_heads_error(job, kind)
    if "sparse" not in kinds:
        _refuse_sparse_options(job, kind)
    _check_pool_factor(job, kinds)
    if len(heads) > 1:
        _refuse_for_several_heads(job)
    if "sparse" in kinds:
        _refuse_for_sparse(job)
    if "multi_vector" in kinds:
        _refuse_for_multi_vector(job)


def _refuse_sparse_options(job: Job, kind: VectorKind) -> None:
    computed = "dense ones" if kind == "dense" else "one for each token"
    for flag, value in (("--top-k-terms", job.top_k_terms), ("--min-weight", job.min_weight)):
        if value is not None:
            raise UsageError(
                f"{flag} is for sparse vectors, and {job.model} computes {computed}",
                f"leave {flag} out, or use a sparse encoder such as SPLADE",
            )


def _check_pool_factor(job: Job, kinds: tuple[VectorKind, ...]) -> None:
    if job.pool_factor is None:
        return
    if "multi_vector" not in kinds and job.heads:
        raise UsageError(
            f"--pool-factor is for vectors of tokens, and --heads {','.join(job.heads)} has none",
            "add multi_vector to --heads, or leave --pool-factor out",
        )
    if "multi_vector" not in kinds:
        raise UsageError(
            f"--pool-factor is for models with a vector for each token, and {job.model} computes one for each text",
            "leave --pool-factor out, or use a multi-vector model such as ColBERT",
        )
    if job.as_ == "query":
        raise UsageError("--pool-factor is for documents: queries keep all their vectors", "leave --pool-factor out")


def _refuse_for_several_heads(job: Job) -> None:
    one_job_each = "leave it out, or encode each head in a job of its own"
    refused = (
        ("--truncate-dim", job.truncate_dim is not None, one_job_each),
        ("--overflow pool", job.overflow == "pool", "use --overflow split, which writes a row for each window"),
        ("a .npy output", writes_npy(job), "use a name that ends in .parquet, .arrow, .jsonl or .lance"),
    )
    for flag, is_given, hint in refused:
        if is_given:
            raise UsageError(f"{flag} cannot be used with several heads, --heads {','.join(job.heads or ())}", hint)


def _refuse_for_sparse(job: Job) -> None:
    refused = (
        ("--truncate-dim", job.truncate_dim is not None, "use --top-k-terms N to keep the N largest weights of a row"),
        ("--normalize", bool(job.normalize), "leave --normalize out: sparse vectors are compared by their dot product"),
        ("--overflow pool", job.overflow == "pool", "use --overflow split, which writes a row for each window"),
        ("a .npy output", writes_npy(job), "use a name that ends in .parquet, .arrow, .jsonl or .lance"),
        (
            f"--precision {job.precision}", job.precision not in SPARSE_PRECISIONS,
            "use --precision float32, float16, int8 or uint8",
        ),
    )  # fmt: skip
    for flag, is_given, hint in refused:
        if is_given:
            raise UsageError(f"{flag} makes no sense for the sparse vectors of {job.model}", hint)


def _refuse_for_multi_vector(job: Job) -> None:
    normalize = "--normalize" if job.normalize else "--no-normalize"
    refused = (
        ("--truncate-dim", job.truncate_dim is not None, "leave --truncate-dim out, or use a smaller model"),
        (normalize, job.normalize is not None, f"leave {normalize} out: the model's files decide it"),
        ("--overflow pool", job.overflow == "pool", "use --overflow split, which writes a row for each window"),
        (
            f"--precision {job.precision}", job.precision not in MULTI_VECTOR_PRECISIONS,
            "use --precision float32, float16, int8 or uint8",
        ),
    )  # fmt: skip
    for flag, is_given, hint in refused:
        if is_given:
            raise UsageError(f"{flag} cannot be used with {job.model}, which computes a vector for each token", hint)


def writes_npy(job: Job) -> bool:
    """Whether a job writes .npy files, one array of [rows, dimensions]."""
    return job.to == "npy" or (job.to is None and job.output.lower().endswith(".npy"))

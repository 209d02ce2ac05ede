"""Models with several heads (BGE-M3): dense, sparse and multi-vector vectors from one network.

Their folders have two files beside the network, each the state of a linear layer over the hidden states: one number for
each token, which is its weight, and a vector for each token. The layout is that of FlagEmbedding's BGE-M3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embedcli.core.errors import ModelError, UsageError
from embedcli.core.job import Job
from embedcli.core.types import VectorKind
from embedcli.models.files import ModelFiles

SPARSE_WEIGHTS = "sparse_linear.pt"
MULTI_VECTOR_WEIGHTS = "colbert_linear.pt"
HEAD_FILES = (SPARSE_WEIGHTS, MULTI_VECTOR_WEIGHTS)


def lacks_head_files(folder: Path, job: Job) -> bool:
    """Whether a job needs a file of the heads that a model's folder lacks."""
    needs_them = any(head != "dense" for head in job.heads or ())
    return needs_them and not all((folder / name).is_file() for name in HEAD_FILES)


def resolve_heads(
    files: ModelFiles, modules: Sequence[tuple[str, str]], job: Job, kind: VectorKind
) -> tuple[VectorKind, ...]:
    """The heads that a job computes; empty for the model's own vectors.

    Args:
        files: The model.
        modules: Its pipeline, from `read_modules`.
        job: The job.
        kind: The kind of the model's own vectors.

    Raises:
        UsageError: The model has no such heads.
        ModelError: One of the files of its heads is missing.
    """
    if job.heads in (None, (kind,)):
        return ()
    missing = [name for name in HEAD_FILES if not (files.path / name).is_file()]
    # A head reads the hidden states of the network in the model's own folder.
    is_plain = kind == "dense" and modules[0] == ("Transformer", "")
    if not is_plain or len(missing) == len(HEAD_FILES):
        raise no_heads_error(job, kind)
    if missing:
        again = f"run `embedcli pull {files.name}`" if files.origin in ("cache", "hub") else "copy the model again"
        raise ModelError(f"{files.name} is incomplete: {missing[0]} is missing from {files.path}", again)
    return job.heads or ()


def no_heads_error(job: Job, kind: VectorKind) -> UsageError:
    """The error for a model that computes nothing but vectors of one kind."""
    return UsageError(
        f"--heads {','.join(job.heads or ())} is for models with {' and '.join(HEAD_FILES)} (BGE-M3), and {job.model} "
        f"computes {kind.replace('_', '-')} vectors only",
        "leave --heads out, or use -m BAAI/bge-m3",
    )

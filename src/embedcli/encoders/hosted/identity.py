"""What decides the vectors of a hosted model."""

from __future__ import annotations

from typing import Any

from embedcli.core.job import Job
from embedcli.encoders.hosted.client import parse_server_address
from embedcli.encoders.hosted.request_fields import resolve_request_fields
from embedcli.models.config import resolve_prompt


def hosted_model_identity(job: Job) -> dict[str, Any]:
    """What decides the vectors, without a request. Contains the server's host, and no secret."""
    where = parse_server_address(job)
    return {
        "model": job.model,
        "endpoint": where.host,
        "revision": None,
        "fingerprint": None,
        "pooling": None,
        "prompt": resolve_prompt(job, {}, None)[0],
        "max_seq_length": job.max_seq_length,
        "normalize": job.normalize,
        "truncate_dim": job.truncate_dim,
        "dtype": "float32",
        **resolve_request_fields(job, where.dialect).identity(),
    }

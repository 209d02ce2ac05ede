"""Encode rows with the real known models and compare with sentence-transformers, in float32, row by row.

    python scripts/real_models.py [ALIAS ...] [--max-gigabytes 1] [--skip ALIAS] [--cache-dir FOLDER] [--offline]

Each model is downloaded into a temporary folder, which is removed again, unless --cache-dir names one. Models above
the size limit, and those whose own code would have to run, are only listed. Exits with 1 if the vectors of a model
differ (a cosine below 0.999999) or if it could not be loaded.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import embedcli
from embedcli.core.errors import ModelError, UsageError
from embedcli.core.job import Job
from embedcli.models import hub, resolve
from embedcli.models.files import ModelFiles
from embedcli.models.native import find_native_modules
from embedcli.models.registry import MODEL_REGISTRY

SAMPLE = Path(__file__).resolve().parents[1] / "sample_data" / "texts.jsonl"
ROWS = 20
MIN_COSINE = 0.999999
BYTES_PER_GIGABYTE = 1e9
FAILURES = ("different", "failed")


@dataclass(frozen=True)
class Comparison:
    """A line of the table: `status` is equal, encoded (nothing to compare with), skipped, different or failed."""

    alias: str
    status: str
    details: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the models, print a table, and return the exit code."""
    options = parse_arguments(arguments)
    known = {entry.alias: entry.hub_id for entry in MODEL_REGISTRY}
    unknown = set(options.alias) - known.keys()
    if unknown:
        print(f"unknown: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    texts = [json.loads(line)["text"] for line in SAMPLE.read_text("utf-8").splitlines()[:ROWS]]
    results = []
    for alias in options.alias or known:
        result = compare_model(alias, known[alias], texts, options)
        print(f"{result.alias:42} {result.status:10} {result.details}", flush=True)
        results.append(result)
    failures = [result.alias for result in results if result.status in FAILURES]
    print(f"{len(results)} models, {len(failures)} of them different or failed: {', '.join(failures) or 'none'}")
    return 1 if failures else 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("alias", nargs="*", help="default: every known model")
    parser.add_argument("--max-gigabytes", type=float, default=1.0, help="skip models with larger downloads")
    parser.add_argument("--skip", action="append", default=[], metavar="ALIAS")
    parser.add_argument("--cache-dir", help="hub cache to use and keep")
    parser.add_argument("--offline", action="store_true", help="use only models on this machine")
    return parser.parse_args(arguments)


def compare_model(alias: str, hub_id: str, texts: list[str], options: argparse.Namespace) -> Comparison:
    """Download one model if needed, encode the texts twice, and compare."""
    if alias in options.skip:
        return Comparison(alias, "skipped", "by --skip")
    with tempfile.TemporaryDirectory(prefix="embedcli-models-") as temporary:
        cache = options.cache_dir or (None if options.offline else temporary)
        try:
            if not options.offline:
                size = download_gigabytes(hub_id)
                if size > options.max_gigabytes:
                    return Comparison(alias, "skipped", f"{size:.1f} GB")
            job = Job((), "", model=alias, cache_dir=cache, offline=options.offline)
            return compare_vectors(alias, resolve.resolve_model(job), texts, job)
        except UsageError as error:
            return Comparison(alias, "skipped", error.message)
        except ModelError as error:
            return Comparison(alias, "failed", error.message)
        except (OSError, ValueError, RuntimeError) as error:
            # One model must not end the comparison of the others.
            return Comparison(alias, "failed", f"{type(error).__name__}: {error}")


def download_gigabytes(hub_id: str) -> float:
    """Size of the files that `embedcli pull` downloads."""
    from huggingface_hub import HfApi

    files = HfApi().model_info(hub_id, files_metadata=True).siblings or ()
    sizes = {file.rfilename: file.size or 0 for file in files}
    return sum(sizes[name] for name in hub.select_files(sizes)) / BYTES_PER_GIGABYTE


def compare_vectors(alias: str, files: ModelFiles, texts: list[str], job: Job) -> Comparison:
    """Encode the texts with embedcli and with sentence-transformers, or with the model's own code if it has some."""
    engine: dict[str, Any] = {} if files.kind == "static" else {"engine": "torch", "device": "cpu", "dtype": "float32"}
    with embedcli.load(files.path, offline=True, **engine) as model:
        vectors = model.encode(texts)
    if files.path.is_file():
        return Comparison(alias, "encoded", f"{vectors.shape[1]} dimensions; word vectors")
    native = find_native_modules(files.path, trusts_code=True) != find_native_modules(files.path, trusts_code=False)
    if native and job.offline and not has_code(alias, job):
        return Comparison(alias, "encoded", f"{vectors.shape[1]} dimensions; its own code is not on this machine")
    expected = encode_with_own_code(alias, texts, job) if native else encode_reference(files.path, texts)
    cosines = row_cosines(vectors, expected)
    status = "equal" if cosines.min() >= MIN_COSINE else "different"
    return Comparison(alias, status, f"{vectors.shape[1]} dimensions; lowest cosine {cosines.min():.7f}")


def has_code(alias: str, job: Job) -> bool:
    """Whether a model's own code is on this machine."""
    try:
        resolve.resolve_model(replace(job, model=alias, trust_remote_code=True), download=False)
    except ModelError:
        return False
    return True


def encode_with_own_code(alias: str, texts: list[str], job: Job) -> Any:
    """float32 [len(texts), dim] from the model's own code, which this runs."""
    options: dict[str, Any] = {"engine": "torch", "device": "cpu", "dtype": "float32", "cache_dir": job.cache_dir}
    with embedcli.load(alias, trust_remote_code=True, offline=job.offline, **options) as model:
        return model.encode(texts)


def encode_reference(folder: Path, texts: list[str]) -> Any:
    """float32 [len(texts), dim] from sentence-transformers, one text at a time, so that no padding takes part."""
    import torch
    from sentence_transformers import SentenceTransformer

    options: dict[str, Any] = {"dtype": torch.float32}
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs=options)
    return np.concatenate([model.encode([text], show_progress_bar=False) for text in texts])


def row_cosines(vectors: Any, others: Any) -> Any:
    """Cosine of each row of two arrays [n, dim]; 0 for rows of zeros."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(others, axis=1)
    return (vectors * others).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)


if __name__ == "__main__":
    sys.exit(main())

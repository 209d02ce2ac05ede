"""Save the job of an export beside its request files, and load it again for the import."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embedcli import storage
from embedcli.core.errors import UsageError
from embedcli.core.job import CSV_DEFAULTS, Job
from embedcli.encoders.hosted.client import parse_server_address
from embedcli.outputs import writers

JOB_FILE_SUFFIX = ".job.json"
# The options that decide rows, texts and vectors. They contain no secret: of the address only the public part is kept.
SAVED_FIELDS = (
    "inputs", "format", "encoding", "text_column", "id_column", "template", "keep", "model", "as_", "prompt",
    "max_seq_length", "overflow", "normalize", "truncate_dim", "base_url",
)  # fmt: skip
# Options that job files of earlier versions lack. Those of requests are saved only if they are given.
REQUEST_FIELDS = ("request_field", "omit_field")
# Saved only if they are given.
OPTIONAL_FIELDS = (*REQUEST_FIELDS, "tokenizer")


def job_file_path(requests: str) -> str:
    """Path of the job file: `requests.job.json` beside `requests.jsonl`."""
    return str(Path(requests).with_suffix("")) + JOB_FILE_SUFFIX


def save_job(job: Job, requests: str) -> str:
    """Save the job beside its request files, with absolute input paths and *** in place of the secrets of addresses.

    Returns the path of the job file.
    """
    every = asdict(job)
    kept: dict[str, Any] = {name: every[name] for name in (*SAVED_FIELDS, *CSV_DEFAULTS)}
    kept |= {name: every[name] for name in OPTIONAL_FIELDS if every[name]}
    kept["inputs"] = [_recorded_path(path) for path in job.inputs]
    kept["base_url"] = parse_server_address(job).base_url
    path = job_file_path(requests)
    storage.write_bytes(path, (writers.to_readable_json(kept, indent=2) + "\n").encode())
    return path


def _recorded_path(path: str) -> str:
    if path == "-":
        return path
    return str(storage.mask_secrets(path)) if "://" in path else os.path.abspath(path)


def load_job(results: Sequence[str], output: str, file: str | None = None, inputs: Sequence[str] = ()) -> Job:
    """Load the job of an export, with a new output, from `file` or from the `*.job.json` beside the results.

    Args:
        results: The result files.
        output: The output of the import.
        file: The job file; by default the one beside the results.
        inputs: Where the exported rows are now; by default as recorded.

    Raises:
        UsageError: There is none, there are several that differ, or the file is not a job file; or the recorded
            address of an input lacks its secrets and `inputs` is empty.
    """
    path = file or _find_job_file(results)
    try:
        kept = json.loads(Path(path).read_bytes())
        fields: dict[str, Any] = {name: kept[name] for name in SAVED_FIELDS}
        fields |= {name: kept[name] for name in CSV_DEFAULTS if name in kept}
        fields["tokenizer"] = kept.get("tokenizer")
        fields |= {name: tuple(kept[name]) for name in ("inputs", "keep")}
        fields |= {name: tuple(kept.get(name, ())) for name in REQUEST_FIELDS}
    except OSError as error:
        raise UsageError(
            f"{storage.format_location(path)}: cannot be read: {error.strerror}",
            "name with --job the *.job.json that `batch export` wrote",
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"{storage.format_location(path)}: is not what `batch export` writes", "run `embedcli batch export` again"
        ) from None
    if inputs:
        fields["inputs"] = tuple(inputs)
    else:
        _check_addresses_complete(fields["inputs"], path)
    return Job(output=output, **fields)


def _check_addresses_complete(inputs: Sequence[str], job_file: str) -> None:
    for address in inputs:
        if "://" in address and storage.SECRET_MASK in address:
            raise UsageError(
                f"{storage.format_location(job_file)}: the address {address} of an input is recorded without its "
                "secrets",
                "give the whole address with --input",
            )


def _find_job_file(results: Sequence[str]) -> str:
    folders = dict.fromkeys(Path(path).absolute().parent for path in results)
    found = [str(path) for folder in folders for path in sorted(folder.glob(f"*{JOB_FILE_SUFFIX}"))]
    # An export of missing texts has the same job as the export before it.
    if found and len({Path(path).read_bytes() for path in found}) == 1:
        return found[0]
    there = f"are {len(found)} files ({', '.join(found[:3])})" if found else f"is no *{JOB_FILE_SUFFIX}"
    raise UsageError(
        f"there {there} beside the results, and the import needs that of its export",
        "name with --job the *.job.json that `batch export` wrote beside the requests",
    )

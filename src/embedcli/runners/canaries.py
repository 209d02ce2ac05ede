"""Compare the canaries of a hosted model with those that an output was begun with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from embedcli import storage
from embedcli.core.errors import ResumeError
from embedcli.encoders.hosted.canaries import CANARIES_KEY, describe_moved_canaries
from embedcli.outputs.target import FinishedOutput, find_existing_target, read_finished_output

CANARIES_FILE = "_canaries.json"


def keep_recorded_canaries(
    vector_space: dict[str, Any], output: str, staging_folder: str | None, finished: FinishedOutput | None
) -> dict[str, Any]:
    """Check that a server still has the model that an output was begun with, and record its canaries the first time.

    Args:
        vector_space: The vector space metadata of this run.
        output: The output, for the message.
        staging_folder: Where the canaries of the job are recorded; None for an output to stdout.
        finished: The output that --update replaces.

    Returns:
        The metadata with the canaries that were recorded first, so that small changes do not add up unseen.

    Raises:
        ResumeError: Another model answers under the same name.
    """
    path = storage.join(staging_folder, CANARIES_FILE) if staging_folder is not None else None
    recorded = json.loads(storage.read_bytes(path)) if path is not None and storage.exists(path) else None
    if recorded is None and finished is not None:
        recorded = finished.vector_space.get(CANARIES_KEY)
    current = vector_space.get(CANARIES_KEY)
    if recorded is not None:
        check_canaries({CANARIES_KEY: recorded}, vector_space, output)
        return {**vector_space, CANARIES_KEY: recorded}
    if current is not None and path is not None:
        storage.write_bytes(path, json.dumps(current).encode())
    return vector_space


def check_reused_canaries(vector_space: Mapping[str, Any], paths: tuple[str, ...]) -> None:
    """Check the canaries of the outputs of --reuse. Raises ResumeError if one is of another model."""
    if CANARIES_KEY not in vector_space:
        return
    for path in paths:
        finished = read_finished_output(find_existing_target(path))
        if finished is not None:
            check_canaries(finished.vector_space, vector_space, path)


def check_canaries(recorded: Mapping[str, Any], current: Mapping[str, Any], output: str) -> None:
    """Raise ResumeError if the vectors of an output are not those of the model that the server has now."""
    problem = describe_moved_canaries(recorded, current)
    if problem is not None:
        raise ResumeError(
            f"{storage.format_location(output)}: {problem}",
            "use the server that has the earlier model, or encode all rows again: --overwrite, or no --reuse",
        )

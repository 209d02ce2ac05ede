"""The rejects of a job: write them to one file, and count them by kind of reason."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from embedcli import storage
from embedcli.core.errors import EmbedcliError
from embedcli.core.types import PartFile, Reject, RejectSummary, reject_kind
from embedcli.outputs.target import OutputTarget


def publish_rejects(target: OutputTarget, parts: Sequence[PartFile]) -> None:
    """Merge the rejects of all part files, in input order, into the rejects file; remove an old one if there are none.

    Args:
        target: The output.
        parts: All part files, in input order.
    """
    if any(part.rejects for part in parts):
        merge_rejects(target, parts, target.rejects_path)
    else:
        storage.remove(target.rejects_path)


def save_unpublished_rejects(target: OutputTarget, parts: Sequence[PartFile]) -> RejectSummary | None:
    """Write the rejects so far to a file beside the output, for a run that ends without publishing.

    Returns:
        The counts of the rejects, with the path of the file. The next run removes it.
    """
    merge_rejects(target, parts, target.unpublished_rejects_path)
    return count_rejects_file(target.unpublished_rejects_path)


def merge_rejects(target: OutputTarget, parts: Sequence[PartFile], path: str) -> None:
    """Write the rejects of part files, in their order, into one JSONL file.

    Args:
        target: The output, with its staging folder.
        parts: The part files.
        path: The file to write.
    """
    with storage.write_atomically(path, mode_of=target.marker_path) as out:
        for part in parts:
            if part.rejects:
                out.write(storage.read_bytes(storage.join(target.staging_folder, str(part.stats["rejects_file"]))))


class RejectCounter:
    """Counts rejects by kind, and remembers the place of the first one of each."""

    def __init__(self) -> None:
        self._reasons: Counter[str] = Counter()
        self._first_places: dict[str, str] = {}
        self._examples: dict[str, str] = {}

    def add(self, reject: Reject) -> None:
        self._add(reject.reason, reject.source, reject.line)

    def add_json_line(self, line: bytes) -> None:
        """Count a line of a rejects file."""
        row: dict[str, Any] = json.loads(line)
        self._add(str(row["reason"]), str(row["source"]), int(row["line"]))

    def _add(self, reason: str, source: str, line: int) -> None:
        kind = reject_kind(reason)
        self._reasons[kind] += 1
        if kind not in self._examples:
            self._examples[kind] = reason
            self._first_places[kind] = storage.format_location(source, line)

    def summary(self, path: str | None = None) -> RejectSummary | None:
        """Return the counts, the most frequent kind first; None without rejects.

        Args:
            path: The file that has the rejects.
        """
        if not self._reasons:
            return None
        first = next(iter(self._first_places.values()))
        return RejectSummary(dict(self._reasons.most_common()), first, path, self._examples, self._first_places)


def summarize_rejects_file(target: OutputTarget) -> RejectSummary | None:
    """Count the rejects of a finished output; None without a readable rejects file.

    They are read back from the file, so that the rejects of earlier runs of the job count as well.
    """
    return count_rejects_file(target.rejects_path)


def count_rejects_file(path: str) -> RejectSummary | None:
    """Count the rejects in a file; None if it cannot be read, or has none."""
    counter = RejectCounter()
    try:
        with io.BufferedReader(storage.open_seekable(path)) as lines:
            for line in lines:
                counter.add_json_line(line)
    except (EmbedcliError, OSError, ValueError, KeyError, TypeError):
        return None
    return counter.summary(path)

"""Recognise files that embedcli wrote, so that a folder or glob of inputs does not read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from embedcli import storage
from embedcli.outputs.target import read_json_or_empty
from embedcli.outputs.writers import JOB_METADATA_KEY, SPACE_METADATA_KEY, ids_path, space_path

if TYPE_CHECKING:
    import pyarrow as pa

    from embedcli.readers.preview import InputPreview

OwnFileKind = Literal["output", "ids", "rejects", "metadata", "run report", "settings"]
REJECT_FIELDS = {"source", "line", "id", "reason", "raw"}
REPORT_FIELDS = {"embedcli", "exit_code", "job", "space"}
# Bytes at the beginning of a run report that contain its field `embedcli`.
REPORT_HEAD_BYTES = 64
SETTINGS_FILE = "embedcli.toml"
SPACE_ENDING = space_path("")
IDS_ENDING = ids_path("")


def recognize_by_name(path: str) -> OwnFileKind | None:
    """The kind of a file that belongs to a job and holds no rows; None for other files.

    Outputs, ids and rejects hold rows: `recognize_by_content` knows them once they are open.
    """
    name = storage.basename(path)
    if name == SETTINGS_FILE:
        return "settings"
    if name.endswith(SPACE_ENDING):
        return "metadata"
    if name.endswith(".npy") and storage.exists(ids_path(path)):
        return "output"
    return "run report" if name.endswith(".json") and storage.is_local(path) and _is_run_report(path) else None


def _is_run_report(path: str) -> bool:
    try:
        with storage.get_file_system(path).open_seekable(path) as source:
            is_likely = b'"embedcli"' in source.read(REPORT_HEAD_BYTES)
    except OSError:
        return False
    return is_likely and read_json_or_empty(path).keys() >= REPORT_FIELDS


def recognize_by_schema(path: str, schema: pa.Schema) -> OwnFileKind | None:
    """The kind of a Parquet or Arrow file by its metadata; None if embedcli did not write it.

    A table made of an output keeps its metadata: without the vectors it is no longer an output.
    """
    if not {SPACE_METADATA_KEY.encode(), JOB_METADATA_KEY.encode()} & {*(schema.metadata or ())}:
        return None
    if "embedding" in schema.names:
        return "output"
    return "ids" if path.endswith(IDS_ENDING) else None


def recognize_by_content(preview: InputPreview) -> OwnFileKind | None:
    """The kind of a file by its first rows or metadata; None if embedcli did not write it."""
    if preview.own_kind is not None or preview.format != "jsonl":
        return preview.own_kind
    if preview.rows and all(row.keys() == REJECT_FIELDS for row in preview.rows):
        return "rejects"
    is_output = all("embedding" in row for row in preview.rows) and storage.exists(space_path(preview.path))
    return "output" if preview.rows and is_output else None


def select_left_out(
    kinds: Mapping[str, OwnFileKind], origins: Mapping[str, str], paths: Sequence[str]
) -> dict[str, OwnFileKind]:
    """Select the files that are not inputs.

    Args:
        kinds: The kind of each file that embedcli wrote.
        origins: The folder or glob that each file was found in; files without one were named by the user.
        paths: All files.

    Returns:
        The files of folders and globs that embedcli wrote. Outputs stay if their folder or glob has nothing else.
    """
    with_rows = {origins.get(path) for path in paths if path not in kinds}
    return {
        path: kind
        for path, kind in kinds.items()
        if path in origins and (kind != "output" or origins[path] in with_rows or path.endswith(".npy"))
    }


def describe_left_out(kinds: Mapping[str, OwnFileKind]) -> list[str]:
    """A sentence about the files that were left out; none without any."""
    if not kinds:
        return []
    shown = [f"{path} ({kind})" for path, kind in kinds.items()]
    return [f"Files that embedcli wrote are not read: {storage.shorten(shown)}. To read one, name it as an input."]

"""The record of a table: its vector space, its columns, and which output was loaded into it last."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from embedcli import __version__, storage
from embedcli.core.errors import UsageError
from embedcli.databases.target import TableLayout
from embedcli.outputs.writers import ids_path
from embedcli.runners.vector_space import UNCONSTRAINED_KEYS

if TYPE_CHECKING:
    from embedcli.outputs.dataset import VectorDataset

RECORD_FORMAT = 1
# Of longer values a part is shown, with this many characters before the first difference of two texts.
MAX_VALUE_CHARACTERS = 60
CONTEXT_CHARACTERS = 20


@dataclass(frozen=True)
class TableRecord:
    """What is recorded with a table.

    Attributes:
        vector_space: The vector space metadata of the rows.
        layout: The columns.
        output: The identity of the output whose load has finished last; {} while a load is under way.
        rows: Rows of that output in the table.
        rejects: Rows of that output that the database cannot hold.
        table_rows: Rows of the table after that load.
        run: Token of the load that wrote the record: another load that began meanwhile has replaced it.
    """

    vector_space: Mapping[str, Any]
    layout: TableLayout
    output: Mapping[str, Any] = field(default_factory=dict)
    rows: int = 0
    rejects: int = 0
    table_rows: int = 0
    run: str = ""

    def agrees_with(self, count: int) -> bool:
        """Whether the table with `count` rows has as many as after the last load, at least those of its output."""
        return self.rows <= self.table_rows == count

    def to_json(self) -> dict[str, Any]:
        layout = self.layout
        return {
            "format": RECORD_FORMAT,
            "embedcli": __version__,
            "vector_space": dict(self.vector_space),
            "table": {
                "key": list(layout.key),
                "kind": layout.kind,
                "precision": layout.precision,
                "dim": layout.dim,
                "distance": layout.distance,
                "schema": base64.b64encode(layout.schema.serialize()).decode(),
            },
            "load": {
                "output": dict(self.output),
                "rows": self.rows,
                "rejects": self.rejects,
                "table_rows": self.table_rows,
                "run": self.run,
            },
        }


def parse_record(record: Mapping[str, Any], where: str) -> TableRecord:
    """Parse the record of a table.

    Args:
        record: As `DatabaseTarget.read_record` returns it.
        where: The table, for messages.

    Raises:
        UsageError: The table was not created by embedcli, or by a later version.
    """
    if not record:
        raise UsageError(
            f"{where}: the table was not created by `embedcli load`, so its vector space is not known",
            "choose another name with --table",
        )
    if record.get("format") != RECORD_FORMAT:
        raise UsageError(
            f"{where}: the table was loaded by a later version of embedcli", "install a later version of embedcli"
        )
    table, load = record["table"], record["load"]
    schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(table["schema"])))
    layout = TableLayout(tuple(table["key"]), schema, table["kind"], table["precision"], int(table["dim"]))
    return TableRecord(
        record["vector_space"],
        layout,
        load["output"],
        load["rows"],
        load["rejects"],
        load["table_rows"],
        load.get("run", ""),
    )


def check_same_space(recorded: Mapping[str, Any], loaded: Mapping[str, Any], where: str, hint: str) -> None:
    """Raise UsageError, naming what differs, unless the vectors of an output may join those of a table."""
    different = [
        "{} is {} there, {} in the output".format(key, *shorten_values(recorded.get(key), loaded.get(key)))
        for key in sorted({*recorded, *loaded} - UNCONSTRAINED_KEYS)
        if recorded.get(key) != loaded.get(key)
    ]
    if different:
        raise UsageError(
            f"{where}: holds vectors of another vector space: {'; '.join(different)}",
            hint,
        )


def check_same_columns(recorded: TableLayout, loaded: TableLayout, where: str, hint: str) -> None:
    """Raise UsageError, naming the columns, unless the rows of an output fit a table."""
    old = {field.name: field.type for field in recorded.schema}
    new = {field.name: field.type for field in loaded.schema}
    problems = [f"the output has no column {name!r}" for name in old if name not in new]
    problems += [f"the table has no column {name!r}" for name in new if name not in old]
    problems += [
        f"column {name!r} is {old[name]} there, {new[name]} in the output"
        for name in old
        if name in new and old[name] != new[name]
    ]
    if recorded.key != loaded.key and not problems:
        problems = [f"rows are identified by {', '.join(recorded.key)} there"]
    if problems:
        raise UsageError(
            f"{where}: its columns differ from those of the output: {'; '.join(problems)}",
            hint,
        )


def shorten_values(one: Any, other: Any) -> tuple[str, str]:
    """Quote different values. Long texts are shown from where they differ, with dots for what is left out."""
    start = 0
    if isinstance(one, str) and isinstance(other, str) and max(len(one), len(other)) > MAX_VALUE_CHARACTERS:
        shorter = min(len(one), len(other))
        same = next((place for place in range(shorter) if one[place] != other[place]), shorter)
        start = max(0, same - CONTEXT_CHARACTERS)
    return shorten_value(one, start), shorten_value(other, start)


def shorten_value(value: Any, start: int = 0) -> str:
    """Quote a value: of a long one a part, that of a text from `start` on."""
    if not isinstance(value, str):
        text = repr(value)
        return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[:MAX_VALUE_CHARACTERS]}..."
    end = start + MAX_VALUE_CHARACTERS
    return repr(f"{'...' if start else ''}{value[start:end]}{'...' if end < len(value) else ''}")


def identify_output(dataset: VectorDataset) -> dict[str, Any]:
    """Return what changes when an output does: a digest of its metadata, and size and time of each of its files.

    Returns:
        `metadata` and `files`, by path below the output; `files` is {} where a file cannot be identified.
    """
    metadata = json.dumps([dataset.vector_space, dataset.job_manifest], sort_keys=True, default=str)
    digest = hashlib.sha256(metadata.encode()).hexdigest()[:32]
    files = {file_name(dataset, part.path): identify_file(part.path) for part in dataset.vector_files}
    return {"metadata": digest, "files": files if all(files.values()) else {}}


def file_name(dataset: VectorDataset, path: str) -> str:
    """Return the name of a file of an output, without the folder that the output is in."""
    return path.removeprefix(dataset.path).strip("/") or storage.basename(path)


def identify_file(path: str) -> dict[str, Any]:
    """Return the identity of a file of vectors and of the file of ids beside it, or of a Lance dataset."""
    if storage.is_folder(path):
        versions = storage.join(path, "_versions")
        return {name: storage.file_identity(storage.join(versions, name)) for name in storage.list_files(versions)}
    identity: dict[str, Any] = storage.file_identity(path)
    if path.endswith(".npy") and identity:
        return {**identity, "ids": storage.file_identity(ids_path(path))}
    return identity

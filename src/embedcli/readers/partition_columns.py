"""Columns of Hive-partitioned folders: in `lang=fr/part-0.parquet` every row has the value `fr` in the column `lang`.

The rules are those of pyarrow.dataset: a column holds whole numbers if all its values are ones, otherwise strings;
names and values are URL-encoded; `__HIVE_DEFAULT_PARTITION__` is null. Whole numbers have 64 bits.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa

from embedcli import storage

if TYPE_CHECKING:
    from embedcli.readers.preview import InputPreview

PartitionValue = str | int | None
NULL_VALUE = "__HIVE_DEFAULT_PARTITION__"
WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")


def decode_partition(path: str) -> dict[str, str | None]:
    """The column names and values in the folders of a path."""
    written = storage.partition_values(storage.strip_query(path))
    return {unquote(name): None if value == NULL_VALUE else unquote(value) for name, value in written.items()}


def infer_partition_types(paths: Iterable[str]) -> dict[str, pa.DataType]:
    """The type of each partition column of some files: int64 if all values are whole numbers, otherwise string."""
    values: defaultdict[str, set[str]] = defaultdict(set)
    for path in paths:
        for name, value in decode_partition(path).items():
            values[name].update(() if value is None else (value,))
    return {
        name: pa.int64() if found and all(map(WHOLE_NUMBER.fullmatch, found)) else pa.string()
        for name, found in values.items()
    }


def partition_constants(path: str, types: Mapping[str, pa.DataType]) -> dict[str, PartitionValue]:
    """The value that all rows of a file have in each partition column; null where its path does not name one."""
    values = decode_partition(path)
    return {
        name: int(value) if (value := values.get(name)) is not None and data_type == pa.int64() else value
        for name, data_type in types.items()
    }


def add_partition_types(previews: Sequence[InputPreview]) -> list[InputPreview]:
    """Add the partition columns of each file to its preview, but none that is a column of a file itself."""
    types = infer_partition_types(preview.path for preview in previews)
    own_names = {name for preview in previews for name in preview.column_types} if types else set()
    return [
        replace(
            preview,
            partition_types={name: types[name] for name in decode_partition(preview.path) if name not in own_names},
        )
        for preview in previews
    ]


def note_columns_of_files(previews: Sequence[InputPreview], names: Iterable[str]) -> list[str]:
    """A sentence for each column that both a file and a folder name have: the file's values are used."""
    both = [(name, preview) for name in names for preview in previews if name in decode_partition(preview.path)]
    first = {name: preview for name, preview in reversed(both) if name not in preview.partition_types}
    return [
        f"The column {name!r} is read from the rows, not from the names of folders "
        f"such as that of {storage.format_location(preview.path)}."
        for name, preview in first.items()
    ]

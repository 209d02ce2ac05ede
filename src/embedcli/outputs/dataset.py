"""A finished output as it lies on disk: its space, and its rows in blocks of bounded size."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from embedcli import storage
from embedcli.core import quantization
from embedcli.core.arrow_values import rows_of
from embedcli.core.errors import InputError, UsageError
from embedcli.core.types import MANIFEST, STAGE
from embedcli.outputs import lance as lance_output
from embedcli.outputs import writers
from embedcli.outputs.lance_rows import LanceRows
from embedcli.outputs.vector_files import JsonlRows, Rows, open_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import Floats, Precision

# Vectors held at a time: a few of a processor's caches, and rows enough to keep its cores busy.
BLOCK_BYTES = 8 << 20
# What embedcli adds to the user's columns.
OWN_COLUMNS = ("n_tokens", "truncated", "text_hash", "window", "char_start", "char_end")


@dataclass(frozen=True)
class Block:
    """Successive rows of an output: stored vectors [n, width], and the columns asked for. `start` counts from 0."""

    start: int
    vectors: NDArray[Any]
    table: pa.Table

    def __len__(self) -> int:
        return len(self.vectors)


class Output:
    """Rows with vectors, in one file or several. `space` says what made them; it is empty for a foreign file."""

    def __init__(self, path: str, parts: Sequence[Rows], metadata: Mapping[str, Any]) -> None:
        self.path = path
        self.parts = tuple(parts)
        self.space: Mapping[str, Any] = metadata.get(writers.SPACE_KEY) or {}
        self.job: Mapping[str, Any] = metadata.get(writers.JOB_KEY) or {}
        self.schema = parts[0].schema if parts else pa.schema([])
        self.width = parts[0].width if parts else 0
        self.dtype = parts[0].dtype if parts else np.dtype("float32")
        odd = next((part for part in parts if part.width != self.width or part.dtype != self.dtype), None)
        if odd is not None:
            raise InputError(
                f"{storage.where(odd.path)}: has {odd.width} numbers ({odd.dtype}) per vector, "
                f"other parts {self.width} ({self.dtype})",
                "make the output again",
            )

    @cached_property
    def rows(self) -> int:
        return sum(part.count for part in self.parts)

    @property
    def id_name(self) -> str | None:
        """The column that names rows; None if there is none, then `ids` counts them from 0."""
        return next((name for name in ("id", "row") if name in self.schema.names), None)

    @property
    def precision(self) -> Precision:
        """How the vectors are stored; for a foreign file its number type."""
        named = str(self.space.get("precision") or self.dtype.name)
        return cast("Precision", named if named in quantization.DTYPES else "float32")

    @property
    def dim(self) -> int:
        """Numbers per vector before it was stored."""
        if self.precision in ("binary", "ubinary"):
            return int(self.space.get("dim") or self.width * 8)
        return self.width

    @property
    def vector_bytes(self) -> int:
        """The size of all vectors as they are stored, without ids and other columns."""
        return int(self.rows * self.width * self.dtype.itemsize)

    @cached_property
    def ranges(self) -> Floats | None:
        """float32 [2, dim]: what int8 and uint8 were scaled by."""
        saved = self.space.get("ranges")
        return None if saved is None else np.asarray(saved, np.float32).reshape(2, self.dim)

    @property
    def is_json(self) -> bool:
        """Whether ids and kept values have the types of JSON, whatever those of the input were."""
        return any(isinstance(part, JsonlRows) for part in self.parts)

    @property
    def kept(self) -> list[str]:
        """The columns that came with the rows, without ids and what embedcli adds."""
        return [name for name in self.schema.names if name not in (self.id_name, *OWN_COLUMNS)]

    def known_space(self, what_for: str) -> Mapping[str, Any]:
        """The space, where it is needed. UsageError for an output that does not say what made it."""
        if not self.space.get("model"):
            raise UsageError(
                f"{storage.where(self.path)}: does not say which model made its vectors, and {what_for} needs that",
                "make it with `embedcli encode`, which records it in the output",
            )
        return self.space

    def blocks(self, columns: Sequence[str] = (), *, verify: bool = False) -> Iterator[Block]:
        """Yield all rows in order with the named columns; `verify` also compares page checksums.

        Memory holds one block of BLOCK_BYTES of vectors, counted as float32, whatever the number of rows.
        """
        self.check_columns(columns)
        size = max(1, BLOCK_BYTES // max(1, self.width * self.dtype.itemsize, self.dim * 4))
        start = 0
        for part in self.parts:
            for vectors, table in part.blocks(columns, size, verify=verify):
                yield Block(start, vectors, table)
                start += len(vectors)

    def floats(self, block: Block) -> Floats:
        """The vectors of a block as float32 [n, dim]; those of reduced precision as near as they can be restored."""
        if self.precision in ("int8", "uint8") and self.ranges is None:
            raise UsageError(
                f"{storage.where(self.path)}: does not say the ranges of its {self.precision} vectors",
                "make it with `embedcli encode --precision`, which records them",
            )
        return quantization.restore(block.vectors, self.precision, self.dim, self.ranges)

    def ids(self, block: Block) -> pa.Array:
        """The ids of a block that was read with `id_name`; row numbers from 0 where the output has none."""
        if self.id_name is None:
            return pa.array(range(block.start, block.start + len(block)), pa.int64())
        column = block.table.column(self.id_name)
        return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """The named columns of some rows, in the order of `rows`; `id` holds the id, whatever its column is called."""
        self.check_columns(columns)
        names = list(dict.fromkeys([*([self.id_name] if self.id_name else []), *columns]))
        found: dict[int, dict[str, Any]] = {}
        start = 0
        for part in self.parts:
            here = sorted({row - start for row in rows if start <= row < start + part.count})
            if here:
                taken = rows_of(part.take(here, names))
                found |= {start + row: values for row, values in zip(here, taken, strict=True)}
            start += part.count
        return [self._named(row, found[row], columns) for row in rows]

    def _named(self, row: int, values: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
        name = self.id_name
        return {"id": row if name is None else values[name]} | {column: values[column] for column in columns}

    def check_columns(self, columns: Sequence[str]) -> None:
        """UsageError for a column that is not there, naming those that are."""
        for name in columns:
            if name not in self.schema.names:
                raise UsageError(
                    f"{storage.where(self.path)}: has no column {name!r}; it has {', '.join(self.schema.names)}",
                    "name one of these, or run `embedcli encode` with --keep for more",
                )


def open_output(path: str) -> Output:
    """An output of `embedcli encode`, or a foreign file with a column of vectors.

    UsageError if nothing is there or it holds no vectors, InputError if it is damaged.
    """
    path = storage.masked(path)
    lance = lance_output.is_lance(path)
    if storage.is_folder(path) and not lance:
        return _open_folder(path)
    _refuse_unfinished(path, path.rstrip("/") + ".parts")
    rows = LanceRows(path) if lance and storage.is_folder(path) else open_rows(storage.expand([path])[0])
    return Output(path, [rows], rows.metadata)


def is_output(path: str) -> bool:
    """Whether `path` is a file or folder with vectors, rather than rows to be embedded."""
    path = storage.masked(path)
    if storage.is_folder(path):
        if lance_output.is_lance(path):
            return True
        return storage.exists(storage.join(path, MANIFEST)) or storage.exists(storage.join(path, STAGE))
    try:
        open_rows(path)
    except storage.StoreRefused:
        raise
    except (UsageError, InputError):
        return False
    return True


def _open_folder(path: str) -> Output:
    manifest = storage.join(path, MANIFEST)
    if storage.exists(manifest):
        metadata = _manifest(manifest)
        parts = [storage.join(path, str(name)) for name in metadata.get("parts", [])]
        missing = next((part for part in parts if not storage.exists(part)), None)
        if missing is not None:
            raise InputError(f"{storage.where(missing)}: is missing", "make the output again")
        return Output(path, [open_rows(part) for part in parts], metadata)
    _refuse_unfinished(manifest, storage.join(path, STAGE))
    found = [open_rows(file) for file in storage.expand([path])]
    return Output(path, found, found[0].metadata)


def _manifest(path: str) -> dict[str, Any]:
    try:
        made = json.loads(storage.read_bytes(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{storage.where(path)}: cannot be read: {error}", "make the output again") from None
    return cast("dict[str, Any]", made)


def _refuse_unfinished(marker: str, stage: str) -> None:
    if not storage.exists(marker) and storage.exists(stage):
        raise UsageError(
            f"{storage.where(marker)}: is not finished; its parts lie in {storage.where(stage)}",
            "run the same `embedcli encode` again to finish it",
        )

"""Read finished outputs: vector space metadata, and rows in blocks of bounded size."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from embedcli import storage
from embedcli.core import quantization
from embedcli.core.arrow_values import table_to_rows
from embedcli.core.constants import MANIFEST_FILE, ROW_INFO_COLUMNS, STAGING_FOLDER, VOCABULARY_KEY
from embedcli.core.errors import InputError, UsageError
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.core.types import KIND_ADJECTIVES
from embedcli.outputs import lance as lance_output
from embedcli.outputs import writers
from embedcli.outputs.jsonl_vectors import JsonlVectorFile
from embedcli.outputs.lance_rows import LanceVectorFile
from embedcli.outputs.vector_columns import REWRITE_HINT, describe_column, meaningless_ranges_error
from embedcli.outputs.vector_files import VectorFile, translate_read_errors
from embedcli.outputs.vector_formats import open_vector_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import Float32Array, Precision, VectorKind
    from embedcli.outputs.vector_columns import StoredVectors

# Vectors in memory at a time: a few times the processor's cache, and enough rows to keep its cores busy.
BLOCK_BYTES = 8 << 20
# A row of sparse or multi-vector vectors counts as at least this many bytes, so that its other columns stay small too.
MIN_ROW_BYTES = 1024


@dataclass(frozen=True)
class VectorBlock:
    """Successive rows of an output.

    Attributes:
        first_row: Index of the first row in the output, from 0.
        vectors: Stored vectors: an array [n, stored width]; `MultiVectors` with [tokens, stored width]; or
            `SparseVectors` in float32.
        columns: The requested columns, n rows.
    """

    first_row: int
    vectors: StoredVectors
    columns: pa.Table

    def __len__(self) -> int:
        return len(self.vectors)


class VectorDataset:
    """Rows with vectors in one or more files. `vector_space` is empty for files that embedcli did not write.

    Of an output with the vectors of several heads, one column is read, and `vector_space` describes that one.
    """

    def __init__(self, path: str, parts: Sequence[VectorFile], metadata: Mapping[str, Any]) -> None:
        self.path = path
        self.vector_files = tuple(parts)
        space = metadata.get(writers.SPACE_METADATA_KEY) or {}
        self.vector_columns: tuple[str, ...] = tuple(space.get("columns") or ())
        self.vector_space: Mapping[str, Any] = describe_column(space, parts[0].column.name) if parts else space
        self.job_manifest: Mapping[str, Any] = metadata.get(writers.JOB_METADATA_KEY) or {}
        self.schema = parts[0].schema if parts else pa.schema([])
        self.kind: VectorKind = parts[0].column.kind if parts else "dense"
        self.stored_width = max((part.column.width for part in parts), default=0)
        self.dtype = parts[0].column.dtype if parts else np.dtype("float32")
        self._check_same_column(parts)

    def _check_same_column(self, parts: Sequence[VectorFile]) -> None:
        """Raise InputError unless all files have vectors of one kind, dtype and, unless they are sparse, width."""
        kinds = sorted({KIND_ADJECTIVES[part.column.kind] for part in parts}, reverse=True)
        if len(kinds) > 1:
            raise InputError(
                f"{storage.format_location(self.path)}: some files have {kinds[0]} vectors, others {kinds[1]} ones",
                "encode the rows again",
            )
        if not parts:
            return
        vocabularies = {part.metadata.get(writers.SPACE_METADATA_KEY, {}).get(VOCABULARY_KEY) for part in parts}
        if len(vocabularies - {None}) > 1:
            raise InputError(
                f"{storage.format_location(self.path)}: its files have sparse vectors of different vocabularies",
                "encode the rows again with one model",
            )
        width = parts[0].column.width
        for part in parts:
            column = part.column
            if column.dtype != self.dtype or (self.kind != "sparse" and column.width != width):
                raise InputError(
                    f"{storage.format_location(part.path)}: has {column.width} numbers ({column.dtype}) per vector, "
                    f"other files have {width} ({self.dtype})",
                    "encode the rows again",
                )

    @cached_property
    def rows(self) -> int:
        return sum(part.row_count for part in self.vector_files)

    @property
    def id_name(self) -> str | None:
        """Name of the id column, or None if there is none; ids are then row numbers from 0."""
        return next((name for name in ("id", "row") if name in self.schema.names), None)

    @property
    def precision(self) -> Precision:
        """Number format of the stored vectors; for files of other programs, their dtype."""
        named = str(self.vector_space.get("precision") or self.dtype.name)
        return cast("Precision", named if named in quantization.STORAGE_DTYPES else "float32")

    @property
    def dim(self) -> int:
        """Dimensions of a vector before quantization."""
        if self.precision in ("binary", "ubinary"):
            return int(self.vector_space.get("dim") or self.stored_width * 8)
        return self.stored_width

    @property
    def vector_bytes(self) -> int:
        """Size in bytes of all stored vectors, without other columns; by mean sizes where those of rows differ."""
        if self.kind == "sparse":
            return round(sum(part.row_count * part.bytes_per_row for part in self.vector_files))
        if self.kind == "multi_vector":
            return round(self.rows * self._mean_vectors() * self.stored_width * self.dtype.itemsize)
        return int(self.rows * self.stored_width * self.dtype.itemsize)

    @cached_property
    def ranges(self) -> Float32Array | None:
        """Minimum and maximum by which int8 and uint8 vectors were scaled: float32 [2, dim], or None.

        Of sparse vectors [2, 1]. Raises InputError if the recorded ranges make no sense.
        """
        saved = self.vector_space.get("ranges")
        if saved is None:
            return None
        try:
            return quantization.parse_ranges(saved, 1 if self.kind == "sparse" else self.dim)
        except ValueError as error:
            raise meaningless_ranges_error(self.path, self.precision, error) from None

    @property
    def vocabulary(self) -> str | None:
        """Fingerprint of the words that the dimensions of sparse vectors stand for; None if it is not recorded."""
        return self.vector_space.get(VOCABULARY_KEY)

    @property
    def has_json_types(self) -> bool:
        """Whether ids and kept values have JSON types, whatever the types of the input were."""
        return any(isinstance(part, JsonlVectorFile) for part in self.vector_files)

    @property
    def kept_columns(self) -> list[str]:
        """Columns kept from the input: all but the id and those that embedcli adds."""
        own = (self.id_name, *self.vector_columns, *ROW_INFO_COLUMNS)
        return [name for name in self.schema.names if name not in own]

    @property
    def may_lack_terms(self) -> bool:
        """Whether a row may have an empty sparse vector, because other heads have given it vectors."""
        return self.kind == "sparse" and len(self.vector_columns) > 1

    def require_vector_space(self, what_for: str) -> Mapping[str, Any]:
        """Return the vector space metadata. Raises UsageError if the output has none."""
        if not self.vector_space.get("model"):
            raise UsageError(
                f"{storage.format_location(self.path)}: does not name the model that made its vectors, "
                f"which {what_for} needs",
                "create the output with `embedcli encode`, which records the model",
            )
        return self.vector_space

    def read_blocks(
        self, columns: Sequence[str] = (), *, verify: bool = False, keep_damaged: bool = False
    ) -> Iterator[VectorBlock]:
        """Yield all rows in order, in blocks of at most BLOCK_BYTES of vectors counted as float32.

        Rows with a vector for each token have that size on average; a block has at most twice as much, or one row.

        Args:
            columns: Columns to read beside the vectors.
            verify: Compare page checksums where the format has them; a mismatch raises an error.
            keep_damaged: Yield sparse vectors that cannot be read without entries, and list them in `damage`.

        Raises:
            InputError: A file or, unless `keep_damaged` is given, a sparse vector is damaged.
        """
        self.check_columns(columns)
        size = self._rows_per_block()
        start = 0
        for part in self.vector_files:
            with translate_read_errors(part.path):
                for vectors, table in part.read_blocks(columns, size, verify=verify):
                    damage = vectors.damage if isinstance(vectors, SparseVectors) else {}
                    if damage and not keep_damaged:
                        raise self._damage_error(start + min(damage), damage[min(damage)])
                    for block in self._split_block(vectors, table):
                        yield replace(block, first_row=start + block.first_row)
                    start += len(vectors)

    def _damage_error(self, row: int, problem: str) -> InputError:
        return InputError(
            f"{storage.format_location(self.path)}: the vector of {self.describe_row(row)} {problem}",
            f"{REWRITE_HINT}; `embedcli inspect` counts all rows that cannot be read",
        )

    def describe_row(self, row: int) -> str:
        """Name a row, numbered from 0, in a message: "row 8 (id r7)"."""
        return f"row {row + 1}" + (f" (id {self.take_rows([row], [])[0]['id']})" if self.id_name is not None else "")

    def _split_block(self, vectors: StoredVectors, table: pa.Table) -> Iterator[VectorBlock]:
        """Yield the rows that were read at once as blocks, numbered from 0, of which none is too large."""
        if isinstance(vectors, SparseVectors):
            # Files of other programs do not record the number of dimensions.
            known = replace(vectors, dim=self.dim)
            if self.precision in ("int8", "uint8"):
                known = quantization.dequantize_weights(known, self.precision, self.require_ranges())
            yield VectorBlock(0, known, table)
        elif isinstance(vectors, MultiVectors):
            # As many rows of mean size as fit were read; if these are much longer, they are divided.
            for start, stop in vectors.split_by_vectors(2 * BLOCK_BYTES // max(1, self.dim * 4)):
                yield VectorBlock(start, vectors.view_rows(start, stop), table.slice(start, stop - start))
        else:
            yield VectorBlock(0, vectors, table)

    def _rows_per_block(self) -> int:
        if self.kind == "dense":
            return max(1, BLOCK_BYTES // max(1, self.stored_width * self.dtype.itemsize, self.dim * 4))
        bytes_per_row = max((part.bytes_per_row for part in self.vector_files), default=0)
        if self.kind == "multi_vector":
            bytes_per_row *= 4 / self.dtype.itemsize
        return int(BLOCK_BYTES // max(MIN_ROW_BYTES, bytes_per_row)) or 1

    def _mean_vectors(self) -> float:
        """Vectors of a row with one for each token, on average."""
        numbers = sum(part.row_count * part.bytes_per_row / part.column.bytes_per_entry for part in self.vector_files)
        return numbers / max(1, self.stored_width) / max(1, self.rows)

    def require_dense(self, what_for: str, hint: str) -> None:
        """Raise UsageError if the output has no dense vectors of rows, which `what_for` needs."""
        if self.kind != "dense":
            raise UsageError(
                f"{storage.format_location(self.path)}: has {KIND_ADJECTIVES[self.kind]} vectors, and {what_for} "
                "needs dense ones",
                hint,
            )

    def block_vectors(self, block: VectorBlock) -> RowVectors:
        """Return the vectors of a block in float32, without a copy if they are stored so; see `block_as_float32`."""
        if isinstance(block.vectors, SparseVectors):
            return block.vectors
        if isinstance(block.vectors, MultiVectors):
            return replace(block.vectors, values=self._to_float32(block.vectors.values))
        return self._to_float32(block.vectors)

    def block_as_float32(self, block: VectorBlock) -> Float32Array:
        """Return dense vectors of a block as float32 [n, dim], dequantized if necessary."""
        if not isinstance(block.vectors, np.ndarray):
            raise TypeError(f"{self.kind} vectors are not made dense: their rows would not fit a block")
        return self._to_float32(block.vectors)

    def _to_float32(self, stored: NDArray[Any]) -> Float32Array:
        """Vectors as they are stored, [n, stored width], as float32 [n, dim]."""
        if stored.dtype == np.float32:
            return stored
        ranges = self.require_ranges() if self.precision in ("int8", "uint8") else None
        return quantization.dequantize(stored, self.precision, self.dim, ranges)

    def require_ranges(self) -> Float32Array:
        """Return the ranges of int8 and uint8 vectors. Raises UsageError if they are not recorded."""
        if self.ranges is None:
            raise UsageError(
                f"{storage.format_location(self.path)}: does not contain the ranges of its {self.precision} vectors",
                "create the output with `embedcli encode --precision`, which records them",
            )
        return self.ranges

    def block_ids(self, block: VectorBlock) -> pa.Array:
        """Return the ids of a block that was read with the column `id_name`; row numbers from 0 if there is none."""
        if self.id_name is None:
            return pa.array(range(block.first_row, block.first_row + len(block)), pa.int64())
        column = block.columns.column(self.id_name)
        return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)

    def take_rows(self, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return the named columns of some rows, in the order of `rows`, with the id under the key `id`."""
        self.check_columns(columns)
        names = list(dict.fromkeys([*([self.id_name] if self.id_name else []), *columns]))
        found: dict[int, dict[str, Any]] = {}
        start = 0
        for part in self.vector_files:
            here = sorted({row - start for row in rows if start <= row < start + part.row_count})
            if here:
                taken = table_to_rows(part.take_rows(here, names)) if names else [{} for _ in here]
                found |= {start + row: values for row, values in zip(here, taken, strict=True)}
            start += part.row_count
        return [self._named(row, found[row], columns) for row in rows]

    def _named(self, row: int, values: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
        name = self.id_name
        return {"id": row if name is None else values[name]} | {column: values[column] for column in columns}

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise UsageError, listing the columns of the output, if one of `columns` is missing."""
        for name in columns:
            if name not in self.schema.names:
                raise UsageError(
                    f"{storage.format_location(self.path)}: has no column {name!r}; "
                    f"it has {', '.join(self.schema.names)}",
                    "use one of these, or run `embedcli encode` again with --keep COLUMN",
                )


def open_dataset(path: str, column: str | None = None) -> VectorDataset:
    """Open an output of `embedcli encode`, or any file with a column of vectors.

    Args:
        path: The output.
        column: Which of its columns of vectors to read; by default `embedding`, or the only one.

    Raises:
        UsageError: Nothing is there, it holds no vectors or not in this column, or the output is not finished.
        InputError: A file is damaged or missing.
    """
    path = storage.mask_secrets(path)
    lance = lance_output.is_lance(path)
    if storage.is_folder(path) and not lance:
        return _open_folder(path, column)
    _refuse_unfinished(path, path.rstrip("/") + ".parts")
    rows = (
        LanceVectorFile(path, column)
        if lance and storage.is_folder(path)
        else open_vector_file(storage.expand_inputs([path])[0], column)
    )
    return VectorDataset(path, [rows], rows.metadata)


def holds_vectors(path: str) -> bool:
    """Whether `path` is a file or folder with vectors, rather than rows to be embedded."""
    path = storage.mask_secrets(path)
    if storage.is_folder(path):
        if lance_output.is_lance(path):
            return True
        return storage.exists(storage.join(path, MANIFEST_FILE)) or storage.exists(storage.join(path, STAGING_FOLDER))
    try:
        open_vector_file(path)
    except storage.ObjectStoreError:
        raise
    except (UsageError, InputError):
        return False
    return True


def _open_folder(path: str, column: str | None) -> VectorDataset:
    manifest = storage.join(path, MANIFEST_FILE)
    if storage.exists(manifest):
        metadata = _read_manifest(manifest)
        parts = [storage.join(path, str(name)) for name in metadata.get("parts", [])]
        missing = next((part for part in parts if not storage.exists(part)), None)
        if missing is not None:
            raise InputError(f"{storage.format_location(missing)}: the file is missing", "encode the rows again")
        return VectorDataset(path, [open_vector_file(part, column) for part in parts], metadata)
    _refuse_unfinished(manifest, storage.join(path, STAGING_FOLDER))
    found = [open_vector_file(file, column) for file in storage.expand_inputs([path], recursive=False)]
    return VectorDataset(path, found, found[0].metadata)


def _read_manifest(path: str) -> dict[str, Any]:
    try:
        manifest = json.loads(storage.read_bytes(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{storage.format_location(path)}: cannot be read: {error}", "encode the rows again") from None
    return cast("dict[str, Any]", manifest)


def _refuse_unfinished(marker: str, staging: str) -> None:
    if not storage.exists(marker) and storage.exists(staging):
        raise UsageError(
            f"{storage.format_location(marker)}: not finished; "
            f"its part files are in {storage.format_location(staging)}",
            "run the same `embedcli encode` again to finish it",
        )

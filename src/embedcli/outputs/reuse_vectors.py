"""The vectors of finished outputs in memory-mapped files, of which rows are taken by their number.

A store has the vectors of one column; those of an output with several heads are in several stores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import offsets_of
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.outputs.schema import VectorField

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import Float32Array, Int64Array, VectorKind
    from embedcli.outputs.vector_columns import StoredVectors


class VectorStore(ABC):
    """Vectors on disk: appended block by block, then taken by row.

    Args:
        folder: Where the files are kept, as `reuse.COLUMN.*`.
        field: The column that the vectors are for.
    """

    file_names: tuple[str, ...]

    def __init__(self, folder: Path, field: VectorField) -> None:
        self.field = field
        self._paths = [folder / f"reuse.{field.name}.{name}" for name in self.file_names]
        self._files: list[BinaryIO] = []

    @contextmanager
    def open_for_writing(self) -> Iterator[None]:
        """Open the files for `append`; afterwards their rows can be taken."""
        with ExitStack() as stack:
            self._files = [stack.enter_context(open(path, "wb")) for path in self._paths]
            yield
        self._map()

    @abstractmethod
    def append(self, vectors: StoredVectors) -> None:
        """Add the vectors of the next rows, as they are stored. Raises OSError if the disk is full."""

    @abstractmethod
    def _map(self) -> None:
        """Open the closed files for reading."""

    @abstractmethod
    def take(self, rows: Int64Array) -> Float32Array | SparseVectors | MultiVectors:
        """Return the vectors of some rows, in their order, as float32."""

    def close(self) -> None:
        """Delete the files."""
        self._release()
        for path in self._paths:
            path.unlink(missing_ok=True)

    @abstractmethod
    def _release(self) -> None:
        """Close the mapped files."""

    def _map_numbers(self) -> NDArray[Any]:
        """The stored numbers of dense vectors, [vectors, stored width]."""
        return map_array(self._paths[0], self.field.dtype).reshape(-1, self.field.stored_width)


class DenseVectorStore(VectorStore):
    """Arrays of stored numbers."""

    file_names = ("bin",)
    _vectors: Any = None

    def append(self, vectors: StoredVectors) -> None:
        write_array(self._files[0], vectors)

    def _map(self) -> None:
        self._vectors = self._map_numbers()

    def take(self, rows: Int64Array) -> Float32Array:
        return self.field.dequantize(self._vectors[rows])

    def _release(self) -> None:
        self._vectors = None


class SparseVectorStore(VectorStore):
    """Indices and values of sparse vectors; 8 bytes of memory per row."""

    file_names = ("indices", "values")
    _stored: SparseVectors | None = None

    def __init__(self, folder: Path, field: VectorField) -> None:
        super().__init__(folder, field)
        self._lengths: list[Int64Array] = [np.zeros(1, np.int64)]

    def append(self, vectors: StoredVectors) -> None:
        if not isinstance(vectors, SparseVectors):
            raise TypeError("dense vectors in a store of sparse ones")
        self._lengths.append(vectors.lengths)
        write_array(self._files[0], vectors.indices)
        write_array(self._files[1], vectors.values)

    def _map(self) -> None:
        offsets = np.cumsum(np.concatenate(self._lengths))
        self._lengths = []
        indices, values = (map_array(path, kind) for path, kind in zip(self._paths, ("i4", "f4"), strict=True))
        self._stored = SparseVectors(offsets, indices, values, self.field.dim)

    def take(self, rows: Int64Array) -> SparseVectors:
        if self._stored is None:
            raise ValueError("the store is still being written, or closed")
        return self._stored[rows]

    def _release(self) -> None:
        self._stored = None


class MultiVectorStore(VectorStore):
    """Arrays of stored numbers, a vector for each token; 8 bytes of memory per row."""

    file_names = ("bin",)
    _stored: MultiVectors | None = None

    def __init__(self, folder: Path, field: VectorField) -> None:
        super().__init__(folder, field)
        self._lengths: list[Int64Array] = [np.zeros(0, np.int64)]

    def append(self, vectors: StoredVectors) -> None:
        if not isinstance(vectors, MultiVectors):
            raise TypeError("one vector per row in a store of vectors of tokens")
        self._lengths.append(vectors.lengths)
        write_array(self._files[0], vectors.values)

    def _map(self) -> None:
        offsets = offsets_of(np.concatenate(self._lengths))
        self._lengths = []
        self._stored = MultiVectors(offsets, self._map_numbers())

    def take(self, rows: Int64Array) -> MultiVectors:
        if self._stored is None:
            raise ValueError("the store is still being written, or closed")
        taken = self._stored[rows]
        return MultiVectors(taken.offsets, self.field.dequantize(taken.values))

    def _release(self) -> None:
        self._stored = None


def write_array(file: BinaryIO, values: Any) -> None:
    """Append the numbers of an array to a file. `tofile` of numpy does not say why it fails."""
    file.write(np.ascontiguousarray(values).data)


def map_array(path: Path, dtype: Any) -> NDArray[Any]:
    """Map a file of numbers into memory; a file without bytes cannot be mapped."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


def create_vector_store(folder: Path, field: VectorField) -> VectorStore:
    """Create an empty store for the vectors of a column."""
    stores: dict[VectorKind, type[VectorStore]] = {
        "dense": DenseVectorStore,
        "sparse": SparseVectorStore,
        "multi_vector": MultiVectorStore,
    }
    return stores[field.kind](folder, field)

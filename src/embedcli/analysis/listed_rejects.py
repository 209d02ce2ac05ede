"""The rows that an output lists as rejected, in the file beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli import storage
from embedcli.core.errors import InputError, first_line
from embedcli.outputs.target import OutputTarget

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.outputs.dataset import VectorDataset


class ListedRejects:
    """The rejects file of an output. It is read when it is asked for the first time.

    Attributes:
        path: The file, whether it exists or not.
        absence: What to say if it does not.
    """

    def __init__(self, output: VectorDataset) -> None:
        self.path = OutputTarget(output.path, "parquet", storage.is_folder(output.path)).rejects_path
        self.absence = f"{self.path}, which lists the rejected rows, does not exist"

    @cached_property
    def exists(self) -> bool:
        return storage.exists(self.path)

    def count(self) -> int | None:
        """Count the listed rows; None without a rejects file."""
        return sum(1 for _ in self._lines()) if self.exists else None

    def includes(self, id: Any, raw: str) -> bool:
        """Whether a row with this id and this beginning in its input is listed.

        The encoder rejects a row for its text: only the beginning tells whether the row is still the same.

        Raises:
            InputError: The file is damaged.
        """
        key = row_key(id, raw)
        position = np.searchsorted(self._keys, key)
        return bool(position < len(self._keys) and self._keys[position] == key)

    @cached_property
    def _keys(self) -> NDArray[np.uint64]:
        """Sorted; 8 bytes for each row, because a dump may have millions of empty texts."""
        rows = (json.loads(line) for line in self._lines())
        try:
            return np.sort(np.fromiter((row_key(row["id"], row["raw"]) for row in rows), np.uint64))
        except (ValueError, KeyError, TypeError) as error:
            problem = f"{self.path} cannot be read as a rejects file: {first_line(error)}"
            raise InputError(problem, "use the file that was written with the output") from error

    def _lines(self) -> Iterator[bytes]:
        if self.exists:
            with open(storage.local_copy(self.path), "rb") as lines:
                yield from (line for line in lines if line.strip())


def row_key(id: Any, raw: str) -> np.uint64:
    """Hash the id of a row, which rejects have as a number or as text, and its beginning."""
    digest = hashlib.blake2b(f"{id}\0{raw}".encode(errors="surrogatepass"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))

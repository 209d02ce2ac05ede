"""Which rows are in a table already, and which keys a run has seen: sorted arrays instead of Python objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.databases.rows import digest_array, hash_keys

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from embedcli.core.types import BoolArray, Int64Array


class KnownRows:
    """The rows of a table: 24 bytes of memory for each.

    Attributes:
        count: Number of rows.
        repeats: How many of them have the key of another one; one row of each key does not count.

    Args:
        tables: The key columns and digests, as `DatabaseTarget.read_digests` yields them.
        key: Names of the key columns.
    """

    def __init__(self, tables: Iterable[pa.Table], key: Sequence[str]) -> None:
        digests, keys = [np.empty(0, "S16")], [np.empty(0, np.int64)]
        for table in tables:
            if table.num_rows:
                digests.append(digest_array(table))
                keys.append(hash_keys(table, key))
        self.count = sum(map(len, keys))
        self._digests = np.sort(np.concatenate(digests))
        self._keys = np.sort(np.concatenate(keys))
        self.repeats = int((self._keys[1:] == self._keys[:-1]).sum())

    def have_digests(self, digests: NDArray[Any]) -> BoolArray:
        """Whether rows with these digests are in the table: bool [n]."""
        return is_in_sorted(digests, self._digests)

    def have_keys(self, keys: Int64Array) -> BoolArray:
        """Whether rows with these hashes of keys are in the table: bool [n]."""
        return is_in_sorted(keys, self._keys)


class SeenKeys:
    """The keys that a run has met: 8 bytes of memory for each."""

    def __init__(self) -> None:
        # Sorted arrays, each at least twice as long as the next one, so that there are few of them.
        self._sorted: list[Int64Array] = []

    def add(self, keys: Int64Array) -> BoolArray:
        """Add hashes of keys and tell which were there before, or earlier among them: bool [n]."""
        _, firsts = np.unique(keys, return_index=True)
        is_repeated = np.ones(len(keys), bool)
        is_repeated[firsts] = False
        is_repeated |= self.include(keys)
        fresh = np.sort(keys[~is_repeated])
        while self._sorted and len(self._sorted[-1]) < 2 * len(fresh):
            fresh = np.sort(np.concatenate([self._sorted.pop(), fresh]))
        self._sorted.append(fresh)
        return is_repeated

    def include(self, keys: Int64Array) -> BoolArray:
        """Whether these hashes of keys were added: bool [n]."""
        found = np.zeros(len(keys), bool)
        for part in self._sorted:
            found |= is_in_sorted(keys, part)
        return found


def is_in_sorted(values: NDArray[Any], ordered: NDArray[Any]) -> BoolArray:
    """Whether each value is in an ascending array: bool [n]."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[at] == values)

"""Count the ids that appear more than once in a finished output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedcli import storage
from embedcli.core.arrow_values import column_to_python
from embedcli.core.errors import EmbedcliError
from embedcli.outputs.target import read_json_or_empty
from embedcli.outputs.writers import ids_path

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.outputs.target import OutputTarget

# Larger outputs are not counted: 134 MB of memory for the hashes of this many ids.
MAX_ROWS = 1 << 24


def count_duplicate_ids(target: OutputTarget, rows: int) -> int | None:
    """Count the distinct ids that more than one row has, by hashes of 64 bits.

    Only the column of the ids is read. Windows of one text count as one row.

    Args:
        target: The finished output.
        rows: The embedded rows.

    Returns:
        None where it is not counted: more than MAX_ROWS rows, a format without columns, generated ids.
    """
    if rows > MAX_ROWS or target.format not in ("parquet", "npy", "arrow"):
        return None
    if target.format == "arrow" and not storage.is_local(target.output):
        return None  # the whole file would be fetched
    try:
        hashes = list(_read_hashes(target))
    except (EmbedcliError, OSError, pa.ArrowException):
        return None
    if not hashes:
        return None
    ordered = np.concatenate(hashes)
    del hashes
    ordered.sort()
    return len(find_repeated(ordered))


def find_repeated(ordered: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers that occur more than once, each once: int64 [k] from int64 [n], both ascending."""
    is_pair = ordered[1:] == ordered[:-1]
    # A run of equal numbers counts once: at the first of its pairs.
    is_first = is_pair.copy()
    is_first[1:] &= ~is_pair[:-1]
    return np.asarray(ordered[:-1][is_first])


def _read_hashes(target: OutputTarget) -> Iterator[NDArray[np.int64]]:
    paths = [target.output]
    if target.is_folder:
        names = read_json_or_empty(target.marker_path).get("parts", ())
        paths = [storage.join(target.output, str(name)) for name in names]
    for path in paths:
        for batch in _read_id_columns(ids_path(path) if target.format == "npy" else path):
            yield hash_ids((_first_windows(batch) if "window" in batch.schema.names else batch).column("id"))


def _first_windows(batch: pa.RecordBatch) -> pa.RecordBatch:
    import pyarrow.compute as pc  # takes 0.03 to 0.1 s, which outputs without windows save

    return batch.filter(pc.equal(batch.column("window"), 0))


def _read_id_columns(path: str) -> Iterator[pa.RecordBatch]:
    """Yield the columns `id` and, where there are several windows of a text, `window`; nothing without an `id`."""
    with storage.open_seekable(path) as source:
        if path.endswith(".arrow"):
            batches = pa.ipc.open_file(source)
            names = [name for name in ("id", "window") if name in batches.schema.names]
            if "id" in names:
                yield from (batches.get_batch(number).select(names) for number in range(batches.num_record_batches))
            return
        file = pq.ParquetFile(source)
        names = [name for name in ("id", "window") if name in file.schema_arrow.names]
        if "id" in names:
            yield from file.iter_batches(columns=names)


def hash_ids(ids: pa.Array) -> NDArray[np.int64]:
    """Hash ids, int64 [n]: equal ids have equal hashes. Integers of at most 64 bits are their own hashes."""
    if pa.types.is_integer(ids.type):
        return np.asarray(ids.to_numpy(zero_copy_only=False)).astype(np.int64)
    # Python gives -1 and -2 the same hash, and so -1.0 and -2.0; no other values in use as ids.
    values = map(str, column_to_python(ids)) if pa.types.is_floating(ids.type) else column_to_python(ids)
    return np.fromiter(map(hash, values), np.int64, len(ids))

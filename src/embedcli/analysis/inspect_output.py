"""What an output holds, counted in one pass: norms, non-finite values, truncated rows, ids that come twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli import storage
from embedcli.core.arrow_values import column_to_python
from embedcli.outputs.dataset import VectorBlock, VectorDataset

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import Float32Array

# Values of which quantiles are exact; of more, an even sample between half of this and this.
MAX_HELD_VALUES = 1 << 20
MAX_EXAMPLES = 10


class StreamingQuantiles:
    """Smallest, largest and quantiles of a stream of numbers, in bounded memory."""

    def __init__(self) -> None:
        self.count = 0
        self.minimum = float("inf")
        self.maximum = float("-inf")
        self._step = 1
        self._held: list[NDArray[Any]] = []
        self._size = 0

    def add(self, values: NDArray[Any]) -> None:
        if not len(values):
            return
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))
        taken = values[-self.count % self._step :: self._step]
        self.count += len(values)
        self._held.append(np.array(taken))
        self._size += len(taken)
        while self._size > MAX_HELD_VALUES:
            self._held = [np.concatenate(self._held)[::2]]
            self._size = len(self._held[0])
            self._step *= 2

    def held_values(self) -> NDArray[Any]:
        """The numbers themselves, or the even sample of them."""
        return np.concatenate(self._held) if self._held else np.empty(0)

    def quantile(self, share: float) -> float:
        """The value below which `share` of the numbers lie."""
        return float(np.quantile(self.held_values(), share))

    def summary(self, **quantiles: float) -> dict[str, float] | None:
        """`min`, the named quantiles and `max`; None if there was no number."""
        if not self.count:
            return None
        middle = {name: self.quantile(share) for name, share in quantiles.items()}
        return {"min": self.minimum, **middle, "max": self.maximum}


class DuplicateIdCounter:
    """Counts ids that come more than once, holding eight bytes per row."""

    def __init__(self, output: VectorDataset) -> None:
        self.output = output
        self.columns = [name for name in (output.id_name, "window") if name and name in output.schema.names]
        self._hashes: list[NDArray[np.int64]] = []

    def add(self, block: VectorBlock) -> None:
        keys = self._keys(block)
        self._hashes.append(np.fromiter(map(hash, keys), np.int64, len(block)))

    def find_duplicates(self) -> list[tuple[Any, int]]:
        """Ids that come more than once and how often, by the order of their first row."""
        if self.output.id_name is None or not self._hashes:
            return []
        hashes = np.sort(np.concatenate(self._hashes))
        twice = set(hashes[:-1][hashes[1:] == hashes[:-1]].tolist())
        return [(key, count) for key, count in self._counted(twice).items() if count > 1] if twice else []

    def _counted(self, hashes: set[int]) -> Counter[Any]:
        """Equal hashes may belong to different ids: those rows are looked at again."""
        counts: Counter[Any] = Counter()
        for block in self.output.read_blocks(self.columns):
            counts.update(key for key in self._keys(block) if hash(key) in hashes)
        return counts

    def _keys(self, block: VectorBlock) -> Iterator[Any]:
        columns = [column_to_python(block.columns.column(name)) for name in self.columns]
        return iter(columns[0]) if len(columns) == 1 else zip(*columns, strict=True)


def describe_output(output: VectorDataset) -> dict[str, Any]:
    """Everything `embedcli inspect` says of an output, as JSON values; reads it once, checking its checksums."""
    norms, tokens, ids = StreamingQuantiles(), StreamingQuantiles(), DuplicateIdCounter(output)
    names = [name for name in ("n_tokens", "truncated") if name in output.schema.names]
    bad = zero = truncated = rows = total_tokens = 0
    for block in output.read_blocks([*ids.columns, *names], verify=True):
        lengths = compute_row_norms(vectors_for_norms(output, block))
        fine = np.isfinite(lengths)
        bad += int((~fine).sum())
        zero += int((lengths == 0).sum())
        norms.add(lengths[fine])
        rows += len(block)
        if "truncated" in names:
            truncated += int(block.columns["truncated"].to_numpy().sum())
        if "n_tokens" in names:
            counts = block.columns["n_tokens"].to_numpy()
            tokens.add(counts)
            total_tokens += int(counts.sum())
        if output.id_name is not None:
            ids.add(block)
    return {
        "path": output.path,
        "kind": "output",
        "bytes": sum(size_on_disk(part.path) for part in output.vector_files),
        "files": len(output.vector_files),
        "rows": rows,
        "rejected": output.job_manifest.get("rejects"),
        "dim": output.dim,
        "precision": output.precision,
        "norms": None if "binary" in output.precision else norms.summary(median=0.5),
        "non_finite_rows": bad,
        "zero_rows": zero,
        "truncated_rows": truncated if "truncated" in names else None,
        "truncated_share": truncated / rows if rows and "truncated" in names else None,
        "tokens": {"total": total_tokens, **(tokens.summary(median=0.5, p95=0.95) or {})} if tokens.count else None,
        "ids": describe_ids(output, ids.find_duplicates()),
        "columns": {field.name: str(field.type) for field in output.schema},
        "space": dict(output.vector_space),
    }


def describe_ids(output: VectorDataset, duplicates: list[tuple[Any, int]]) -> dict[str, Any]:
    """The ids' column and type, and how many come more than once, some of them by name."""
    name = output.id_name
    return {
        "column": name,
        "type": str(output.schema.field(name).type) if name else None,
        "duplicates": len(duplicates),
        "examples": [{"id": to_json_value(key), "rows": count} for key, count in duplicates[:MAX_EXAMPLES]],
    }


def to_json_value(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, tuple | list):
        return [to_json_value(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def vectors_for_norms(output: VectorDataset, block: VectorBlock) -> Float32Array:
    """The vectors of a block for their norms: as they are where that is float32, else restored where possible."""
    if output.precision in ("int8", "uint8") and output.ranges is None:
        return block.vectors.astype(np.float32)
    return output.block_as_float32(block) if block.vectors.dtype != np.float32 else block.vectors


def compute_row_norms(vectors: Float32Array) -> NDArray[Any]:
    """float32 [n]: the length of each vector; not finite where a value is not."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    odd = ~np.isfinite(lengths)
    if odd.any():  # very large numbers overflow in float32, but are numbers
        lengths[odd] = np.linalg.norm(vectors[odd].astype(np.float64), axis=1)
    return np.asarray(lengths)


def size_on_disk(path: str) -> int:
    """Bytes of a file, or of all files in a folder of this machine (a Lance dataset)."""
    if storage.is_folder(path):
        return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
    return int(storage.file_identity(path)["size"])

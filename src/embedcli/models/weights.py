"""Tensors of a safetensors file as float32 arrays, without torch; float32 ones stay on disk until they are read.

The layout: 8 bytes with the header's length, a JSON header with type, shape and byte range by name, the bytes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEADER_LENGTH_BYTES = 8
# safetensors itself refuses headers above this.
MAX_HEADER_BYTES = 100_000_000
SAFETENSORS_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8",
}  # fmt: skip
DOWNLOAD_AGAIN_HINT = "fetch the model again"


def read_header(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file by name: dtype, shape and data_offsets. Raises ModelError where damaged."""
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(HEADER_LENGTH_BYTES), "little")
            if size > MAX_HEADER_BYTES:
                raise ValueError(f"its header claims {size} bytes")
            made = json.loads(stream.read(size))
        return {str(name): entry for name, entry in made.items() if name != "__metadata__"}
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path} is not a whole safetensors file: {error}", DOWNLOAD_AGAIN_HINT) from error


def read_tensor(path: Path, name: str) -> NDArray[Any]:
    """One tensor in its own type, bfloat16 as float32. Raises ModelError where the file does not hold it whole."""
    try:
        entry = read_header(path)[name]
        kind, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
        start, stop = entry["data_offsets"]
        if (
            kind not in SAFETENSORS_DTYPES
            or math.prod(shape) * np.dtype(SAFETENSORS_DTYPES[kind]).itemsize != stop - start
        ):
            raise ValueError(f"{kind} {shape} in {stop - start} bytes")
        with path.open("rb") as stream:
            base = HEADER_LENGTH_BYTES + int.from_bytes(stream.read(HEADER_LENGTH_BYTES), "little")
        made = (
            np.memmap(path, SAFETENSORS_DTYPES[kind], "r", base + start, shape)
            if stop > start
            else np.zeros(shape, SAFETENSORS_DTYPES[kind])
        )
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ModelError(f"the tensor {name} of {path} cannot be read: {error}", DOWNLOAD_AGAIN_HINT) from error
    if kind == "BF16":
        # The upper half of a float32.
        return (made.astype(np.uint32) << 16).view(np.float32)
    return made.view(np.ndarray)

"""Read tensors from safetensors files without torch, memory-mapped.

File layout (https://huggingface.co/docs/safetensors): the header's length as 8 bytes, a JSON header with dtype, shape
and byte range of each tensor, then the bytes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedcli.core.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEADER_LENGTH_BYTES = 8
# The limit of safetensors itself.
MAX_HEADER_BYTES = 100_000_000
SAFETENSORS_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8",
}  # fmt: skip
DOWNLOAD_AGAIN_HINT = "fetch the model again"
# The tensors of a model2vec file; only the first is in every one.
MODEL2VEC_TENSORS = {"embeddings", "weights", "mapping"}


def read_header(path: Path) -> dict[str, Any]:
    """Read the header of a safetensors file.

    Returns:
        For each tensor name, a dict with dtype, shape and data_offsets.

    Raises:
        ModelError: The file cannot be read or is damaged.
    """
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(HEADER_LENGTH_BYTES), "little")
            if size > MAX_HEADER_BYTES:
                raise ValueError(f"its header length is {size} bytes")
            header = json.loads(stream.read(size))
        return {str(name): entry for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path} is not a complete safetensors file: {error}", DOWNLOAD_AGAIN_HINT) from error


def read_tensor(path: Path, name: str) -> NDArray[Any]:
    """Memory-map one tensor.

    Returns:
        The tensor in its own dtype; bfloat16, which NumPy lacks, is copied to float32.

    Raises:
        ModelError: The file lacks the tensor or is damaged.
    """
    import numpy as np

    try:
        entry = read_header(path)[name]
        dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
        start, stop = entry["data_offsets"]
        if (
            dtype not in SAFETENSORS_DTYPES
            or math.prod(shape) * np.dtype(SAFETENSORS_DTYPES[dtype]).itemsize != stop - start
        ):
            raise ValueError(f"{dtype} {shape} in {stop - start} bytes")
        with path.open("rb") as stream:
            data_start = HEADER_LENGTH_BYTES + int.from_bytes(stream.read(HEADER_LENGTH_BYTES), "little")
        tensor = (
            np.memmap(path, SAFETENSORS_DTYPES[dtype], "r", data_start + start, shape)
            if stop > start
            else np.zeros(shape, SAFETENSORS_DTYPES[dtype])
        )
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ModelError(f"cannot read the tensor {name} of {path}: {error}", DOWNLOAD_AGAIN_HINT) from error
    if dtype == "BF16":
        # bfloat16 is the upper half of a float32.
        return (tensor.astype(np.uint32) << 16).view(np.float32)
    return tensor.view(np.ndarray)

"""Read gensim's KeyedVectors files, which are pickles, without running any code that they name."""

from __future__ import annotations

import collections
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import Float32Array

EXPORT_HINT = "export it where you trust it: KeyedVectors.load(...).save_word2vec_format('vectors.txt')"


class GensimObjectStub:
    """Replaces the classes of gensim: holds attributes, has no code."""


class NumpyDtypeStub:
    """Replaces numpy.dtype, whose `__setstate__` trusts what the pickle says about memory."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code = code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def to_numpy(self) -> np.dtype[Any]:
        """Return the dtype. Raises ValueError if it is not a plain number type."""
        if not re.fullmatch("[fiu][1248]", str(self.code)) or self.order not in ("<", ">", "=", "|"):
            raise ValueError(f"{self.order}{self.code} is not a number type")
        return np.dtype(f"{self.order}{self.code}")


class NumpyArrayStub:
    """Replaces numpy.ndarray: shape, dtype and bytes, converted to an array after unpickling."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def to_numpy(self) -> NDArray[Any]:
        """Return the array. Raises ValueError or TypeError if shape, dtype and bytes do not match."""
        _, shape, kind, columns_first, data = self.state
        numbers = np.frombuffer(bytes(data), kind.to_numpy())
        return numbers.reshape(shape, order="F" if columns_first else "C")


def _array_from_buffer(data: Any, kind: Any, shape: Any, order: Any) -> NumpyArrayStub:
    made = NumpyArrayStub()
    made.state = (1, shape, kind, order == "F", data)
    return made


def _scalar(_: Any, data: Any) -> Any:
    return data


def _decode_latin1(text: str, *_: Any) -> bytes:
    return text.encode("latin-1")


# Errors that unpickling arbitrary bytes can raise.
DAMAGED_FILE_ERRORS = (
    OSError, EOFError, MemoryError, ArithmeticError, LookupError, AttributeError, TypeError, ValueError,
    pickle.PickleError,
)  # fmt: skip
GENSIM_MODULE_PREFIX = "gensim.models."
# The only names that a pickle may contain, and their replacements.
ALLOWED_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): NumpyArrayStub,
    ("numpy", "dtype"): NumpyDtypeStub,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _decode_latin1,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("__builtin__", "frozenset"): frozenset,
} | {
    (f"numpy.{core}.{module}", name): made
    for core in ("core", "_core")
    for module, name, made in (
        ("multiarray", "_reconstruct", NumpyArrayStub),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _array_from_buffer),
    )
}


class _Unpickler(pickle.Unpickler):
    """Resolves only the replacements and plain values, so a pickle can build data but call nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith(GENSIM_MODULE_PREFIX) and "." not in name:
            return GensimObjectStub
        if (module, name) in ALLOWED_GLOBALS:
            return ALLOWED_GLOBALS[module, name]
        raise ModelError(
            f"its pickle names {module}.{name}, which vectors do not need; nothing of it was run", EXPORT_HINT
        )


def read_keyed_vectors(path: Path) -> tuple[list[str], Float32Array]:
    """Read words and vectors, float32 [n, dim]; gensim stores large arrays in `.npy` files beside the pickle.

    Raises:
        ModelError: The pickle names anything but arrays and gensim's classes, or is damaged.
    """
    try:
        words, vectors = _parts(path)
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}", error.hint) from error
    except DAMAGED_FILE_ERRORS as error:
        raise ModelError(f"{path} is not a complete KeyedVectors file: {error}", EXPORT_HINT) from error
    if vectors.ndim != 2 or len(vectors) != len(words) or vectors.dtype.kind != "f":
        raise ModelError(f"{path} has {len(words)} words and vectors of shape {vectors.shape}", EXPORT_HINT)
    return [str(word) for word in words], np.asarray(vectors, np.float32)


def _parts(path: Path) -> tuple[list[Any], NDArray[Any]]:
    with path.open("rb") as stream:
        made = _Unpickler(stream, encoding="latin-1").load()
    kept = vars(made) if isinstance(made, GensimObjectStub) else {}
    words = kept.get("index_to_key") or kept.get("index2word")
    vectors = kept.get("vectors")
    if isinstance(words, list) and "vectors" in (kept.get("__numpys") or ()):
        return words, _load_large_array(path)
    if isinstance(words, list) and isinstance(vectors, NumpyArrayStub):
        return words, vectors.to_numpy()
    raise ModelError("it contains no KeyedVectors", "save a whole model's vectors alone: model.wv.save(...)")


def vectors_sidecar_path(path: Path) -> Path:
    """Path of the file in which gensim stores a large array."""
    return path.with_name(path.name + ".vectors.npy")


def _load_large_array(path: Path) -> Any:
    beside = vectors_sidecar_path(path)
    try:
        return np.load(beside, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ModelError(
            f"its vectors in {beside} cannot be read: {error}",
            "put both files side by side again: they belong together",
        ) from error

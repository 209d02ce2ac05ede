"""gensim's KeyedVectors files, which are pickles, read without running anything that they name."""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.contracts import ModelError

if TYPE_CHECKING:
    from embedcli.contracts import Floats

EXPORT = "export it where you trust it: KeyedVectors.load(...).save_word2vec_format('vectors.txt')"


class Kept:
    """Stands for each class of gensim: takes attributes, has no code of its own."""


def _array(kind: Any, shape: tuple[int, ...], code: bytes) -> Any:
    return np.ndarray(shape, code.decode())


def _from_buffer(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> Any:
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _scalar(dtype: np.dtype[Any], data: bytes) -> Any:
    return np.frombuffer(data, dtype)[0]


GENSIM = "gensim.models."
# All that a pickle may name, and what it gets instead.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): collections.OrderedDict,
} | {
    (f"numpy.{core}.{module}", name): made
    for core in ("core", "_core")
    for module, name, made in (
        ("multiarray", "_reconstruct", _array),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _from_buffer),
    )
}


class _Unpickler(pickle.Unpickler):
    """Knows arrays, plain values and empty stand-ins, so a pickle can build data and call nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith(GENSIM) and "." not in name:
            return Kept
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        raise ModelError(f"its pickle names {module}.{name}, which vectors do not need; nothing of it was run", EXPORT)


def read(path: Path) -> tuple[list[str], Floats]:
    """The words and their vectors, float32 [n, dim]; large arrays come from gensim's own `.npy` files beside it.

    Raises ModelError where the pickle names anything but arrays and gensim's classes, or is damaged.
    """
    kept = _attributes(path)
    words = kept.get("index_to_key") or kept.get("index2word")
    vectors = _large(path) if "vectors" in (kept.get("__numpys") or ()) else kept.get("vectors")
    if not isinstance(words, list) or not isinstance(vectors, np.ndarray):
        raise ModelError(f"{path} holds no KeyedVectors", "save a whole model's vectors alone: model.wv.save(...)")
    if vectors.ndim != 2 or len(vectors) != len(words) or vectors.dtype.kind != "f":
        raise ModelError(f"{path} has {len(words)} words and vectors of shape {vectors.shape}", "save it again")
    return [str(word) for word in words], np.asarray(vectors, np.float32)


def _attributes(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            made = _Unpickler(stream).load()
        return dict(vars(made)) if isinstance(made, Kept) else {}
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}", error.hint) from error
    except (OSError, MemoryError, ArithmeticError, LookupError, pickle.PickleError, EOFError) as error:
        raise ModelError(f"{path} is not a whole KeyedVectors file: {error}", EXPORT) from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is not a whole KeyedVectors file: {error}", EXPORT) from error


def sidecar(path: Path) -> Path:
    """Where gensim puts the array of a file when it is large."""
    return path.with_name(path.name + ".vectors.npy")


def _large(path: Path) -> Any:
    beside = sidecar(path)
    try:
        return np.load(beside, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ModelError(f"{path} keeps its vectors in {beside}, which cannot be read: {error}", "copy both") from error

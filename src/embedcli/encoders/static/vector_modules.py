"""The modules of sentence-transformers that may follow static vectors: Dense, LayerNorm and Normalize, in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedcli.core.errors import ModelError
from embedcli.core.vectors import normalize_rows
from embedcli.models.files import read_json_object
from embedcli.models.weights import DOWNLOAD_AGAIN_HINT, read_tensor

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array

VectorModule = Callable[["Float32Array"], "Float32Array"]

WEIGHTS_FILE = "model.safetensors"
# The default of torch.nn.LayerNorm; sentence-transformers does not save another.
LAYER_NORM_EPSILON = 1e-5


# NumPy has no error function. This one calls Python for each number, about three million times a second.
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _identity(vectors: Float32Array) -> Float32Array:
    return vectors


def _relu(vectors: Float32Array) -> Float32Array:
    return np.maximum(vectors, np.float32(0))


def _gelu(vectors: Float32Array) -> Float32Array:
    exact = vectors.astype(np.float64)
    return np.asarray(exact * 0.5 * (1 + _erf(exact / math.sqrt(2))), np.float32)


def _sigmoid(vectors: Float32Array) -> Float32Array:
    # By tanh: exp of a large number overflows.
    return np.asarray(np.float32(0.5) * (np.tanh(np.float32(0.5) * vectors) + np.float32(1)), np.float32)


def _silu(vectors: Float32Array) -> Float32Array:
    return vectors * _sigmoid(vectors)


# Activation functions without parameters, by the name of their class in torch.nn.
ACTIVATIONS: dict[str, VectorModule] = {
    "Identity": _identity,
    "Tanh": np.tanh,
    "ReLU": _relu,
    "GELU": _gelu,
    "Sigmoid": _sigmoid,
    "SiLU": _silu,
}


@dataclass(frozen=True)
class DenseModule:
    """`activation(x @ weight.T + bias)` for vectors x, float32 [n, columns of `weight`]."""

    weight: Float32Array
    bias: Float32Array | None
    activation: VectorModule

    def __call__(self, vectors: Float32Array) -> Float32Array:
        products = vectors @ self.weight.T
        return self.activation(products if self.bias is None else products + self.bias)


@dataclass(frozen=True)
class LayerNormModule:
    """Scales each vector to mean 0 and variance 1, then multiplies by `weight` and adds `bias`."""

    weight: Float32Array
    bias: Float32Array

    def __call__(self, vectors: Float32Array) -> Float32Array:
        centred = vectors - vectors.mean(axis=1, keepdims=True)
        variance = np.square(centred).mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt(variance + np.float32(LAYER_NORM_EPSILON))
        return np.asarray(scaled * self.weight + self.bias, np.float32)


def load_vector_modules(folder: Path, modules: Sequence[tuple[str, str]], dim: int) -> tuple[list[VectorModule], int]:
    """Load the modules that follow static vectors.

    Args:
        folder: The model's folder.
        modules: Class name and subfolder of each module, in their order.
        dim: Dimensions of the static vectors.

    Returns:
        The modules as functions of vectors, float32 [n, dim], and the number of dimensions behind the last one.

    Raises:
        ModelError: A module is of another kind, its files are damaged, or its size does not fit.
    """
    loaded: list[VectorModule] = []
    for kind, path in modules:
        if kind == "Normalize":
            loaded.append(normalize_rows)
        elif kind == "Dense":
            dense = _load_dense(folder / path, dim)
            loaded.append(dense)
            dim = len(dense.weight)
        elif kind == "LayerNorm":
            loaded.append(_load_layer_norm(folder / path, dim))
        else:
            raise ModelError(
                f"{folder} follows its static vectors with {kind}, which is not supported", "use another model"
            )
    return loaded, dim


def _load_dense(folder: Path, dim: int) -> DenseModule:
    config = read_json_object(folder / "config.json")
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = ACTIVATIONS.get(name.rpartition(".")[2]) if name.startswith("torch.nn.") else None
    if activation is None:
        raise ModelError(
            f"{folder / 'config.json'} names the activation function {name}, which is not supported behind static "
            f"vectors; supported are {', '.join(ACTIVATIONS)} of torch.nn",
            "use another model",
        )
    keys = {config.get(key, "sentence_embedding") for key in ("module_input_name", "module_output_name")}
    if config.get("use_residual") or keys - {None, "sentence_embedding"}:
        raise ModelError(
            f"{folder / 'config.json'} describes a Dense module with a residual connection or other inputs, which is "
            "not supported behind static vectors",
            "use another model",
        )
    weight = _read_weights(folder, "linear.weight")
    bias = _read_weights(folder, "linear.bias") if config.get("bias", True) else None
    if weight.ndim != 2 or weight.shape[1] != dim or (bias is not None and bias.shape != weight.shape[:1]):
        raise ModelError(
            f"{folder / WEIGHTS_FILE} has a matrix of shape {weight.shape} for vectors of {dim} numbers",
            DOWNLOAD_AGAIN_HINT,
        )
    return DenseModule(weight, bias, activation)


def _load_layer_norm(folder: Path, dim: int) -> LayerNormModule:
    weight, bias = _read_weights(folder, "norm.weight"), _read_weights(folder, "norm.bias")
    if weight.shape != (dim,) or bias.shape != (dim,):
        raise ModelError(
            f"{folder / WEIGHTS_FILE} has weights of shape {weight.shape} for vectors of {dim} numbers",
            DOWNLOAD_AGAIN_HINT,
        )
    return LayerNormModule(weight, bias)


def _read_weights(folder: Path, name: str) -> Float32Array:
    path = folder / WEIGHTS_FILE
    if not path.is_file() and any(folder.glob("pytorch_model*.bin")):
        raise ModelError(
            f"{folder} keeps its weights in a pickle (pytorch_model.bin), which could run code",
            "load it where you trust it with sentence-transformers and save it again: model.save(PATH)",
        )
    return np.asarray(read_tensor(path, name), np.float32)

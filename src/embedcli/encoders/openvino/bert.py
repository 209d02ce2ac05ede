"""The bundled BERT model as an OpenVINO graph, built without PyTorch, and its vectors by NumPy to check the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.encoders.equivalence import EquivalenceProbe, build_probe
from embedcli.encoders.openvino.encoder import ConvertedNetwork, LoadRequest
from embedcli.models.files import read_json_object
from embedcli.models.weights import read_tensor

if TYPE_CHECKING:
    from embedcli.core.encoder import Tokens
    from embedcli.core.types import Float32Array, Int64Array
    from embedcli.encoders.tokenize.fast import FastTokenizer

# The tests compare rows of every length with PyTorch; at a start, rows of this length show a wrong formula.
PROBE_TOKENS = 32
EXPECTED_SETTINGS = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
LOWEST_SCORE = float(np.finfo(np.float32).min)
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: the error is at most 1.5e-7.
ERF_SCALE = 0.3275911
ERF_COEFFICIENTS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0.0)


class BertModel:
    """The files of a BERT model with mean pooling: its graph, its tokenizer and its vectors by NumPy."""

    def __init__(self, request: LoadRequest) -> None:
        self._request = request
        folder = request.files.path
        self._weights = folder / "model.safetensors"
        self._tensors: dict[str, Float32Array] = {}
        self._settings = read_json_object(folder / "config.json")
        self._tokenizer_json = (folder / "tokenizer.json").read_text("utf-8")
        self._heads = int(self._settings["num_attention_heads"])
        self._layers = int(self._settings["num_hidden_layers"])
        self._epsilon = float(self._settings["layer_norm_eps"])

    def convert(self) -> tuple[ConvertedNetwork, EquivalenceProbe]:
        """The network in memory, and the probe with NumPy's vectors."""
        metadata = {
            "name": self._request.files.name,
            "pad_id": int(self._settings["pad_token_id"]),
            "pad_left": False,
            "cut_left": False,
            "dim": int(self._settings["hidden_size"]),
        }
        network = ConvertedNetwork(metadata, self._tokenizer_json, graph=self._build_graph())
        self.tokenizer: FastTokenizer = network.build_tokenizer(
            self._request.config, self._request.config.max_seq_length
        )
        return network, build_probe(network.build_tokenizer(self._request.config, None), self, PROBE_TOKENS)

    def float32_encoder(self) -> BertModel:
        """What to compare with: this model, computed by NumPy."""
        return self

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenize texts, truncated to the token limit."""
        return self.tokenizer.tokenize(texts)

    def encode_float32(self, tokens: Tokens, rows: Int64Array) -> Float32Array:
        """Encode rows by NumPy: float32 [rows, dim], not normalized unless the job is."""
        stacked = self._encode_rows([tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]] for row in rows])
        if self._request.config.normalize:
            stacked /= np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-12)
        return stacked.astype(np.float32)

    def _read(self, name: str) -> Float32Array:
        if name not in self._tensors:
            self._tensors[name] = np.asarray(read_tensor(self._weights, name), np.float32)
        return self._tensors[name]

    def _encode_rows(self, rows: Sequence[Any]) -> Float32Array:
        """Encode rows of token ids, one below the other: few large products instead of many small ones."""
        read, embeddings = self._read, "embeddings."
        ends = np.cumsum([len(ids) for ids in rows])
        hidden = read(f"{embeddings}word_embeddings.weight")[np.concatenate(rows)]
        positions = np.concatenate([np.arange(len(ids)) for ids in rows])
        hidden = hidden + read(f"{embeddings}position_embeddings.weight")[positions]
        hidden = self._normalize(hidden + read(f"{embeddings}token_type_embeddings.weight")[0], "embeddings.LayerNorm")
        for layer in range(self._layers):
            name = f"encoder.layer.{layer}"
            attended = self._attend(hidden, f"{name}.attention.self", ends)
            attended = self._project(attended, f"{name}.attention.output.dense")
            hidden = self._normalize(hidden + attended, f"{name}.attention.output.LayerNorm")
            inner = _gelu(self._project(hidden, f"{name}.intermediate.dense"))
            hidden = self._normalize(hidden + self._project(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        return np.stack([row.mean(axis=0) for row in np.split(hidden, ends[:-1])])

    def _project(self, hidden: Float32Array, name: str) -> Float32Array:
        projected: Float32Array = hidden @ self._read(f"{name}.weight").T + self._read(f"{name}.bias")
        return projected

    def _normalize(self, hidden: Float32Array, name: str) -> Float32Array:
        centred = hidden - hidden.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self._epsilon)
        normalized: Float32Array = scaled * self._read(f"{name}.weight") + self._read(f"{name}.bias")
        return normalized

    def _attend(self, hidden: Float32Array, name: str, ends: Int64Array) -> Float32Array:
        """Attention of each row to itself; `ends` are the positions behind the rows."""
        projected = (
            self._project(hidden, f"{name}.{part}").reshape(len(hidden), self._heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        by_row = zip(*(np.split(part, ends[:-1], axis=1) for part in projected), strict=True)
        attended = [_attend_row(query, key, value) for query, key, value in by_row]
        return np.concatenate(attended, axis=1).swapaxes(0, 1).reshape(hidden.shape)

    def _build_graph(self) -> Any:
        import openvino
        from openvino import opset13 as ops

        ids = ops.parameter([-1, -1], np.int64, name="input_ids")
        mask = ops.parameter([-1, -1], np.int64, name="attention_mask")
        ids.output(0).set_names({"input_ids"})
        mask.output(0).set_names({"attention_mask"})
        is_token = ops.convert(mask, "f32")
        scores = ops.multiply(ops.subtract(np.float32(1), is_token), np.float32(LOWEST_SCORE))
        scores = ops.unsqueeze(scores, np.array([1, 2]))
        hidden = self._add_embeddings(ops, ids)
        for layer in range(self._layers):
            hidden = self._add_layer(ops, hidden, scores, f"encoder.layer.{layer}")
        weights = ops.unsqueeze(is_token, np.array([2]))
        total = ops.reduce_sum(ops.multiply(hidden, weights), np.array([1]))
        vectors = ops.divide(total, ops.maximum(ops.reduce_sum(weights, np.array([1])), np.float32(1e-9)))
        return openvino.Model([ops.result(vectors)], [ids, mask], "bert")

    def _add_embeddings(self, ops: Any, ids: Any) -> Any:
        read, axis = self._read, np.int64(0)
        words = ops.gather(ops.constant(read("embeddings.word_embeddings.weight")), ids, axis)
        width = ops.gather(ops.shape_of(ids), np.int64(1), axis)
        indices = ops.range(np.int64(0), width, np.int64(1), output_type="i64")
        positions = ops.gather(ops.constant(read("embeddings.position_embeddings.weight")), indices, axis)
        kinds = ops.constant(read("embeddings.token_type_embeddings.weight")[0])
        return self._add_norm(ops, ops.add(ops.add(words, positions), kinds), "embeddings.LayerNorm")

    def _add_layer(self, ops: Any, hidden: Any, scores: Any, name: str) -> Any:
        project: Callable[[Any, str], Any] = lambda values, part: ops.add(  # noqa: E731
            ops.matmul(values, ops.constant(self._read(f"{name}.{part}.weight")), False, True),
            ops.constant(self._read(f"{name}.{part}.bias")),
        )
        heads = [
            ops.transpose(
                ops.reshape(project(hidden, f"attention.self.{part}"), np.array([0, 0, self._heads, -1]), True),
                np.array([0, 2, 1, 3]),
            )
            for part in ("query", "key", "value")
        ]
        attended = ops.transpose(ops.scaled_dot_product_attention(*heads, scores), np.array([0, 2, 1, 3]))
        attended = ops.reshape(attended, np.array([0, 0, self._settings["hidden_size"]]), True)
        attended = project(attended, "attention.output.dense")
        hidden = self._add_norm(ops, ops.add(hidden, attended), f"{name}.attention.output.LayerNorm")
        inner = ops.gelu(project(hidden, "intermediate.dense"), "ERF")
        return self._add_norm(ops, ops.add(hidden, project(inner, "output.dense")), f"{name}.output.LayerNorm")

    def _add_norm(self, ops: Any, hidden: Any, name: str) -> Any:
        scaled = ops.mvn(hidden, np.array([-1]), True, self._epsilon, "INSIDE_SQRT")
        weight, bias = (ops.constant(self._read(f"{name}.{part}")) for part in ("weight", "bias"))
        return ops.add(ops.multiply(scaled, weight), bias)


def read_bundled_bert(request: LoadRequest) -> BertModel | None:
    """The bundled model; None for every other model, whose traits only PyTorch can measure."""
    files, config = request.files, request.config
    if files.origin != "bundled" or config.pooling != "mean" or not config.pools_prompt or config.custom_code:
        return None
    return BertModel(request) if _has_expected_settings(files.path) else None


def _has_expected_settings(folder: Path) -> bool:
    settings = read_json_object(folder / "config.json")
    return all(settings.get(key) == value for key, value in EXPECTED_SETTINGS.items())


def _gelu(values: Float32Array) -> Float32Array:
    """x (1 + erf(x / sqrt 2)) / 2, as in BERT."""
    scaled = np.abs(values) / np.sqrt(2, dtype=np.float32)
    erf = 1 - np.polyval(ERF_COEFFICIENTS, 1 / (1 + ERF_SCALE * scaled)) * np.exp(-(scaled**2))
    activated: Float32Array = (values * (1 + np.sign(values) * erf) / 2).astype(np.float32)
    return activated


def _attend_row(query: Float32Array, key: Float32Array, value: Float32Array) -> Float32Array:
    """Attention of one row, each argument [heads, tokens, size of a head]."""
    scores = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1], dtype=np.float32)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    attended: Float32Array = weights / weights.sum(axis=-1, keepdims=True) @ value
    return attended

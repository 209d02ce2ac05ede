"""Measure what a network can do by running it: its usable positions, and whether its vectors depend on the batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.errors import ModelError
from embedcli.core.job import Job
from embedcli.encoders import equivalence
from embedcli.encoders.errors import is_out_of_memory
from embedcli.encoders.tokenize.fallback import PipelinePreprocessor
from embedcli.encoders.torch.encoder import load_torch_encoder
from embedcli.encoders.torch.errors import TORCH_OUT_OF_MEMORY_SIGNS, translate_load_errors
from embedcli.encoders.torch.memory_budget import repeat_token_rows
from embedcli.encoders.torch.multi_vector import split_output
from embedcli.encoders.torch.pipeline import count_attention_heads, network_of
from embedcli.models.config import ModelConfig
from embedcli.models.files import ModelFiles
from embedcli.models.limits import POSITION_KEYS, read_declared_positions
from embedcli.models.traits import ModelTraits

if TYPE_CHECKING:
    from embedcli.core.encoder import Tokens
    from embedcli.core.types import Float32Array, Int64Array

log = logging.getLogger(__name__)

# The largest difference of a component, relative to the vector's length, that is rounding. In float32 another order of
# sums moves components by some 1e-7. In half precision only gross differences count.
MAX_COMPONENT_DIFFERENCE = {"float32": 1e-5}
MAX_HALF_COMPONENT_DIFFERENCE = 0.05
# Above the 704 tokens from which BigBird's attention is sparse.
MAX_NEIGHBOUR_TOKENS = 1024
# Of a row that is asked for its positions.
POSITION_ROW_TOKENS = 40
EQUAL_ROW_TOKENS = 9
SHORT_WORD_COUNTS = (1, 2, 9, 33)
PAD_MULTIPLE = 8


@dataclass(frozen=True)
class ProbedModel:
    """A loaded model and how to run it.

    Attributes:
        name: The model's name, for errors.
        pipeline: The SentenceTransformer.
        tokenize: Texts to tokens, truncated to the limit that the model's files declare.
        encode: Rows to float32 vectors [rows, dim], padded to the longest, rounded up to a multiple of the last
            argument.
        limit: The limit that the model's files declare; None: none.
        dtype: The number format that it computes in.
        is_on_cpu: On other devices an index beyond a table ends the process, so that none is tried.
        run_pipeline: One text to float32 [dim] by the pipeline's own preprocessing, as sentence-transformers does it.
    """

    name: str
    pipeline: Any
    tokenize: Callable[[Sequence[str]], Tokens]
    encode: Callable[[Tokens, Int64Array, int], Float32Array]
    limit: int | None
    dtype: str
    is_on_cpu: bool
    run_pipeline: Callable[[str], Float32Array]


def measure_model_traits(job: Job, files: ModelFiles, config: ModelConfig) -> ModelTraits:
    """Load a model on the job's device and measure its traits.

    Args:
        job: The job.
        files: The model's files.
        config: The model's settings, with the limit that its files declare.

    Raises:
        UsageError: This machine has no such device, or no instructions for the dtype.
        ModelError: The model cannot be loaded or run.
    """
    encoder = load_torch_encoder(job, files, config, lambda line: None)
    try:
        with translate_load_errors(files):
            measured = (encoder.model, encoder.tokenize, encoder.encode_padded, config.max_seq_length, encoder.dtype)
            is_on_cpu = encoder.device == "cpu"
            run = partial(run_pipeline, encoder.model, config, encoder.device)
            return measure_traits(ProbedModel(files.name, *measured, is_on_cpu, run))
    finally:
        encoder.close()


def run_pipeline(pipeline: Any, config: ModelConfig, device: str, text: str) -> Float32Array:
    """Encode one text by the pipeline's own preprocessing, as sentence-transformers does.

    Returns:
        float32 [dim]: its vector, or the mean of those of its tokens.
    """
    import torch

    preprocessor = PipelinePreprocessor(pipeline, replace(config, max_seq_length=None))
    tokens = preprocessor.tokenize([text])
    with torch.inference_mode():
        features = preprocessor.build_features(tokens, np.arange(1), device)
        if config.task:
            features["task"] = config.task
        if config.kind == "multi_vector":
            vectors, _ = split_output(pipeline(features, task=config.task))
            vector: Float32Array = vectors.mean(dim=0).cpu().numpy()
        else:
            vector = pipeline(features)["sentence_embedding"][0].float().cpu().numpy()
    return vector


def measure_traits(model: ProbedModel) -> ModelTraits:
    """Measure the traits of a model.

    Raises:
        ModelError: The same row gets another vector each time, or another one than from sentence-transformers.
    """
    declared, default_limit = _read_declared(model.pipeline)
    tables = _find_position_tables(model)
    known = [number for number in (declared, tables) if number is not None]
    positions = min(known, default=None)
    if model.is_on_cpu:
        positions = _confirm_positions(model, positions, default_limit)
    equal_lengths, single_rows = _measure_neighbours(model, positions)
    return ModelTraits(positions, default_limit, equal_lengths, single_rows)


def affordable_row(pipeline: Any, limit: int | None) -> int:
    """The longest row, in tokens, that may be tried out: bounded by the model's limit, work and memory."""
    parameters = sum(parameter.numel() for parameter in pipeline.parameters())
    return equivalence.longest_probe_row(limit, parameters, count_attention_heads(pipeline))


# Positions


def _read_declared(pipeline: Any) -> tuple[int | None, int | None]:
    """The positions that a network declares, under the name that transformers maps its own to, and under any name."""
    config = getattr(network_of(pipeline), "config", None)
    if config is None:
        return None, None
    mapped = getattr(getattr(config, "text_config", None) or config, POSITION_KEYS[0], None)
    declared = mapped if type(mapped) is int and mapped > 0 else None
    return declared, read_declared_positions(config.to_dict(), POSITION_KEYS)


def _find_position_tables(model: ProbedModel) -> int | None:
    """The usable rows of the smallest position table, a table that is read at successive indices; None without one."""
    room = POSITION_ROW_TOKENS if model.limit is None else min(POSITION_ROW_TOKENS, model.limit // 2)
    found: list[dict[tuple[int, int], int]] = []
    for length in (room, room // 2):
        tokens = model.tokenize(["a " * length])
        if not 3 <= tokens.lengths[0] <= 2 * room:
            return None
        with _watch_lookups() as lookups:
            model.encode(tokens, np.arange(1), 1)
        found.append(_successive_lookups(lookups, int(tokens.lengths[0])))
    usable = [rows - first for rows, first in found[0].keys() & found[1].keys()]
    return min(usable, default=None)


def _successive_lookups(lookups: list[tuple[int, Int64Array]], length: int) -> dict[tuple[int, int], int]:
    """By rows of the table and first index, the lookups that count up by one for each token."""
    found: dict[tuple[int, int], int] = {}
    for rows, indices in lookups:
        own = indices.reshape(-1)[:length]
        if len(own) == length and (np.diff(own) == 1).all() and indices.max() == own[-1]:
            found[rows, int(own[0])] = length
    return found


@contextmanager
def _watch_lookups() -> Iterator[list[tuple[int, Int64Array]]]:
    """Collect the rows of each table that the body looks into, and the indices it is asked for."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    lookups: list[tuple[int, Int64Array]] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.embedding.default:
                lookups.append((int(args[0].shape[0]), args[1].detach().cpu().numpy()))
            return func(*args, **(kwargs or {}))

    with Watch():  # type: ignore[no-untyped-call]
        yield lookups


def _confirm_positions(model: ProbedModel, positions: int | None, default_limit: int | None) -> int | None:
    """Run a row as long as the positions, or search for the longest row that works."""
    longest = affordable_row(model.pipeline, positions or model.limit or default_limit or POSITION_ROW_TOKENS)
    tokens = model.tokenize([" ".join(["a"] * longest)])
    if tokens.payload is not None:
        return positions
    low, high = int(model.tokenize(["a"]).lengths[0]), longest
    if high <= low or _runs(model, tokens, high):
        return positions
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if _runs(model, tokens, middle) else (low, middle)
    log.debug("%s accepts %s tokens, not %s", model.name, low, longest)
    return low


def _runs(model: ProbedModel, tokens: Tokens, length: int) -> bool:
    """Whether the network accepts a row of `length` tokens."""
    middle_token = int(tokens.ids[len(tokens.ids) // 2])
    try:
        model.encode(repeat_token_rows(middle_token, 1, length), np.arange(1), 1)
    except (IndexError, RuntimeError) as error:
        # Too little memory says nothing about positions.
        return is_out_of_memory(error, TORCH_OUT_OF_MEMORY_SIGNS)
    return True


# Batch neighbours


def _measure_neighbours(model: ProbedModel, positions: int | None) -> tuple[bool, bool]:
    """Whether a row needs neighbours of its own length, and whether it needs to be alone."""
    longest = min(MAX_NEIGHBOUR_TOKENS, affordable_row(model.pipeline, positions or model.limit))
    longest -= longest % PAD_MULTIPLE if longest > PAD_MULTIPLE else 0
    words = (equivalence.PROBE_PASSAGE * (1 + longest // 20)).split()
    texts = [" ".join(words[:count]) for count in (*SHORT_WORD_COUNTS, longest)]
    tokens = model.tokenize(texts)
    if tokens.payload is None:
        tokens = equivalence.truncate_rows(tokens, longest)
    rows = np.flatnonzero((tokens.lengths > 0) & (tokens.lengths <= longest))
    alone = _encode_alone(model, tokens, rows)
    if _differ(alone, _encode_alone(model, tokens, rows), model.dtype):
        raise ModelError(
            f"{model.name} gives the same text another vector each time", "use another model; this one has random parts"
        )
    # On accelerators the network may run without padding, which the pipeline's own preprocessing does not prepare.
    if tokens.payload is None and model.is_on_cpu and len(rows) == len(texts):
        _compare_with_pipeline(model, texts[1], alone[1])
    # A row padded to the multiple alone, a short row beside a long one, and all of them.
    batches = [np.arange(1), np.array([0, len(rows) - 1]), np.arange(len(rows))]
    if not any(_differ(alone[i], model.encode(tokens, rows[i], PAD_MULTIPLE), model.dtype) for i in batches):
        return False, False
    return True, not _same_among_equals(model, words)


def _compare_with_pipeline(model: ProbedModel, text: str, vector: Float32Array) -> None:
    """Refuse a network that needs more than the token ids and the mask it is given."""
    expected = model.run_pipeline(text)
    if _differ(expected[None], vector[None], model.dtype):
        raise ModelError(
            f"{model.name} gets other vectors here than from sentence-transformers",
            "use another model, and report this one: its network needs an input that embedcli does not give it",
        )


def _same_among_equals(model: ProbedModel, words: list[str]) -> bool:
    """Whether rows of one length get the same vectors together as alone."""
    tokens = model.tokenize([" ".join(words[i : i + EQUAL_ROW_TOKENS]) for i in range(8)])
    if tokens.payload is None:
        tokens = equivalence.truncate_rows(tokens, int(tokens.lengths.min()))
    lengths = tokens.lengths
    rows = np.flatnonzero(lengths == np.bincount(lengths).argmax())
    return not _differ(_encode_alone(model, tokens, rows), model.encode(tokens, rows, 1), model.dtype)


def _encode_alone(model: ProbedModel, tokens: Tokens, rows: Int64Array) -> Float32Array:
    return np.concatenate([model.encode(tokens, rows[i : i + 1], 1) for i in range(len(rows))])


def _differ(expected: Float32Array, vectors: Float32Array, dtype: str) -> bool:
    """Whether a vector differs by more than rounding. Vectors that are not finite alone are not compared."""
    is_finite = np.isfinite(expected).all(axis=1)
    expected, vectors = expected[is_finite], vectors[is_finite]
    lengths = np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-12)
    bound = MAX_COMPONENT_DIFFERENCE.get(dtype, MAX_HALF_COMPONENT_DIFFERENCE)
    # Written so that NaN counts as different.
    return not (np.abs(vectors - expected) <= bound * lengths).all()

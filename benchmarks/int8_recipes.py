"""What does int8 gain on this processor, and how far do its vectors move from float32?

    python benchmarks/int8_recipes.py rows.jsonl [-m MODEL] [--rows 3000] [--rounds 5] [--only PART] [--json FILE]

Each recipe edits the linear layers of the network that embedcli compiled for OpenVINO, and runs it next to float32 on
the same batches in turn. Weights are int8 with one scale per output channel; activations are quantized at run time,
per token and group of input channels. "Compensated" rounds each weight so that it makes up for the errors of those
before it (Frantar et al. 2022, GPTQ, arXiv:2210.17323), centred and scaled inputs are exact algebra that moves
outliers from the activations to the weights (Xiao et al. 2022, SmoothQuant, arXiv:2211.10438). Both are calibrated on
the first rows, which are not among those whose neighbours are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from cached_network import CachedNetwork, Network, find_linear_layers
from command_line import JsonPath, Rounds, RowLimit, make_app, publish
from embedcli.cli.console import print_note
from embedcli.cli.options import ENCODER_FLAGS, INPUT_FLAGS, with_job_options
from embedcli.core.errors import UsageError
from embedcli.encoders.equivalence import row_cosines

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array, Int64Array

    Float64Array = np.ndarray[Any, np.dtype[np.float64]]

NEIGHBOURS = 10
CALIBRATION_ROWS, TIMED_ROWS, SINGLE_ROWS = 160, 800, 64
# Linear layers of a BERT block, in the order of the network.
LAYERS = ("query", "key", "value", "attention output", "inner", "output")
LARGEST = 127
# Added to the diagonal before it is inverted, as a share of its mean, as in GPTQ.
DAMPING = 0.01
ROUNDING_BLOCK = 64
# A channel's range is this quantile of every so many tokens.
PERCENTILE, SAMPLE_STEP = 0.999, 8


@dataclass(frozen=True)
class Recipe:
    """How a network is quantized.

    Attributes:
        group: Input channels of a token that share a scale; 0 leaves activations in float32.
        is_compensated: Whether rounding makes up for earlier errors.
        is_smoothed: Whether inputs are centred and scaled by channel.
        kept: Linear layers left in float32.
        precision: What the rest is computed in, in OpenVINO's words.
    """

    group: int = 0
    is_compensated: bool = False
    is_smoothed: bool = False
    kept: tuple[str, ...] = ()
    precision: str = "f32"


RECIPES = {
    "bfloat16": Recipe(kept=LAYERS, precision="bf16"),
    "weights only": Recipe(),
    "weights only, compensated": Recipe(is_compensated=True, is_smoothed=True),
    "dynamic, groups of 384": Recipe(384),
    "dynamic, groups of 128": Recipe(128),
    "dynamic, groups of 32": Recipe(32),
    "compensated, groups of 128": Recipe(128, True),
    "smoothed, groups of 128": Recipe(128, True, True),
    "smoothed, groups of 128, value in float32": Recipe(128, True, True, ("value",)),
    "smoothed, groups of 64, value in float32": Recipe(64, True, True, ("value",)),
    "smoothed, groups of 32, value in float32": Recipe(32, True, True, ("value",)),
    "smoothed, groups of 64, only inner and output": Recipe(64, True, True, LAYERS[:4]),
    "smoothed, groups of 32, value and inner in float32": Recipe(32, True, True, ("value", "inner")),
    "smoothed, groups of 32, value and output in float32": Recipe(32, True, True, ("value", "output")),
}


@dataclass(frozen=True)
class InputStatistics:
    """What is known about a linear layer's input.

    Attributes:
        mean: float64 [channels].
        largest: float64 [channels]; a high percentile of the distance from the mean.
        products: float64 [channels, channels]; the mean product of two channels.
    """

    mean: Float64Array
    largest: Float64Array
    products: Float64Array


@with_job_options((*ENCODER_FLAGS, *INPUT_FLAGS))
def main(
    paths: Annotated[list[str], typer.Argument(metavar="INPUT", help="Rows to encode.")],
    *,
    rounds: Rounds = 5,
    rows: RowLimit = None,
    only: Annotated[list[str] | None, typer.Option(help="Only recipes with this in their name.")] = None,
    json: JsonPath = None,
    flags: dict[str, Any],
) -> None:
    """Measure the speed of int8 recipes, and how far their vectors move."""
    workbench = Workbench(CachedNetwork(paths, flags, rows))
    figures = []
    for name, recipe in RECIPES.items():
        if not only or any(part in name for part in only):
            print_note(name)
            figures.append({"recipe": name, **workbench.measure(recipe, rounds)})
    publish({"recipes": figures, "rows": len(workbench.rows)}, format_table(figures), json)


class Workbench:
    """A model's network, the rows, and their float32 vectors."""

    def __init__(self, model: CachedNetwork) -> None:
        self._model = model
        lengths = model.tokens.lengths
        self.rows = np.arange(len(lengths))
        if len(lengths) <= CALIBRATION_ROWS + NEIGHBOURS or not lengths.all():
            raise UsageError(f"needs more than {CALIBRATION_ROWS + NEIGHBOURS} rows with text", "use other rows")
        self._timed = np.random.default_rng(0).permutation(len(lengths))[:TIMED_ROWS]
        self._float32 = self._model.compile(self._model.read_graph(), {})
        self._vectors = self._float32.encode(self.rows)
        self._statistics = self._collect_statistics()

    def measure(self, recipe: Recipe, rounds: int) -> dict[str, Any]:
        """Compare a recipe with float32: speed in alternating runs, vectors, and whether the batch changes them."""
        graph = self._model.read_graph()
        quantize_network(graph, recipe, self._statistics)
        options = {"INFERENCE_PRECISION_HINT": recipe.precision, "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(recipe.group)}
        network = self._model.compile(graph, options)
        vectors = network.encode(self.rows)
        some = self._timed[:SINGLE_ROWS]
        alone = np.concatenate([network.encode(row) for row in np.split(some, len(some))])
        ratios = np.array([self._time_pair(network) for _ in range(rounds)])
        network.close()
        cosines = row_cosines(vectors, self._vectors)
        return {
            "times_as_fast": float(np.median(ratios[:, 0])),
            "range": [float(ratios[:, 0].min()), float(ratios[:, 0].max())],
            "processor_ratio": float(np.median(ratios[:, 1])),
            "lowest_cosine": float(cosines.min()),
            "mean_cosine": float(cosines.mean()),
            "overlap": mean_overlap(self._vectors, vectors, self.rows[CALIBRATION_ROWS:]),
            "lowest_cosine_alone": float(row_cosines(alone, vectors[some]).min()),
        }

    def _time_pair(self, network: Network) -> list[float]:
        """How many times as fast as float32 a network is, by the clock and by processor seconds."""
        float32, other = self._float32.measure_seconds(self._timed), network.measure_seconds(self._timed)
        return [one / another for one, another in zip(float32, other, strict=True)]

    def _collect_statistics(self) -> list[InputStatistics]:
        """What the linear layers read for the calibration rows; layers with the same input share an entry."""

        graph = self._model.read_graph()
        sources = [layer.input_value(0) for layer in find_bert_layers(graph)]
        numbers = [sources.index(source) for source in sources]
        for number in set(numbers):
            (result,) = graph.add_outputs([sources[number]])
            result.set_names({f"input {number}"})
        network = self._model.compile(graph, {})
        collectors = {number: StatisticsCollector() for number in numbers}
        request = network.compiled.create_infer_request()
        for _, (ids, mask) in network.pad_batches(self.rows[:CALIBRATION_ROWS]):
            request.infer({"input_ids": ids, "attention_mask": mask}, share_inputs=True)
            for number, collector in collectors.items():
                collector.add(request.get_tensor(f"input {number}").data[mask > 0])
        network.close()
        statistics = {number: collector.finish() for number, collector in collectors.items()}
        return [statistics[number] for number in numbers]


class StatisticsCollector:
    """Collects what a linear layer reads, one batch after the other."""

    def __init__(self) -> None:
        self._count, self._total, self._products = 0, np.zeros(1), np.zeros(1)
        self._samples: list[Float32Array] = []

    def add(self, values: Float32Array) -> None:
        """Add float32 [tokens, channels]."""
        self._count += len(values)
        self._total = self._total + values.sum(axis=0, dtype=np.float64)
        self._products = self._products + values.T @ values
        self._samples.append(np.array(values[::SAMPLE_STEP]))

    def finish(self) -> InputStatistics:
        """The statistics of all batches."""
        mean = self._total / self._count
        distances = np.abs(np.concatenate(self._samples) - mean)
        return InputStatistics(mean, np.quantile(distances, PERCENTILE, axis=0), self._products / self._count)


def find_bert_layers(graph: Any) -> list[Any]:
    """The linear layers of all blocks, in the order of LAYERS. Raises UsageError."""
    layers = find_linear_layers(graph)
    if not layers or len(layers) % len(LAYERS):
        raise UsageError("the model has other linear layers than BERT", "use a model with the architecture of BERT")
    return layers


def quantize_network(graph: Any, recipe: Recipe, statistics: Sequence[InputStatistics]) -> None:
    """Replace the linear layers of a graph as the recipe says."""
    smoothed: dict[Any, Any] = {}
    layers = find_bert_layers(graph)
    sources = [layer.input_value(0) for layer in layers]
    weights = [np.array(layer.input_value(1).get_node().data) for layer in layers]
    for i, layer in enumerate(layers):
        if LAYERS[i % len(LAYERS)] in recipe.kept:
            continue
        stats, source = statistics[i], sources[i]
        if recipe.is_smoothed:
            # Layers with the same input share its scales.
            together = [weight for weight, other in zip(weights, sources, strict=True) if other == source]
            scales = choose_scales(stats, together)
            if source not in smoothed:
                smoothed[source] = centre_and_scale(source, stats.mean, scales)
            add_to_bias(layer, weights[i] @ stats.mean)
            layer.input(0).replace_source_output(smoothed[source])
            products = (stats.products - np.outer(stats.mean, stats.mean)) / np.outer(scales, scales)
        else:
            scales, products = np.ones(weights[i].shape[1]), stats.products
        replace_weights(layer, weights[i] * scales, products if recipe.is_compensated else None)
    graph.validate_nodes_and_infer_types()


def choose_scales(stats: InputStatistics, weights: Sequence[Float32Array]) -> Float64Array:
    """Scales of the input channels, float64 [channels]: as in SmoothQuant with a strength of one half."""
    largest_weight = np.abs(np.concatenate(weights)).max(axis=0)
    scales = np.sqrt(np.maximum(stats.largest, 1e-3) / np.maximum(largest_weight, 1e-5))
    return np.asarray(scales / np.exp(np.log(scales).mean()), np.float64)


def centre_and_scale(source: Any, mean: Float64Array, scales: Float64Array) -> Any:
    """A layer's input less its mean and divided by the scales, as one multiplication and addition."""
    from openvino import opset13 as ops

    factor, offset = (np.asarray(values, np.float32) for values in (1 / scales, -mean / scales))
    return ops.add(ops.multiply(source, ops.constant(factor)), ops.constant(offset)).output(0)


def add_to_bias(layer: Any, values: Float64Array) -> None:
    """Add to the bias that follows a linear layer."""
    from openvino import opset13 as ops

    (target,) = layer.output(0).get_target_inputs()
    port = target.get_node().input(1 - target.get_index())
    bias = port.get_source_output().get_node().data
    port.replace_source_output(ops.constant((bias + values).astype(np.float32)).output(0))


def replace_weights(layer: Any, weights: Float64Array, products: Float64Array | None) -> None:
    """Quantize a layer's weights [outputs, inputs], compensated if there are `products` of its inputs."""
    from openvino import opset13 as ops

    scales = np.abs(weights).max(axis=1, keepdims=True) / LARGEST
    quantized = np.rint(weights / scales) if products is None else round_compensated(weights, scales, products)
    stored = ops.convert(ops.constant(quantized.clip(-LARGEST, LARGEST).astype(np.int8)), "f32")
    layer.input(1).replace_source_output(ops.multiply(stored, ops.constant(scales.astype(np.float32))).output(0))


def round_compensated(weights: Float64Array, scales: Float64Array, products: Float64Array) -> Float64Array:
    """Round weights to multiples of `scales`, each making up for the errors of those before it, as in GPTQ.

    Args:
        weights: [outputs, inputs].
        scales: [outputs, 1].
        products: [inputs, inputs]; the mean products of the layer's inputs.

    Returns:
        The multiples, [outputs, inputs].
    """
    order = np.argsort(-products.diagonal())
    rest, damped = np.array(weights[:, order], np.float64), products[np.ix_(order, order)]
    damped = damped + np.eye(len(order)) * DAMPING * damped.diagonal().mean()
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    rounded = np.empty_like(rest)
    for start in range(0, len(order), ROUNDING_BLOCK):
        stop = min(start + ROUNDING_BLOCK, len(order))
        errors = np.empty((len(rest), stop - start))
        for i in range(start, stop):
            rounded[:, i] = np.rint(rest[:, i] / scales[:, 0]).clip(-LARGEST, LARGEST)
            errors[:, i - start] = (rest[:, i] - rounded[:, i] * scales[:, 0]) / factor[i, i]
            rest[:, i:stop] -= np.outer(errors[:, i - start], factor[i, i:stop])
        rest[:, stop:] -= errors @ factor[start:stop, stop:]
    return rounded[:, np.argsort(order)]


def mean_overlap(one: Float32Array, other: Float32Array, rows: Int64Array) -> float:
    """The share of each row's nearest neighbours among all rows that two sets of vectors agree on."""
    pairs = zip(find_nearest(one, rows), find_nearest(other, rows), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / NEIGHBOURS for a, b in pairs]))


def find_nearest(vectors: Float32Array, rows: Int64Array) -> Int64Array:
    """The nearest other vectors of each row, int64 [rows, NEIGHBOURS]."""
    similarities = vectors[rows] @ vectors.T
    similarities[np.arange(len(rows)), rows] = -np.inf
    return np.argpartition(-similarities, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]


def format_table(figures: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown."""
    lines = ["| recipe | times float32 | range | by CPU seconds | lowest cosine | mean cosine | overlap@10 | alone |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|")
    for row in figures:
        low, high = row["range"]
        lines.append(
            f"| {row['recipe']} | {row['times_as_fast']:.2f} | {low:.2f} to {high:.2f} | {row['processor_ratio']:.2f} "
            f"| {row['lowest_cosine']:.5f} | {row['mean_cosine']:.6f} | {row['overlap']:.4f} "
            f"| {row['lowest_cosine_alone']:.6f} |"
        )
    return "\n".join(lines)


app = make_app(main)

if __name__ == "__main__":
    app()

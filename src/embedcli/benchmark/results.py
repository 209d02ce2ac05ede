"""The results of a comparison: the figures of each contender, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli import __version__
from embedcli.benchmark.contenders import Contender, EmbedcliRun, PeerLibrary, RunVectors, Timing
from embedcli.benchmark.lineup import Lineup, MeasuredModel
from embedcli.benchmark.model_flops import read_transformer_shape
from embedcli.benchmark.statistics import (
    TransformerShape,
    compute_speedups,
    count_useful_flop,
    lowest_cosine,
    median_or_nan,
    order_longest_first,
    simulate_padding_share,
)

if TYPE_CHECKING:
    from embedcli.core.types import Int64Array

# The timings of each contender by its name, one per round.
Timings = dict[str, list[Timing]]


@dataclass(frozen=True)
class Measurements:
    """Everything that was measured.

    Attributes:
        machine: The machine as JSON.
        model: The model.
        input_names: The names of the inputs, without their folders.
        texts: The texts by row number.
        lineup: The contenders.
        timings: The timings of every contender.
        products: For each round, the GFLOP/s by number format that computing is compared with.
        few_timings: The timings of ten-row jobs; empty if there were none.
        vectors: The vectors of each contender's last run.
    """

    machine: Mapping[str, Any]
    model: MeasuredModel
    input_names: Sequence[str]
    texts: Sequence[str]
    lineup: Lineup
    timings: Timings
    products: Sequence[Mapping[str, float]]
    few_timings: Timings
    vectors: Mapping[str, RunVectors]


def summarize(measurements: Measurements) -> dict[str, Any]:
    """The figures of a comparison as JSON; docs/concepts/speed.md explains them."""
    lineup, timings = measurements.lineup, measurements.timings
    model = measurements.model
    first = lineup.embedcli_runs[0].name
    shape = None if model.is_static else read_transformer_shape(model.files.path)
    return {
        "embedcli": __version__,
        "machine": dict(measurements.machine),
        "input": {
            "names": list(measurements.input_names),
            "rows": len(measurements.texts),
            "tokens": int(get_token_counts(measurements).sum()),
            "duplicates": timings[first][0].report["counters"]["duplicates"],
        },
        "model": {
            "name": get_model_name(model),
            "dim": int(measurements.vectors[first].vectors.shape[1]),
            "max_seq_length": model.recipe.max_seq_length,
            "prompt": model.recipe.prompt,
            "computing_parameters": shape.parameters if shape else None,
        },
        "rounds": len(timings[lineup.baseline.name]),
        "baseline": lineup.baseline.name,
        "matrix_product_gflops": get_best_products(measurements.products),
        "contenders": {one.name: summarize_contender(measurements, one, shape) for one in lineup.contenders},
        "ten_rows": summarize_few_rows(measurements.few_timings, lineup.baseline.name),
        "missing": dict(lineup.missing),
    }


def get_model_name(model: MeasuredModel) -> str:
    """The model's name; of a path only the last part, as the rest belongs to the machine."""
    return model.files.path.name if model.files.origin == "path" else model.files.name


def summarize_contender(
    measurements: Measurements, contender: Contender, shape: TransformerShape | None
) -> dict[str, Any]:
    """Medians of one contender over the rounds, its speedups over the baseline, and each round."""
    timings, baseline = measurements.timings[contender.name], measurements.timings[measurements.lineup.baseline.name]
    encode_seconds = median_or_nan([timing.encode_seconds for timing in timings])
    lengths = get_token_counts(measurements)
    figures: dict[str, Any] = {
        "rows_per_second": len(measurements.texts) / encode_seconds,
        "tokens_per_second": float(lengths.sum()) / encode_seconds,
        "process_seconds": median_or_nan([timing.seconds for timing in timings]),
        "encode_seconds": encode_seconds,
        "cpu_seconds": median_or_nan([timing.cpu_seconds for timing in timings]),
        "peak_memory_mb": median_or_nan([timing.peak_mb for timing in timings]),
        "others_share": get_highest_others_share(timings),
        "padding_share": compute_padding_share(measurements, contender, lengths),
        "process_ratio": summarize_speedups([one.seconds for one in baseline], [one.seconds for one in timings]),
        "encode_ratio": summarize_speedups(
            [one.encode_seconds for one in baseline], [one.encode_seconds for one in timings]
        ),
        "cpu_ratio": summarize_speedups([one.cpu_seconds for one in baseline], [one.cpu_seconds for one in timings]),
        "lowest_cosine": compute_lowest_cosine(measurements, contender),
    }
    if shape is not None:
        dtype = get_dtype(contender, timings)
        figures |= compute_arithmetic(measurements, timings, dtype, count_useful_flop(lengths, shape))
    if isinstance(contender, EmbedcliRun):
        figures |= summarize_reports(timings)
    figures["rounds"] = [timing_as_json(timing) for timing in timings]
    return {name: round_floats(value) for name, value in figures.items()}


def get_highest_others_share(timings: Sequence[Timing]) -> float | None:
    """The highest share of the processor time that other programs used during a run; None if unknown."""
    return max((timing.others_share for timing in timings if timing.others_share is not None), default=None)


def summarize_reports(timings: Sequence[Timing]) -> dict[str, Any]:
    """Figures from embedcli's own run reports.

    `tokenize_share` is relative to the encode seconds, during which other stages run at the same time.
    """
    reports = [timing.report for timing in timings]
    return {
        "batch_tokens": reports[0]["batch_tokens"],
        "device_idle_share": median_or_nan([report["device_idle_share"] for report in reports]),
        "tokenize_share": median_or_nan(
            [timing.report["stage_seconds"]["tokenize"] / timing.encode_seconds for timing in timings]
        ),
        "stage_seconds": {
            name: median_or_nan([report["stage_seconds"][name] for report in reports])
            for name in reports[0]["stage_seconds"]
        },
    }


def compute_arithmetic(
    measurements: Measurements, timings: Sequence[Timing], dtype: str, flop: float
) -> dict[str, Any]:
    """Useful GFLOP/s, and their share of the matrix products of the same round and number format.

    embedcli encodes equal texts of a chunk once; the work that this saves does not count as done.
    """
    tokens = int(get_token_counts(measurements).sum())
    computed_shares = [one.report["counters"]["fed_tokens"] / tokens if one.report else 1.0 for one in timings]
    gflops = [
        flop * share / timing.encode_seconds / 1e9 for timing, share in zip(timings, computed_shares, strict=True)
    ]
    rounds = zip(gflops, measurements.products, strict=True)
    shares = [achieved / product[dtype] for achieved, product in rounds if dtype in product]
    return {
        "useful_gflops": median_or_nan(gflops),
        "share_of_matrix_product": median_or_nan(shares) if shares else None,
    }


def get_dtype(contender: Contender, timings: Sequence[Timing]) -> str:
    """The number format a contender computed in."""
    if isinstance(contender, PeerLibrary):
        return str(contender.settings["dtype"])
    return str(timings[0].report["space"].get("dtype", "float32"))


def compute_padding_share(measurements: Measurements, contender: Contender, lengths: Int64Array) -> float | None:
    """The padded share of all computed tokens; None if unknown.

    embedcli reports it; for sentence-transformers its way of batching is simulated.
    """
    if measurements.model.is_static:
        return None
    if isinstance(contender, EmbedcliRun):
        return median_or_nan([timing.report["padding_share"] for timing in measurements.timings[contender.name]])
    if not isinstance(contender, PeerLibrary) or contender.settings["library"] != "sentence-transformers":
        return None
    batch_size = int(contender.settings["batch_sizes"][0])
    return simulate_padding_share(lengths, order_longest_first(measurements.texts), batch_size)


def compute_lowest_cosine(measurements: Measurements, contender: Contender) -> float:
    """The lowest cosine between a contender's vectors and the reference's, over the rows that both have.

    The reference is the baseline or, if that computes in half precision, the same library in float32.
    """
    peers = [peer for peer in measurements.lineup.peers if peer.settings["library"] == "sentence-transformers"]
    exact = [peer for peer in peers if peer.settings["dtype"] == "float32" and "backend" not in peer.settings]
    baseline = measurements.lineup.baseline
    reference = exact[0] if exact and baseline.settings["dtype"] != "float32" else baseline
    left, right = measurements.vectors[contender.name], measurements.vectors[reference.name]
    _, in_left, in_right = np.intersect1d(left.rows, right.rows, return_indices=True)
    return lowest_cosine(left.vectors[in_left], right.vectors[in_right])


def get_token_counts(measurements: Measurements) -> Int64Array:
    """The tokens read of each row, int64 [n], special tokens included; 0 for rows without a vector."""
    first = measurements.vectors[measurements.lineup.embedcli_runs[0].name]
    lengths = np.zeros(len(measurements.texts), np.int64)
    limit = measurements.model.recipe.max_seq_length
    if first.n_tokens is not None:
        lengths[first.rows] = np.minimum(first.n_tokens, limit) if limit else first.n_tokens
    return lengths


def summarize_few_rows(timings: Timings, baseline: str) -> dict[str, Any]:
    """Whole-process seconds of a ten-row job, and embedcli's speedup over the baseline; empty if none was run."""
    if not timings:
        return {}
    seconds = {name: [timing.seconds for timing in each] for name, each in timings.items()}
    embedcli = next(name for name in seconds if name != baseline)
    return {
        "process_seconds": {name: round(median_or_nan(each), 3) for name, each in seconds.items()},
        "process_ratio": round_floats(summarize_speedups(seconds[baseline], seconds[embedcli])),
    }


def get_best_products(products: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The fastest matrix product of all rounds, by number format."""
    dtypes = dict.fromkeys(dtype for product in products for dtype in product)
    return {dtype: round(max(one[dtype] for one in products if dtype in one), 1) for dtype in dtypes}


def summarize_speedups(baseline: Sequence[float], seconds: Sequence[float]) -> dict[str, Any]:
    """How many times faster than the baseline: the median of the rounds, and each of them."""
    speedups = compute_speedups(baseline, seconds)
    return {"median": median_or_nan(speedups), "each": speedups}


def timing_as_json(timing: Timing) -> dict[str, Any]:
    return {
        "process_seconds": timing.seconds,
        "encode_seconds": timing.encode_seconds,
        "cpu_seconds": timing.cpu_seconds,
        "peak_memory_mb": timing.peak_mb,
        "others_share": timing.others_share,
    }


def round_floats(value: Any) -> Any:
    """Round floats to six significant digits; a cosine near 1 keeps nine decimals, to show how near."""
    if isinstance(value, Mapping):
        return {key: round_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [round_floats(item) for item in value]
    if not isinstance(value, float):
        return value
    return round(value, 9) if 0.9 < value < 1 else float(f"{value:.6g}")

"""What the runs of a comparison say: the figures of each contender, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli import __version__
from embedcli.benchmark import statistics
from embedcli.benchmark.contenders import Contender, Lap, Ours, Peer, Result
from embedcli.benchmark.lineup import Field, Subject
from embedcli.benchmark.model_flops import shape_of
from embedcli.benchmark.statistics import Shape, middle

if TYPE_CHECKING:
    from embedcli.core.types import Rows

Laps = dict[str, list[Lap]]


@dataclass(frozen=True)
class Measured:
    """Everything that was measured. `products` has the best matrix products of each round, GFLOP/s by number format."""

    machine: Mapping[str, Any]
    subject: Subject
    names: Sequence[str]
    texts: Sequence[str]
    field: Field
    laps: Laps
    products: Sequence[Mapping[str, float]]
    few: Laps
    results: Mapping[str, Result]


def outcome(measured: Measured) -> dict[str, Any]:
    """The JSON of a comparison; docs/speed.md says what each figure is."""
    field, laps = measured.field, measured.laps
    first = measured.results[field.ours[0].name]
    shape = None if measured.subject.static else shape_of(measured.subject.files.folder)
    return {
        "embedcli": __version__,
        "machine": dict(measured.machine),
        "input": {
            "names": list(measured.names),
            "rows": len(measured.texts),
            "tokens": int(read_lengths(measured).sum()),
            "duplicates": laps[field.ours[0].name][0].report["counters"]["duplicates"],
        },
        "model": {
            "name": model_name(measured.subject),
            "dim": int(first.vectors.shape[1]),
            "max_seq_length": measured.subject.recipe.max_seq_length,
            "prompt": measured.subject.recipe.prompt,
            "computing_parameters": shape.parameters if shape else None,
        },
        "rounds": len(laps[field.baseline.name]),
        "baseline": field.baseline.name,
        "matrix_product_gflops": best_products(measured.products),
        "contenders": {contender.name: figures(measured, contender, shape) for contender in field.every()},
        "ten_rows": few_figures(measured.few, field.baseline.name),
        "missing": dict(field.missing),
    }


def model_name(subject: Subject) -> str:
    """What the model is called; of a folder its last name, the rest belongs to the machine."""
    return subject.files.folder.name if subject.files.where == "path" else subject.files.name


def figures(measured: Measured, contender: Contender, shape: Shape | None) -> dict[str, Any]:
    """Medians over the rounds of one contender, its ratios to the baseline's run of the same round, and each round."""
    laps, base = measured.laps[contender.name], measured.laps[measured.field.baseline.name]
    encode = middle([lap.encode_seconds for lap in laps])
    lengths = read_lengths(measured)
    made: dict[str, Any] = {
        "rows_per_second": len(measured.texts) / encode,
        "tokens_per_second": float(lengths.sum()) / encode,
        "process_seconds": middle([lap.seconds for lap in laps]),
        "encode_seconds": encode,
        "cpu_seconds": middle([lap.cpu_seconds for lap in laps]),
        "peak_memory_mb": middle([lap.peak_mb for lap in laps]),
        "others_share": busiest(laps),
        "padding_share": padding(measured, contender, lengths),
        "process_ratio": ratio([lap.seconds for lap in base], [lap.seconds for lap in laps]),
        "encode_ratio": ratio([lap.encode_seconds for lap in base], [lap.encode_seconds for lap in laps]),
        "cpu_ratio": ratio([lap.cpu_seconds for lap in base], [lap.cpu_seconds for lap in laps]),
        "lowest_cosine": fidelity(measured, contender),
    }
    if shape is not None:
        made |= arithmetic(measured, laps, number_format(contender, laps), statistics.useful_flop(lengths, shape))
    if isinstance(contender, Ours):
        made |= own_figures(laps)
    made["rounds"] = [each_round(lap) for lap in laps]
    return {name: rounded(value) for name, value in made.items()}


def busiest(laps: Sequence[Lap]) -> float | None:
    """The most that other programs took of the processors during one of the runs; None where not known."""
    return max((lap.others_share for lap in laps if lap.others_share is not None), default=None)


def own_figures(laps: Sequence[Lap]) -> dict[str, Any]:
    """What only embedcli's own report knows. `tokenize_share` is of the encode seconds; other stages run meanwhile."""
    reports = [lap.report for lap in laps]
    return {
        "batch_tokens": reports[0]["batch_tokens"],
        "device_idle_share": middle([report["device_idle_share"] for report in reports]),
        "tokenize_share": middle([lap.report["stage_seconds"]["tokenize"] / lap.encode_seconds for lap in laps]),
        "stage_seconds": {
            name: middle([report["stage_seconds"][name] for report in reports]) for name in reports[0]["stage_seconds"]
        },
    }


def arithmetic(measured: Measured, laps: Sequence[Lap], dtype: str, flop: float) -> dict[str, Any]:
    """Useful GFLOP/s, and their share of the best matrix product of the same round and number format.

    embedcli computes equal texts of a chunk once: what it did not compute does not count.
    """
    tokens = int(read_lengths(measured).sum())
    fed = [lap.report["counters"]["fed_tokens"] / tokens if lap.report else 1.0 for lap in laps]
    each = [flop * part / lap.encode_seconds / 1e9 for lap, part in zip(laps, fed, strict=True)]
    pairs = [(own, product[dtype]) for own, product in zip(each, measured.products, strict=True) if dtype in product]
    shares = [own / best for own, best in pairs]
    return {"useful_gflops": middle(each), "share_of_matrix_product": middle(shares) if shares else None}


def number_format(contender: Contender, laps: Sequence[Lap]) -> str:
    """The number format a contender computed in."""
    if isinstance(contender, Peer):
        return str(contender.settings["dtype"])
    return str(laps[0].report["space"].get("dtype", "float32"))


def padding(measured: Measured, contender: Contender, lengths: Rows) -> float | None:
    """The padded share of all computed tokens: counted by embedcli, found by sentence-transformers' rule for it."""
    if measured.subject.static:
        return None
    if isinstance(contender, Ours):
        return middle([lap.report["padding_share"] for lap in measured.laps[contender.name]])
    if not isinstance(contender, Peer) or contender.settings["library"] != "sentence-transformers":
        return None
    size = int(contender.settings["batch_sizes"][0])
    return statistics.padding_share(lengths, statistics.longest_first(measured.texts), size)


def fidelity(measured: Measured, contender: Contender) -> float:
    """The lowest cosine between a contender's vectors and the reference's, over the rows that both have.

    The reference is the baseline, or, where that computes in half precision, the same library in float32.
    """
    single = [peer for peer in measured.field.peers if peer.settings["library"] == "sentence-transformers"]
    exact = [peer for peer in single if peer.settings["dtype"] == "float32" and "backend" not in peer.settings]
    baseline = measured.field.baseline
    reference = exact[0] if exact and baseline.settings["dtype"] != "float32" else baseline
    ours, theirs = measured.results[contender.name], measured.results[reference.name]
    _, left, right = np.intersect1d(ours.rows, theirs.rows, return_indices=True)
    return statistics.lowest_cosine(ours.vectors[left], theirs.vectors[right])


def read_lengths(measured: Measured) -> Rows:
    """int64 [rows]: the tokens that were read of each row, special ones included; 0 for rows without a vector."""
    first = measured.results[measured.field.ours[0].name]
    lengths = np.zeros(len(measured.texts), np.int64)
    limit = measured.subject.recipe.max_seq_length
    if first.n_tokens is not None:
        lengths[first.rows] = np.minimum(first.n_tokens, limit) if limit else first.n_tokens
    return lengths


def few_figures(few: Laps, baseline: str) -> dict[str, Any]:
    """Whole-process seconds of a ten-row job, and embedcli's ratio to the baseline; empty if none was run."""
    if not few:
        return {}
    seconds = {name: [lap.seconds for lap in laps] for name, laps in few.items()}
    ours = next(name for name in seconds if name != baseline)
    return {
        "process_seconds": {name: round(middle(each), 3) for name, each in seconds.items()},
        "process_ratio": rounded(ratio(seconds[baseline], seconds[ours])),
    }


def best_products(products: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The fastest matrix product of all rounds, by number format."""
    names = dict.fromkeys(name for product in products for name in product)
    return {name: round(max(product[name] for product in products if name in product), 1) for name in names}


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """How many times faster: the median of the rounds, and each of them."""
    each = statistics.pairwise(theirs, ours)
    return {"median": middle(each), "each": each}


def each_round(lap: Lap) -> dict[str, Any]:
    return {
        "process_seconds": lap.seconds,
        "encode_seconds": lap.encode_seconds,
        "cpu_seconds": lap.cpu_seconds,
        "peak_memory_mb": lap.peak_mb,
        "others_share": lap.others_share,
    }


def rounded(value: Any) -> Any:
    """Floats to six significant digits, so that a report can be read; a cosine near 1 keeps its distance from it."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if not isinstance(value, float):
        return value
    return round(value, 9) if 0.9 < value < 1 else float(f"{value:.6g}")

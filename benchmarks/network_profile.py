"""Where does the network spend its time on one core, and how close are its products to the processor's fastest?

    python benchmarks/network_profile.py rows.jsonl [-m MODEL] [--rows 300] [--rounds 3] [--json FILE]

It runs the network that embedcli compiled for OpenVINO on the rows in embedcli's batches, on one thread, and adds up
what each operation took, as OpenVINO reports it. Padding counts as work here: the products are compared as they are
computed. What a processor without AVX-512 would do is shown with `hide_avx512.c`; ONEDNN_MAX_CPU_ISA=AVX2 is not
enough, because the kernels called gemm_mlas ignore it.
"""

from __future__ import annotations

import json as json_format
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cached_network import CachedNetwork, Network, find_linear_layers
from command_line import JsonPath, Rounds, RowLimit, make_app, publish
from embedcli.benchmark.contenders import PROGRAMS, require_success
from embedcli.benchmark.machine import describe_machine
from embedcli.benchmark.timed_process import run_measured
from embedcli.cli.console import print_note
from embedcli.cli.options import ENCODER_FLAGS, INPUT_FLAGS, with_job_options

ONE_CORE = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "PERF_COUNT": True}


@dataclass
class Operations:
    """What the operations of one kind took.

    Attributes:
        seconds: Their seconds in all batches.
        flop: The floating-point operations of matrix products, padding included; 0 for other operations.
        kernels: The names of their implementations.
    """

    seconds: float = 0.0
    flop: float = 0.0
    kernels: set[str] = field(default_factory=set)


@with_job_options((*ENCODER_FLAGS, *INPUT_FLAGS))
def main(
    paths: Annotated[list[str], typer.Argument(metavar="INPUT", help="Rows to encode.")],
    *,
    rounds: Rounds = 3,
    rows: RowLimit = 300,
    json: JsonPath = None,
    flags: dict[str, Any],
) -> None:
    """Profile the compiled network on one core."""
    cached = CachedNetwork(paths, flags, rows)
    graph = cached.read_graph()
    products = find_products(graph)
    network = cached.compile(graph, ONE_CORE)
    best, profile = 0.0, dict[str, Operations]()
    for number in range(rounds):
        best = max(best, measure_best_gflops())
        profile = faster(profile, profile_network(network, np.arange(len(cached.tokens.lengths)), products))
        print_note(f"round {number + 1} of {rounds}")
    network.close()
    publish(describe(profile, best), format_table(profile, best), json)


def find_products(graph: Any) -> dict[str, tuple[int, int]]:
    """The inner and outer dimension of each linear layer, by its name and that of the bias that is added to it."""
    shapes: dict[str, tuple[int, int]] = {}
    for layer in find_linear_layers(graph):
        outer, inner = (int(length) for length in layer.input_value(1).get_shape())
        readers = [reader.get_node() for reader in layer.output(0).get_target_inputs()]
        shapes |= {node.get_friendly_name(): (inner, outer) for node in (layer, *readers)}
    return shapes


def profile_network(network: Network, rows: Any, products: Mapping[str, tuple[int, int]]) -> dict[str, Operations]:
    """Run the rows once, after a first batch of each shape, and add up the operations by kind."""
    request = network.compiled.create_infer_request()
    names = {name for port in network.compiled.inputs for name in port.names}
    profile: dict[str, Operations] = defaultdict(Operations)
    for _, (ids, mask) in network.pad_batches(rows):
        inputs = {name: array for name, array in {"input_ids": ids, "attention_mask": mask}.items() if name in names}
        request.infer(inputs, share_inputs=True)  # the kernels of a new shape are made here
        request.infer(inputs, share_inputs=True)
        add_up(profile, request.profiling_info, products, ids.size)
    return dict(profile)


def add_up(
    profile: dict[str, Operations], nodes: Iterable[Any], products: Mapping[str, tuple[int, int]], tokens: int
) -> None:
    """Add the operations of one batch of so many tokens."""
    for node in nodes:
        if node.status != node.Status.EXECUTED:
            continue
        shape = products.get(node.node_name)
        if shape is not None and node.node_type == "FullyConnected":
            kind, flop = f"linear {shape[0]} x {shape[1]}, {node.exec_type}", 2.0 * tokens * shape[0] * shape[1]
        else:
            kind, flop = node.node_type, 0.0
        operations = profile[kind]
        operations.seconds += node.real_time.total_seconds()
        operations.flop += flop
        operations.kernels.add(node.exec_type)


def faster(one: dict[str, Operations], other: dict[str, Operations]) -> dict[str, Operations]:
    """The profile of the faster round."""
    if not one:
        return other
    return min(one, other, key=lambda profile: sum(operations.seconds for operations in profile.values()))


def measure_best_gflops() -> float:
    """The fastest float32 product of one thread, in GFLOP/s, with the same instructions."""
    with tempfile.TemporaryDirectory(prefix="embedcli-bench-") as name:
        target = Path(name) / "products.json"
        command = [sys.executable, str(PROGRAMS / "cpu_matmul.py"), str(target), "1"]
        require_success(run_measured(command, Path(name) / "stderr.txt"))
        return float(json_format.loads(target.read_text("utf-8"))["float32"])


def describe(profile: Mapping[str, Operations], best: float) -> dict[str, Any]:
    """All figures as JSON: for each kind its share of the time, and of products their GFLOP/s."""
    total = sum(operations.seconds for operations in profile.values())
    kinds = [
        {
            "operation": kind,
            "share": operations.seconds / total,
            "gflops": operations.flop / operations.seconds / 1e9 if operations.flop else None,
            "kernels": sorted(operations.kernels),
        }
        for kind, operations in sorted(profile.items(), key=lambda item: -item[1].seconds)
    ]
    flop = sum(operations.flop for operations in profile.values())
    return {"machine": describe_machine(), "best_gflops": best, "gflops": flop / total / 1e9, "operations": kinds}


def format_table(profile: Mapping[str, Operations], best: float) -> str:
    """The figures as a Markdown table."""
    figures = describe(profile, best)
    lines = ["| operation | share of the time | GFLOP/s | of best | kernels |", "|---|--:|--:|--:|---|"]
    for kind in figures["operations"]:
        speed = f"{kind['gflops']:.0f} | {kind['gflops'] / best:.0%}" if kind["gflops"] else " | "
        lines.append(f"| {kind['operation']} | {kind['share']:.1%} | {speed} | {', '.join(kind['kernels'])} |")
    lines.append(f"| all linear layers, over all time | | {figures['gflops']:.0f} | {figures['gflops'] / best:.0%} | |")
    return "\n".join([figures["machine"]["processor"], f"best product: {best:.0f} GFLOP/s", "", *lines])


app = make_app(main)

if __name__ == "__main__":
    app()

"""Let OpenVINO compute activations outside the linear layers before them, where that is faster."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

ACTIVATIONS = {"Gelu"}
# OpenVINO has this capability on every processor with AVX-512, and on no other.
AVX512_CAPABILITY = "WINOGRAD"
X86_MACHINES = {"x86_64", "amd64"}


def needs_separate_activations(capabilities: Sequence[str]) -> bool:
    """Whether this processor computes a linear layer much slower with an activation inside than without.

    On processors with AVX2 only, OpenVINO 2026.4 computes the one by oneDNN and the other by MLAS, which reaches 84 %
    of the processor's fastest product instead of 61 %: 1.06 times as fast for a whole BERT, but 0.95 times with
    AVX-512 (`benchmarks/network_profile.py`).

    Args:
        capabilities: OpenVINO's OPTIMIZATION_CAPABILITIES of the processor.
    """
    return platform.machine().lower() in X86_MACHINES and AVX512_CAPABILITY not in capabilities


def separate_activations(graph: Any) -> None:
    """Put a maximum with minus infinity before each activation: it changes nothing, and is not computed by the layer.

    Another implementation computes the layer then, so vectors may differ by rounding.

    Args:
        graph: The graph, which is changed. Doing it again changes nothing.
    """
    from openvino import opset13

    for activation in graph.get_ordered_ops():
        source = activation.input_value(0) if activation.get_type_name() in ACTIVATIONS else None
        if source is None or source.get_node().get_type_name() == "Maximum":
            continue
        # In this order: the processor's instruction returns the second value if one of them is not a number.
        same = opset13.maximum(opset13.constant(np.float32(-np.inf)), source)
        activation.input(0).replace_source_output(same.output(0))
    graph.validate_nodes_and_infer_types()

"""Let OpenVINO compute activations outside the linear layers before them."""

from __future__ import annotations

from typing import Any

import numpy as np

ACTIVATIONS = {"Gelu"}


def separate_activations(graph: Any) -> None:
    """Put a maximum with minus infinity before each activation: it changes nothing, and is not computed by the layer.

    On processors without AVX-512, OpenVINO 2026.4 computes a linear layer with an activation by oneDNN, and one
    without by MLAS, which is much faster there (`benchmarks/network_profile.py`). The vectors are the same bits.

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

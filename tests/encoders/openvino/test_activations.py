"""Activations outside linear layers: the graph computes the same, and what is compiled so is stored by another name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from embedcli import encoders
from embedcli.encoders.openvino import runtime
from embedcli.encoders.openvino.activations import needs_separate_activations, separate_activations
from reference import encode, job, samples

BERT = "all-MiniLM-L6-v2-shape"


def build_graph(weights: Any) -> Any:
    """A graph: a linear layer [tokens, 4] x [4, 8], GELU, and two that read the activation."""
    from openvino import Model, opset13

    source = opset13.parameter([-1, -1, 4], np.float32)
    layer = opset13.matmul(source, opset13.constant(weights), False, True)
    biased = opset13.add(layer, opset13.constant(np.full((1, 1, 8), 0.1, np.float32)))
    activation = opset13.gelu(biased, "erf")
    doubled = opset13.multiply(activation, opset13.constant(np.float32(2)))
    return Model([opset13.add(doubled, activation)], [source])


def compute(graph: Any, values: Any) -> Any:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(graph, "CPU", options)(values)[0]


@pytest.fixture
def weights() -> Any:
    return np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)


def sources_of_activations(graph: Any) -> list[str]:
    found = [node for node in graph.get_ordered_ops() if node.get_type_name() == "Gelu"]
    return [node.input_value(0).get_node().get_type_name() for node in found]


def test_the_activation_follows_a_maximum_and_the_result_stays_the_same(weights: Any) -> None:
    values = np.random.default_rng(1).standard_normal((3, 5, 4)).astype(np.float32)
    expected = compute(build_graph(weights), values)
    graph = build_graph(weights)
    separate_activations(graph)
    assert sources_of_activations(graph) == ["Maximum"]
    found = compute(graph, values)
    assert found.shape == (3, 5, 8)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_overflow_does_not_pass_as_a_number(value: float, weights: Any) -> None:
    values = np.full((1, 2, 4), value, np.float32)
    graph = build_graph(np.abs(weights))
    separate_activations(graph)
    np.testing.assert_array_equal(compute(graph, values), compute(build_graph(np.abs(weights)), values))
    assert np.isnan(compute(graph, np.full((1, 2, 4), np.nan, np.float32))).all()


def test_doing_it_again_changes_nothing(weights: Any) -> None:
    graph = build_graph(weights)
    separate_activations(graph)
    count = len(graph.get_ops())
    separate_activations(graph)
    assert len(graph.get_ops()) == count


@pytest.mark.parametrize("first", [True, False])
def test_a_network_that_was_compiled_otherwise_is_not_used(
    first: bool, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of them by the other, on processors that differ in nothing else; both give the same vectors."""
    vectors = []
    for needed in (first, not first, first):
        monkeypatch.setattr(runtime, "needs_separate_activations", lambda capabilities, needed=needed: needed)
        encoder = encoders.load_encoder(job(models.folder(BERT), device="cpu", engine="openvino"))
        compiled = encoder._requests._compiled.get_runtime_model()  # type: ignore[attr-defined]
        facts = [node.get_rt_info() for node in compiled.get_ordered_ops()]
        layers = [fact["originalLayersNames"].value for fact in facts if fact["layerType"].value == "FullyConnected"]
        assert any("Gelu" in names for names in layers) != needed
        vectors.append(encode(encoder, samples()))
        encoder.close()
    assert len(list(own_cache.rglob("*.blob"))) == 2
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-6)
    np.testing.assert_array_equal(vectors[2], vectors[0])


@pytest.mark.parametrize(
    ("machine", "capabilities", "needed"),
    [
        ("x86_64", ["FP32", "INT8"], True),
        ("AMD64", ["FP32", "INT8"], True),
        ("x86_64", ["WINOGRAD", "FP32", "INT8"], False),
        ("aarch64", ["FP32", "FP16"], False),
    ],
)
def test_only_x86_without_avx512_needs_it(
    machine: str, capabilities: list[str], needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert needs_separate_activations(capabilities) == needed

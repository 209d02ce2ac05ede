"""The program that measures the processor's matrix products: only number formats that the processor computes in."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import openvino
import pytest

from embedcli.benchmark.contenders import PROGRAMS


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program, with products that take no time."""
    spec = importlib.util.spec_from_file_location("cpu_matmul", PROGRAMS / "cpu_matmul.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SHAPES", ((8, 8, 8),))
    monkeypatch.setattr(module, "ATTEMPT_FLOP", 1e4)
    return module


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_bfloat16_is_measured_where_the_processor_has_it(
    has_bfloat16: bool, program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Core:
        """OpenVINO on a processor that has bfloat16, or not."""

        def __init__(self) -> None:
            self.compile_model = openvino.Core().compile_model

        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "BF16"] if has_bfloat16 else ["FP32"]

    class Library:
        opset13, Model, AsyncInferQueue = openvino.opset13, openvino.Model, openvino.AsyncInferQueue

    monkeypatch.setattr(Library, "Core", Core, raising=False)
    monkeypatch.setattr(program, "import_openvino", lambda: Library)
    monkeypatch.setattr(sys, "argv", ["cpu_matmul.py", str(tmp_path / "products.json"), "1"])
    program.main()
    products = json.loads((tmp_path / "products.json").read_text())
    assert set(products) == ({"float32", "bfloat16"} if has_bfloat16 else {"float32"})
    assert all(speed > 0 for speed in products.values())


def test_openvino_has_this_capability_by_that_name() -> None:
    assert "FP32" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")

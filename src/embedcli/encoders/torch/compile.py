"""torch.compile for a pipeline: the layers that repeat, in place, by one graph for all of them.

Embeddings, masks and pooling stay as they are: they are little work, and full of branches. Equal layers share their
graphs, so that a deep network takes no longer to compile than a shallow one. `torch` is handed in: one module owns
that import.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from embedcli.core.cache_dir import user_cache_folder
from embedcli.core.errors import first_line
from embedcli.encoders.equivalence import row_cosines
from embedcli.encoders.torch import varlen_attention

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array

COMPILE_BACKEND: Any = "inductor"
# Sizes are symbols in the graphs (dynamic=True): over 400 varied rows by four token budgets, 288 to 484 batches, eight
# kinds of network took 1 to 6 graphs: with mask or none, one row or more, by kind of layer; without padding 1 or 2.
# A graph for each shape would be 58 with lengths in steps of 8, 17 in steps of 64, and 107 without padding.
# torch's own limit, 8, is one for all models of a process.
MAX_COMPILED_GRAPHS = 32
# Compiled in this process: worker processes could outlive it. Remote caches would reach the network.
INDUCTOR_OPTIONS = {
    "compile_threads": 1,
    "fx_graph_remote_cache": False,
    "autotune_remote_cache": False,
    "bundled_autotune_remote_cache": False,
}
COMPILE_ENVIRONMENT = {"TORCH_WARM_POOL": "0", "TORCH_DYNAMO_AUTOMATIC_DYNAMIC_REMOTE_PGO": "0"}
# With it inductor would fetch a C++ compiler.
INSTALL_COMPILER_VARIABLE = "TORCH_INDUCTOR_INSTALL_GXX"
# Compiled code is loaded and run: not from a place in /tmp that others can guess.
COMPILE_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def configure_environment() -> None:
    """Before torch is imported, which chooses its cache early: ours, unless the user has named one; no network."""
    os.environ.setdefault(COMPILE_CACHE_VARIABLE, str(user_cache_folder() / "inductor"))
    os.environ.update(COMPILE_ENVIRONMENT)
    os.environ.pop(INSTALL_COMPILER_VARIABLE, None)


def compile_layers(torch: Any, pipeline: Any, probe: Callable[[], Float32Array], least: float) -> str | None:
    """Compile each of the layers that repeat, at its first batch. None, or why they should be restored.

    `probe` runs the pipeline: compiled, the cosines of its vectors with those of before must be `least` at least.
    """
    before = probe()
    try:
        varlen_attention.register_attention_operator(torch)
        found = find_repeated_layers(torch, pipeline)
        arguments = _arguments(torch)
        for layer in found:
            layer.compile(dynamic=True, **arguments)
        lowest = float(row_cosines(before, probe()).min())
    except Exception as error:  # noqa: BLE001  compilers of several makers: whatever they raise, it is told
        return root_cause(error)
    if not found:
        return "it has no list of layers"
    return None if lowest >= least else f"vectors would differ (cosine {lowest:.6f})"


def restore_layers(pipeline: Any) -> None:
    """Let every module run as it was written."""
    for module in pipeline.modules():
        module._compiled_call_impl = None


def find_repeated_layers(torch: Any, pipeline: Any) -> list[Any]:
    """The members of the pipeline's largest list of modules; none if it has no list."""
    lists = [module for module in pipeline.modules() if isinstance(module, torch.nn.ModuleList)]
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in lists]
    return list(lists[sizes.index(max(sizes))]) if lists else []


def compile_error_types(torch: Any) -> tuple[type[BaseException], ...]:
    """What a compiled layer raises when a batch of a new shape cannot be compiled."""
    return (torch._dynamo.exc.TorchDynamoException,)


def root_cause(error: BaseException) -> str:
    """What the innermost of an error's causes says, in one line."""
    while (cause := getattr(error, "inner_exception", None) or error.__cause__) is not None:
        error = cause
    said = first_line(error)
    kind = type(error).__name__
    return said if said == kind else f"{kind}: {said}"


def _arguments(torch: Any) -> dict[str, Any]:
    limited = "recompile_limit" in inspect.signature(torch.compile).parameters
    limit = {"recompile_limit": MAX_COMPILED_GRAPHS} if limited else {}
    if COMPILE_BACKEND != "inductor":
        return {"backend": COMPILE_BACKEND, **limit}
    known = import_module("torch._inductor.config")
    options = {name: value for name, value in INDUCTOR_OPTIONS.items() if hasattr(known, name)}
    return {"backend": COMPILE_BACKEND, "options": options, **limit}

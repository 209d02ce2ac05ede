"""torch.compile for the repeated layers of a pipeline.

Embeddings, masks and pooling are not compiled: they take little time and have many branches. Equal layers share their
graphs, so that a deep network compiles as fast as a shallow one.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from embedcli.core.cache_dir import user_cache_folder
from embedcli.core.errors import first_line
from embedcli.encoders.equivalence import row_cosines
from embedcli.encoders.torch import varlen_attention

if TYPE_CHECKING:
    from torch import nn

    from embedcli.core.types import Float32Array

COMPILE_BACKEND: Any = "inductor"
# Sizes are symbols in the graphs (dynamic=True): over 400 varied rows by four token budgets, 288 to 484 batches, eight
# kinds of network took 1 to 6 graphs: with mask or none, one row or more, by kind of layer; without padding 1 or 2.
# A graph for each shape would be 58 with lengths in steps of 8, 17 in steps of 64, and 107 without padding.
# torch's own limit, 8, counts all models of a process.
MAX_COMPILED_GRAPHS = 32
# Compile in this process, because worker processes could outlive it. Remote caches would use the network.
INDUCTOR_OPTIONS = {
    "compile_threads": 1,
    "fx_graph_remote_cache": False,
    "autotune_remote_cache": False,
    "bundled_autotune_remote_cache": False,
}
COMPILE_ENVIRONMENT = {"TORCH_WARM_POOL": "0", "TORCH_DYNAMO_AUTOMATIC_DYNAMIC_REMOTE_PGO": "0"}
# If it is set, inductor downloads a C++ compiler.
INSTALL_COMPILER_VARIABLE = "TORCH_INDUCTOR_INSTALL_GXX"
# Compiled code is loaded and run, so it must not be in torch's default, a folder in /tmp that others can guess.
COMPILE_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def configure_environment() -> None:
    """Keep the compiler off the network and its cache in the user's cache folder. Call it before torch is imported."""
    os.environ.setdefault(COMPILE_CACHE_VARIABLE, str(user_cache_folder() / "inductor"))
    os.environ.update(COMPILE_ENVIRONMENT)
    os.environ.pop(INSTALL_COMPILER_VARIABLE, None)


def compile_layers(pipeline: nn.Module, encode_probe: Callable[[], Float32Array], min_cosine: float) -> str | None:
    """Compile each of the repeated layers of a pipeline, in place.

    Args:
        pipeline: A sentence-transformers pipeline.
        encode_probe: Runs the pipeline on a few texts and returns their vectors.
        min_cosine: The lowest accepted cosine between a vector before and after compiling.

    Returns:
        None, or the reason why the caller should call `restore_layers`.
    """
    vectors_before = encode_probe()
    try:
        varlen_attention.register_attention_operator()
        layers = find_repeated_layers(pipeline)
        options = _compile_options()
        for layer in layers:
            layer.compile(dynamic=True, **options)
        lowest = float(row_cosines(vectors_before, encode_probe()).min())
    except Exception as error:  # noqa: BLE001  compiler backends raise errors of any type; they are reported
        return root_cause(error)
    if not layers:
        return "it has no list of layers"
    return None if lowest >= min_cosine else f"vectors would differ (cosine {lowest:.6f})"


def restore_layers(pipeline: nn.Module) -> None:
    """Run every module without compiled code again."""
    for module in pipeline.modules():
        module._compiled_call_impl = None


def find_repeated_layers(pipeline: nn.Module) -> list[nn.Module]:
    """The members of the pipeline's largest list of modules; none if it has no list."""
    from torch import nn

    lists = [module for module in pipeline.modules() if isinstance(module, nn.ModuleList)]
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in lists]
    return list(lists[sizes.index(max(sizes))]) if lists else []


def compile_error_types() -> tuple[type[BaseException], ...]:
    """The errors that a compiled layer raises when a batch of a new shape cannot be compiled."""
    import torch

    return (torch._dynamo.exc.TorchDynamoException,)


def root_cause(error: BaseException) -> str:
    """Type and first line of the innermost cause of an error."""
    while (cause := getattr(error, "inner_exception", None) or error.__cause__) is not None:
        error = cause
    line, kind = first_line(error), type(error).__name__
    return line if line == kind else f"{kind}: {line}"


def _compile_options() -> dict[str, Any]:
    import torch

    has_limit = "recompile_limit" in inspect.signature(torch.compile).parameters
    limit = {"recompile_limit": MAX_COMPILED_GRAPHS} if has_limit else {}
    if COMPILE_BACKEND != "inductor":
        return {"backend": COMPILE_BACKEND, **limit}
    from torch._inductor import config

    options = {name: value for name, value in INDUCTOR_OPTIONS.items() if hasattr(config, name)}
    return {"backend": COMPILE_BACKEND, "options": options, **limit}

"""Names that transformers 5 has removed, for models whose own code was written for transformers 4.

They do what the documentation of transformers 4 says, as far as encoders of text use them. They are there while such
code is imported and as long as its network lives: for good, once a job trusts a model's code. Networks of transformers
itself use none of them.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from types import ModuleType
from typing import TYPE_CHECKING, Any

from embedcli.core.errors import ModelError

if TYPE_CHECKING:
    import torch

LIBRARY = "transformers"
# Where transformers puts classes that it imports from a model's own code.
OWN_CODE_MODULES = "transformers_modules."


def install_removed_names() -> None:
    """Add each removed name to transformers, unless the installed version has it."""
    import transformers
    from transformers import PreTrainedModel, modeling_utils, pytorch_utils
    from transformers import utils as library_utils
    from transformers.utils import import_utils

    methods = (get_extended_attention_mask, invert_attention_mask, get_head_mask)
    for method in methods:
        _add(PreTrainedModel, method.__name__, method)
    # The last two are still in pytorch_utils; older code imports them from modeling_utils.
    functions = (
        find_pruneable_heads_and_indices,
        pytorch_utils.prune_linear_layer,
        pytorch_utils.apply_chunking_to_forward,
    )
    for module in (pytorch_utils, modeling_utils):
        for function in functions:
            _add(module, function.__name__, function)
    for module in (library_utils, import_utils):
        _add(module, "is_torch_fx_available", _never)
        _add(module, "is_flash_attn_available", _never)
    onnx = sys.modules.setdefault("transformers.onnx", _onnx_module())
    _add(transformers, "onnx", onnx)


def forget_other_code() -> None:
    """Forget the networks of models that were loaded before in this process.

    transformers remembers the class of a network by the class of its configuration, and then takes it for every model
    with the same configuration code, even if the next model's folder has other code for its network. Only a private
    attribute holds these classes.
    """
    from transformers import AutoModel, AutoModelForMaskedLM

    for factory in (AutoModel, AutoModelForMaskedLM):
        remembered = factory._model_mapping._extra_content
        for configuration, network in list(remembered.items()):
            if str(getattr(network, "__module__", "")).startswith(OWN_CODE_MODULES):
                del remembered[configuration]


def restore_buffers(network: Any) -> None:
    """Give a network of own code the buffers that its files lack, such as position ids and token types.

    transformers 5 builds networks without memory and leaves such buffers uninitialized; its own networks fill them
    again, and code that was written before does not. They are taken from a network that is built anew.
    """
    import torch

    if not type(network).__module__.startswith(OWN_CODE_MODULES):
        return
    stored = network.state_dict().keys()
    with torch.device("cpu"):
        fresh = type(network)(network.config)
    for name, buffer in fresh.named_buffers():
        if name in stored:
            continue
        parent, _, attribute = name.rpartition(".")
        loaded = network.get_buffer(name)
        dtype = loaded.dtype if buffer.is_floating_point() else buffer.dtype
        setattr(network.get_submodule(parent), attribute, buffer.to(loaded.device, dtype))


def find_missing_name(error: BaseException | None) -> str | None:
    """The name of transformers that is still missing, if an error was raised for one; None for other errors."""
    while error is not None:
        if isinstance(error, ImportError) and error.name and error.name.split(".")[0] == LIBRARY:
            imported = getattr(error, "name_from", None)
            return f"{error.name}.{imported}" if imported else error.name
        if isinstance(error, AttributeError) and _is_of_library(error.obj):
            return f"{type(error.obj).__name__}.{error.name}"
        error = error.__cause__ or error.__context__
    return None


def missing_name_error(model: str, name: str, has_equivalent: bool) -> ModelError:
    """The error for own code that needs a name which the installed transformers does not have."""
    hint = (
        "leave --trust-remote-code out: transformers has an equivalent of this model"
        if has_equivalent
        else "use another model, or ask its authors for code that fits transformers 5"
    )
    return ModelError(
        f"the own code of {model} needs {name}, which the installed transformers does not have: it was written for "
        "an earlier version",
        hint,
    )


def _is_of_library(value: Any) -> bool:
    """Whether a value is a network, a configuration or a module of transformers."""
    if isinstance(value, ModuleType):
        return value.__name__.split(".")[0] == LIBRARY
    return any(kind.__module__.split(".")[0] == LIBRARY for kind in type(value).__mro__)


def _add(owner: Any, name: str, value: Any) -> None:
    if not hasattr(owner, name):
        setattr(owner, name, value)


def _never() -> bool:
    return False


# Methods of PreTrainedModel


def get_extended_attention_mask(
    self: Any, attention_mask: torch.Tensor, input_shape: tuple[int, ...], device: Any = None, dtype: Any = None
) -> torch.Tensor:
    """A mask to add to attention scores: 0 where a token is read, the lowest number where it is not.

    Args:
        self: The network, whose dtype the mask has.
        attention_mask: [rows, tokens] or [rows, tokens, tokens]; 1 where a token is read.
        input_shape: Only for an error message.
        device: Not used, as in transformers 4.
        dtype: The dtype of the mask; by default that of the network.

    Returns:
        [rows, 1, 1, tokens] or [rows, 1, tokens, tokens].

    Raises:
        ValueError: The mask has another shape, or the network is a decoder.
    """
    if getattr(self.config, "is_decoder", False):
        raise ValueError("masks of decoders are not supported")
    if attention_mask.dim() not in (2, 3):
        raise ValueError(f"a mask of shape {tuple(attention_mask.shape)} for an input of shape {tuple(input_shape)}")
    extended = attention_mask[:, None, None, :] if attention_mask.dim() == 2 else attention_mask[:, None, :, :]
    return _as_additive(extended, dtype or self.dtype)


def invert_attention_mask(self: Any, encoder_attention_mask: torch.Tensor) -> torch.Tensor:
    """The same for the mask of an encoder whose output a decoder reads."""
    mask = encoder_attention_mask
    return _as_additive(mask[:, None, None, :] if mask.dim() == 2 else mask[:, None, :, :], self.dtype)


def _as_additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    import torch

    return (1.0 - mask.to(dtype=dtype)) * torch.finfo(dtype).min


def get_head_mask(
    self: Any, head_mask: torch.Tensor | None, num_hidden_layers: int, is_attention_chunked: bool = False
) -> Any:
    """A mask of attention heads for each layer; [None] * num_hidden_layers if there is none."""
    if head_mask is None:
        return [None] * num_hidden_layers
    if head_mask.dim() == 1:
        head_mask = head_mask.expand(num_hidden_layers, -1)
    masks = head_mask[:, None, :, None, None].to(self.dtype)
    return masks.unsqueeze(-1) if is_attention_chunked else masks


# Functions


def find_pruneable_heads_and_indices(
    heads: Any, n_heads: int, head_size: int, already_pruned_heads: set[int]
) -> tuple[set[int], torch.Tensor]:
    """Heads that are not pruned yet, and the indices of the numbers that stay in a layer of n_heads * head_size."""
    import torch

    remaining = set(heads) - already_pruned_heads
    keep = torch.ones(n_heads, head_size, dtype=torch.bool)
    for head in remaining:
        keep[head - sum(pruned < head for pruned in already_pruned_heads)] = False
    return remaining, torch.arange(n_heads * head_size)[keep.view(-1)].long()


def _onnx_module() -> ModuleType:
    """A module transformers.onnx with the base classes that configuration files derive theirs from."""
    module = ModuleType("transformers.onnx")

    class OnnxConfig:
        """Describes the inputs of an exported network; embedcli exports none by it."""

        default_fixed_batch, default_fixed_sequence = 2, 8

        def __init__(self, config: Any, task: str = "default", patching_specs: Any = None) -> None:
            self._config, self.task = config, task

        @property
        def inputs(self) -> Any:
            return OrderedDict()

    class OnnxConfigWithPast(OnnxConfig):
        """The same for networks with a cache."""

    class OnnxSeq2SeqConfigWithPast(OnnxConfigWithPast):
        """The same for networks with a decoder."""

    for kind in (OnnxConfig, OnnxConfigWithPast, OnnxSeq2SeqConfigWithPast):
        setattr(module, kind.__name__, kind)
    return module

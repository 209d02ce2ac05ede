"""The layers of BGE-M3 that turn hidden states into weights and vectors of tokens, read from their two files."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from embedcli.core.errors import ModelError, first_line
from embedcli.models.config import ModelConfig
from embedcli.models.files import ModelFiles
from embedcli.models.heads import MULTI_VECTOR_WEIGHTS, SPARSE_WEIGHTS
from embedcli.models.weights import DOWNLOAD_AGAIN_HINT

if TYPE_CHECKING:
    import torch

# What the layers add to the features of a batch: [batch, tokens, 1] and [batch, tokens, dim].
TOKEN_WEIGHTS, TOKEN_VECTORS = "token_weights", "token_vectors"


def append_head_layers(pipeline: Any, files: ModelFiles, config: ModelConfig) -> None:
    """Append a module to a pipeline that adds the outputs of a job's heads to its features.

    As in FlagEmbedding (M3Embedder), the weight of a token is relu(w h + b), and its vector W h + b, where h is its
    last hidden state. The vectors have not been scaled to length 1 yet.

    Args:
        pipeline: A SentenceTransformer whose first module is a network of transformers.
        files: The model, with the files of its heads.
        config: Its settings for the job.

    Raises:
        ModelError: A file is damaged, has more in it than the tensors of a linear layer, or does not fit the network.
    """
    import torch

    hidden_size = int(pipeline[0].model.config.hidden_size)
    layers: dict[str, Any] = {}
    if "sparse" in config.heads:
        layers[TOKEN_WEIGHTS] = _read_layer(files.path / SPARSE_WEIGHTS, hidden_size, outputs=1)
    if "multi_vector" in config.heads:
        layers[TOKEN_VECTORS] = _read_layer(files.path / MULTI_VECTOR_WEIGHTS, hidden_size)

    class HeadLayers(torch.nn.Module):
        """Adds `token_weights` and `token_vectors` of all tokens, padding included."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleDict(layers)

        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            for name, layer in self.layers.items():
                states = layer(features["token_embeddings"])
                features[name] = states.relu() if name == TOKEN_WEIGHTS else states
            return features

    weights = next(pipeline[0].parameters())
    pipeline.append(HeadLayers().to(weights.device, weights.dtype).eval())


def _read_layer(path: Path, inputs: int, outputs: int | None = None) -> torch.nn.Linear:
    """Read a linear layer of a number of inputs and, unless it is None, of outputs, from its state."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ModelError(
            f"{path} is a pickle with more than tensors in it, which could run code",
            "use the file that the model's authors published",
        ) from error
    except Exception as error:
        raise ModelError(f"{path} cannot be read: {first_line(error)}", DOWNLOAD_AGAIN_HINT) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()} if isinstance(state, dict) else {}
    rows = shapes.get("bias", (0,))[0] if outputs is None else outputs
    if shapes != {"weight": (rows, inputs), "bias": (rows,)} or not rows:
        raise ModelError(
            f"{path} does not hold the linear layer that belongs to this network: it has {shapes or type(state)}, "
            f"and a weight with {inputs} columns and a bias are needed",
            "use the file that was published with this model",
        )
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise ModelError(f"{path} is damaged: it has numbers that are not finite", DOWNLOAD_AGAIN_HINT)
    layer = torch.nn.Linear(inputs, rows)
    layer.load_state_dict(state)
    return layer

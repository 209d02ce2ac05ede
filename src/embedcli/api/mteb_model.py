"""A model for the `mteb` package."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from embedcli.api.model import Model, load, require_one_vector
from embedcli.api.options import PathLike, build_job
from embedcli.core.constants import DEFAULT_MODEL
from embedcli.core.errors import UsageError

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array


class MtebModel:
    """A model for the `mteb` package: `mteb.evaluate(embedcli.MtebModel("all-MiniLM-L6-v2"), tasks)`.

    Queries and documents get the model's prompts for them, other texts none. `flags` are those of `load`; `as_` in
    them applies to all texts. The encoder of each prompt stays loaded until `close`. Raises UsageError for wrong
    options.
    """

    def __init__(self, model: PathLike = DEFAULT_MODEL, revision: str | None = None, **flags: Any) -> None:
        self._flags: dict[str, Any] = {"revision": revision, **flags}
        self._model = build_job((), "-", model, self._flags, "MtebModel").model
        self._loaded: dict[str, Model] = {}
        name = self._model
        about = {
            "name": name if name.count("/") == 1 else f"embedcli/{name.strip('/').replace('/', '_')}",
            "revision": revision or "local",
            "similarity_fn_name": "cosine",
        }
        try:
            library: Any = import_module("mteb.models")
        except ImportError:
            raise UsageError("MtebModel needs the package mteb", "pip install mteb") from None
        self.mteb_model_meta: Any = library.ModelMeta.create_empty(overwrites=about)

    def encode(self, inputs: Iterable[Any], *, prompt_type: Any = None, **kwargs: Any) -> Float32Array:
        """float32 [n, dim]: the texts of mteb's batches, in order."""
        role = str(getattr(prompt_type, "value", prompt_type) or "")
        if role not in self._loaded:
            asked: dict[str, Any] = {"as_": role} if role in ("query", "document") else {}
            self._loaded[role] = load(self._model, **asked | self._flags)
            require_one_vector(self._loaded[role], "MtebModel")
        texts = [text for batch in inputs for text in batch["text"]]
        vectors: Float32Array = self._loaded[role].encode(texts, precision="float32")
        return vectors

    def similarity(self, one: Any, two: Any) -> Any:
        """Return the cosines [n, m] of all pairs, as a tensor if mteb passes tensors."""
        return normalize_array(one) @ normalize_array(two).T

    def similarity_pairwise(self, one: Any, two: Any) -> Any:
        """Return the cosines [n] of vectors at the same index."""
        return (normalize_array(one) * normalize_array(two)).sum(1)

    def close(self) -> None:
        for loaded in self._loaded.values():
            loaded.close()
        self._loaded = {}


def normalize_array(vectors: Any) -> Any:
    """Return the vectors scaled to length 1, in the same type of array."""
    lengths = (vectors**2).sum(1, keepdims=True) ** 0.5
    return vectors / (lengths + (lengths == 0))

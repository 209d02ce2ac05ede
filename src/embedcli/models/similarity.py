"""The similarity function that a model was trained for."""

from __future__ import annotations

from embedcli.core.types import VectorKind
from embedcli.models.files import ModelFiles, read_json_object

# By the kind of the vectors; the first is that of a model that names none.
SIMILARITY_NAMES: dict[VectorKind, tuple[str, ...]] = {
    "dense": ("cosine", "dot", "euclidean", "manhattan"),
    "sparse": ("dot", "cosine", "euclidean", "manhattan"),
    "multi_vector": ("maxsim", "meanmaxsim"),
}


def read_similarity_name(files: ModelFiles | None, kind: VectorKind = "dense") -> str:
    """Read the name of a model's similarity function from its files, as sentence-transformers saves it.

    Args:
        files: The model; None if it is hosted.
        kind: The kind of its vectors.

    Returns:
        One of `SIMILARITY_NAMES`, the first if the files name none or another one.
    """
    saved = {} if files is None else read_json_object(files.path / "config_sentence_transformers.json")
    name = saved.get("similarity_fn_name")
    names = SIMILARITY_NAMES[kind]
    return name if name in names else names[0]

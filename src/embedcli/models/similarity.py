"""The similarity function that a model was trained for."""

from __future__ import annotations

from embedcli.models.files import ModelFiles, read_json_object

SIMILARITY_NAMES = ("cosine", "dot", "euclidean", "manhattan")
DEFAULT_SIMILARITY = "cosine"


def read_similarity_name(files: ModelFiles | None) -> str:
    """Read the name of a model's similarity function from its files, as sentence-transformers saves it.

    Args:
        files: The model; None if it is hosted.

    Returns:
        One of `SIMILARITY_NAMES`; "cosine" if the files name none or another one.
    """
    saved = {} if files is None else read_json_object(files.path / "config_sentence_transformers.json")
    name = saved.get("similarity_fn_name")
    return name if name in SIMILARITY_NAMES else DEFAULT_SIMILARITY

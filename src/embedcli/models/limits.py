"""The token limit of a model: what its tokenizer, its settings and its positions allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.models.files import find_tokenizer_file, read_json_object

TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# These number positions from padding_idx + 1, so two of the positions in their config are unusable.
OFFSET_POSITION_MODELS = {
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "mpnet",
    "longformer",
    "data2vec-text",
}
# From here on a tokenizer's model_max_length means "no limit" (transformers writes 1e30).
UNLIMITED_LENGTH = int(1e20)


def resolve_max_seq_length(
    folder: Path, modules: list[tuple[str, str]], job: Job, base: Path | None = None
) -> tuple[int | None, int | None]:
    """The token limit of a job, and the number of positions of the model; None: no limit.

    If the first module is an adapter, `base` is the folder of its base model.
    """
    kind, path = modules[0]
    if kind != "Transformer" and "." not in kind:
        return job.max_seq_length, None
    root = folder / path
    positions = _read_max_positions(read_json_object((base or root) / "config.json"))
    if job.max_seq_length is not None:
        if positions is not None and job.max_seq_length > positions:
            raise UsageError(
                f"--max-seq-length {job.max_seq_length} is more than the {positions} tokens that {job.model} accepts",
                f"use {positions} or less",
            )
        return job.max_seq_length, positions
    limit = _read_saved_limit(root, base)
    return (min(limit, positions) if limit and positions else limit or positions), positions


def _read_saved_limit(root: Path, base: Path | None) -> int | None:
    saved = next((config for name in TRANSFORMER_CONFIGS if (config := read_json_object(root / name))), {})
    arguments = saved.get("processor_kwargs") or saved.get("tokenizer_args") or {}
    tokenizer_folder = base if base is not None and find_tokenizer_file(root) is None else root
    tokenizer = read_json_object(tokenizer_folder / "tokenizer_config.json")
    for limit in (
        arguments.get("model_max_length"),
        saved.get("max_seq_length"),
        tokenizer.get("model_max_length", tokenizer.get("max_len")),
    ):
        if limit is not None:
            return int(limit) if limit < UNLIMITED_LENGTH else None
    return None


def _read_max_positions(config: dict[str, Any]) -> int | None:
    positions = (config.get("text_config") or config).get("max_position_embeddings")
    if not isinstance(positions, int) or positions <= 0:
        return None
    return positions - 2 if config.get("model_type") in OFFSET_POSITION_MODELS else positions

"""The token limit of a model: what its tokenizer, its settings and its positions allow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.models.files import find_tokenizer_file, read_json_object

if TYPE_CHECKING:
    from embedcli.models.traits import ModelTraits

TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Under these names configs declare the longest row. Only the first is a limit that sentence-transformers knows as well;
# the others count for models without any other limit: T5 declares 512 positions and has none.
POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_positions", "n_ctx", "max_seq_len", "seq_length")
# From here on a tokenizer's model_max_length means "no limit" (transformers writes 1e30).
UNLIMITED_LENGTH = int(1e20)


def resolve_max_seq_length(
    folder: Path,
    modules: list[tuple[str, str]],
    job: Job,
    *,
    base: Path | None = None,
    traits: ModelTraits | None = None,
    role_limit: int | None = None,
) -> tuple[int | None, int | None]:
    """Resolve the token limit of a job: the least of its tokenizer's, its settings' and its positions'.

    Args:
        folder: The model's folder.
        modules: The modules that a text passes; the first has the limit.
        job: The job; its own limit takes the place of the tokenizer's.
        base: The folder of the base model, if the first module is an adapter.
        traits: What was measured of the model; without them the positions are those that its config declares, of
            which some networks cannot use all.
        role_limit: The limit that the model's files set for texts of the job's role, in place of the tokenizer's.

    Returns:
        The token limit, and the number of usable positions; None: no limit.

    Raises:
        UsageError: The job's limit is above the positions.
    """
    kind, path = modules[0]
    if kind != "Transformer" and "." not in kind:
        return job.max_seq_length, None
    root = folder / path
    declared = read_declared_positions(read_json_object((base or root) / "config.json"))
    positions = traits.max_positions if traits else declared
    if job.max_seq_length is not None:
        if positions is not None and job.max_seq_length > positions:
            raise UsageError(
                f"--max-seq-length {job.max_seq_length} is more than the {positions} tokens that {job.model} accepts",
                f"use {positions} or less",
            )
        return job.max_seq_length, positions
    limits = [limit for limit in (role_limit or _read_saved_limit(root, base), positions) if limit]
    return min(limits, default=traits.default_limit if traits else None), positions


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


def read_declared_positions(config: dict[str, Any], keys: Sequence[str] = POSITION_KEYS[:1]) -> int | None:
    """The least positive number that a transformers config declares under one of `keys`."""
    text_config = config.get("text_config") or config
    numbers = [text_config.get(key) for key in keys]
    return min((number for number in numbers if type(number) is int and number > 0), default=None)

"""Recognise the splits of a dataset (train, test, ...) in the names of its files, as the Hugging Face Hub does."""

from __future__ import annotations

import re
from collections.abc import Sequence

SPLIT_WORDS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "validation": "validation", "valid": "validation", "dev": "validation", "val": "validation",
}  # fmt: skip
SPLIT_NAME = re.compile(rf"(.*/)?({'|'.join(sorted(SPLIT_WORDS, key=len, reverse=True))})(?![A-Za-z])[^/]*")


def describe_splits(folder: str, names: Sequence[str]) -> list[str]:
    """Sentences about the splits that the files of a folder belong to; none unless there are several.

    Args:
        folder: The folder, as it is shown.
        names: The paths of its files inside the folder.
    """
    examples: dict[str, str] = {}
    counts: dict[str, int] = {}
    for name in names:
        found = _find_split(name)
        if found is not None:
            split, path = found
            examples.setdefault(split, path)
            counts[split] = counts.get(split, 0) + 1
    if len(counts) < 2:
        return []
    listed = ", ".join(f"{split} ({count} file{'s' if count > 1 else ''})" for split, count in counts.items())
    example = f"{folder.rstrip('/')}/{next(iter(examples.values()))}"
    return [f"{folder} has several splits, and all are read: {listed}. To read one, name it: '{example}'."]


def _find_split(name: str) -> tuple[str, str] | None:
    """The split of a file, and the folder or glob that reads the split; None if its path names no split."""
    folders, _, _ = name.rpartition("/")
    in_folder = SPLIT_NAME.fullmatch(folders)
    if in_folder is not None:
        return SPLIT_WORDS[in_folder[2]], folders
    in_name = SPLIT_NAME.fullmatch(name)
    return None if in_name is None else (SPLIT_WORDS[in_name[2]], f"{in_name[1] or ''}{in_name[2]}*")

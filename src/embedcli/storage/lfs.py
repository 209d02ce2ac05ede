"""Recognise the pointer files that Git leaves in place of large files until `git lfs pull`."""

from __future__ import annotations

POINTER_START = b"version https://git-lfs.github.com/spec/v1"
# A pointer has three short lines (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md: less than 1,024 bytes).
MAX_POINTER_BYTES = 1024
LFS_PULL_HINT = "run `git lfs pull` in its folder to fetch the file itself"


def is_lfs_pointer(content: bytes) -> bool:
    """Whether the first bytes of a file are those of a Git LFS pointer."""
    return content.startswith(POINTER_START)

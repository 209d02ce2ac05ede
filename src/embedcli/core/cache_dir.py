"""The cache folder of embedcli."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache_folder() -> Path:
    """The folder for files that embedcli derives from models: EMBEDCLI_CACHE, or below XDG_CACHE_HOME.

    The folder is not created.
    """
    folder = os.environ.get("EMBEDCLI_CACHE")
    if folder:
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embedcli"

"""Where embedcli keeps its cache."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache_folder() -> Path:
    """The user's folder for what embedcli derives from models; not created."""
    own = os.environ.get("EMBEDCLI_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embedcli"

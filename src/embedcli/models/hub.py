"""The model hub and its cache on this machine. Only `download` connects; only it imports huggingface_hub."""

from __future__ import annotations

import fnmatch
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from embedcli.core.errors import ModelError, first_line
from embedcli.models.files import IGNORED_FOLDERS

EXCLUDED_PATTERNS = (
    "*.onnx*",
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.gguf",
    "*.tflite",
    "*.xml",
    "*.png",
    "*.jpg",
    "*.pdf",
    ".git*",
)
COMMIT_HASH = re.compile(r"[0-9a-f]{40}")


def hub_cache_folder(cache_dir: str | None = None) -> Path:
    """The hub cache folder: --cache-dir, or where huggingface_hub would look. Found without importing it (0.4 s)."""
    home = os.environ.get("HF_HOME")
    base = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    chosen = cache_dir or os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or base / "hub"
    return Path(os.path.expandvars(chosen)).expanduser()


def find_cached_snapshot(name: str, revision: str | None, where: Path) -> Path | None:
    """The snapshot folder of a model in the cache `where`, named by its commit; None when there is none."""
    repo = where / ("models--" + name.replace("/", "--"))
    commit = _commit(repo, revision or "main")
    folder = repo / "snapshots" / commit if commit else None
    return folder if folder and folder.is_dir() else None


def _commit(repo: Path, revision: str) -> str | None:
    if COMMIT_HASH.fullmatch(revision):
        return revision
    if ".." in Path(revision).parts:
        return None
    ref = repo / "refs" / revision
    return ref.read_text("utf-8").strip() if ref.is_file() else None


def download_snapshot(name: str, revision: str | None, where: Path, hint: str = "") -> Path:
    """Fetch what embedding needs of a model, one weight format only; returns its snapshot folder.

    Progress bars go to stderr if that is a terminal. Raises ModelError with what to do.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        info = HfApi().model_info(name, revision=revision)
        files = select_files(sibling.rfilename for sibling in info.siblings or ())
        # By the revision's name, not its commit: only then is the name found in the cache next time.
        return Path(snapshot_download(name, revision=revision, cache_dir=where, allow_patterns=files))
    except Exception as error:
        raise explain_hub_error(error, name, revision, hint) from error


def select_files(files: Iterable[str]) -> list[str]:
    """Of a repository's file names those to fetch: no other framework's weights, safetensors before pickles."""
    every = [
        file
        for file in files
        if not any(fnmatch.fnmatch(Path(file).name, pattern) for pattern in EXCLUDED_PATTERNS)
        and not IGNORED_FOLDERS.intersection(Path(file).parts)
        and not file.startswith("checkpoint")
    ]
    safe = {str(Path(file).parent) for file in every if file.endswith(".safetensors")}
    return [file for file in every if not (_pickle(file) and str(Path(file).parent) in safe)]


def _pickle(file: str) -> bool:
    return Path(file).name.startswith("pytorch_model")


def explain_hub_error(error: Exception, name: str, revision: str | None, hint: str) -> ModelError:
    """The ModelError a person can act on, from what huggingface_hub raised."""
    from huggingface_hub import errors

    elsewhere = f"run `embedcli pull {name}` where there is a network, or give a folder: --model PATH"
    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            f"{name} asks for permission first (the hub refused it)",
            f"accept its terms at its page on the hub, set HF_TOKEN, then run `embedcli pull {name}`",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{name} has no revision {revision!r}", "check --revision: a branch, a tag or a commit")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            f"the hub has no model {name}, or it is private",
            hint or "check the name (see `embedcli models`), set HF_TOKEN for a private one, or give a folder",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ModelError(f"{name} is not on this machine, and offline mode forbids fetching it", elsewhere)
    return ModelError(f"{name} could not be fetched from the hub: {first_line(error)}", elsewhere)

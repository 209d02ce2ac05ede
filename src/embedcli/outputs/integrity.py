"""Compare every byte of an output with the digests that it records."""

from __future__ import annotations

from embedcli import storage
from embedcli.core.constants import MANIFEST_FILE
from embedcli.outputs import writers
from embedcli.outputs.dataset import VectorDataset
from embedcli.outputs.digests import check_digests, check_folder_digests
from embedcli.outputs.jsonl_vectors import JsonlVectorFile
from embedcli.outputs.lance_rows import LanceVectorFile
from embedcli.outputs.vector_files import NpyVectorFile, VectorFile, companion_exists


def check_output_digests(output: VectorDataset) -> bool:
    """Read all bytes of an output and compare them with its digests.

    Returns:
        Whether every file has a digest; those of other programs and of earlier versions have none.

    Raises:
        InputError: A file is damaged.
    """
    manifest = storage.join(output.path, MANIFEST_FILE)
    has_digests = [_check_file(file) for file in output.vector_files]
    if storage.is_folder(output.path) and storage.exists(manifest):
        has_digests.append(check_digests(manifest))
    return bool(has_digests) and all(has_digests)


def _check_file(file: VectorFile) -> bool:
    if isinstance(file, LanceVectorFile):
        return check_folder_digests(file.path)
    if isinstance(file, NpyVectorFile):
        return _check_pair(file.path, writers.ids_path(file.path))
    if isinstance(file, JsonlVectorFile):
        return _check_pair(file.path, writers.space_path(file.path))
    return check_digests(file.path)


def _check_pair(path: str, companion: str) -> bool:
    return companion_exists(path, companion) and check_digests(companion, path)

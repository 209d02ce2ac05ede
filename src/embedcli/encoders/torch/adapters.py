"""Load models with adapters from local files alone, and merge the adapters into the weights."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from embedcli.core.errors import ModelError
from embedcli.models.adapters import find_adapter_folders, tokenizer_folder
from embedcli.models.files import ADAPTER_CONFIG, TOKENIZER_FILES, ModelFiles, read_json_object

# Beside the vocabulary: what the tokenizer's class and special tokens are read from.
TOKENIZER_SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
)


@contextmanager
def open_loadable_folder(files: ModelFiles, folder: Path) -> Iterator[Path]:
    """Yield a folder from which sentence-transformers can load a model without asking the hub for a base model.

    It is the given folder, or for adapters a temporary one: links to the model's files, where each adapter names its
    base by the path on this machine.

    Args:
        files: The model.
        folder: The folder with the model's own files.

    Raises:
        ModelError: The model has an adapter, and the package for that is not installed.
    """
    subfolders = find_adapter_folders(files.path)
    if not subfolders:
        yield folder
        return
    if find_spec("peft") is None:
        raise ModelError(
            f"{files.name} is an adapter (LoRA), which needs the package peft", "run pip install 'embedcli[adapters]'"
        )
    with tempfile.TemporaryDirectory(prefix="embedcli-adapter-", ignore_cleanup_errors=True) as name:
        view = Path(name) / "model"
        shutil.copytree(folder, view, copy_function=_link_file, ignore=shutil.ignore_patterns("checkpoint-*"))
        for subfolder in subfolders:
            _name_local_base(files, view, subfolder)
        yield view


def merge_adapters(pipeline: Any) -> None:
    """Merge all adapters of a pipeline into the weights, in place: the layers are then those of the base model.

    Raises:
        ValueError: An adapter is of a kind that cannot be merged.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, layer in list(pipeline.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            merged = layer.get_base_layer()
        elif isinstance(layer, AuxiliaryTrainingWrapper):
            merged = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        else:
            continue
        parent, _, attribute = name.rpartition(".")
        setattr(pipeline.get_submodule(parent), attribute, merged)
    for network in pipeline.modules():
        if network.__dict__.pop("peft_config", None) is not None:
            network._hf_peft_config_loaded = False


def _name_local_base(files: ModelFiles, view: Path, subfolder: str) -> None:
    """Name the base of one adapter of the temporary folder by its path, and add the tokenizer if it has none."""
    target, base = view / subfolder, files.find_base(subfolder)
    config = read_json_object(files.path / subfolder / ADAPTER_CONFIG)
    config |= {"base_model_name_or_path": str(base.resolve() if base else target), "revision": None}
    (target / ADAPTER_CONFIG).unlink()
    (target / ADAPTER_CONFIG).write_text(json.dumps(config), "utf-8")
    source = tokenizer_folder(files, subfolder)
    if source != files.path / subfolder:
        for name in (*TOKENIZER_FILES, *TOKENIZER_SETTINGS):
            if (source / name).is_file() and not (target / name).exists():
                _link_file(str(source / name), str(target / name))


def _link_file(source: str, target: str) -> None:
    """Link a file, or copy it where the system forbids links."""
    try:
        os.symlink(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)

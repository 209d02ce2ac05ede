"""The fingerprint of a model covers every file that loading it opens, and no other model beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import models
import routers
from embedcli.core.errors import ModelError
from embedcli.models.files import describe_missing_files, walk_modules
from embedcli.models.fingerprint import fingerprint_model, fingerprinted_files
from reference import samples

# Opened by loaders, or written beside a model, but without influence on a vector.
DESCRIPTIVE_FILES = {"README.md"}
# Loads models, and prints which of their files Python opened. (Weights and tokenizers are opened by Rust code, which
# no audit hook sees; they are the subject of `test_the_fingerprinted_files_alone_give_the_same_vectors`.)
RECORD_OPENED_FILES = """
import json, os, sys
from sentence_transformers import SentenceTransformer
opened = set()
def record(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        opened.add(os.path.realpath(os.fsdecode(arguments[0])))
sys.addaudithook(record)
for folder in sys.argv[1:]:
    SentenceTransformer(folder, device="cpu", local_files_only=True)
print(json.dumps(sorted(path for path in opened if os.path.isfile(path))))
"""
ROUTERS: dict[str, Callable[[Path], Any]] = {
    "router-first": routers.build_first_router,
    "router-last": routers.build_last_router,
    "router-static": routers.build_static_router,
    "router-nested": routers.build_nested_router,
    "router-old": routers.build_old_router,
}
PLAIN = ["all-MiniLM-L6-v2-shape", "distiluse-base-multilingual-cased-v2", "embeddinggemma-300m", "xlm-roberta-raw"]


def copy_plain(name: str, folder: Path) -> None:
    shutil.copytree(models.folder(name), folder)


BUILDERS = ROUTERS | {name: partial(copy_plain, name) for name in PLAIN}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("layouts").resolve()
    for name, build in BUILDERS.items():
        build(home / name)
        (home / name / "README.md").write_text("about the model")
    return {name: home / name for name in BUILDERS}


@pytest.fixture(scope="module")
def opened_files(built: dict[str, Path]) -> set[Path]:
    folders = [str(folder) for folder in built.values()]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", RECORD_OPENED_FILES, *folders]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return {Path(path) for path in json.loads(result.stdout.splitlines()[-1])}


@pytest.mark.parametrize("name", BUILDERS)
def test_every_file_that_loading_opens_is_fingerprinted(
    name: str, built: dict[str, Path], opened_files: set[Path]
) -> None:
    folder = built[name]
    opened = {file for file in opened_files if file.is_relative_to(folder)}
    assert folder / "config.json" in opened or folder / "router_config.json" in opened
    known = {file.resolve() for file in fingerprinted_files(folder)}
    assert {file for file in opened - known if file.name not in DESCRIPTIVE_FILES} == set()


@pytest.mark.parametrize("name", BUILDERS)
def test_the_fingerprinted_files_alone_give_the_same_vectors(name: str, built: dict[str, Path], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    for file in fingerprinted_files(built[name]):
        target = tmp_path / "copy" / file.relative_to(built[name])
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    original, copy = (
        SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        for folder in (built[name], tmp_path / "copy")
    )
    for encode in ("encode_query", "encode_document"):
        assert (getattr(original, encode)(samples()[:4]) == getattr(copy, encode)(samples()[:4])).all()


@pytest.mark.parametrize("name", BUILDERS)
def test_a_change_in_any_file_gives_another_fingerprint(name: str, built: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(built[name], tmp_path / name)
    before = fingerprint_model(folder)
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        content = file.read_bytes()
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:] if file.suffix != ".json" else content + b" ")
        assert (fingerprint_model(folder) == before) == (file.name in DESCRIPTIVE_FILES), file
        file.write_bytes(content)
    assert fingerprint_model(folder) == before


def test_checkpoints_and_other_models_in_subfolders_do_not_count(built: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(built["router-first"], tmp_path / "model")
    before = fingerprint_model(folder)
    models.write(folder / "checkpoint-100" / "model.safetensors", "another model")
    models.write(folder / "query_0_Transformer" / "checkpoint-100" / "model.safetensors", "another model")
    models.write(folder / "onnx" / "config.json", {})
    assert fingerprint_model(folder) == before


def test_shards_in_a_subfolder_count(tmp_path: Path) -> None:
    folder = shutil.copytree(models.folder("text2vec-large-chinese"), tmp_path / "model")
    (folder / "shards").mkdir()
    (folder / "model.safetensors").rename(folder / "shards" / "model-1.safetensors")
    models.write(folder / "model.safetensors.index.json", {"weight_map": {"a": "shards/model-1.safetensors"}})
    assert folder / "shards" / "model-1.safetensors" in set(fingerprinted_files(folder))


@pytest.mark.parametrize("name", ROUTERS)
def test_each_missing_weight_of_a_routed_module_is_named(name: str, built: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(built[name], tmp_path / name)
    assert describe_missing_files(folder) is None
    for weights in sorted(folder.rglob("*.safetensors")):
        hidden = weights.rename(weights.with_suffix(".hidden"))
        assert describe_missing_files(folder) == weights.relative_to(folder).as_posix()
        hidden.rename(weights)


@pytest.mark.parametrize("path", ["..", "../other", "/other", "a/../.."])
def test_modules_outside_of_a_router_are_not_followed(path: str, tmp_path: Path) -> None:
    models.write(tmp_path / "other" / "secret.txt", "another file")
    folder = tmp_path / "model"
    models.write(folder / "modules.json", [{"type": "sentence_transformers.models.Router", "path": ""}])
    models.write(folder / "router_config.json", {"types": {path: "sentence_transformers.models.Dense"}})
    with pytest.raises(ModelError, match="outside of"):
        list(walk_modules(folder))


def test_a_router_that_contains_itself_ends(tmp_path: Path) -> None:
    router = {"types": {"": "sentence_transformers.models.Router", "loop": "sentence_transformers.models.Router"}}
    models.write(tmp_path / "modules.json", [{"type": "sentence_transformers.models.Router", "path": ""}])
    models.write(tmp_path / "router_config.json", router)
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list(walk_modules(tmp_path)) == [("Router", ""), ("Router", ""), ("Router", "loop")]

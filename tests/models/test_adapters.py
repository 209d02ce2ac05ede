"""Adapters: the base model is found like any model, must be complete, and is part of the fingerprint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import models
from adapters import build_adapter_pipeline, build_raw_adapter
from embedcli.core.errors import ModelError, UsageError
from embedcli.models import hub, resolve
from embedcli.models.config import read_model_config
from embedcli.models.files import ModelFiles
from reference import job

MINILM, QWEN = "all-MiniLM-L6-v2-shape", "Qwen3-Embedding-0.6B"
COMMIT, OTHER_COMMIT = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model and its adapters, to copy."""
    home = tmp_path_factory.mktemp("adapters")
    shutil.copytree(models.folder(MINILM), home / "base")
    build_adapter_pipeline(home / "pipeline", MINILM, home / "base")
    build_raw_adapter(home / "raw", MINILM, home / "base", tokenizer=True)
    build_raw_adapter(home / "bare", MINILM, home / "base")
    for name in ("pipeline", "raw", "bare"):
        name_base(home / name, "../base")
    return home


@pytest.fixture
def home(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "home"))


def name_base(folder: Path, base: str | None, **values: Any) -> None:
    path = folder / "adapter_config.json"
    models.write(path, json.loads(path.read_text()) | {"base_model_name_or_path": base} | values)


def resolve_folder(folder: Path, **values: Any) -> ModelFiles:
    return resolve.resolve_model(job(folder, **values))


def add_base(cache: Path, base: Path, repo: str, commit: str = COMMIT, ref: str = "main") -> Path:
    """Add a model to a hub cache."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    shutil.copytree(base, folder / "snapshots" / commit)
    models.write(folder / "refs" / ref, commit)
    return folder / "snapshots" / commit


@pytest.mark.parametrize("name", ["pipeline", "raw", "bare"])
def test_every_file_of_adapter_and_base_is_in_the_fingerprint(name: str, home: Path) -> None:
    before = resolve_folder(home / name).fingerprint
    files = [file for folder in (home / name, home / "base") for file in folder.rglob("*") if file.is_file()]
    assert home / name / "adapter_model.safetensors" in files
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if file.suffix != ".json" else content + b" ")
        assert (resolve_folder(home / name).fingerprint == before) == (file.name == "README.md"), file
        file.write_bytes(content)
    assert resolve_folder(home / name).fingerprint == before


def test_a_base_comes_from_the_hub_cache_at_the_adapters_revision(home: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    first = add_base(cache, home / "base", "bert-base-uncased")
    second = add_base(cache, home / "base", "bert-base-uncased", OTHER_COMMIT, "v2")
    for revision, folder in ((None, first), ("v2", second), (OTHER_COMMIT, second)):
        name_base(home / "raw", "bert-base-uncased", revision=revision)
        files = resolve_folder(home / "raw", offline=True, cache_dir=str(cache))
        assert files.find_base("") == folder
        assert files.bases[0].files.revision == folder.name


def test_an_adapter_in_the_hub_cache_finds_its_base_there(home: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    base = add_base(cache, home / "base", "owner/base")
    name_base(home / "pipeline", "owner/base")
    adapter = add_base(cache, home / "pipeline", "owner/adapter")
    files = resolve.resolve_model(job("owner/adapter", offline=True, cache_dir=str(cache)))
    assert (files.path, files.find_base("")) == (adapter, base)


def test_a_missing_base_is_named_with_the_command_that_fetches_it(home: Path, tmp_path: Path) -> None:
    name_base(home / "raw", "owner/base")
    with pytest.raises(ModelError, match="is an adapter and needs its base model: owner/base is not on this") as caught:
        resolve_folder(home / "raw", offline=True, cache_dir=str(tmp_path / "hub"))
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(f"run `embedcli pull {home / 'raw'}`")


def test_an_incomplete_base_is_refused(home: Path) -> None:
    (home / "base" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"needs its base model: .* model.safetensors is missing"):
        resolve_folder(home / "raw")


def test_an_incomplete_adapter_is_refused(home: Path) -> None:
    (home / "pipeline" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"is incomplete: adapter_model.safetensors is missing"):
        resolve_folder(home / "pipeline")


def test_a_pickled_adapter_is_refused(home: Path) -> None:
    (home / "raw" / "adapter_model.safetensors").rename(home / "raw" / "adapter_model.bin")
    with pytest.raises(ModelError, match="keeps its adapter in a pickle"):
        resolve_folder(home / "raw")


def test_an_adapter_without_a_base_is_refused(home: Path) -> None:
    name_base(home / "raw", None)
    with pytest.raises(ModelError, match="names no base model"):
        resolve_folder(home / "raw")


def test_an_adapter_of_an_adapter_is_refused(home: Path) -> None:
    name_base(home / "raw", str(home / "pipeline"))
    with pytest.raises(ModelError, match="which is an adapter itself"):
        resolve_folder(home / "raw")
    name_base(home / "raw", str(home / "raw"))
    with pytest.raises(ModelError, match="which is an adapter itself"):
        resolve_folder(home / "raw")


def test_settings_come_from_the_base_where_the_adapter_has_none(home: Path, tmp_path: Path) -> None:
    for name, limit in (("pipeline", 256), ("raw", 512), ("bare", 512)):
        config = read_model_config(resolve_folder(home / name), job(home / name))
        assert (config.max_seq_length, config.max_positions, config.pooling) == (limit, 512, "mean")
    base = Path(shutil.copytree(models.folder(QWEN), tmp_path / "causal"))
    path = base / "config.json"
    models.write(path, json.loads(path.read_text()) | {"architectures": ["Qwen3ForCausalLM"]})
    build_raw_adapter(tmp_path / "adapter", QWEN, base)
    config = read_model_config(resolve_folder(tmp_path / "adapter"), job(tmp_path / "adapter"))
    assert config.pooling == "lasttoken"


def test_custom_code_of_the_base_is_named(home: Path) -> None:
    path = home / "base" / "config.json"
    own = {"model_type": "unknown", "auto_map": {"AutoModel": "modeling.Model"}}
    models.write(path, json.loads(path.read_text()) | own)
    with pytest.raises(UsageError, match=r"custom Python code .* modeling.py \(Model\)"):
        read_model_config(resolve_folder(home / "raw"), job(home / "raw"))


def test_pull_fetches_the_base_as_well(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name_base(home / "pipeline", "base-model", revision="v2")
    folders = {"owner/adapter": home / "pipeline", "base-model": home / "base"}
    asked = []

    def download(hub_id: str, revision: str | None, cache: Path, **_: object) -> Path:
        asked.append((hub_id, revision))
        return folders[hub_id]

    monkeypatch.setattr(hub, "download_snapshot", download)
    files = resolve.pull_model("owner/adapter", "v1")
    assert asked == [("owner/adapter", "v1"), ("base-model", "v2")]
    assert files.find_base("") == home / "base"
    asked.clear()
    resolve.pull_model(str(home / "pipeline"))
    assert asked == [("base-model", "v2")]

"""Other libraries with ONNX files: which can take part, and the files they get."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import models
from embedcli.benchmark import peers
from embedcli.benchmark.contenders import RunFailed
from embedcli.benchmark.lineup import BATCH_SIZES, MeasuredModel, resolve_model
from embedcli.benchmark.peers import FLOAT32_FILE, INT8_FILE, ONNX_PEERS, OnnxFiles, explain_absence
from embedcli.core.job import Job

PEERS = {peer.name: peer for peer in ONNX_PEERS}
# Writes its second argument's file: the first one's name and content, and the options.
COPY = "import sys; s, t, *o = sys.argv[1:]; open(t, 'w').write(' '.join([s.rpartition('/')[2], *o]))"


def resolve_small_model(**options: Any) -> MeasuredModel:
    return resolve_model(Job((), "", model=str(models.folder("gte-small")), device="cpu", **options), ())


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that only say what they were asked for."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("to_onnx.py", "quantize_onnx.py"):
        (folder / name).write_text(COPY)
    monkeypatch.setattr(peers, "PROGRAMS", folder)
    return folder


def make_files(model: Path, folder: Path) -> OnnxFiles:
    folder.mkdir()
    return OnnxFiles(model, sys.executable, folder, lambda line: None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_every_library_has_batch_sizes_to_try() -> None:
    assert {peer.library for peer in ONNX_PEERS} <= set(BATCH_SIZES)


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize(("has_products", "number_range"), [(True, "full"), (False, "reduced")])
def test_int8_is_quantized_from_float32_in_the_range_of_the_processor(
    has_products: bool, number_range: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "has_int8_products", lambda: has_products)
    files = make_files(model, tmp_path / "work")
    files.ensure(INT8_FILE)
    assert (files.folder / INT8_FILE).read_text() == f"model.onnx {number_range}"
    assert (files.folder / FLOAT32_FILE).is_file()
    assert (files.folder / "config.json").read_text() == "{}"
    assert (files.folder / "1_Pooling").is_dir()
    assert not (model / "onnx").exists()


@pytest.mark.usefixtures("programs")
def test_a_models_own_files_are_used_and_left_alone(model: Path, tmp_path: Path) -> None:
    (model / "onnx").mkdir()
    (model / FLOAT32_FILE).write_text("its own")
    files = make_files(model, tmp_path / "work")
    files.ensure(FLOAT32_FILE)
    files.ensure(INT8_FILE)
    assert (files.folder / FLOAT32_FILE).read_text() == "its own"
    assert [path.name for path in (model / "onnx").iterdir()] == ["model.onnx"]


def test_a_file_that_cannot_be_created_costs_only_the_libraries_that_need_it(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (programs / "quantize_onnx.py").write_text("raise SystemExit('no room')")
    monkeypatch.setattr(peers, "find_missing_packages", lambda packages, python: [])
    found, missing = peers.find_peers(resolve_small_model(), sys.executable, tmp_path, lambda line: None)
    names = [peer.name for peer in found if not peer.name.endswith("bf16")]
    assert names == ["sentence-transformers", "sentence-transformers onnx", "fastembed", "light-embed"]
    assert missing == {"sentence-transformers int8": "no ONNX file could be created: no room"}


def test_a_failing_program_is_an_error(programs: Path, model: Path, tmp_path: Path) -> None:
    (programs / "to_onnx.py").write_text("raise SystemExit('no such operator')")
    with pytest.raises(RunFailed, match="no such operator"):
        make_files(model, tmp_path / "work").ensure(INT8_FILE)


def test_pipelines_that_a_library_would_not_run_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_missing_packages", lambda packages, python: [])
    shortened = resolve_small_model(truncate_dim=8)
    reasons = {name: explain_absence(peer, shortened, sys.executable) for name, peer in PEERS.items()}
    assert reasons["light-embed"] == reasons["fastembed"] == "it cannot run this model's pipeline"
    assert reasons["sentence-transformers onnx"] is None


def test_missing_packages_come_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_missing_packages", lambda packages, python: ["light_embed", "onnx"])
    reason = explain_absence(PEERS["light-embed"], resolve_small_model(), "other env/bin/python")
    command = "'other env/bin/python' -m pip install light-embed onnx"
    assert reason == f"light_embed, onnx not installed: {command}"

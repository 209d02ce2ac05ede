"""`embedcli.embed_table`: the same kind of table, with a column of vectors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import embedcli
from searchable import PROMPTS, TEXTS, model_folder

VALUES: dict[str, Any] = {"n": list(range(len(TEXTS))), "text": TEXTS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model") / "tiny", PROMPTS)


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[embedcli.Model]:
    with embedcli.load(folder) as loaded:
        yield loaded


def test_arrow(model: embedcli.Model) -> None:
    for table in (pa.table(VALUES), pa.record_batch(VALUES)):
        made = embedcli.embed_table(table, model=model)
        assert type(made) is type(table)
        assert made.schema.field("embedding").type == pa.list_(pa.float32(), 24)
        assert made.column_names == ["n", "text", "embedding"]
        assert np.array_equal(np.stack(made["embedding"].to_pylist()), model.encode(TEXTS))
        assert table.column_names == ["n", "text"]


def test_pandas(model: embedcli.Model) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(VALUES, index=[f"row {n}" for n in range(len(TEXTS))])
    made = embedcli.embed_table(table, model=model, embedding_column="vector")
    assert isinstance(made, pandas.DataFrame)
    assert list(made.columns) == ["n", "text", "vector"]
    assert made.index.equals(table.index)
    assert np.array_equal(np.stack(made["vector"]), model.encode(TEXTS))
    assert "vector" not in table
    assert embedcli.embed_table(table[:0], model=model)["embedding"].tolist() == []


def test_polars(model: embedcli.Model) -> None:
    polars = pytest.importorskip("polars")
    made = embedcli.embed_table(polars.DataFrame(VALUES), "text", model=model)
    assert made.schema["embedding"] == polars.Array(polars.Float32, 24)
    assert np.array_equal(made["embedding"].to_numpy(), model.encode(TEXTS))
    with pytest.raises(embedcli.UsageError, match="got a LazyFrame"):
        embedcli.embed_table(polars.LazyFrame(VALUES), model=model)


def test_datasets(model: embedcli.Model) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict(VALUES)
    made = embedcli.embed_table(table, model=model)
    assert isinstance(made, datasets.Dataset)
    assert (made.features["embedding"].length, made.features["embedding"].feature.dtype) == (24, "float32")
    assert np.array_equal(np.array(made["embedding"][:], np.float32), model.encode(TEXTS))
    for several in (datasets.DatasetDict(train=table), table.to_iterable_dataset()):
        with pytest.raises(embedcli.UsageError, match="takes one table"):
            embedcli.embed_table(several, model=model)


def test_kinds_of_texts_and_options(folder: Path, model: embedcli.Model) -> None:
    table = pa.table({"body": TEXTS})
    made = embedcli.embed_table(table, model=folder, kind="query", truncate_dim=5)
    assert np.allclose(np.stack(made["embedding"].to_pylist()), model.encode_query(TEXTS, truncate_dim=5), atol=1e-6)
    with pytest.raises(embedcli.UsageError, match="kind='passage' is not a valid choice"):
        embedcli.embed_table(table, model=model, kind="passage")  # type: ignore[arg-type]
    with pytest.raises(embedcli.UsageError, match="'truncate_dim' has no effect on a loaded model"):
        embedcli.embed_table(table, model=model, truncate_dim=5)


def test_what_cannot_be_embedded_is_refused_before_a_model_is_loaded() -> None:
    table = pa.table({"n": [1], "words": ["cat"]})
    nowhere = Path("nothing")
    for column, message in ((None, "no column with a usual name for texts"), ("text", "no column 'text'")):
        with pytest.raises(embedcli.UsageError, match=f"{message}; it has n, words"):
            embedcli.embed_table(table, column, model=nowhere)
    with pytest.raises(embedcli.UsageError, match="has a column 'words' already"):
        embedcli.embed_table(table, "words", model=nowhere, embedding_column="words")
    for other in ([1], {"text": ["cat"]}, "cat", None):
        with pytest.raises(embedcli.UsageError, match="embed_table takes a table"):
            embedcli.embed_table(other, model=nowhere)


def test_missing_and_wrong_texts_are_refused(model: embedcli.Model) -> None:
    with pytest.raises(embedcli.InputError, match="text 2 is missing"):
        embedcli.embed_table(pa.table({"text": ["cat", None]}), model=model)
    with pytest.raises(embedcli.UsageError, match="an Arrow array of int64"):
        embedcli.embed_table(pa.table({"text": [1]}), model=model)

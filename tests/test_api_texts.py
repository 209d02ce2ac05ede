"""What `Model.encode` takes as texts: a str, lists, Series and arrays; tables and missing texts are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import embedcli
from embedcli.api.texts import read_texts
from searchable import PROMPTS, model_folder

GIVEN = ["cat dog", "rain wind", "pan spoon"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedcli.Model]:
    with embedcli.load(model_folder(tmp_path_factory.mktemp("model") / "tiny", PROMPTS)) as loaded:
        yield loaded


def make(library: str, kind: str) -> Callable[[Any], Any]:
    """The constructor of a library; the test is left out where the library is not installed."""

    def construct(values: Any) -> Any:
        constructor: Callable[[Any], Any] = getattr(pytest.importorskip(library), kind)
        return constructor(values)

    return construct


def make_dataset(values: Any) -> Any:
    return pytest.importorskip("datasets").Dataset.from_dict(values)


several: dict[str, Callable[[Any], Any]] = {
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "numpy": np.array,
    "numpy objects": lambda values: np.array(values, object),
    "arrow": pa.array,
    "arrow large": lambda values: pa.array(values, pa.large_string()),
    "arrow view": lambda values: pa.array(values, pa.string_view()),
    "arrow chunks": lambda values: pa.chunked_array([values[:1], values[1:]]),
    "arrow dictionary": lambda values: pa.array(values).dictionary_encode(),
    "pandas": make("pandas", "Series"),
    "pandas categories": lambda values: make("pandas", "Series")(values).astype("category"),
    "polars": make("polars", "Series"),
    "datasets": lambda values: make_dataset({"text": values})["text"],
}


@pytest.mark.parametrize("kind", several)
def test_each_kind_of_array_gives_the_vectors_of_the_list(model: embedcli.Model, kind: str) -> None:
    assert np.array_equal(model.encode(several[kind](GIVEN)), model.encode(GIVEN))


def test_a_str_is_one_text(model: embedcli.Model) -> None:
    one = model.encode("cat dog")
    assert one.shape == (24,)
    assert np.array_equal(one, model.encode(["cat dog"])[0])
    assert np.array_equal(model.encode(np.str_("cat dog")), one)


TABLES: dict[str, Callable[[Any], Any]] = {
    "dict": dict,
    "pandas": make("pandas", "DataFrame"),
    "polars": make("polars", "DataFrame"),
    "polars lazy": make("polars", "LazyFrame"),
    "arrow": pa.table,
    "arrow batch": pa.record_batch,
    "datasets": make_dataset,
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_are_refused_with_the_column_to_give(model: embedcli.Model, kind: str) -> None:
    table = TABLES[kind]({"id": [1, 2], "text": ["cat", "dog"]})
    with pytest.raises(embedcli.UsageError, match="with the columns id, text") as refused:
        model.encode(table)
    assert "data['text']" in refused.value.hint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"cat", "got bytes"),
        ({"cat", "dog"}, "got a set"),
        (3, "got int"),
        (None, "got NoneType"),
        (np.arange(3), "NumPy array of int64"),
        (np.array([["cat"], ["dog"]]), "shape 2x1"),
        (np.array([b"cat"]), "NumPy array of"),
        (pa.array([1, 2]), "an Arrow array of int64"),
    ],
)
def test_what_is_not_several_texts_is_refused(given: Any, message: str) -> None:
    with pytest.raises(embedcli.UsageError, match=message) as refused:
        read_texts(given)
    assert refused.value.hint


@pytest.mark.parametrize("missing", [None, float("nan"), np.nan])
@pytest.mark.parametrize("kind", ["list", "numpy objects", "pandas"])
def test_missing_texts_are_named_by_position(model: embedcli.Model, kind: str, missing: Any) -> None:
    with pytest.raises(embedcli.InputError, match="text 3 is missing"):
        model.encode(several[kind](["cat", "dog", missing]))


def test_missing_texts_of_other_libraries_are_named() -> None:
    pandas = pytest.importorskip("pandas")
    for given in (
        pandas.Series(["cat", pandas.NA], dtype="string"),
        pandas.Series(["cat", pandas.NaT], dtype=object),
        pytest.importorskip("polars").Series(["cat", None]),
        pa.array(["cat", None]),
        pa.chunked_array([["cat"], [None]]),
    ):
        with pytest.raises(embedcli.InputError, match="text 2 is missing"):
            read_texts(given)


def test_all_texts_are_checked_before_any_is_encoded(model: embedcli.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcli.pipeline.engine.encode_chunks", lambda *_: pytest.fail("texts were encoded"))
    for wrong, message in ((["cat"], "of type list"), ("\ud800", "a lone surrogate")):
        with pytest.raises(embedcli.InputError, match=f"text 50001 .*{message}"):
            model.encode(["cat"] * 50_000 + [wrong])  # type: ignore[list-item]


def test_the_hint_is_in_the_traceback() -> None:
    import pickle
    import traceback

    with pytest.raises(embedcli.UsageError) as refused:
        read_texts(3)
    error = refused.value
    assert traceback.format_exception(error)[-1] == f"hint: {error.hint}\n"
    assert pickle.loads(pickle.dumps(error)).__notes__ == error.__notes__ == [f"hint: {error.hint}"]  # noqa: S301
    assert str(error) == error.message


def test_a_file_of_the_tests_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(embedcli.UsageError, match="got PosixPath"):
        read_texts(tmp_path)

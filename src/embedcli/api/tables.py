"""Add a column of vectors to a table in memory: pandas, polars, Arrow, datasets."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pyarrow as pa

from embedcli.api.model import Model, load, require_one_vector
from embedcli.api.options import ModelOptions, PathLike, with_options
from embedcli.api.texts import list_columns, suggest_column
from embedcli.core.constants import DEFAULT_MODEL
from embedcli.core.errors import UsageError
from embedcli.readers.columns import TEXT_COLUMN_NAMES

if TYPE_CHECKING:
    from typing import Unpack

    from numpy.typing import NDArray

Table = TypeVar("Table")


@with_options(ModelOptions)
def embed_table(
    table: Table,
    column: str | None = None,
    *,
    model: PathLike | Model = DEFAULT_MODEL,
    kind: Literal["query", "document"] | None = None,
    embedding_column: str = "embedding",
    show_progress_bar: bool | None = None,
    **options: Unpack[ModelOptions],
) -> Table:
    """Embed a column of a table.

    Args:
        table: A DataFrame of pandas or polars, an Arrow table or record batch, or a `datasets.Dataset`. It is not
            changed.
        column: The column of the texts; by default the one with a usual name: "text", "body"...
        model: As for `load`, or a loaded model.
        kind: Embed the texts with `Model.encode_query` or `Model.encode_document`.
        embedding_column: The name of the new column.
        show_progress_bar: As for `Model.encode`.
        options: As for `load`; none with a loaded model.

    Returns:
        A table of the same kind with one more column. Its type is that of vectors of a fixed length in the library: a
        FixedSizeList in Arrow, an Array in polars, a List with a length in datasets, NumPy arrays in pandas.

    Raises:
        UsageError: `table` is not a table, has no such column, or has the new column already; or an option is wrong.
        InputError: A text is missing or cannot be embedded; the message gives its position, from 1.
        ModelError: The model cannot be found or loaded.
    """
    add_column = choose_library(table)
    texts = table[choose_column(table, column, embedding_column)]  # type: ignore[index]
    if isinstance(model, Model):
        if options:
            raise UsageError(f"{next(iter(options))!r} has no effect on a loaded model", "give it to embedcli.load")
        vectors = encode_column(model, texts, kind, show_progress_bar)
    else:
        with load(model, **options) as loaded:
            vectors = encode_column(loaded, texts, kind, show_progress_bar)
    result: Table = add_column(table, embedding_column, vectors)
    return result


def encode_column(model: Model, texts: Any, kind: str | None, show_progress_bar: bool | None) -> NDArray[Any]:
    """The vectors of a column: [n, dim]."""
    methods = {None: model.encode, "query": model.encode_query, "document": model.encode_document}
    if kind not in methods:
        raise UsageError(f"kind={kind!r} is not a valid choice", "choose from query and document, or leave it out")
    require_one_vector(model, "embed_table")
    vectors: NDArray[Any] = methods[kind](texts, show_progress_bar=show_progress_bar)
    return vectors


def choose_column(table: Any, column: str | None, embedding_column: str) -> str:
    """The column of the texts. Raises UsageError if there is none, or the new column exists already."""
    columns = list_columns(table) or []
    if embedding_column in columns:
        raise UsageError(
            f"the table has a column {embedding_column!r} already", "give another name as embedding_column"
        )
    if column is None:
        column = next((name for name in TEXT_COLUMN_NAMES if name in columns), None)
    if column is None or column not in columns:
        what = "no column with a usual name for texts" if column is None else f"no column {column!r}"
        raise UsageError(
            f"the table has {what}; it has {', '.join(columns) or 'no columns'}",
            f"give the column of the texts, as in column={suggest_column(columns)!r}",
        )
    return column


def choose_library(table: Any) -> Any:
    """The function that adds a column to this kind of table. Raises UsageError for anything else."""
    library = type(table).__module__.partition(".")[0]
    if isinstance(table, pa.Table | pa.RecordBatch):
        return add_to_arrow
    if type(table).__name__ in ("DataFrame", "Dataset") and library in ADD_COLUMN:
        return ADD_COLUMN[library]
    if type(table).__name__ == "LazyFrame":
        raise UsageError("embed_table takes tables in memory, and got a LazyFrame", "give table.collect()")
    if type(table).__name__ in ("DatasetDict", "IterableDataset"):
        raise UsageError(
            f"embed_table takes one table, and got a {type(table).__name__}", 'give one split: dataset["train"]'
        )
    raise UsageError(
        f"embed_table takes a table, and got {type(table).__name__}",
        "give a DataFrame of pandas or polars, an Arrow table or a datasets.Dataset",
    )


def to_arrow_column(vectors: NDArray[Any]) -> Any:
    """The vectors as a FixedSizeList array."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def add_to_arrow(table: Any, name: str, vectors: NDArray[Any]) -> Any:
    """Append a FixedSizeList column to an Arrow table or record batch."""
    return table.append_column(name, to_arrow_column(vectors))


def add_to_pandas(table: Any, name: str, vectors: NDArray[Any]) -> Any:
    """Add an object column of arrays, which is what pandas reads from Parquet, to a copy of a DataFrame."""
    column = import_module("pandas").Series(list(vectors), index=table.index, dtype=object)
    return table.assign(**{name: column})


def add_to_polars(table: Any, name: str, vectors: NDArray[Any]) -> Any:
    """Add a column of type Array to a DataFrame of polars."""
    return table.with_columns(import_module("polars").from_arrow(to_arrow_column(vectors)).alias(name))


def add_to_dataset(table: Any, name: str, vectors: NDArray[Any]) -> Any:
    """Add a column of lists of fixed length to a `datasets.Dataset`."""
    library = import_module("datasets")
    value = library.Value(str(vectors.dtype))
    return table.add_column(name, list(vectors), feature=library.Sequence(value, length=vectors.shape[1]))


ADD_COLUMN = {"pandas": add_to_pandas, "polars": add_to_polars, "datasets": add_to_dataset}

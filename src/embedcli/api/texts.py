"""Read the texts of a call from what Python programs keep texts in: lists, Series, arrays. Tables are refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from embedcli.analysis.text_encoder import check_text
from embedcli.core.errors import UsageError

# A str, or several: a list, a Series of pandas or polars, an array of Arrow or NumPy, a generator.
Texts: TypeAlias = str | Iterable[str]
# NumPy's kinds of arrays that may hold texts: of fixed width, of objects, of variable width.
TEXT_KINDS = "UOT"


def read_texts(given: Any) -> tuple[list[str], bool]:
    """Read the texts of a call.

    Args:
        given: A str; or several: a list, tuple or other iterable, a Series of pandas or polars, an array of Arrow
            (also chunked or dictionary-encoded) or NumPy, a column of a dataset.

    Returns:
        The texts, and whether `given` is a single one.

    Raises:
        UsageError: `given` is a table, a dictionary, a set, or holds no texts.
        InputError: A value is missing, is not a string, or cannot be encoded as UTF-8.
    """
    is_single = isinstance(given, str)
    if not is_single:
        refuse_other_kinds(given)
    texts = [given] if is_single else list_values(given)
    for position, text in enumerate(texts, 1):
        check_text(text, position)
    return texts, is_single


def refuse_other_kinds(given: Any) -> None:
    """Raise UsageError for what is not several texts in order."""
    columns = list_columns(given)
    if columns is not None:
        raise UsageError(
            f"encode takes texts, and got a {type(given).__name__} with the columns {', '.join(columns) or '(none)'}",
            f"give one column: data[{suggest_column(columns)!r}]; embedcli.embed_table takes whole tables",
        )
    if isinstance(given, bytes | bytearray | memoryview):
        raise UsageError(f"encode takes texts, and got {type(given).__name__}", 'give a str: data.decode("utf-8")')
    if isinstance(given, Set):
        raise UsageError(f"encode takes texts in an order, and got a {type(given).__name__}", "give sorted(texts)")
    if not isinstance(given, Iterable):
        raise UsageError(f"encode takes texts, and got {type(given).__name__}", "give a str or a list of them")


def list_columns(given: Any) -> list[str] | None:
    """The names of the columns of a table of any library, or the keys of a dictionary; None for anything else."""
    if isinstance(given, Mapping):
        return [str(key) for key in given]
    if hasattr(given, "collect_schema"):  # polars, where `columns` of a lazy frame warns
        return list(given.collect_schema().names())
    for attribute in ("column_names", "columns"):
        names = getattr(given, attribute, None)
        if names is not None and not callable(names):
            return [str(name) for name in names]
    return None


def suggest_column(columns: Sequence[str]) -> str:
    """The column that probably holds the texts."""
    return "text" if "text" in columns or not columns else columns[0]


def list_values(given: Any) -> list[Any]:
    """The values of several texts as a list."""
    if isinstance(given, pa.Array | pa.ChunkedArray):
        return _list_arrow_values(given)
    if isinstance(given, np.ndarray):
        if given.dtype.kind not in TEXT_KINDS or given.ndim != 1:
            shape = "x".join(map(str, given.shape))
            raise UsageError(
                f"encode takes texts, and got a NumPy array of {given.dtype} and shape {shape or '()'}",
                "give an array of str with one dimension",
            )
        values: list[Any] = given.tolist()
        return values
    return list(given)


def _list_arrow_values(given: Any) -> list[Any]:
    kind = given.type.value_type if pa.types.is_dictionary(given.type) else given.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not is_text and not pa.types.is_null(kind):
        raise UsageError(f"encode takes texts, and got an Arrow array of {given.type}", "give an array of strings")
    values: list[Any] = given.to_pylist()
    return values

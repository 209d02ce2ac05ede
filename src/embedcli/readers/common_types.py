"""The one type in which the values of a column from several inputs are stored."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pyarrow as pa

from embedcli.core.errors import UsageError
from embedcli.readers import arrow_types
from embedcli.readers.preview import InputPreview
from embedcli.storage import format_location


def common_type(name: str, types: Sequence[tuple[InputPreview, pa.DataType]]) -> pa.DataType:
    """Find the type that holds the values of a column from all inputs.

    Args:
        name: The column.
        types: The type of the column in each input.

    Raises:
        UsageError: There is none without changing values. Two inputs and their types are named.
    """
    firsts: dict[tuple[pa.DataType, str], InputPreview] = {}
    for preview, data_type in types:
        firsts.setdefault((data_type, preview.format), preview)
    distinct = [(preview, data_type) for (data_type, _), preview in firsts.items()]
    common = _unify(distinct)
    if common is not None:
        return common
    pairs = ((one, other) for one, other in combinations(distinct, 2) if _unify((one, other)) is None)
    (first, first_type), (second, second_type) = next(pairs, (distinct[0], distinct[-1]))
    raise UsageError(
        f"column {name!r} is {first_type} in {format_location(first.path)} "
        f"and {second_type} in {format_location(second.path)}",
        "make their types equal, or encode these inputs one by one",
    )


def _unify(types: Sequence[tuple[InputPreview, pa.DataType]]) -> pa.DataType | None:
    """The type that holds the values of all types; None if there is none. Values of JSON are checked row by row."""
    has_python_values = not all(preview.has_arrow_types for preview, _ in types)
    if len({data_type for _, data_type in types}) == 1 and not has_python_values:
        return types[0][1]
    unified = arrow_types.unify_types([data_type for _, data_type in types])
    if unified is not None and has_python_values:
        unified = arrow_types.widen_for_python(unified)
    exact_types = [data_type for preview, data_type in types if not preview.has_inferred_types]
    if unified is None or not all(arrow_types.keeps_values(data_type, unified) for data_type in exact_types):
        return None
    return unified

"""Arrow values as Python values: the same as from Arrow where Python can represent them, and no value fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcli.checkpoint.part_files import hash_chunk
from embedcli.core.arrow_values import column_to_python, scalar_to_python, table_to_rows
from embedcli.core.types import Chunk, InputSplit

LEAST, MOST = -(1 << 63), (1 << 63) - 1
ZONES = [None, "UTC", "Europe/Berlin", "+05:30", "America/St_Johns"]
KINDS = [
    pa.date32(),
    pa.date64(),
    pa.time32("s"),
    pa.time32("ms"),
    pa.time64("us"),
    pa.time64("ns"),
    *[pa.duration(unit) for unit in ("s", "ms", "us", "ns")],
    *[pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in [*ZONES, "Mars/Base"]],
]
DAY = {"s": 86400, "ms": 86400 * 10**3, "us": 86400 * 10**6, "ns": 86400 * 10**9}


def array(numbers: list[int | None], kind: pa.DataType) -> pa.Array:
    return pa.array(numbers, pa.int32() if kind.bit_width == 32 else pa.int64()).cast(kind, safe=False)


@given(numbers=st.lists(st.none() | st.integers(LEAST, MOST), max_size=20))
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_time_fails_and_none_is_lost(kind: pa.DataType, numbers: list[int | None]) -> None:
    least, most = (-(1 << 31), (1 << 31) - 1) if kind.bit_width == 32 else (LEAST, MOST)
    in_range = [None if n is None else min(max(n, least), most) for n in numbers]
    values = column_to_python(array(in_range, kind))
    assert [value is None for value in values] == [n is None for n in in_range]


def exact_times(kind: pa.DataType, numbers: list[int]) -> pa.Array:
    """Times that Python can represent: from 1700 to 2250, without nanoseconds."""
    if pa.types.is_date(kind):
        return array([n % 200_000 - 98_000 if kind == pa.date32() else (n % 90_000) * DAY["ms"] for n in numbers], kind)
    if pa.types.is_time(kind):
        return array([n % DAY[kind.unit] // 1000 * 1000 for n in numbers], kind)
    days = 100_000 * DAY[kind.unit]
    return array([((n % (2 * days)) - days) // 1000 * 1000 for n in numbers], kind)


@given(numbers=st.lists(st.integers(0, 1 << 62), max_size=20))
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "Mars" not in str(kind)], ids=str)
def test_times_that_python_can_represent_equal_those_of_arrow(kind: pa.DataType, numbers: list[int]) -> None:
    times = exact_times(kind, numbers)
    # Arrow converts nanoseconds to pandas values if pandas is installed.
    coarse = pa.time64("us") if kind == pa.time64("ns") else kind
    coarse = pa.timestamp("us", kind.tz) if pa.types.is_timestamp(kind) and kind.unit == "ns" else coarse
    coarse = pa.duration("us") if kind == pa.duration("ns") else coarse
    assert repr(column_to_python(times)) == repr(times.cast(coarse).to_pylist())


@pytest.mark.parametrize(
    ("kind", "number", "text"),
    [
        (pa.timestamp("ns"), 1001, "1970-01-01T00:00:00.000001001"),
        (pa.timestamp("ns"), 1000, "1970-01-01 00:00:00.000001"),
        (pa.timestamp("ns"), -1, "1969-12-31T23:59:59.999999999"),
        (pa.timestamp("ns", "Europe/Berlin"), 1_700_000_000_000_000_001, "2023-11-14T23:13:20.000000001+01:00"),
        (pa.timestamp("us", "Mars/Base"), 1, "1970-01-01 00:00:00.000001+00:00"),
        (pa.timestamp("us"), 400_000_000_000_000_000, "+14645-06-30T15:06:40"),
        (pa.timestamp("us", "Europe/Berlin"), 400_000_000_000_000_001, "+14645-06-30T15:06:40.000001+00:00"),
        (pa.timestamp("s"), 253_402_300_800, "+10000-01-01T00:00:00"),
        (pa.timestamp("s"), -62_135_596_801, "0000-12-31T23:59:59"),
        (pa.timestamp("s"), -62_167_219_201, "-0001-12-31T23:59:59"),
        (pa.date32(), 2_932_897, "+10000-01-01"),
        (pa.date32(), -719_163, "0000-12-31"),
        (pa.time64("ns"), 3_600_000_000_007, "01:00:00.000000007"),
        (pa.time64("us"), 86_400_000_000, "24:00:00"),
        (pa.duration("ns"), 1001, "0:00:00.000001001"),
        (pa.duration("ns"), -1, "-1 day, 23:59:59.999999999"),
        (pa.duration("ns"), 2 * 86_400 * 10**9 + 10 * 3600 * 10**9 + 1, "2 days, 10:00:00.000000001"),
        (pa.duration("s"), 1 << 62, "53375995583650 days, 7:45:04"),
    ],
    ids=str,
)
def test_other_times_are_text(kind: pa.DataType, number: int, text: str) -> None:
    assert str(column_to_python(array([number], kind))[0]) == text


@given(st.integers(-3_652_059 * 9, 3_652_059 * 9))
def test_distant_dates_equal_those_of_numpy(days: int) -> None:
    expected = str(np.datetime64(days, "D"))
    year = expected[: -len("-01-01")]
    assert (
        str(column_to_python(pa.array([days], pa.int32()).cast(pa.date32()))[0])
        == f"{year_text(int(year))}{expected[-6:]}"
    )


def year_text(year: int) -> str:
    return f"{year:04d}" if 0 <= year <= 9999 else f"{year:+05d}"


def nested() -> dict[str, pa.Array]:
    times = array([1, None, 1001], pa.timestamp("ns"))
    ends = pa.array([0, 1, 2, 3], pa.int32())
    starts, ones = pa.array([0, 1, 2], pa.int32()), pa.array([1, 1, 1], pa.int32())
    return {
        "list": pa.ListArray.from_arrays(ends, times),
        "large list": pa.LargeListArray.from_arrays(ends.cast(pa.int64()), times),
        "fixed list": pa.FixedSizeListArray.from_arrays(times, 1),
        "list view": pa.ListViewArray.from_arrays(starts, ones, times),
        "dictionary": times.dictionary_encode(),
        "extension": pa.ExtensionArray.from_storage(pa.opaque(times.type, "a", "b"), times),
        "struct": pa.StructArray.from_arrays([times, pa.array(list("abc"))], ["t", "s"]),
        "map": pa.MapArray.from_arrays(ends, pa.array(list("abc")), times),
        "twice": pa.StructArray.from_arrays([times, times], ["t", "t"]),
    }


@pytest.mark.parametrize("name", nested())
def test_times_nested_in_other_values(name: str) -> None:
    first, last = "1970-01-01T00:00:00.000000001", "1970-01-01T00:00:00.000001001"
    wrapped: dict[str, Any] = {
        "struct": [{"t": first, "s": "a"}, {"t": None, "s": "b"}, {"t": last, "s": "c"}],
        "map": [[("a", first)], [("b", None)], [("c", last)]],
        "twice": [[("t", first), ("t", first)], [("t", None), ("t", None)], [("t", last), ("t", last)]],
        "dictionary": [first, None, last],
        "extension": [first, None, last],
    }
    column = nested()[name]
    expected = wrapped.get(name, [[first], [None], [last]])
    assert column_to_python(column) == expected
    assert column_to_python(pa.chunked_array([column.slice(0, 1), column.slice(1)])) == expected
    assert scalar_to_python(column[2]) == expected[2]


def test_rows_without_columns_are_still_rows() -> None:
    table = pa.table({"a": [1, 2]})
    assert table_to_rows(table) == [{"a": 1}, {"a": 2}]
    assert table_to_rows(table.select([])) == table.select([]).to_pylist()


def test_the_hash_of_ordinary_columns_has_not_changed() -> None:
    kept = pa.table({"n": [1, None], "f": [0.5, 2.0], "d": array([0, 9], pa.date32()), "l": [[1], []]})
    input_split = InputSplit(0, "in.parquet", 0, 2, "rows")
    chunk = Chunk(input_split, 0, pa.array(["a", "b"]), ["one", "two"], kept, [1, 2], (), 2)
    assert hash_chunk(chunk) == "ea959a99b5eda04ea5c0da207cd69165"

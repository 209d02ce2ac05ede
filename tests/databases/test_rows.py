"""Digests and keys of rows: equal for equal rows, different for all others."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedcli.databases.columns import convert_column, digest_rows, plain_type
from embedcli.databases.known_rows import KnownRows, SeenKeys
from embedcli.databases.rows import hash_keys
from embedcli.databases.target import JSON_FIELD


def digests(**columns: list[Any]) -> list[bytes]:
    return digest_rows(pa.table(columns), None)


def test_every_value_counts() -> None:
    rows: dict[str, list[Any]] = {
        "id": ["a", "b", "a", "a", "a", "a", "a", "a", "a"],
        "n": [1, 1, 2, None, 1, 1, 1, 1, 1],
        "text": ["x", "x", "x", "x", None, "", "x", "x", "x"],
        "more": ["y", "y", "y", "y", "y", "y", "xy", None, "y"],
        "flag": [True, True, True, True, True, True, True, True, None],
    }
    assert len(set(digests(**rows))) == 9
    assert len({len(digest) for digest in digests(**rows)} | {16}) == 1


def test_values_that_only_join_alike_differ() -> None:
    first, second = digests(a=["xy", "x"], b=["z", "yz"])
    assert first != second
    first, second = digests(a=[None, ""], b=["x", "x"])
    assert first != second


def test_a_null_number_is_not_zero() -> None:
    first, second = digests(a=[0, None])
    assert first != second
    first, second = digests(a=[datetime.datetime(1970, 1, 1), None])
    assert first != second


def test_slices_have_the_digests_of_the_whole() -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(40, dtype=np.float32)), 4)
    table = pa.table({"id": [str(i) for i in range(10)], "embedding": vectors, "n": [None, *range(9)]})
    assert digest_rows(table.slice(3, 5), None) == digest_rows(table, None)[3:8]
    assert len(set(digest_rows(table, None))) == 10


def test_the_hash_of_the_text_counts() -> None:
    table = pa.table({"id": ["a", "a"]})
    first, second = digest_rows(table, pa.array([b"0" * 16, b"1" * 16], pa.binary(16)))
    assert first != second


def test_values_become_text_that_can_be_read() -> None:
    text = pa.field("x", pa.string())
    assert convert_column(pa.array([datetime.date(2024, 2, 29), None]), text).to_pylist() == ["2024-02-29", None]
    assert convert_column(pa.array([decimal.Decimal("1.50")]), text).to_pylist() == ["1.50"]
    assert convert_column(pa.array([2**64 - 1], pa.uint64()), text).to_pylist() == [str(2**64 - 1)]
    assert convert_column(pa.array(["a", None]).dictionary_encode(), text).to_pylist() == ["a", None]
    nested = pa.array([{"a": [1, None], "b": datetime.date(2024, 2, 29)}, None])
    as_json = pa.field("x", pa.string(), metadata=JSON_FIELD)
    assert convert_column(nested, as_json).to_pylist() == ['{"a":[1,null],"b":"2024-02-29"}', None]


@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (pa.large_string(), pa.string()),
        (pa.string_view(), pa.string()),
        (pa.dictionary(pa.int32(), pa.large_string()), pa.string()),
        (pa.binary(4), pa.binary()),
        (pa.float16(), pa.float32()),
        (pa.int8(), pa.int8()),
    ],
)
def test_variants_of_a_type_are_one(kind: pa.DataType, plain: pa.DataType) -> None:
    assert plain_type(kind) == plain


def test_keys_of_windows_differ() -> None:
    table = pa.table({"id": ["a"] * 50 + ["b"] * 50, "window": pa.array([*range(50), *range(50)], pa.int64())})
    assert len(set(hash_keys(table, ["id", "window"]).tolist())) == 100


def test_seen_keys_are_found_however_they_came() -> None:
    random = np.random.default_rng(3)
    keys = random.permutation(np.concatenate([np.arange(5000), np.arange(700)])).astype(np.int64)
    seen, known, repeated = SeenKeys(), set[int](), []
    for part in np.array_split(keys, 37):
        expected = [key in known or key in part[:i].tolist() for i, key in enumerate(part.tolist())]
        repeated.append(seen.add(part).tolist() == expected)
        known |= set(part.tolist())
    assert all(repeated)
    assert seen.include(np.array([0, 4999, 5000, -1])).tolist() == [True, True, False, False]


def test_known_rows_of_nothing() -> None:
    known = KnownRows((), ["id"])
    assert known.count == 0
    assert known.have_digests(np.array([b"x" * 16])).tolist() == [False]
    assert known.have_keys(np.array([1])).tolist() == [False]

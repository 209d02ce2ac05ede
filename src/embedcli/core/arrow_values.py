"""Convert Arrow columns to Python values, with ISO 8601 text for times that Python cannot represent."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import cache
from typing import Any

import pyarrow as pa

UNITS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
EPOCH = datetime(1970, 1, 1)
DAY_SECONDS = 86400
# The Gregorian calendar repeats every 400 years. 1600-01-01 is the start of the cycle that 1970-01-01 is in.
GREGORIAN_CYCLE_YEARS, GREGORIAN_CYCLE_DAYS = 400, 146097
GREGORIAN_CYCLE_START = date(1600, 1, 1)
EPOCH_DAY_IN_CYCLE = (EPOCH.date() - GREGORIAN_CYCLE_START).days
ISO_SECONDS_LENGTH = len("2000-01-01T00:00:00")


def column_to_python(column: Any) -> list[Any]:
    """Convert a column like `to_pylist`, which fails for some values.

    Args:
        column: A `pa.Array` or `pa.ChunkedArray`.

    Returns:
        One Python value per row. Times with nanoseconds, and dates, times and durations out of Python's range, are ISO
        8601 text. Times in a time zone that is unknown on this machine are in UTC. A struct with duplicate field names
        is a list of (name, value) pairs.
    """
    return [scalar_to_python(scalar) for scalar in column] if _needs_care(column.type) else column.to_pylist()


def table_to_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Convert a table to one dict per row, with the values of `column_to_python`."""
    columns = [column_to_python(column) for column in table.columns] or [[None] * table.num_rows]
    return [dict(zip(table.column_names, row, strict=False)) for row in zip(*columns, strict=True)]


def scalar_to_python(scalar: pa.Scalar) -> Any:
    """Convert one value like `column_to_python`."""
    kind = scalar.type
    if not scalar.is_valid:
        return None
    if not _needs_care(kind):
        return scalar.as_py()
    if pa.types.is_temporal(kind):
        return _temporal_to_python(scalar, kind)
    return _nested_to_python(scalar, kind)


def _temporal_to_python(scalar: pa.Scalar, kind: pa.DataType) -> Any:
    if pa.types.is_date(kind):
        return _date_to_python(scalar.value // (1 if kind == pa.date32() else DAY_SECONDS * 1000))
    seconds, fraction = divmod(scalar.value, UNITS_PER_SECOND[kind.unit])
    nanos = fraction * (10**9 // UNITS_PER_SECOND[kind.unit])
    if pa.types.is_timestamp(kind):
        return _timestamp_to_python(seconds, nanos, kind.tz)
    return _duration_to_python(seconds, nanos) if pa.types.is_duration(kind) else _time_to_python(seconds, nanos)


def _nested_to_python(scalar: pa.Scalar, kind: pa.DataType) -> Any:
    if pa.types.is_struct(kind):
        pairs = [(kind.field(i).name, scalar_to_python(scalar[i])) for i in range(kind.num_fields)]
        return dict(pairs) if _has_unique_names(kind) else pairs
    if pa.types.is_map(kind):
        return [(scalar_to_python(pair[0]), scalar_to_python(pair[1])) for pair in scalar.values]
    if pa.types.is_dictionary(kind) or isinstance(kind, pa.BaseExtensionType):
        return scalar_to_python(scalar.value)
    return column_to_python(scalar.values)


def _needs_care(kind: pa.DataType) -> bool:
    """Whether `to_pylist` may fail for values of the type, at any depth."""
    if pa.types.is_temporal(kind):
        return not pa.types.is_interval(kind)
    if pa.types.is_union(kind) or pa.types.is_run_end_encoded(kind):
        return False  # not in the files that embedcli reads or writes
    if isinstance(kind, pa.BaseExtensionType):
        return _needs_care(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _needs_care(kind.value_type)
    if pa.types.is_struct(kind) and not _has_unique_names(kind):
        return True
    return any(_needs_care(kind.field(i).type) for i in range(kind.num_fields))


def _has_unique_names(kind: pa.StructType) -> bool:
    return len({field.name for field in kind}) == len(list(kind))


def _date_to_python(days: int) -> date | str:
    """The date `days` after 1970-01-01; ISO text before the year 1 and after the year 9999."""
    try:
        return EPOCH.date() + timedelta(days)
    except OverflowError:
        return _day_text(days)


def _timestamp_to_python(seconds: int, nanos: int, zone: str | None) -> datetime | str:
    """The time after the start of 1970, in its zone; ISO text with nanoseconds or out of Python's range."""
    try:
        value = EPOCH + timedelta(seconds=seconds, microseconds=nanos // 1000)
        value = value if zone is None else value.replace(tzinfo=UTC).astimezone(_find_time_zone(zone))
    except OverflowError:
        days, rest = divmod(seconds, DAY_SECONDS)
        return f"{_day_text(days)}T{_clock_text(rest, nanos)}{'' if zone is None else '+00:00'}"
    if nanos % 1000 == 0:
        return value
    text = value.replace(microsecond=0).isoformat()
    return f"{text[:ISO_SECONDS_LENGTH]}.{nanos:09d}{text[ISO_SECONDS_LENGTH:]}"


def _time_to_python(seconds: int, nanos: int) -> time | str:
    """The time of day; ISO text with nanoseconds or outside of a day."""
    if nanos % 1000 or not 0 <= seconds < DAY_SECONDS:
        return _clock_text(seconds, nanos)
    return (EPOCH + timedelta(seconds=seconds, microseconds=nanos // 1000)).time()


def _duration_to_python(seconds: int, nanos: int) -> timedelta | str:
    """The duration; as `str(timedelta)` writes it with nanoseconds or out of Python's range."""
    try:
        if nanos % 1000 == 0:
            return timedelta(seconds=seconds, microseconds=nanos // 1000)
    except OverflowError:
        pass  # formatted below
    days, rest = divmod(seconds, DAY_SECONDS)
    text = _clock_text(rest, nanos).removeprefix("0")
    return f"{days} day{'' if abs(days) == 1 else 's'}, {text}" if days else text


@cache
def _find_time_zone(name: str) -> tzinfo:
    """The time zone of a name; UTC if this machine does not know it: the moment stays the same."""
    try:
        zone: tzinfo = pa.lib.string_to_tzinfo(name)
    except (LookupError, ValueError, OSError):
        return UTC
    return zone


def _day_text(days: int) -> str:
    """An ISO date; years below 0 and above 9999 have a sign (ISO 8601, 4.1.2.4)."""
    cycles, rest = divmod(days + EPOCH_DAY_IN_CYCLE, GREGORIAN_CYCLE_DAYS)
    same_day = GREGORIAN_CYCLE_START + timedelta(rest)
    year = same_day.year + cycles * GREGORIAN_CYCLE_YEARS
    return (f"{year:04d}" if 0 <= year <= 9999 else f"{year:+05d}") + same_day.isoformat()[4:]


def _clock_text(seconds: int, nanos: int) -> str:
    """HH:MM:SS with no, six or nine digits of a second, as many as needed."""
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    fraction = "" if not nanos else f".{nanos:09d}" if nanos % 1000 else f".{nanos // 1000:06d}"
    return f"{hour:02d}:{minute:02d}:{second:02d}{fraction}"

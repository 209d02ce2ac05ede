"""Arrow columns as Python values, whatever they hold: times that Python has no value for come as ISO text. Pure."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import cache
from typing import Any

import pyarrow as pa

UNITS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
EPOCH = datetime(1970, 1, 1)
DAY_SECONDS = 86400
# The Gregorian calendar comes round after 400 years of so many days in all; 1970-01-01 is that many after 1600-01-01.
GREGORIAN_CYCLE_YEARS, GREGORIAN_CYCLE_DAYS = 400, 146097
GREGORIAN_CYCLE_START = date(1600, 1, 1)
EPOCH_DAY_IN_CYCLE = (EPOCH.date() - GREGORIAN_CYCLE_START).days
ISO_SECONDS_LENGTH = len("2000-01-01T00:00:00")


def column_to_python(column: Any) -> list[Any]:
    """The values of an array or a column, as `to_pylist` gives them, but it never fails.

    Text instead of a value: times with nanoseconds, and dates, times and durations out of Python's range; of a zone
    that is not known here times are in UTC. A struct with two fields of one name is a list of pairs.
    """
    return [scalar_to_python(scalar) for scalar in column] if _odd(column.type) else column.to_pylist()


def table_to_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table as Python values, as `values_of` gives them."""
    columns = [column_to_python(column) for column in table.columns] or [[None] * table.num_rows]
    return [dict(zip(table.column_names, row, strict=False)) for row in zip(*columns, strict=True)]


def scalar_to_python(scalar: pa.Scalar) -> Any:
    """One value, as `values_of` gives it."""
    kind = scalar.type
    if not scalar.is_valid:
        return None
    if not _odd(kind):
        return scalar.as_py()
    if pa.types.is_temporal(kind):
        return _time(scalar, kind)
    return _nested(scalar, kind)


def _time(scalar: pa.Scalar, kind: pa.DataType) -> Any:
    if pa.types.is_date(kind):
        return date_from_days(scalar.value // (1 if kind == pa.date32() else DAY_SECONDS * 1000))
    seconds, part = divmod(scalar.value, UNITS_PER_SECOND[kind.unit])
    nanos = part * (10**9 // UNITS_PER_SECOND[kind.unit])
    if pa.types.is_timestamp(kind):
        return timestamp_to_python(seconds, nanos, kind.tz)
    return duration_to_python(seconds, nanos) if pa.types.is_duration(kind) else time_to_python(seconds, nanos)


def _nested(scalar: pa.Scalar, kind: pa.DataType) -> Any:
    if pa.types.is_struct(kind):
        pairs = [(kind.field(i).name, scalar_to_python(scalar[i])) for i in range(kind.num_fields)]
        return dict(pairs) if _named_once(kind) else pairs
    if pa.types.is_map(kind):
        return [(scalar_to_python(pair[0]), scalar_to_python(pair[1])) for pair in scalar.values]
    if pa.types.is_dictionary(kind) or isinstance(kind, pa.BaseExtensionType):
        return scalar_to_python(scalar.value)
    return column_to_python(scalar.values)


def _odd(kind: pa.DataType) -> bool:
    """Whether a type has values, at any depth, that `to_pylist` may fail at."""
    if pa.types.is_temporal(kind):
        return not pa.types.is_interval(kind)
    if pa.types.is_union(kind) or pa.types.is_run_end_encoded(kind):
        return False  # no file of rows or of vectors that we read or write has these
    if isinstance(kind, pa.BaseExtensionType):
        return _odd(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _odd(kind.value_type)
    if pa.types.is_struct(kind) and not _named_once(kind):
        return True
    return any(_odd(kind.field(i).type) for i in range(kind.num_fields))


def _named_once(kind: pa.StructType) -> bool:
    return len({field.name for field in kind}) == len(list(kind))


def date_from_days(days: int) -> date | str:
    """The date so many days after 1970-01-01; ISO text before the year 1 and after the year 9999."""
    try:
        return EPOCH.date() + timedelta(days)
    except OverflowError:
        return _day_text(days)


def timestamp_to_python(seconds: int, nanos: int, zone: str | None) -> datetime | str:
    """The time so long after the start of 1970, in its zone; ISO text if Python's times do not hold it."""
    known = None if zone is None else find_time_zone(zone)
    try:
        made = EPOCH + timedelta(seconds=seconds, microseconds=nanos // 1000)
        made = made if known is None else made.replace(tzinfo=UTC).astimezone(known)
    except OverflowError:
        days, rest = divmod(seconds, DAY_SECONDS)
        return f"{_day_text(days)}T{_clock_text(rest, nanos)}{'' if zone is None else '+00:00'}"
    if nanos % 1000 == 0:
        return made
    text = made.replace(microsecond=0).isoformat()
    return f"{text[:ISO_SECONDS_LENGTH]}.{nanos:09d}{text[ISO_SECONDS_LENGTH:]}"


def time_to_python(seconds: int, nanos: int) -> time | str:
    """The time of day; ISO text if it has nanoseconds or is not within a day."""
    if nanos % 1000 or not 0 <= seconds < DAY_SECONDS:
        return _clock_text(seconds, nanos)
    return (EPOCH + timedelta(seconds=seconds, microseconds=nanos // 1000)).time()


def duration_to_python(seconds: int, nanos: int) -> timedelta | str:
    """The duration; as Python writes one if it has nanoseconds or is too long for Python's."""
    try:
        if nanos % 1000 == 0:
            return timedelta(seconds=seconds, microseconds=nanos // 1000)
    except OverflowError:
        pass  # written below
    days, rest = divmod(seconds, DAY_SECONDS)
    text = _clock_text(rest, nanos).removeprefix("0")
    return f"{days} day{'' if abs(days) == 1 else 's'}, {text}" if days else text


@cache
def find_time_zone(name: str) -> tzinfo:
    """The time zone of that name; UTC if none is known here, for a time in UTC is no other time."""
    try:
        found: tzinfo = pa.lib.string_to_tzinfo(name)
    except (LookupError, ValueError, OSError):
        return UTC
    return found


def _day_text(days: int) -> str:
    """A date with a sign before a year of five digits or more, or before the year 0 (ISO 8601, 4.1.2.4)."""
    cycles, rest = divmod(days + EPOCH_DAY_IN_CYCLE, GREGORIAN_CYCLE_DAYS)
    near = GREGORIAN_CYCLE_START + timedelta(rest)
    year = near.year + cycles * GREGORIAN_CYCLE_YEARS
    return (f"{year:04d}" if 0 <= year <= 9999 else f"{year:+05d}") + near.isoformat()[4:]


def _clock_text(seconds: int, nanos: int) -> str:
    """Hours, minutes, seconds, and as many digits of a second as there are: none, six or nine."""
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    part = "" if not nanos else f".{nanos:09d}" if nanos % 1000 else f".{nanos // 1000:06d}"
    return f"{hour:02d}:{minute:02d}:{second:02d}{part}"

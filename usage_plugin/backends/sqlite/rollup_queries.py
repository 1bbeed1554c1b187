"""Choose the smallest sums that answer a query: by model where no person is queried, by month where possible.

A source is a table expression with one column for each grouping, and the sums; `sqlite_store` queries it.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import whole_months

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from usage_plugin.domain.store import Grouping, UsageFilter

SUMS = ", ".join(UsageTotals._fields)
SUMMED = ", ".join(f"sum({name}) AS {name}" for name in UsageTotals._fields)
WIDELY_SUMMED = ", ".join(
    f"sum({name} >> 32) || ':' || sum({name} & 4294967295) AS {name}" for name in UsageTotals._fields
)
"""The same beyond 2^63, where `sum` raises an error: two halves as text, which `whole` joins."""


def whole(halves: str) -> int:
    """Join the halves of a sum."""
    high, _, low = halves.partition(":")
    return (int(high) << 32) + int(low)


_MODEL_DAYS = frozenset({"model", "provider", "day", "week", "month"})
_MONDAY = (
    "CAST(strftime('%Y%m%d', printf('%04d-%02d-%02d', day / 10000, day / 100 % 100, day % 100),"
    " 'weekday 0', '-6 days') AS INTEGER)"
)
_OF_DAYS: dict[Grouping, str] = {"month": "day / 100", "week": _MONDAY}


class SumSource(NamedTuple):
    """A table expression, and its bound values."""

    query: str
    values: tuple[int | str, ...]


def of_days(by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter) -> SumSource:
    """Return the source of the days from first to last, both included."""
    wanted = usage_filter.wanted()
    if {*by, *wanted} <= _MODEL_DAYS:
        return _joined([_days("model_days", by, first, last)], usage_filter)
    months = whole_months(first, last)
    # A single user's days are few, and have an index.
    if months is None or "user" in wanted or {"day", "week"} & set(by):
        return _joined([_days("daily", by, first, last)], usage_filter)
    begin, end = months
    parts = [_months(by, begin, end)]
    if first < begin:
        parts.append(_days("daily", by, first, begin - timedelta(days=1)))
    if end < last:
        parts.append(_days("daily", by, end + timedelta(days=1), last))
    return _joined(parts, usage_filter)


def of_hours(by: Sequence[str], start: int, end: int, usage_filter: UsageFilter) -> SumSource:
    """Return the source of whole hours, half-open."""
    columns = ", ".join([*by, SUMS])
    query = f"SELECT {columns} FROM hourly WHERE hour >= ? AND hour < ?"  # our own words
    return _joined([SumSource(query, (start, end))], usage_filter)


def conditions(usage_filter: UsageFilter) -> tuple[str, list[str]]:
    """Return a filter as conditions of a WHERE clause, with its values."""
    wanted = usage_filter.wanted()
    where = "".join(f" AND {name} = (SELECT number FROM names WHERE name = ?)" for name in wanted)
    return where, list(wanted.values())


def number_of(day: date) -> int:
    """Return a day as the number YYYYMMDD."""
    return day.year * 10_000 + day.month * 100 + day.day


def day_of(number: int) -> date:
    """Return the day of a number YYYYMMDD."""
    return date(number // 10_000, number // 100 % 100, number % 100)


def _days(table: str, by: Sequence[Grouping], first: date, last: date) -> SumSource:
    columns = ", ".join([*(f"{_OF_DAYS.get(one, one)} AS {one}" for one in by), SUMS])
    if first == last:
        return SumSource(f"SELECT {columns} FROM {table} WHERE day = ?", (number_of(first),))
    return SumSource(f"SELECT {columns} FROM {table} WHERE day BETWEEN ? AND ?", (number_of(first), number_of(last)))


def _months(by: Sequence[Grouping], begin: date, end: date) -> SumSource:
    columns = ", ".join([*by, SUMS])
    first, last = number_of(begin) // 100, number_of(end) // 100
    if first == last:
        # Within one month, groups of users come in the order of the key: no sort is needed.
        return SumSource(f"SELECT {columns} FROM monthly WHERE month = ?", (first,))
    return SumSource(f"SELECT {columns} FROM monthly WHERE month BETWEEN ? AND ?", (first, last))


def _joined(parts: Iterable[SumSource], usage_filter: UsageFilter) -> SumSource:
    where, names = conditions(usage_filter)
    queries, values = [], []
    for part in parts:
        queries.append(part.query + where)
        values += [*part.values, *names]
    return SumSource(f"({' UNION ALL '.join(queries)})", tuple(values))

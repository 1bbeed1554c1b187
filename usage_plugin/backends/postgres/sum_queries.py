"""Choose the smallest sums that answer a query, by model or by month where possible, and write its statement.

A source is a table expression with one column for each grouping, and the sums.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.backends.postgres.columns import SUMMED, SUMS, conditions, listed
from usage_plugin.domain.windows import whole_months

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import date

    from usage_plugin.domain.store import Grouping, HourGrouping, RollupDimension, UsageFilter

_MODEL_DAYS = frozenset({"model", "provider", "day", "week", "month"})
_BUCKETS = {
    "week": "date_trunc('week', day::timestamp)::date AS week",
    "month": "date_trunc('month', day::timestamp)::date AS month",
}


class Query(NamedTuple):
    """A statement or a table expression, and its bound values."""

    text: str
    values: tuple[Any, ...]


def of_days(by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter) -> Query:
    """Return the source of the days from first to last, both included."""
    wanted = usage_filter.wanted()
    if {*by, *wanted} <= _MODEL_DAYS:
        return _joined([_days("store_model_days", by, first, last)], usage_filter)
    months = whole_months(first, last)
    # A single user's days are few, and have an index.
    if months is None or {"user", "end_user"} & wanted.keys() or {"day", "week"} & set(by):
        return _joined([_days("store_days", by, first, last)], usage_filter)
    begin, end = months
    parts = [
        Query(
            f"SELECT {_selected(listed(by))} FROM {{schema}}.store_months WHERE month BETWEEN %s AND %s",
            (begin, end),
        )
    ]
    if first < begin:
        parts.append(_days("store_days", by, first, begin - timedelta(days=1)))
    if end < last:
        parts.append(_days("store_days", by, end + timedelta(days=1), last))
    return _joined(parts, usage_filter)


def of_hours(by: Sequence[HourGrouping], start: int, end: int, usage_filter: UsageFilter) -> Query:
    """Return the source of whole hours, half-open."""
    text = f"SELECT {_selected(listed(by))} FROM {{schema}}.store_hours WHERE hour >= %s AND hour < %s"
    return _joined([Query(text, (start, end))], usage_filter)


def _days(table: str, by: Sequence[Grouping], first: date, last: date) -> Query:
    groups = ", ".join(_BUCKETS.get(one) or listed([one]) for one in by)
    return Query(f"SELECT {_selected(groups)} FROM {{schema}}.{table} WHERE day BETWEEN %s AND %s", (first, last))


def _selected(groups: str) -> str:
    return ", ".join(filter(None, (groups, SUMS)))


def _joined(parts: Iterable[Query], usage_filter: UsageFilter) -> Query:
    where, names = conditions(usage_filter)
    texts, values = [], []
    for part in parts:
        texts.append(part.text + where)
        values += [*part.values, *names]
    return Query(f"({' UNION ALL '.join(texts)}) AS sums", tuple(values))


def grouped(by: Sequence[Grouping | HourGrouping], source: Query) -> Query:
    """Return the query of the groups and their sums."""
    columns = listed(by)
    # Without a grouping, there is one group, or none if there are no sums.
    grouping = f"GROUP BY {columns}" if by else "HAVING count(*) > 0"
    return Query(f"SELECT {_as_selected(columns)} FROM {source.text} {grouping}", source.values)


def _as_selected(columns: str) -> str:
    return ", ".join(filter(None, (columns, SUMMED)))


def ranked(by: Sequence[RollupDimension], source: Query, most: int, also: Collection[tuple[str | None, ...]]) -> Query:
    """Return the query of the number of all groups, and the most expensive and the wanted groups with their places.

    There is always a row; without a group, its place is null.
    """
    columns = listed(by)
    wanted = ", ".join("%s::text[]" for _ in by)
    # Hashed: a comparison with `IS NOT DISTINCT FROM` would visit each pair.
    compared = ", ".join(f'"{name}" IS NULL, coalesce("{name}", \'\')' for name in by)
    of_wanted = ", ".join(f'wanted."{name}" IS NULL, coalesce(wanted."{name}", \'\')' for name in by)
    text = (
        f"WITH groups AS MATERIALIZED (SELECT {columns}, {SUMMED} FROM {source.text} GROUP BY {columns}),"
        f" places AS (SELECT *, row_number() OVER (ORDER BY cost DESC, requests DESC, {columns}) AS place FROM groups)"
        f" SELECT (SELECT count(*) FROM groups), place, {columns}, {SUMS} FROM (VALUES (1)) AS always LEFT JOIN places"
        f" ON place <= %s OR ({compared}) IN (SELECT {of_wanted} FROM unnest({wanted}) AS wanted ({columns}))"
    )
    names = [[group[at] for group in also] for at, _ in enumerate(by)]
    return Query(text, (*source.values, most, *names))


def in_order(by: Sequence[RollupDimension], source: Query) -> Query:
    """Return the query of all groups, by highest cost, then by most requests, then by name; absent names first."""
    groups = grouped(by, source)
    names = ", ".join(f'"{name}" NULLS FIRST' for name in by)
    return Query(f"{groups.text} ORDER BY sum(cost) DESC, sum(requests) DESC, {names}", groups.values)

"""Change the sums within a transaction: changes are copied into a temporary table, and added from there to each table.

Appending, pruning and erasing all go this way, so days, months and models cannot differ. Rows are always locked in the
same order, table by table and by key, so that transactions wait for each other instead of deadlocking.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from usage_plugin.backends.postgres.columns import NAMES, SUMMED, SUMS, key_of, listed
from usage_plugin.domain.store import ROLLUP_DIMENSIONS, daily_sum
from usage_plugin.domain.usage import UsageTotals, to_record
from usage_plugin.domain.windows import start_of_hour
from usage_plugin.encoding import encode_record
from usage_plugin.tracking.history.chunking import unhurried

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import date
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.store import DailySum
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.postgres.async_server import Session

CREATE = (
    'CREATE TEMPORARY TABLE staged (started_at bigint, event_id text COLLATE "C", rest text, hour bigint, day date,'
    " key bytea, "
    + ", ".join(f'"{name}" text COLLATE "C"' for name in ROLLUP_DIMENSIONS)
    + ", "
    + ", ".join(f"{name} numeric" for name in UsageTotals._fields)
    + ") ON COMMIT DROP"
)
_OF_DAYS = f"day, key, {NAMES}, {SUMS}"
_OF_EVENTS = f"started_at, event_id, rest, hour, {_OF_DAYS}"
_COPY = "COPY pg_temp.staged ({columns}) FROM STDIN"
_ADDED = ", ".join(f"{name} = kept.{name} + excluded.{name}" for name in UsageTotals._fields)
_MODEL = "(model IS NULL), (coalesce(model, '')), (provider IS NULL), (coalesce(provider, ''))"

# An event that is stored already, perhaps under another number, is not counted again.
_INSERT_EVENTS = (
    f"WITH fresh AS (INSERT INTO {{schema}}.store_events (started_at, event_id, {NAMES}, rest)"
    f" SELECT started_at, event_id, {NAMES}, rest FROM pg_temp.staged ORDER BY started_at, event_id"
    " ON CONFLICT DO NOTHING RETURNING event_id)"
    " DELETE FROM pg_temp.staged WHERE event_id NOT IN (SELECT event_id FROM fresh)"
)
_COUNT_EVENTS = (
    "UPDATE {schema}.store_partitions AS kept SET inserted = kept.inserted + counted.events,"
    " live = kept.live + counted.events FROM (SELECT name, count(*) AS events FROM pg_temp.staged"
    " JOIN {schema}.store_partitions ON started_at >= first_instant AND started_at < next_instant GROUP BY name)"
    " AS counted WHERE kept.name = counted.name"
)
_MONTH = "date_trunc('month', day::timestamp)::date"


def _add(table: str, key: str, names: str, conflict: str, *, bucket: str | None = None) -> str:
    """Return the statement that adds the staged sums to a table."""
    return (
        f"INSERT INTO {{schema}}.{table} AS kept ({key}, {names}, {SUMS})"
        f" SELECT {bucket or key}, {names}, {SUMMED} FROM pg_temp.staged GROUP BY {bucket or key}, {names}"
        f" ORDER BY {bucket or key}, {names} ON CONFLICT ({conflict}) DO UPDATE SET {_ADDED}"
    )


_THINGS = listed(("model", "provider"))
_ADD_DAYS = _add("store_days", "day, key", NAMES, "day, key")
_ADD_MONTHS = _add("store_months", "month, key", NAMES, "month, key", bucket=f"{_MONTH}, key")
_ADD_MODEL_DAYS = _add("store_model_days", "day", _THINGS, f"day, {_MODEL}")
_ADD_HOURS = _add("store_hours", "hour", _THINGS, f"hour, {_MODEL}")

_SAME_THINGS = " AND ".join(f"kept.{name} IS NOT DISTINCT FROM staged.{name}" for name in ("model", "provider"))
_IS_EMPTY = " AND ".join(f"kept.{name} = 0" for name in UsageTotals._fields)
_DELETE_EMPTY = tuple(
    f"DELETE FROM {{schema}}.{table} AS kept USING pg_temp.staged WHERE {same} AND {_IS_EMPTY}"
    for table, same in (
        ("store_days", "kept.day = staged.day AND kept.key = staged.key"),
        ("store_months", f"kept.month = {_MONTH.replace('day', 'staged.day')} AND kept.key = staged.key"),
        ("store_model_days", f"kept.day = staged.day AND {_SAME_THINGS}"),
    )
)
_STAGE_OLD_DAYS = (
    f"INSERT INTO pg_temp.staged (day, key, {NAMES}, {SUMS})"
    f" SELECT day, key, {NAMES}, {', '.join(f'-{name}' for name in UsageTotals._fields)} FROM {{schema}}.store_days"
    " WHERE day < %s ORDER BY day, key LIMIT %s FOR UPDATE"
)


async def add_events(session: Session, events: Sequence[UsageEvent], zone: ZoneInfo) -> None:
    """Insert the events that are new, and add them to the sums; their partitions exist."""
    await session.run(CREATE)
    await session.copy(_COPY.replace("{columns}", _OF_EVENTS), _rows_of(events, zone))
    await session.run(_INSERT_EVENTS)
    await _add_days(session)
    await session.run(_ADD_HOURS)
    await session.run(_COUNT_EVENTS)


def _rows_of(events: Sequence[UsageEvent], zone: ZoneInfo) -> Iterator[tuple[Any, ...]]:
    for event in unhurried({event.event_id: event for event in events}.values()):
        record = to_record(event)
        for column in ("started_at", "event_id", *ROLLUP_DIMENSIONS):
            record.pop(column, None)
        one = daily_sum(event, zone)
        instants = event.started_at, event.event_id, encode_record(record), start_of_hour(event.started_at, zone)
        yield (*instants, *_row_of(one, one.totals))


def _row_of(one: DailySum, totals: UsageTotals) -> tuple[Any, ...]:
    return (one.day, key_of(one.names), *one.names, *totals)


async def add_sums(session: Session, sums: Iterable[DailySum]) -> None:
    """Add daily sums that have no events."""
    await session.run(CREATE)
    # An empty sum would be an empty row.
    await _copy_days(session, (_row_of(one, one.totals) for one in sums if any(one.totals)))
    await _add_days(session)


async def _copy_days(session: Session, rows: Iterable[tuple[Any, ...]]) -> None:
    await session.copy(_COPY.replace("{columns}", _OF_DAYS), unhurried(rows))


async def _add_days(session: Session, *, may_empty: bool = False) -> None:
    for statement in (_ADD_DAYS, _ADD_MONTHS, _ADD_MODEL_DAYS, *(_DELETE_EMPTY if may_empty else ())):
        await session.run(statement)


async def give_away(session: Session, user: str, sums: Sequence[DailySum]) -> None:
    """Move a user's sums, whose rows the transaction has locked, to `FORGOTTEN`."""
    await session.run(CREATE)
    taken = (_row_of(one, UsageTotals().minus(one.totals)) for one in sums)
    given = (_row_of(one.without(user), one.totals) for one in sums)
    await _copy_days(session, chain(taken, given))
    await _add_days(session, may_empty=True)


async def take_away_days(session: Session, before: date, most: int) -> int:
    """Delete at most `most` sums of days before a day, and return their number."""
    await session.run(CREATE)
    count = await session.change(_STAGE_OLD_DAYS, (before, most))
    if count:
        await _add_days(session, may_empty=True)
    return count

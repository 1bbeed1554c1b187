"""The partitions of the events, one for each month in UTC: created at the first event, dropped when all is too old.

A table is created alone and then attached, which blocks neither readers nor writers; `CREATE TABLE … PARTITION OF`
would wait for all of them. It happens in the transaction of the first event, so that no other process can drop the
partition before the event is in it.

Dropping a partition excludes all others, so it waits for a moment only. If that is too short, the events are deleted in
slices, and the empty table is dropped later.
"""

from __future__ import annotations

from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.windows import to_datetime, to_instant
from usage_plugin.errors import StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from usage_plugin.postgres.async_server import AsyncServer, Session

_LOCK = 8_017_263_549_103_212
"""The advisory lock for creating partitions, any number: held until the end of the transaction."""
_DROP_TIMEOUT = "100ms"
_HOLD = "LOCK TABLE ONLY {schema}.store_events IN ROW EXCLUSIVE MODE"
"""Each insertion and deletion takes this lock anyway. Dropping a partition waits for it."""
_LAST_INSTANT = 2**63 - 1
COUNT_DELETED = (
    "noted AS (UPDATE {schema}.store_partitions AS kept SET live = kept.live - counted.events FROM"
    " (SELECT name, count(*) AS events FROM gone JOIN {schema}.store_partitions"
    " ON started_at >= first_instant AND started_at < next_instant GROUP BY name) AS counted"
    " WHERE kept.name = counted.name) SELECT count(*) FROM gone"
)
"""The end of a statement whose part `gone` has the deleted events: it counts them."""


class _Month(NamedTuple):
    """A month in UTC, with its first instant and that of the next one."""

    first: int
    next: int

    @property
    def table(self) -> str:
        day = to_datetime(self.first)
        return f"store_events_{day.year:04}_{day.month:02}"


def _month_at(instant: int) -> _Month:
    day = to_datetime(instant)
    first = datetime(day.year, day.month, 1, tzinfo=timezone.utc)
    if (day.year, day.month) == (9999, 12):
        return _Month(to_instant(first), _LAST_INSTANT)
    later = datetime(day.year + day.month // 12, day.month % 12 + 1, 1, tzinfo=timezone.utc)
    return _Month(to_instant(first), to_instant(later))


async def ensure(session: Session, instants: Iterable[int]) -> None:
    """Create missing partitions for events of these instants; until the end of the transaction, none is dropped."""
    months: set[_Month] = set()
    month = _Month(0, 0)
    for instant in instants:
        if not month.first <= instant < month.next:
            month = _month_at(instant)
            months.add(month)
    await session.run(_HOLD)
    missing = await _missing(session, months)
    if missing:
        await session.run("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        for one in await _missing(session, missing):
            await _create(session, one)


async def _missing(session: Session, months: Collection[_Month]) -> list[_Month]:
    rows = await session.run(
        "SELECT first_instant FROM {schema}.store_partitions WHERE first_instant = ANY (%s)",
        ([month.first for month in months],),
    )
    existing = {first for (first,) in rows}
    return sorted(month for month in months if month.first not in existing)


async def _create(session: Session, month: _Month) -> None:
    table = f"{{schema}}.{month.table}"
    await session.run(
        f"CREATE TABLE {table} (LIKE {{schema}}.store_events);"
        f" ALTER TABLE {{schema}}.store_events ATTACH PARTITION {table}"
        f" FOR VALUES FROM ({month.first}) TO ({month.next});"
        " INSERT INTO {schema}.store_partitions (name, first_instant, next_instant)"
        f" VALUES ('{month.table}', {month.first}, {month.next})"
    )


async def delete_before(server: AsyncServer, before: int, most: int) -> int:
    """Delete the events before an instant: whole months at once, and else at most `most`.

    Returns:
        The number of deleted events, but at most `most`; 0 if there are no more.
    """
    if most <= 0:
        return 0
    deleted = 0
    for name, next_instant, live in await server.read(partial(_partitions_before, before)):
        if next_instant <= before and await _is_dropped(server, name):
            deleted += live
        elif live:
            deleted += await server.write(partial(_delete_slice, name, before, most - deleted))
        if deleted >= most:
            return most
    return deleted


async def _is_dropped(server: AsyncServer, name: str) -> bool:
    """Drop a partition, unless that would have to wait."""
    try:
        await server.write(partial(_drop, name), lock_timeout=_DROP_TIMEOUT)
    except StorageUnavailableError:
        return False
    return True


async def _partitions_before(before: int, session: Session) -> list[tuple[str, int, int]]:
    rows = await session.run(
        "SELECT name, next_instant, live FROM {schema}.store_partitions WHERE first_instant < %s"
        " ORDER BY first_instant",
        (before,),
    )
    return [(name, next_instant, live) for name, next_instant, live in rows]


async def _drop(name: str, session: Session) -> None:
    # The events first, since appends lock them first.
    await session.run(f"DROP TABLE IF EXISTS {{schema}}.{name}")
    await session.run("DELETE FROM {schema}.store_partitions WHERE name = %s", (name,))


async def _delete_slice(name: str, before: int, most: int, session: Session) -> int:
    table = f"{{schema}}.{name}"
    await session.run(_HOLD)
    if not await session.run("SELECT 1 FROM {schema}.store_partitions WHERE name = %s", (name,)):
        return 0
    rows = await session.run(
        f"WITH gone AS (DELETE FROM {table} WHERE (started_at, event_id) IN (SELECT started_at, event_id FROM {table}"
        f" WHERE started_at < %s ORDER BY started_at, event_id LIMIT %s) RETURNING started_at), {COUNT_DELETED}",
        (before, most),
    )
    return int(rows[0][0])

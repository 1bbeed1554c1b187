"""The PostgreSQL store: events by month, and sums written in the same transaction.

One connection writes and one reads, so each verb waits for the one before; the flusher and people wait here, never a
request. Nothing is held between two pages of a stream, except by `in_order_of_cost`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeVar

from usage_plugin.backends.postgres import partitions, staging
from usage_plugin.backends.postgres.columns import NAMES, SUMS, conditions
from usage_plugin.backends.postgres.partitions import COUNT_DELETED
from usage_plugin.backends.postgres.sum_queries import Query, grouped, in_order, of_days, of_hours, ranked
from usage_plugin.domain.store import (
    ROLLUP_DIMENSIONS,
    Aggregate,
    DailySum,
    EventPosition,
    Ranking,
    UsageStore,
    bucket_name,
)
from usage_plugin.domain.subjects import FORGOTTEN
from usage_plugin.domain.usage import UsageTotals, from_record
from usage_plugin.domain.windows import days_window, hour_name, start_of_day

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
    from datetime import date
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.store import Grouping, HourGrouping, RollupDimension, UsageFilter
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.domain.windows import Window
    from usage_plugin.postgres.async_server import AsyncServer, Row, Session

RecordT = TypeVar("RecordT")

_PAGE = 1_000
_COMPACTING = 3_600.0
"""Seconds for rewriting a table."""
_WATERMARKS = "SELECT writer, seq FROM {schema}.store_watermarks"
_OF_USER = '("user" = %s OR end_user = %s)'
_DELETE_EVENTS_OF_USER = (
    f"WITH chosen AS (SELECT started_at, event_id FROM {{schema}}.store_events WHERE {_OF_USER} LIMIT %s),"
    " gone AS (DELETE FROM {schema}.store_events AS kept USING chosen WHERE kept.started_at = chosen.started_at"
    f" AND kept.event_id = chosen.event_id RETURNING kept.started_at), {COUNT_DELETED}"
)
_DAYS_OF_USER = (
    f"SELECT day, {NAMES}, {SUMS} FROM {{schema}}.store_days WHERE {_OF_USER} ORDER BY day, key LIMIT %s FOR UPDATE"
)
# The space of deleted events stays in their table until it is rewritten.
_SIZE = (
    "SELECT coalesce(sum(CASE WHEN inserted IS NULL THEN size ELSE size * live / greatest(inserted, live, 1) END), 0)"
    " FROM (SELECT pg_total_relation_size(tables.oid) AS size, inserted, live FROM pg_class AS tables"
    " LEFT JOIN {schema}.store_partitions ON name = relname WHERE relkind = 'r' AND relname LIKE 'store\\_%'"
    " AND relnamespace = '{schema}'::regnamespace) AS sizes"
)


class PostgresStore(UsageStore):
    """The history in a schema of a PostgreSQL server."""

    def __init__(self, server: AsyncServer, zone: ZoneInfo) -> None:
        """Use a server whose schema is up to date; `opening.open_store` opens it."""
        self._server = server
        self._zone = zone

    async def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:
        """Add numbered events and their sums, all or none."""

        async def add(session: Session, fresh: Sequence[UsageEvent]) -> None:
            await partitions.ensure(session, (event.started_at for event in fresh))
            await staging.add_events(session, fresh, self._zone)

        await self._append(writer, events, add)

    async def append_sums(self, writer: str, sums: Sequence[tuple[int, DailySum]]) -> None:
        """Add numbered daily sums that have no events, all or none."""
        await self._append(writer, sums, staging.add_sums)

    async def _append(
        self,
        writer: str,
        numbered: Sequence[tuple[int, RecordT]],
        add: Callable[[Session, Sequence[RecordT]], Awaitable[None]],
    ) -> None:
        async def work(session: Session) -> None:
            await session.run("INSERT INTO {schema}.store_watermarks VALUES (%s, 0) ON CONFLICT DO NOTHING", (writer,))
            ((_, last),) = await session.run(f"{_WATERMARKS} WHERE writer = %s FOR UPDATE", (writer,))
            fresh = [(seq, record) for seq, record in numbered if seq > last]
            if fresh:
                await add(session, [record for _, record in fresh])
                await session.run(
                    "UPDATE {schema}.store_watermarks SET seq = %s WHERE writer = %s", (fresh[-1][0], writer)
                )

        if numbered:
            await self._server.write(work)

    async def watermark(self, writer: str) -> int:
        """Return the number of the writer's last record."""

        async def work(session: Session) -> int:
            return (await _watermarks(session)).get(writer, 0)

        return await self._server.read(work)

    async def aggregate(self, by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter) -> Aggregate:
        """Sum the days from first to last, from the smallest sums that suffice."""
        return await self._aggregate(by, of_days(by, first, last, usage_filter))

    async def aggregate_hours(
        self, by: Sequence[HourGrouping], first: date, last: date, usage_filter: UsageFilter
    ) -> Aggregate:
        """Sum the hours of the days from first to last."""
        span = days_window(first, last, self._zone)
        return await self._aggregate(by, of_hours(by, span.start, span.end, usage_filter))

    async def _aggregate(self, by: Sequence[Grouping | HourGrouping], source: Query) -> Aggregate:
        query = grouped(by, source)

        async def work(session: Session) -> Aggregate:
            watermarks = await _watermarks(session)
            groups: dict[tuple[str | None, ...], UsageTotals] = {}
            async for rows in session.pages(*query, _PAGE):
                groups.update(self._groups(by, rows))
            return Aggregate(groups, watermarks)

        return await self._server.read(work)

    def _groups(
        self, by: Sequence[Grouping | HourGrouping], rows: Iterable[Row]
    ) -> Iterable[tuple[tuple[str | None, ...], UsageTotals]]:
        count = len(by)
        for row in rows:
            group = tuple(self._label(grouping, value) for grouping, value in zip(by, row, strict=False))
            yield group, UsageTotals._make(row[count:])

    def _label(self, grouping: Grouping | HourGrouping, value: date | int | str | None) -> str | None:
        if isinstance(value, int):
            return hour_name(value, self._zone)
        if value is None or isinstance(value, str):
            return value
        return bucket_name(value, "month" if grouping == "month" else "day")

    async def ranking(
        self,
        by: Sequence[RollupDimension],
        first: date,
        last: date,
        usage_filter: UsageFilter,
        *,
        most: int,
        also: Collection[tuple[str | None, ...]] = (),
    ) -> Ranking:
        """Return the most expensive groups, and the wanted ones."""
        query = ranked(by, of_days(by, first, last, usage_filter), most, also)

        async def work(session: Session) -> Ranking:
            watermarks = await _watermarks(session)
            rows = await session.run(*query)
            found = (row[2:] for row in rows if row[1] is not None)
            return Ranking(dict(self._groups(by, found)), rows[0][0], watermarks)

        return await self._server.read(work)

    async def in_order_of_cost(
        self, by: Sequence[RollupDimension], first: date, last: date, usage_filter: UsageFilter
    ) -> AsyncIterator[Aggregate]:
        """Stream the sums of all groups, the most expensive first, from one transaction.

        The server ends the transaction if a reader pauses for longer than a minute.
        """
        query = in_order(by, of_days(by, first, last, usage_filter))
        async with self._server.streaming() as session:
            watermarks = await _watermarks(session)
            async for rows in session.pages(*query, _PAGE):
                yield Aggregate(dict(self._groups(by, rows)), watermarks)

    async def events(
        self,
        window: Window,
        usage_filter: UsageFilter,
        *,
        after: EventPosition | None = None,
        newest_first: bool = False,
    ) -> AsyncIterator[UsageEvent]:
        """Stream events admitted in a window, a page at a time."""
        where, values = conditions(usage_filter)
        order, beyond = ("DESC", "<") if newest_first else ("ASC", ">")
        # The bounds are on one column too, so that partitions outside of them are not visited.
        text = (
            f"SELECT started_at, event_id, {NAMES}, rest FROM {{schema}}.store_events"
            f" WHERE started_at >= %s AND started_at < %s AND (started_at, event_id) {beyond} (%s, %s){where}"
            f" ORDER BY started_at {order}, event_id {order} LIMIT {_PAGE}"
        )
        start, end = window
        position = after or (EventPosition(end, "") if newest_first else EventPosition(start - 1, ""))
        while True:
            if newest_first:
                end = min(end, position.started_at + 1)
            else:
                start = max(start, position.started_at)
            rows = await self._rows(Query(text, (start, end, *position, *values)))
            for row in rows:
                yield _event_of(row)
            if len(rows) < _PAGE:
                return
            position = EventPosition(*rows[-1][:2])

    async def daily(self, first: date, last: date, usage_filter: UsageFilter) -> AsyncIterator[list[DailySum]]:
        """Stream daily sums, a page at a time."""
        where, values = conditions(usage_filter)
        text = (
            f"SELECT day, {NAMES}, {SUMS}, key FROM {{schema}}.store_days"
            f" WHERE day >= %s AND day <= %s AND (day, key) > (%s, %s){where} ORDER BY day, key LIMIT {_PAGE}"
        )
        day, key = first, b""
        while True:
            rows = await self._rows(Query(text, (day, last, day, key, *values)))
            yield [_daily_of(row) for row in rows]
            if len(rows) < _PAGE:
                return
            day, key = rows[-1][0], rows[-1][-1]

    async def _rows(self, query: Query) -> list[Row]:
        async def work(session: Session) -> list[Row]:
            return await session.run(*query)

        return await self._server.read(work)

    async def prune(self, *, events_before: int, days_before: date, most: int) -> int:
        """Delete the events of old months at once, other events and sums in slices.

        A dropped month counts as at most `most` events.
        """
        begin = start_of_day(days_before, self._zone)
        events = await partitions.delete_before(self._server, max(events_before, begin), most)
        if events >= most:
            return events

        async def work(session: Session) -> int:
            days = await staging.take_away_days(session, days_before, most - events)
            # Not counted: they are few, and of deleted days.
            await session.run("DELETE FROM {schema}.store_hours WHERE hour < %s", (begin,))
            return days

        return events + await self._server.write(work)

    async def forget(self, user: str, *, most: int) -> int:
        """Delete a user's events, and give their sums to `FORGOTTEN`."""
        if user == FORGOTTEN:
            return 0

        async def work(session: Session) -> int:
            ((events,),) = await session.run(_DELETE_EVENTS_OF_USER, (user, user, most))
            rows = await session.run(_DAYS_OF_USER, (user, user, most - events))
            if rows:
                await staging.give_away(session, user, [_daily_of(row) for row in rows])
            return int(events) + len(rows)

        return await self._server.write(work)

    async def compact(self) -> None:
        """Rewrite the tables with names, and of the events those months from which some were deleted."""

        async def deleted_from(session: Session) -> list[Row]:
            return await session.run("SELECT name FROM {schema}.store_partitions WHERE live < inserted")

        months = [name for (name,) in await self._server.read(deleted_from)]
        for table in (*months, "store_days", "store_months"):
            await self._server.run_alone(f"VACUUM (FULL) {{schema}}.{table}", _COMPACTING)

        async def work(session: Session) -> None:
            await session.run("UPDATE {schema}.store_partitions SET inserted = live WHERE name = ANY (%s)", (months,))

        await self._server.write(work)

    async def size(self) -> int:
        """Return the size of our tables and their indexes in bytes, without the share of deleted events."""

        async def work(session: Session) -> int:
            return int((await session.run(_SIZE))[0][0])

        return await self._server.read(work)

    async def health(self) -> None:
        """Do what an append does before it has an event, and roll it back."""

        async def work(session: Session) -> None:
            await session.run("SELECT zone FROM {schema}.store_zone FOR UPDATE")
            await session.run(staging.CREATE)

        await self._server.write(work)


async def _watermarks(session: Session) -> Mapping[str, int]:
    return dict(await session.run(_WATERMARKS))


def _event_of(row: Row) -> UsageEvent:
    started_at, event_id, *names, rest = row
    record = json.loads(rest)
    record.update((name, value) for name, value in zip(ROLLUP_DIMENSIONS, names, strict=True) if value is not None)
    return from_record(record | {"started_at": started_at, "event_id": event_id})


def _daily_of(row: Row) -> DailySum:
    names = len(ROLLUP_DIMENSIONS) + 1
    return DailySum._make((*row[:names], UsageTotals._make(row[names : names + len(UsageTotals._fields)])))

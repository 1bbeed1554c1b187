"""The SQLite store: events, and daily sums written in the same transaction.

One connection writes, one reads, both through aiosqlite's threads: a store may be slow, since only the flusher and
people wait for it. SQL stays in this package; the schema is in `migrations/`.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

from usage_plugin.backends.sqlite.connections import connect, prepare, transaction, translated
from usage_plugin.backends.sqlite.deletion import delete_rows, erase, records_of, watermarks_of
from usage_plugin.backends.sqlite.insertion import DAILY_KEY, DIMENSIONS, HOUR_DIMENSIONS, MAX_INTEGER, Insertion
from usage_plugin.backends.sqlite.name_numbers import listed, name_columns, numbers_of
from usage_plugin.backends.sqlite.rollup_queries import (
    SUMMED,
    SUMS,
    WIDELY_SUMMED,
    SumSource,
    conditions,
    day_of,
    number_of,
    of_days,
    of_hours,
    whole,
)
from usage_plugin.domain.store import (
    ROLLUP_DIMENSIONS,
    Aggregate,
    DailySum,
    EventPosition,
    Grouping,
    HourGrouping,
    Ranking,
    RollupDimension,
    UsageFilter,
    UsageStore,
)
from usage_plugin.domain.subjects import FORGOTTEN
from usage_plugin.domain.usage import UsageEvent, UsageTotals, from_record
from usage_plugin.domain.windows import days_window, hour_name, start_of_day
from usage_plugin.errors import StorageUnavailableError
from usage_plugin.sqlite_file import identity
from usage_plugin.tracking.history.chunking import in_steps, taken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import date
    from pathlib import Path
    from zoneinfo import ZoneInfo

    import aiosqlite

    from usage_plugin.domain.windows import Window

RecordT = TypeVar("RecordT")

PAGE = 1_000
_DAYS = 2_000
_PART = 100
_GROUPS = 500


_PERSONS = ("user", "end_user")
_THINGS = tuple(name for name in ROLLUP_DIMENSIONS if name not in _PERSONS)


class SqliteStore(UsageStore):
    """The history in one SQLite file."""

    def __init__(self, path: Path, zone: ZoneInfo, writer: aiosqlite.Connection, reader: aiosqlite.Connection) -> None:
        """Use two open connections; `open_store` opens them."""
        self._path = path
        self._file = identity(path)
        self._zone = zone
        self._writer = writer
        self._reader = reader
        self._insertion = Insertion(writer, zone)
        self._writing = asyncio.Lock()
        self._reading = asyncio.Lock()

    async def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:
        """Add numbered events and their daily sums, all or none."""
        await self._append(writer, events, self._insertion.add_events)

    async def append_sums(self, writer: str, sums: Sequence[tuple[int, DailySum]]) -> None:
        """Add numbered daily sums that have no events, all or none."""
        await self._append(writer, sums, self._insertion.add_sums)

    async def _append(
        self, writer: str, numbered: Sequence[tuple[int, RecordT]], add: Callable[[Sequence[RecordT]], Awaitable[None]]
    ) -> None:
        with translated(self._path):
            async with self._writing, transaction(self._writer, "IMMEDIATE"):
                self._check_file()
                row = await self._one("SELECT seq FROM watermarks WHERE writer = ?", (writer,))
                fresh = [(seq, record) for seq, record in numbered if row is None or seq > row[0]]
                if fresh:
                    await add([record for _, record in fresh])
                    await self._writer.execute(
                        "INSERT INTO watermarks (writer, seq) VALUES (?, ?)"
                        " ON CONFLICT DO UPDATE SET seq = excluded.seq",
                        (writer, fresh[-1][0]),
                    )

    async def watermark(self, writer: str) -> int:
        """Return the number of the writer's last event."""
        with translated(self._path):
            rows = list(await self._reader.execute_fetchall("SELECT seq FROM watermarks WHERE writer = ?", (writer,)))
            return int(rows[0][0]) if rows else 0

    async def aggregate(self, by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter) -> Aggregate:
        """Sum the days from first to last, from the smallest sums that suffice."""
        return await self._aggregate(by, of_days(by, first, last, usage_filter))

    async def aggregate_hours(
        self, by: Sequence[HourGrouping], first: date, last: date, usage_filter: UsageFilter
    ) -> Aggregate:
        """Sum the hours of the days from first to last."""
        span = days_window(first, last, self._zone)
        return await self._aggregate(by, of_hours(by, span.start, span.end, usage_filter))

    async def _aggregate(self, by: Sequence[Grouping | HourGrouping], source: SumSource) -> Aggregate:
        columns = ", ".join(by)

        def query(summed: str) -> str:
            return f"SELECT {', '.join([*by, summed])} FROM {source.query} GROUP BY {columns or 'NULL'}"

        with translated(self._path):
            async with self._reading, transaction(self._reader):
                watermarks = await watermarks_of(self._reader)
                groups = await self._groups(by, query, source.values)
        return Aggregate(groups, watermarks)

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
        """Return the most expensive groups; all groups are ranked by cost, and only the result is summed in full."""
        source = of_days(by, first, last, usage_filter)
        columns = ", ".join(by)
        grouped = f"FROM {source.query} GROUP BY {columns}"
        marks = ", ".join(f"json_extract(value, '$[{at}]')" for at, _ in enumerate(by))

        def query(summed: str) -> str:
            spent = "sum(cost)" if summed == SUMMED else "sum(cost >> 32)"
            return (
                f"WITH ranked AS (SELECT {columns}, {spent} AS spent, sum(requests) AS asked {grouped}"
                f" ORDER BY spent DESC, asked DESC, {columns} LIMIT ?)"
                f" SELECT {columns}, {summed} FROM {source.query} WHERE ({columns}) IN"
                f" (SELECT {columns} FROM ranked UNION ALL SELECT {marks} FROM json_each(?)) GROUP BY {columns}"
            )

        with translated(self._path):
            async with self._reading, transaction(self._reader):
                watermarks = await watermarks_of(self._reader)
                numbers = await numbers_of(self._reader, {name for group in also for name in group})
                known = ([numbers[name] for name in group] for group in also if all(name in numbers for name in group))
                values = (*source.values, most, *source.values, await listed(known))
                groups = await self._groups(by, query, values)
                counted = await self._reader.execute_fetchall(
                    f"SELECT count(*) FROM (SELECT 1 {grouped})", source.values
                )
        return Ranking(groups, next(iter(counted))[0], watermarks)

    async def in_order_of_cost(
        self, by: Sequence[RollupDimension], first: date, last: date, usage_filter: UsageFilter
    ) -> AsyncIterator[Aggregate]:
        """Stream the sums of all groups, the most expensive first."""
        source = of_days(by, first, last, usage_filter)
        columns = ", ".join(by)
        names, joins = name_columns(by, of="sums")
        in_order = ", ".join(f"coalesce({name}s.name, '')" for name in by)

        def query(summed: str) -> str:
            # A cast of the text yields the half before the colon.
            cost = "sums.cost" if summed == SUMMED else "CAST(sums.cost AS INTEGER)"
            return (
                f"SELECT {', '.join(f'sums.{name}' for name in UsageTotals._fields)}, {names}"
                f" FROM (SELECT {columns}, {summed} FROM {source.query} GROUP BY {columns}) AS sums {joins}"
                f" ORDER BY {cost} DESC, sums.requests DESC, {in_order}"
            )

        sums = len(UsageTotals._fields)
        with translated(self._path):
            async with self._reading, transaction(self._reader):
                watermarks = await watermarks_of(self._reader)
                # All groups are summed before the first row is available.
                try:
                    execution = await self._reader.execute(query(SUMMED), source.values)
                except sqlite3.OperationalError as error:
                    _check_is_overflow(error)
                    execution = await self._reader.execute(query(WIDELY_SUMMED), source.values)
                async with execution as cursor:
                    while True:
                        rows = list(await cursor.fetchmany(_GROUPS))
                        groups = {tuple(row[sums:]): _totals(row[:sums]) for row in rows}
                        yield Aggregate(groups, watermarks)
                        if len(rows) < _GROUPS:
                            return

    async def _groups(
        self, by: Sequence[Grouping | HourGrouping], query: Callable[[str], str], values: Sequence[object]
    ) -> dict[tuple[str | None, ...], UsageTotals]:
        """Return the sums of groups; `query` returns the statement for one way of summing."""
        try:
            rows = list(await self._reader.execute_fetchall(query(SUMMED), values))
        except sqlite3.OperationalError as error:
            _check_is_overflow(error)
            rows = list(await self._reader.execute_fetchall(query(WIDELY_SUMMED), values))
        named = [at for at, grouping in enumerate(by) if grouping in ROLLUP_DIMENSIONS]
        numbers = {row[at] async for part in in_steps(rows) for row in part for at in named}
        names = await self._names_of(numbers)
        return {
            tuple(self._label(grouping, row[at], names) for at, grouping in enumerate(by)): _totals(row[len(by) :])
            async for part in in_steps(taken(rows))
            for row in part
        }

    def _label(self, grouping: Grouping | HourGrouping, value: int, names: Mapping[int, str | None]) -> str | None:
        if grouping in ("day", "week"):
            return day_of(value).isoformat()
        if grouping == "month":
            return f"{value // 100:04d}-{value % 100:02d}"
        if grouping == "hour":
            return hour_name(value, self._zone)
        return names[value]

    async def _names_of(self, numbers: Collection[int]) -> dict[int, str | None]:
        rows = await self._reader.execute_fetchall(
            "SELECT number, name FROM names WHERE number IN (SELECT value FROM json_each(?))", (await listed(numbers),)
        )
        return {row[0]: row[1] for row in rows}

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
        order = "DESC" if newest_first else "ASC"
        beyond = "<" if newest_first else ">"
        query = (
            f"SELECT started_at, event_id, {DIMENSIONS}, rest FROM events"  # our own words
            f" WHERE started_at >= ? AND started_at < ? AND (started_at, event_id) {beyond} (?, ?){where}"
            f" ORDER BY started_at {order}, event_id {order} LIMIT {PAGE}"
        )
        end = EventPosition(window.end, "") if newest_first else EventPosition(window.start - 1, "")
        position = after or end
        while True:
            with translated(self._path):
                async with self._reading:
                    rows = list(await self._reader.execute_fetchall(query, (*window, *position, *values)))
                    names = await self._names_of({number for row in rows for number in row[2:-1]})
            for started_at, event_id, *numbers, rest in rows:
                record = json.loads(rest)
                record.update(
                    (dimension, names[number])
                    for dimension, number in zip(ROLLUP_DIMENSIONS, numbers, strict=True)
                    if number
                )
                yield from_record(record | {"started_at": started_at, "event_id": event_id})
            if len(rows) < PAGE:
                return
            position = EventPosition(rows[-1][0], rows[-1][1])

    async def daily(self, first: date, last: date, usage_filter: UsageFilter) -> AsyncIterator[list[DailySum]]:
        """Stream daily sums.

        A page is yielded in parts: objects that are released early never reach the garbage collector.
        """
        where, values = conditions(usage_filter)
        # A person's name is read with each row: it can be erased, and its number reused for another name.
        persons, joins = name_columns(_PERSONS, of="daily")
        query = (
            f"SELECT day, {DIMENSIONS}, {persons}, {SUMS} FROM daily {joins}"  # our own words
            f" WHERE day <= ? AND (day, {DIMENSIONS}) > ({', '.join('?' * len(DAILY_KEY))}){where}"
            f" ORDER BY day, {DIMENSIONS} LIMIT {_DAYS}"
        )
        key = (number_of(first) - 1, *(MAX_INTEGER for _ in ROLLUP_DIMENSIONS))
        names: dict[int, str | None] = {}
        while True:
            with translated(self._path):
                async with self._reading:
                    rows = list(await self._reader.execute_fetchall(query, (number_of(last), *key, *values)))
                    names = await self._names_in(rows, names)
            for at in range(0, len(rows), _PART):
                yield list(_daily_of(rows[at : at + _PART], names))
            if len(rows) < _DAYS:
                return
            key = tuple(rows[-1][: len(DAILY_KEY)])

    async def _names_in(self, rows: Sequence[sqlite3.Row], before: Mapping[int, str | None]) -> dict[int, str | None]:
        """Return the names in a page of daily sums that are not persons; those of the previous page are reused."""
        numbers = set().union(*(map(itemgetter(at), rows) for at, name in enumerate(DAILY_KEY) if name in _THINGS))
        kept = {number: before[number] for number in numbers & before.keys()}
        return kept if len(kept) == len(numbers) else kept | await self._names_of(numbers - kept.keys())

    async def prune(self, *, events_before: int, days_before: date, most: int) -> int:
        """Delete events and sums before the given times, in one short transaction."""
        before = max(events_before, start_of_day(days_before, self._zone))
        with translated(self._path):
            async with self._writing, transaction(self._writer, "IMMEDIATE"):
                self._check_file()
                events = await delete_rows(
                    self._writer, "events", ("started_at", "event_id"), "started_at < ?", before, most
                )
                days = await delete_rows(
                    self._writer, "daily", DAILY_KEY, "day < ?", number_of(days_before), most - events
                )
                # Not counted: they are few, and of deleted days.
                begin = start_of_day(days_before, self._zone)
                await delete_rows(self._writer, "hourly", ("hour", *HOUR_DIMENSIONS), "hour < ?", begin, most)
                return events + days

    async def forget(self, user: str, *, most: int) -> int:
        """Delete a user's events, and give their sums to `FORGOTTEN`."""
        if user == FORGOTTEN:
            return 0
        with translated(self._path):
            async with self._reading:
                # Searched before the write lock is taken: other writers must not wait for a search of the whole file.
                found = await records_of(self._reader, user, most)
            if found is None:
                return 0
            async with self._writing, transaction(self._writer, "IMMEDIATE"):
                self._check_file()
                await erase(self._writer, found)
        return len(found.events) + len(found.days)

    async def compact(self) -> None:
        """Rewrite the file, and truncate its WAL."""
        with translated(self._path):
            async with self._writing, self._reading:
                self._check_file()
                await self._writer.execute("VACUUM")
                row = await self._one("PRAGMA wal_checkpoint(TRUNCATE)", ())
        if row is None or row[0]:
            raise StorageUnavailableError(f"Cannot truncate the WAL of {self._path} while it is being read.")

    async def size(self) -> int:
        """Return the size of the used pages in bytes."""
        with translated(self._path):
            rows = await self._reader.execute_fetchall(
                "SELECT (page_count - freelist_count) * page_size"
                " FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()"
            )
            return int(next(iter(rows))[0])

    async def health(self) -> None:
        """Take the write lock and release it."""
        with translated(self._path):
            async with self._writing, transaction(self._writer, "IMMEDIATE"):
                self._check_file()

    def _check_file(self) -> None:
        """Check that the file was not deleted or replaced: SQLite would continue to write to the old one."""
        if identity(self._path) != self._file:
            raise StorageUnavailableError(f"The store {self._path} was replaced while it was open.")

    async def _one(self, query: str, values: tuple[Any, ...]) -> sqlite3.Row | None:
        async with self._writer.execute(query, values) as cursor:
            return await cursor.fetchone()


def _check_is_overflow(error: sqlite3.OperationalError) -> None:
    """Raise the error again, unless it is a sum beyond 2^63."""
    if "integer overflow" not in str(error):
        raise error


def _totals(sums: Sequence[int | str]) -> UsageTotals:
    return UsageTotals._make(whole(one) if isinstance(one, str) else one for one in sums)


def _daily_of(rows: Sequence[sqlite3.Row], names: Mapping[int, str | None]) -> Iterator[DailySum]:
    """Convert rows column by column, without a Python call for each row: there may be ten million."""
    columns = list(zip(*rows, strict=True))
    days = {number: day_of(number) for number in set(columns[0])}
    named: dict[str, Iterable[str | None]] = dict(zip(_PERSONS, columns[len(DAILY_KEY) :], strict=False))
    for name, column in zip(DAILY_KEY, columns, strict=False):
        if name in _THINGS:
            named[name] = map(names.__getitem__, column)
    totals = map(tuple.__new__, repeat(UsageTotals), zip(*columns[len(DAILY_KEY) + len(_PERSONS) :], strict=True))
    fields = (map(days.__getitem__, columns[0]), *(named[name] for name in ROLLUP_DIMENSIONS), totals)
    return map(tuple.__new__, repeat(DailySum), zip(*fields, strict=True))


@asynccontextmanager
async def open_store(path: Path, zone: ZoneInfo) -> AsyncIterator[SqliteStore]:
    """Open the file; create it if it does not exist.

    Raises:
        StorageError: It cannot be opened, or its days are of another time zone.
        StorageVersionError: A newer version of the package wrote it.
    """
    async with AsyncExitStack() as stack:
        # Only errors of the opening: those while it is open are the caller's own.
        with translated(path):
            await asyncio.to_thread(prepare, path, zone)
            writer = await stack.enter_async_context(connect(path))
            reader = await stack.enter_async_context(connect(path))
        yield SqliteStore(path, zone, writer, reader)

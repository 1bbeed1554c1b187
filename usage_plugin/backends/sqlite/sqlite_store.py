"""The SQLite store: events, and daily sums written in the same transaction.

One connection writes, one reads, both through aiosqlite's threads: a store may be slow, since only the flusher and
people wait for it. SQL stays in this file; the schema is in `migrations/`.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from importlib import resources
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar
from zoneinfo import ZoneInfo

import aiosqlite

from usage_plugin.backends.sqlite.rollup_queries import (
    SUMMED,
    SUMS,
    WIDELY_SUMMED,
    Source,
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
    daily_sum,
)
from usage_plugin.domain.subjects import FORGOTTEN
from usage_plugin.domain.usage import UsageEvent, UsageTotals, from_record, to_record
from usage_plugin.domain.windows import days_window, hour_name, start_of_day, start_of_hour
from usage_plugin.encoding import encode_record
from usage_plugin.errors import StorageDamagedError, StorageError, StorageUnavailableError
from usage_plugin.sqlite_file import create_private, identity, migrate, use_write_ahead_log
from usage_plugin.tracking.steps import in_steps, taken, unhurried

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from usage_plugin.domain.windows import Window

RecordT = TypeVar("RecordT")

PAGE = 1_000
_DAYS = 2_000
_PART = 100
_GROUPS = 500
_BUSY_TIMEOUT = 10.0
_MOST_VALUES = 900
"""SQLite before 3.32 takes 999 values in a statement."""

_DIMENSIONS = ", ".join(ROLLUP_DIMENSIONS)
_MARKS = ", ".join("?" * (1 + len(ROLLUP_DIMENSIONS) + len(UsageTotals._fields)))
_KEY = ("day", *ROLLUP_DIMENSIONS)
_PERSONS = ("user", "end_user")
_THINGS = tuple(name for name in ROLLUP_DIMENSIONS if name not in _PERSONS)
_LAST_NUMBER = 2**63 - 1
# An integer sum beyond 2^63 - 1 would become a float; it stops there instead.
_ADDING = "ON CONFLICT DO UPDATE SET " + ", ".join(
    f"{name} = min({name} + excluded.{name}, {_LAST_NUMBER})" for name in UsageTotals._fields
)
_ADD_TO_DAILY = f"INSERT INTO daily (day, {_DIMENSIONS}, {SUMS}) VALUES ({_MARKS}) {_ADDING}"
_HOUR_DIMENSIONS = ("model", "provider")
_HOUR_MARKS = ", ".join("?" * (1 + len(_HOUR_DIMENSIONS) + len(UsageTotals._fields)))
_ADD_TO_HOURLY = f"INSERT INTO hourly (hour, {', '.join(_HOUR_DIMENSIONS)}, {SUMS}) VALUES ({_HOUR_MARKS}) {_ADDING}"
_ADD_EVENT = (
    f"INSERT INTO events (started_at, event_id, {_DIMENSIONS}, rest)"
    f" VALUES ({', '.join('?' * (3 + len(ROLLUP_DIMENSIONS)))})"
)


class SqliteStore(UsageStore):
    """The history in one SQLite file."""

    def __init__(self, path: Path, zone: ZoneInfo, writer: aiosqlite.Connection, reader: aiosqlite.Connection) -> None:
        """Take two open connections; `open_store` makes them."""
        self._path = path
        self._file = identity(path)
        self._zone = zone
        self._writer = writer
        self._reader = reader
        self._writing = asyncio.Lock()
        self._reading = asyncio.Lock()

    async def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:
        """Add numbered events and their daily sums, all or none."""
        await self._append(writer, events, self._add_events)

    async def append_sums(self, writer: str, sums: Sequence[tuple[int, DailySum]]) -> None:
        """Add numbered daily sums that have no events, all or none."""
        await self._append(writer, sums, self._add_sums)

    async def _append(
        self, writer: str, numbered: Sequence[tuple[int, RecordT]], add: Callable[[Sequence[RecordT]], Awaitable[None]]
    ) -> None:
        with _translated(self._path):
            async with self._writing, _transaction(self._writer, "IMMEDIATE"):
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

    async def _add_events(self, events: Sequence[UsageEvent]) -> None:
        known = await self._already_stored(events)
        fresh = list({event.event_id: event for event in events if event.event_id not in known}.values())
        sums = [daily_sum(event, self._zone) for event in unhurried(fresh)]
        numbers = await self._number(sums)
        rows = []
        for event, one in unhurried(zip(fresh, sums, strict=True)):
            record = to_record(event)
            for column in ("started_at", "event_id", *ROLLUP_DIMENSIONS):
                record.pop(column, None)
            dimensions = (numbers[name] for name in one.names)
            rows.append((event.started_at, event.event_id, *dimensions, encode_record(record)))
        await self._writer.executemany(_ADD_EVENT, rows)
        await self._add_numbered(sums, numbers)
        hours = (
            ((start_of_hour(event.started_at, self._zone), numbers[one.model], numbers[one.provider]), one.totals)
            for event, one in zip(fresh, sums, strict=True)
        )
        await self._add_up(_ADD_TO_HOURLY, hours)

    async def _add_sums(self, sums: Sequence[DailySum]) -> None:
        # A sum of nothing would be a row of nothing.
        something = [one for one in sums if any(one.totals)]
        await self._add_numbered(something, await self._number(something))

    async def _add_numbered(self, sums: Sequence[DailySum], numbers: Mapping[str | None, int]) -> None:
        days = (((number_of(one.day), *(numbers[name] for name in one.names)), one.totals) for one in sums)
        await self._add_up(_ADD_TO_DAILY, days)

    async def _add_up(self, statement: str, keyed: Iterable[tuple[tuple[int, ...], UsageTotals]]) -> None:
        """Add to each row once, in the order of their keys."""
        rows: dict[tuple[int, ...], UsageTotals] = {}
        for key, totals in unhurried(keyed):
            rows[key] = rows.get(key, UsageTotals()).plus(totals)
        await self._writer.executemany(statement, [(*key, *_bounded(rows[key])) for key in sorted(rows)])

    async def _already_stored(self, events: Sequence[UsageEvent]) -> set[str]:
        """Find events that came under another number: a ledger that was restored can send them again."""
        instants = [event.started_at for event in events]
        rows = await self._writer.execute_fetchall(
            "SELECT event_id FROM events WHERE started_at BETWEEN ? AND ?"
            " AND event_id IN (SELECT value FROM json_each(?))",
            (min(instants), max(instants), json.dumps([event.event_id for event in events])),
        )
        return {row[0] for row in rows}

    async def _number(self, sums: Sequence[DailySum]) -> dict[str | None, int]:
        """Give each name its number, making new ones."""
        wanted = sorted({name for one in sums for name in one.names if name is not None})
        numbers = await _numbers_of(self._writer, wanted)
        new = [(name,) for name in wanted if name not in numbers]
        if new:
            await self._writer.executemany("INSERT INTO names (name) VALUES (?)", new)
            numbers |= await _numbers_of(self._writer, [name for (name,) in new])
        return numbers

    async def watermark(self, writer: str) -> int:
        """Give the number of the writer's last event."""
        with _translated(self._path):
            rows = list(await self._reader.execute_fetchall("SELECT seq FROM watermarks WHERE writer = ?", (writer,)))
            return int(rows[0][0]) if rows else 0

    async def aggregate(self, by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter) -> Aggregate:
        """Sum the days from first to last, out of the sums that are smallest."""
        return await self._aggregate(by, of_days(by, first, last, usage_filter))

    async def aggregate_hours(
        self, by: Sequence[HourGrouping], first: date, last: date, usage_filter: UsageFilter
    ) -> Aggregate:
        """Sum the hours of the days from first to last."""
        span = days_window(first, last, self._zone)
        return await self._aggregate(by, of_hours(by, span.start, span.end, usage_filter))

    async def _aggregate(self, by: Sequence[Grouping | HourGrouping], source: Source) -> Aggregate:
        columns = ", ".join(by)

        def query(summed: str) -> str:
            return f"SELECT {', '.join([*by, summed])} FROM {source.query} GROUP BY {columns or 'NULL'}"

        with _translated(self._path):
            async with self._reading, _transaction(self._reader):
                watermarks = await _watermarks(self._reader)
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
        """Find the dearest groups by their costs alone; only theirs are summed in full."""
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

        with _translated(self._path):
            async with self._reading, _transaction(self._reader):
                watermarks = await _watermarks(self._reader)
                numbers = await _numbers_of(self._reader, {name for group in also for name in group})
                known = ([numbers[name] for name in group] for group in also if all(name in numbers for name in group))
                values = (*source.values, most, *source.values, await _listed(known))
                groups = await self._groups(by, query, values)
                counted = await self._reader.execute_fetchall(
                    f"SELECT count(*) FROM (SELECT 1 {grouped})", source.values
                )
        return Ranking(groups, next(iter(counted))[0], watermarks)

    async def in_order_of_cost(
        self, by: Sequence[RollupDimension], first: date, last: date, usage_filter: UsageFilter
    ) -> AsyncIterator[Aggregate]:
        """Stream the sums of all groups, the dearest first."""
        source = of_days(by, first, last, usage_filter)
        columns = ", ".join(by)
        names, joins = _named(by, of="sums")
        in_order = ", ".join(f"coalesce({name}s.name, '')" for name in by)

        def query(summed: str) -> str:
            # The half before the colon is the number that a text is cast to.
            cost = "sums.cost" if summed == SUMMED else "CAST(sums.cost AS INTEGER)"
            return (
                f"SELECT {', '.join(f'sums.{name}' for name in UsageTotals._fields)}, {names}"
                f" FROM (SELECT {columns}, {summed} FROM {source.query} GROUP BY {columns}) AS sums {joins}"
                f" ORDER BY {cost} DESC, sums.requests DESC, {in_order}"
            )

        sums = len(UsageTotals._fields)
        with _translated(self._path):
            async with self._reading, _transaction(self._reader):
                watermarks = await _watermarks(self._reader)
                # All groups are summed before the first is there.
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
        """Sum groups; `query` makes the statement for one way of summing."""
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
            "SELECT number, name FROM names WHERE number IN (SELECT value FROM json_each(?))", (await _listed(numbers),)
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
            f"SELECT started_at, event_id, {_DIMENSIONS}, rest FROM events"  # our own words
            f" WHERE started_at >= ? AND started_at < ? AND (started_at, event_id) {beyond} (?, ?){where}"
            f" ORDER BY started_at {order}, event_id {order} LIMIT {PAGE}"
        )
        end = EventPosition(window.end, "") if newest_first else EventPosition(window.start - 1, "")
        position = after or end
        while True:
            with _translated(self._path):
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

        A page is handed out in parts: what is dropped again soon, the garbage collector never comes to see.
        """
        where, values = conditions(usage_filter)
        # A person's name is looked up with each row: it can be forgotten, and its number be somebody else's then.
        persons, joins = _named(_PERSONS, of="daily")
        query = (
            f"SELECT day, {_DIMENSIONS}, {persons}, {SUMS} FROM daily {joins}"  # our own words
            f" WHERE day <= ? AND (day, {_DIMENSIONS}) > ({', '.join('?' * len(_KEY))}){where}"
            f" ORDER BY day, {_DIMENSIONS} LIMIT {_DAYS}"
        )
        key = (number_of(first) - 1, *(_LAST_NUMBER for _ in ROLLUP_DIMENSIONS))
        names: dict[int, str | None] = {}
        while True:
            with _translated(self._path):
                async with self._reading:
                    rows = list(await self._reader.execute_fetchall(query, (number_of(last), *key, *values)))
                    names = await self._names_in(rows, names)
            for at in range(0, len(rows), _PART):
                yield list(_daily_of(rows[at : at + _PART], names))
            if len(rows) < _DAYS:
                return
            key = tuple(rows[-1][: len(_KEY)])

    async def _names_in(self, rows: Sequence[sqlite3.Row], before: Mapping[int, str | None]) -> dict[int, str | None]:
        """Find the names in a page of daily sums that are not persons'; those of the page before serve again."""
        numbers = set().union(*(map(itemgetter(at), rows) for at, name in enumerate(_KEY) if name in _THINGS))
        kept = {number: before[number] for number in numbers & before.keys()}
        return kept if len(kept) == len(numbers) else kept | await self._names_of(numbers - kept.keys())

    async def prune(self, *, events_before: int, days_before: date, most: int) -> int:
        """Delete what is too old, in one short transaction."""
        before = max(events_before, start_of_day(days_before, self._zone))
        with _translated(self._path):
            async with self._writing, _transaction(self._writer, "IMMEDIATE"):
                self._check_file()
                events = await self._delete("events", ("started_at", "event_id"), "started_at < ?", before, most)
                days = await self._delete("daily", _KEY, "day < ?", number_of(days_before), most - events)
                # Not counted: they are few, and of days that go.
                begin = start_of_day(days_before, self._zone)
                await self._delete("hourly", ("hour", *_HOUR_DIMENSIONS), "hour < ?", begin, most)
                return events + days

    async def _delete(self, table: str, key: Sequence[str], condition: str, value: int, most: int) -> int:
        columns = ", ".join(key)
        query = f"DELETE FROM {table} WHERE ({columns}) IN (SELECT {columns} FROM {table} WHERE {condition} LIMIT ?)"
        async with self._writer.execute(query, (value, most)) as cursor:
            return cursor.rowcount

    async def forget(self, user: str, *, most: int) -> int:
        """Delete a user's events, and move their sums."""
        if user == FORGOTTEN:
            return 0
        with _translated(self._path):
            async with self._reading:
                # Looked for first: others must not wait while the whole file is searched.
                row = list(await self._reader.execute_fetchall("SELECT number FROM names WHERE name = ?", (user,)))
                if not row:
                    return 0
                number = row[0][0]
                persons = f"user = {number} OR end_user = {number}"
                marks = await _watermarks(self._reader)
                events = list(
                    await self._reader.execute_fetchall(
                        f"SELECT started_at, event_id FROM events WHERE {persons} LIMIT ?", (most,)
                    )
                )
                days = list(
                    await self._reader.execute_fetchall(
                        f"SELECT day, {_DIMENSIONS} FROM daily WHERE {persons} LIMIT ?", (most - len(events),)
                    )
                )
                is_used = events or days or await _is_used(self._reader, number)
            async with self._writing, _transaction(self._writer, "IMMEDIATE"):
                self._check_file()
                if not is_used and (
                    await _watermarks(self._writer) == marks or not await _is_used(self._writer, number)
                ):
                    await self._writer.execute("DELETE FROM names WHERE number = ?", (number,))
                await self._writer.executemany("DELETE FROM events WHERE started_at = ? AND event_id = ?", events)
                await self._give_away(days, number)
        return len(events) + len(days)

    async def _give_away(self, days: Sequence[sqlite3.Row], number: int) -> None:
        """Move sums, as they are by now, from a person to `FORGOTTEN`."""
        wanted = " AND ".join(f"{name} = json_extract(value, '$[{at}]')" for at, name in enumerate(_KEY))
        rows = await self._writer.execute_fetchall(
            f"SELECT {', '.join(_KEY)}, {SUMS} FROM json_each(?) CROSS JOIN daily ON {wanted}",
            (json.dumps(list(map(tuple, days))),),
        )
        if not rows:
            return
        await self._writer.execute("INSERT OR IGNORE INTO names (name) VALUES (?)", (FORGOTTEN,))
        found = await self._one("SELECT number FROM names WHERE name = ?", (FORGOTTEN,))
        forgotten = found and found[0]
        persons = [at for at, name in enumerate(_KEY) if name in ("user", "end_user")]
        given = [[forgotten if at in persons and v == number else v for at, v in enumerate(row)] for row in rows]
        await self._writer.executemany(_ADD_TO_DAILY, given)
        await self._writer.executemany(
            f"DELETE FROM daily WHERE {' AND '.join(f'{name} = ?' for name in _KEY)}",
            [tuple(row[: len(_KEY)]) for row in rows],
        )

    async def compact(self) -> None:
        """Write the file anew, and empty its log."""
        with _translated(self._path):
            async with self._writing, self._reading:
                self._check_file()
                await self._writer.execute("VACUUM")
                row = await self._one("PRAGMA wal_checkpoint(TRUNCATE)", ())
        if row is None or row[0]:
            raise StorageUnavailableError(f"{self._path} is being read, so its log could not be emptied.")

    async def size(self) -> int:
        """Say how many bytes are in use."""
        with _translated(self._path):
            rows = await self._reader.execute_fetchall(
                "SELECT (page_count - freelist_count) * page_size"
                " FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()"
            )
            return int(next(iter(rows))[0])

    async def health(self) -> None:
        """Take the write lock and let it go."""
        with _translated(self._path):
            async with self._writing, _transaction(self._writer, "IMMEDIATE"):
                self._check_file()

    def _check_file(self) -> None:
        """Notice that the file was deleted or replaced: SQLite would go on writing to the old one."""
        if identity(self._path) != self._file:
            raise StorageUnavailableError(f"The store {self._path} was replaced while it was open.")

    async def _one(self, query: str, values: tuple[Any, ...]) -> sqlite3.Row | None:
        async with self._writer.execute(query, values) as cursor:
            return await cursor.fetchone()


def _named(dimensions: Sequence[str], *, of: str) -> tuple[str, str]:
    """Write the columns of names that stand for a table's numbers, `users.name` for `user`, and the joins for them."""
    columns = ", ".join(f"{name}s.name" for name in dimensions)
    return columns, " ".join(f"LEFT JOIN names AS {name}s ON {name}s.number = {of}.{name}" for name in dimensions)


def _check_is_overflow(error: sqlite3.OperationalError) -> None:
    """Let pass only that a sum is beyond 2^63."""
    if "integer overflow" not in str(error):
        raise error


def _bounded(totals: UsageTotals) -> Iterable[int]:
    """Keep to 64 bits what a batch adds to one row."""
    return totals if max(totals) <= _LAST_NUMBER else [min(one, _LAST_NUMBER) for one in totals]


def _totals(sums: Sequence[int | str]) -> UsageTotals:
    return UsageTotals._make(whole(one) if isinstance(one, str) else one for one in sums)


async def _watermarks(connection: aiosqlite.Connection) -> dict[str, int]:
    rows = await connection.execute_fetchall("SELECT writer, seq FROM watermarks")
    return {row[0]: row[1] for row in rows}


async def _numbers_of(connection: aiosqlite.Connection, names: Collection[str | None]) -> dict[str | None, int]:
    """Find the numbers of those names that have one."""
    numbers: dict[str | None, int] = {None: 0}
    async for some in in_steps((name for name in names if name is not None), _MOST_VALUES):
        # Bound one by one: in JSON, SQLite would take a name that holds a NUL to end there.
        marks = ", ".join("?" * len(some))
        rows = await connection.execute_fetchall(f"SELECT name, number FROM names WHERE name IN ({marks})", some)
        numbers |= {row[0]: row[1] for row in rows}
    return numbers


async def _listed(numbers: Iterable[int] | Iterable[list[int]]) -> str:
    """Write a list for `json_each`, which may be long."""
    return f"[{','.join([json.dumps(part)[1:-1] async for part in in_steps(numbers)])}]"


async def _is_used(connection: aiosqlite.Connection, number: int) -> bool:
    """Say whether a name stands for anything."""
    any_of = " OR ".join(f"{dimension} = {number}" for dimension in ROLLUP_DIMENSIONS)
    rows = await connection.execute_fetchall(
        f"SELECT EXISTS (SELECT * FROM daily WHERE {any_of}) OR EXISTS (SELECT * FROM events WHERE {any_of})"
    )
    return bool(next(iter(rows))[0])


def _daily_of(rows: Sequence[sqlite3.Row], names: Mapping[int, str | None]) -> Iterator[DailySum]:
    """Read some rows by their columns, without a call of Python for each row: there may be ten million."""
    columns = list(zip(*rows, strict=True))
    days = {number: day_of(number) for number in set(columns[0])}
    named: dict[str, Iterable[str | None]] = dict(zip(_PERSONS, columns[len(_KEY) :], strict=False))
    for name, column in zip(_KEY, columns, strict=False):
        if name in _THINGS:
            named[name] = map(names.__getitem__, column)
    totals = map(tuple.__new__, repeat(UsageTotals), zip(*columns[len(_KEY) + len(_PERSONS) :], strict=True))
    fields = (map(days.__getitem__, columns[0]), *(named[name] for name in ROLLUP_DIMENSIONS), totals)
    return map(tuple.__new__, repeat(DailySum), zip(*fields, strict=True))


@asynccontextmanager
async def open_store(path: Path, zone: ZoneInfo) -> AsyncIterator[SqliteStore]:
    """Open the file, creating it if there is none.

    Raises:
        StorageError: it cannot be opened, or its days are another zone's.
        StorageVersionError: a newer version wrote it.
    """
    async with AsyncExitStack() as stack:
        # Only the opening: what goes wrong while it is open is the caller's own.
        with _translated(path):
            await asyncio.to_thread(_prepare, path, zone)
            writer = await stack.enter_async_context(_connect(path))
            reader = await stack.enter_async_context(_connect(path))
        yield SqliteStore(path, zone, writer, reader)


def _prepare(path: Path, zone: ZoneInfo) -> None:
    create_private(path)
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None)
    try:
        use_write_ahead_log(connection, _BUSY_TIMEOUT)
        connection.create_function("local_hour", 2, _local_hour, deterministic=True)
        migrate(connection, resources.files(__package__) / "migrations", path)
        row = connection.execute("SELECT zone FROM store").fetchone()
        if row is None:
            # Asked for first: a reader must not wait for a lock.
            connection.execute("INSERT INTO store (zone) SELECT ? WHERE NOT EXISTS (SELECT * FROM store)", (str(zone),))
            row = connection.execute("SELECT zone FROM store").fetchone()
        kept = row[0]
    finally:
        connection.close()
    if kept != str(zone):
        raise StorageError(
            f"{path} keeps days of the zone {kept}, but usage_plugin.timezone is {zone}.",
            hint=f"Set usage_plugin.timezone back to {kept}, or move the file away to begin a new history.",
        )


def _local_hour(instant: int, zone: str) -> int:
    """For the migration of stores that kept no hours."""
    return start_of_hour(instant, ZoneInfo(zone))


@asynccontextmanager
async def _connect(path: Path) -> AsyncIterator[aiosqlite.Connection]:
    async with aiosqlite.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None) as connection:
        # FULL: what the store has acknowledged leaves the outbox, so it must survive a power cut.
        await connection.execute("PRAGMA synchronous = FULL")
        await connection.execute("PRAGMA cache_size = -16000")
        yield connection


@asynccontextmanager
async def _transaction(connection: aiosqlite.Connection, kind: str = "DEFERRED") -> AsyncIterator[None]:
    try:
        await connection.execute(f"BEGIN {kind}")
        yield
        await connection.execute("COMMIT")
    except BaseException:
        # Comes behind whatever the thread is still doing for a caller who was cancelled; is nothing where SQLite has
        # rolled back by itself, since the disk is full.
        await connection.rollback()
        raise


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn the driver's errors into ours."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        raise StorageUnavailableError(f"The store {path} cannot be used for now: {error}.") from error
    except (sqlite3.Error, OverflowError, UnicodeError) as error:
        if type(error) is sqlite3.DatabaseError:
            # Not this event's fault, nor any other's.
            raise StorageDamagedError(
                f"The store {path} is damaged: {error}.", hint="Put a backup in its place, or move it away."
            ) from error
        raise StorageError(f"The store {path} does not work: {error}.") from error

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
from typing import TYPE_CHECKING, Any

import aiosqlite

from usage_plugin.domain.store import (
    ROLLUP_DIMENSIONS,
    Aggregate,
    EventPosition,
    Grouping,
    UsageFilter,
    UsageStore,
)
from usage_plugin.domain.usage import (
    UsageEvent,
    UsageTotals,
    encode_record,
    from_record,
    to_record,
    totals_of,
)
from usage_plugin.domain.windows import local_date
from usage_plugin.errors import StorageError, StorageUnavailableError
from usage_plugin.sqlite_file import create_private, migrate, use_write_ahead_log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from datetime import date
    from pathlib import Path
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.windows import Window

PAGE = 1_000
_BUSY_TIMEOUT = 10.0

_DIMENSIONS = ", ".join(ROLLUP_DIMENSIONS)
_SUMS = ", ".join(UsageTotals._fields)
_MARKS = ", ".join("?" * (1 + len(ROLLUP_DIMENSIONS) + len(UsageTotals._fields)))
_ADD_TO_DAILY = (
    f"INSERT INTO daily (day, {_DIMENSIONS}, {_SUMS}) VALUES ({_MARKS}) ON CONFLICT DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in UsageTotals._fields)
)
_ADD_EVENT = (
    f"INSERT INTO events (started_at, event_id, {_DIMENSIONS}, rest)"
    f" VALUES ({', '.join('?' * (3 + len(ROLLUP_DIMENSIONS)))})"
)


class SqliteStore(UsageStore):
    """The history in one SQLite file."""

    def __init__(self, path: Path, zone: ZoneInfo, writer: aiosqlite.Connection, reader: aiosqlite.Connection) -> None:
        """Take two open connections; `open_store` makes them."""
        self._path = path
        self._file = _identity(path)
        self._zone = zone
        self._writer = writer
        self._reader = reader
        self._writing = asyncio.Lock()
        self._reading = asyncio.Lock()

    async def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:
        """Add numbered events and their daily sums, all or none."""
        with _translated(self._path):
            async with self._writing, _transaction(self._writer, "IMMEDIATE"):
                self._check_file()
                row = await self._one("SELECT seq FROM watermarks WHERE writer = ?", (writer,))
                fresh = [(seq, event) for seq, event in events if row is None or seq > row[0]]
                if fresh:
                    await self._add([event for _, event in fresh])
                    await self._writer.execute(
                        "INSERT INTO watermarks (writer, seq) VALUES (?, ?)"
                        " ON CONFLICT DO UPDATE SET seq = excluded.seq",
                        (writer, fresh[-1][0]),
                    )

    async def _add(self, events: Sequence[UsageEvent]) -> None:
        numbers = await self._number({name for event in events for name in _names(event) if name is not None})
        known = await self._already_stored(events)
        sums: dict[tuple[int, ...], UsageTotals] = {}
        rows = []
        for event in events:
            if event.event_id in known:
                continue
            dimensions = tuple(0 if name is None else numbers[name] for name in _names(event))
            record = to_record(event)
            for column in ("started_at", "event_id", *ROLLUP_DIMENSIONS):
                record.pop(column, None)
            rows.append((event.started_at, event.event_id, *dimensions, encode_record(record)))
            key = (_number_of(local_date(event.started_at, self._zone)), *dimensions)
            sums[key] = sums.get(key, UsageTotals()).plus(totals_of(event))
        await self._writer.executemany(_ADD_EVENT, rows)
        await self._writer.executemany(_ADD_TO_DAILY, [(*key, *sums[key]) for key in sorted(sums)])

    async def _already_stored(self, events: Sequence[UsageEvent]) -> set[str]:
        """Find events that came under another number: a ledger that was restored can send them again."""
        instants = [event.started_at for event in events]
        rows = await self._writer.execute_fetchall(
            "SELECT event_id FROM events WHERE started_at BETWEEN ? AND ?"
            " AND event_id IN (SELECT value FROM json_each(?))",
            (min(instants), max(instants), json.dumps([event.event_id for event in events])),
        )
        return {row[0] for row in rows}

    async def _number(self, names: set[str]) -> dict[str, int]:
        """Give each name its number, making new ones."""
        wanted = sorted(names)
        await self._writer.executemany("INSERT OR IGNORE INTO names (name) VALUES (?)", [(name,) for name in wanted])
        rows = await self._writer.execute_fetchall(
            "SELECT name, number FROM names WHERE name IN (SELECT value FROM json_each(?))", (json.dumps(wanted),)
        )
        return {row[0]: row[1] for row in rows}

    async def watermark(self, writer: str) -> int:
        """Give the number of the writer's last event."""
        with _translated(self._path):
            rows = list(await self._reader.execute_fetchall("SELECT seq FROM watermarks WHERE writer = ?", (writer,)))
            return int(rows[0][0]) if rows else 0

    async def aggregate(self, by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter) -> Aggregate:
        """Sum the days from first to last, out of the daily sums."""
        columns = [_GROUPED.get(grouping, grouping) for grouping in by]
        where, values = _conditions(usage_filter)
        sums = ", ".join(f"sum({name})" for name in UsageTotals._fields)
        grouped = ", ".join([*columns, sums])
        query = f"SELECT {grouped} FROM daily WHERE day BETWEEN ? AND ?{where}"  # our own words
        query += f" GROUP BY {', '.join(columns) or 'NULL'}"
        with _translated(self._path):
            async with self._reading, _transaction(self._reader):
                watermarks = await self._reader.execute_fetchall("SELECT writer, seq FROM watermarks")
                rows = await self._reader.execute_fetchall(query, (_number_of(first), _number_of(last), *values))
                names = await self._names_of(
                    {row[at] for row in rows for at, grouping in enumerate(by) if grouping in ROLLUP_DIMENSIONS}
                )
        groups = {
            tuple(_label(grouping, row[at], names) for at, grouping in enumerate(by)): UsageTotals(*row[len(by) :])
            for row in map(tuple, rows)
        }
        return Aggregate(groups, {row[0]: row[1] for row in watermarks})

    async def _names_of(self, numbers: set[int]) -> dict[int, str | None]:
        rows = await self._reader.execute_fetchall(
            "SELECT number, name FROM names WHERE number IN (SELECT value FROM json_each(?))",
            (json.dumps(sorted(numbers)),),
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
        where, values = _conditions(usage_filter)
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

    async def health(self) -> None:
        """Take the write lock and let it go."""
        with _translated(self._path):
            async with self._writing, _transaction(self._writer, "IMMEDIATE"):
                self._check_file()

    def _check_file(self) -> None:
        """Notice that the file was deleted or replaced: SQLite would go on writing to the old one."""
        if _identity(self._path) != self._file:
            raise StorageUnavailableError(f"The store {self._path} was replaced while it was open.")

    async def _one(self, query: str, values: tuple[Any, ...]) -> sqlite3.Row | None:
        async with self._writer.execute(query, values) as cursor:
            return await cursor.fetchone()


_GROUPED: dict[Grouping, str] = {"month": "day / 100"}


def _conditions(usage_filter: UsageFilter) -> tuple[str, list[str]]:
    wanted = usage_filter.wanted()
    where = "".join(f" AND {name} = (SELECT number FROM names WHERE name = ?)" for name in wanted)
    return where, list(wanted.values())


def _names(event: UsageEvent) -> tuple[str | None, ...]:
    return tuple(getattr(event, dimension) for dimension in ROLLUP_DIMENSIONS)


def _number_of(day: date) -> int:
    return day.year * 10_000 + day.month * 100 + day.day


def _label(grouping: Grouping, value: int, names: dict[int, str | None]) -> str | None:
    if grouping == "day":
        return f"{value // 10_000:04d}-{value // 100 % 100:02d}-{value % 100:02d}"
    if grouping == "month":
        return f"{value // 100:04d}-{value % 100:02d}"
    return names[value]


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


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _prepare(path: Path, zone: ZoneInfo) -> None:
    create_private(path)
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None)
    try:
        use_write_ahead_log(connection, _BUSY_TIMEOUT)
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


@asynccontextmanager
async def _connect(path: Path) -> AsyncIterator[aiosqlite.Connection]:
    async with aiosqlite.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None) as connection:
        # FULL: what the store has acknowledged leaves the outbox, so it must survive a power cut.
        await connection.execute("PRAGMA synchronous = FULL")
        await connection.execute("PRAGMA cache_size = -16000")
        yield connection


@asynccontextmanager
async def _transaction(connection: aiosqlite.Connection, kind: str = "DEFERRED") -> AsyncIterator[None]:
    await connection.execute(f"BEGIN {kind}")
    try:
        yield
        await connection.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself if the disk is full; an error of our own would hide that.
        if connection.in_transaction:
            await connection.execute("ROLLBACK")
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
            raise StorageUnavailableError(
                f"The store {path} is damaged: {error}.", hint="Put a backup in its place, or move it away."
            ) from error
        raise StorageError(f"The store {path} does not work: {error}.") from error

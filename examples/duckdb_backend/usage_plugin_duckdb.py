"""The `duckdb` backend: the history of usage_plugin in one DuckDB file, for analysts and their tools.

Only one process at a time can open a DuckDB file, but several may have a store open. So a store takes the file when
there is work, with a lock file next to it. It releases the file when no more work comes, or after a maximum time, so
that others get a turn. Each verb is one transaction, in the store's own thread.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb

from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.storage import (
    FORGOTTEN,
    ROLLUP_DIMENSIONS,
    Aggregate,
    BackendContext,
    DailySum,
    EventPosition,
    Grouping,
    Options,
    StorageBackend,
    StorageDamagedError,
    StorageError,
    StorageUnavailableError,
    UsageEvent,
    UsageFilter,
    UsageStore,
    UsageTotals,
    Window,
    daily_sum,
    decode_event,
    encode_event,
    start_of_day,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from datetime import date
    from zoneinfo import ZoneInfo

ResultT = TypeVar("ResultT")

PAGE = 1_000
LONGEST_WAIT, LONGEST_HOLD, LINGER = 10.0, 0.25, 0.02
"""Seconds: the longest wait of a verb for the file; the longest hold before others get a turn; the idle time before
release."""

_NAMES = ", ".join(ROLLUP_DIMENSIONS)
_SUMS = ", ".join(UsageTotals._fields)
_ADDED = ", ".join(f"{name} = daily.{name} + new.{name}" for name in UsageTotals._fields)
_BUCKETS = {
    "day": "day::TEXT",
    "week": "strftime(date_trunc('week', day), '%Y-%m-%d')",
    "month": "strftime(day, '%Y-%m')",
}
_SAME = " AND ".join(f"daily.{name} IS NOT DISTINCT FROM new.{name}" for name in ("day", *ROLLUP_DIMENSIONS))

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS store (zone TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS watermarks (writer TEXT PRIMARY KEY, seq BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
    started_at BIGINT NOT NULL, event_id TEXT NOT NULL, {", ".join(f"{name} TEXT" for name in ROLLUP_DIMENSIONS)},
    event TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS daily (
    day DATE NOT NULL, {", ".join(f"{name} TEXT" for name in ROLLUP_DIMENSIONS)},
    {", ".join(f"{name} BIGINT NOT NULL" for name in UsageTotals._fields)}
);
"""


def run(connection: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run a statement; every statement uses this function, so that tests can make each of them fail."""
    return connection.execute(query, values).fetchall()


class DuckdbStore(UsageStore):
    """The history in one DuckDB file."""

    def __init__(self, path: Path, zone: ZoneInfo, config: Mapping[str, Any]) -> None:
        """Set the file, without opening it."""
        self._path = path
        self._zone = zone
        self._config = dict(config)
        self._thread = ThreadPoolExecutor(1, "usage-duckdb")
        self._is_wanted = Event()
        self._has_file: ExitStack | None = None
        self._connection: duckdb.DuckDBPyConnection
        self._taken_at = 0.0

    async def do(self, work: Callable[[duckdb.DuckDBPyConnection], ResultT]) -> ResultT:
        """Run work in one transaction, in the store's thread: the event loop serves requests meanwhile."""
        self._is_wanted.set()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._do, work)

    def _do(self, work: Callable[[duckdb.DuckDBPyConnection], ResultT]) -> ResultT:
        self._is_wanted.clear()
        with _translated(self._path):
            self._take_file()
            try:
                run(self._connection, "BEGIN")
                result = work(self._connection)
                run(self._connection, "COMMIT")
            except BaseException:
                self._let_go()  # closing a connection rolls back
                raise
        self._thread.submit(self._linger)
        return result

    def _take_file(self) -> None:
        if self._has_file is None:
            with ExitStack() as stack:
                stack.enter_context(_locked(self._path))
                self._connection = stack.enter_context(closing(duckdb.connect(str(self._path), config=self._config)))
                self._taken_at = time.monotonic()
                self._has_file = stack.pop_all()

    def _let_go(self) -> None:
        if self._has_file is not None:
            has_file, self._has_file = self._has_file, None
            has_file.close()

    def _linger(self) -> None:
        """Keep the file for the next call; release it if none comes, or after a while."""
        if time.monotonic() - self._taken_at > LONGEST_HOLD:
            self._let_go()
            time.sleep(LINGER / 2)
        elif not self._is_wanted.wait(LINGER):
            self._let_go()

    async def close(self) -> None:
        """Release the file and the thread."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._let_go)
        self._thread.shutdown(wait=False)

    def prepare(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Create the tables of a new file; refuse a file of another zone.

        Raises:
            StorageError: The days of the file are in another zone.
        """
        run(connection, SCHEMA)
        run(connection, "INSERT INTO store SELECT ? WHERE NOT EXISTS (FROM store)", [str(self._zone)])
        ((kept,),) = run(connection, "SELECT zone FROM store")
        if kept != str(self._zone):
            raise StorageError(
                f"{self._path} keeps days of the zone {kept}, but usage_plugin.timezone is {self._zone}.",
                hint=f"Set usage_plugin.timezone back to {kept}, or choose another path.",
            )

    async def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:
        """Add numbered events and their daily sums, all or none."""

        def work(connection: duckdb.DuckDBPyConnection) -> None:
            fresh = _behind_the_watermark(connection, writer, events)
            known = _already_stored(connection, fresh)
            new = list({event.event_id: event for event in fresh if event.event_id not in known}.values())
            sums = [daily_sum(event, self._zone) for event in new]
            rows = [
                (event.started_at, event.event_id, *one.names, encode_event(event))
                for event, one in zip(new, sums, strict=True)
            ]
            _insert(connection, "events", rows)
            _add_sums(connection, sums)

        await self.do(work)

    async def append_sums(self, writer: str, sums: Sequence[tuple[int, DailySum]]) -> None:
        """Add numbered daily sums that have no events, all or none."""
        await self.do(lambda connection: _add_sums(connection, _behind_the_watermark(connection, writer, sums)))

    async def watermark(self, writer: str) -> int:
        """Return the number of the writer's last event or sum."""
        return await self.do(lambda connection: _watermark(connection, writer))

    async def aggregate(self, by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter) -> Aggregate:
        """Sum the days from first to last; the watermarks are read in the same transaction."""
        where, values = _conditions(usage_filter)
        columns = [_BUCKETS.get(one, one) for one in by]
        sums = ", ".join(f"sum({name})::BIGINT" for name in UsageTotals._fields)
        query = f"SELECT {', '.join([*columns, sums])} FROM daily WHERE day BETWEEN ? AND ?{where}"
        query += f" GROUP BY {', '.join(columns)}" if columns else " HAVING count(*) > 0"

        def work(connection: duckdb.DuckDBPyConnection) -> Aggregate:
            rows = run(connection, query, [first, last, *values])
            groups = {row[: len(by)]: UsageTotals(*row[len(by) :]) for row in rows}
            return Aggregate(groups, dict(run(connection, "FROM watermarks")))

        return await self.do(work)

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
        beyond, order = ("<", "DESC") if newest_first else (">", "ASC")
        query = (
            "SELECT started_at, event_id, event FROM events WHERE started_at >= ? AND started_at < ?"
            f" AND (started_at, event_id) {beyond} (?, ?){where}"
            f" ORDER BY started_at {order}, event_id {order} LIMIT {PAGE}"
        )
        position = after or EventPosition(window.end if newest_first else window.start - 1, "")
        while True:
            page = [*window, *position, *values]
            rows = await self.do(lambda connection, page=page: run(connection, query, page))  # type: ignore[misc]
            for _, _, event in rows:
                yield decode_event(event)
            if len(rows) < PAGE:
                return
            position = EventPosition(rows[-1][0], rows[-1][1])

    async def daily(self, first: date, last: date, usage_filter: UsageFilter) -> AsyncIterator[list[DailySum]]:
        """Stream daily sums, a day at a time."""
        where, values = _conditions(usage_filter)
        days = f"SELECT DISTINCT day FROM daily WHERE day BETWEEN ? AND ?{where} ORDER BY day"
        sums = f"SELECT day, {_NAMES}, {_SUMS} FROM daily WHERE day = ?{where}"
        for (day,) in await self.do(lambda connection: run(connection, days, [first, last, *values])):
            rows = await self.do(lambda connection, day=day: run(connection, sums, [day, *values]))  # type: ignore[misc]
            yield [_daily_of(row) for row in rows]

    async def prune(self, *, events_before: int, days_before: date, most: int) -> int:
        """Delete old events and sums."""
        before = max(events_before, start_of_day(days_before, self._zone))

        def work(connection: duckdb.DuckDBPyConnection) -> int:
            events = _delete(connection, "events", "started_at < ?", [before], most)
            return events + _delete(connection, "daily", "day < ?", [days_before], most - events)

        return await self.do(work)

    async def forget(self, user: str, *, most: int) -> int:
        """Delete a user's events, and move their sums to the forgotten user."""
        if user == FORGOTTEN:
            return 0

        def work(connection: duckdb.DuckDBPyConnection) -> int:
            events = _delete(connection, "events", "? IN (user, end_user)", [user], most)
            rows = run(
                connection,
                f"SELECT day, {_NAMES}, {_SUMS}, rowid FROM daily WHERE ? IN (user, end_user) LIMIT ?",
                [user, most - events],
            )
            ids = [row[-1] for row in rows]
            run(connection, "DELETE FROM daily WHERE rowid IN (SELECT unnest(?::BIGINT[]))", [ids])
            _add_sums(connection, [_daily_of(row[:-1]).without(user) for row in rows])
            return events + len(rows)

        return await self.do(work)

    async def size(self) -> int:
        """Return the bytes in use, at some 150 for an event and 60 for a sum: DuckDB compresses by columns."""
        query = "SELECT 150 * (SELECT count(*) FROM events) + 60 * (SELECT count(*) FROM daily)"
        return int((await self.do(lambda connection: run(connection, query)))[0][0])

    async def health(self) -> None:
        """Write a value that changes nothing."""
        await self.do(lambda connection: run(connection, "UPDATE store SET zone = zone"))


def _watermark(connection: duckdb.DuckDBPyConnection, writer: str) -> int:
    rows = run(connection, "SELECT seq FROM watermarks WHERE writer = ?", [writer])
    return int(rows[0][0]) if rows else 0


def _behind_the_watermark(
    connection: duckdb.DuckDBPyConnection, writer: str, numbered: Sequence[tuple[int, ResultT]]
) -> list[ResultT]:
    """Return the records after the watermark, and move it, in the transaction that stores them."""
    last = _watermark(connection, writer)
    fresh = [(seq, record) for seq, record in numbered if seq > last]
    if fresh:
        run(connection, "INSERT OR REPLACE INTO watermarks VALUES (?, ?)", [writer, fresh[-1][0]])
    return [record for _, record in fresh]


def _already_stored(connection: duckdb.DuckDBPyConnection, events: Sequence[UsageEvent]) -> set[str]:
    """Return the events that are stored under another number: a restored ledger can send them again."""
    if not events:
        return set()
    instants = [event.started_at for event in events]
    rows = run(
        connection,
        "SELECT event_id FROM events WHERE started_at BETWEEN ? AND ? AND event_id IN (SELECT unnest(?))",
        [min(instants), max(instants), [event.event_id for event in events]],
    )
    return {row[0] for row in rows}


def _add_sums(connection: duckdb.DuckDBPyConnection, sums: Sequence[DailySum]) -> None:
    """Add to the daily sums: one row for each day and combination of names; an empty sum adds none."""
    added: dict[tuple[Any, ...], UsageTotals] = {}
    for one in filter(lambda one: any(one.totals), sums):
        key = (one.day, *one.names)
        added[key] = added.get(key, UsageTotals()).plus(one.totals)
    run(connection, "CREATE TEMP TABLE new AS FROM daily LIMIT 0")
    _insert(connection, "new", [(*key, *totals) for key, totals in added.items()])
    run(
        connection,
        f"MERGE INTO daily USING new ON {_SAME} WHEN MATCHED THEN UPDATE SET {_ADDED} WHEN NOT MATCHED THEN INSERT",
    )
    run(connection, "DROP TABLE new")


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert by columns, which is thirty times as fast as by rows."""
    if rows:
        types = run(connection, "SELECT data_type FROM duckdb_columns() WHERE table_name = ?", [table])
        columns = ", ".join(f"unnest(?::{kind}[])" for (kind,) in types)
        run(connection, f"INSERT INTO {table} SELECT {columns}", [list(column) for column in zip(*rows, strict=True)])


def _delete(connection: duckdb.DuckDBPyConnection, table: str, condition: str, values: Sequence[Any], most: int) -> int:
    query = f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} WHERE {condition} LIMIT ?)"
    return int(run(connection, query, [*values, most])[0][0])


def _conditions(usage_filter: UsageFilter) -> tuple[str, list[str]]:
    wanted = usage_filter.wanted()
    return "".join(f" AND {name} = ?" for name in wanted), list(wanted.values())


def _daily_of(row: tuple[Any, ...]) -> DailySum:
    names = 1 + len(ROLLUP_DIMENSIONS)
    return DailySum._make((*row[:names], UsageTotals(*row[names:])))


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Translate the driver's errors into the plugin's: temporary ones, and permanent ones."""
    try:
        yield
    except (duckdb.OperationalError, duckdb.InternalError, OSError) as error:
        raise StorageUnavailableError(f"The store {path} cannot be used for now: {error}.") from error
    except (duckdb.Error, UnicodeError) as error:
        if type(error) is duckdb.Error:  # a wrong checksum has no class of its own
            raise StorageDamagedError(f"The store {path} is damaged: {error}.") from error
        raise StorageError(f"The store {path} does not work: {error}.") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock the file, among processes and within this one; the system releases the lock if the process dies."""
    handle = os.open(path.with_name(f"{path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        deadline = time.monotonic() + LONGEST_WAIT
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.002)
        yield
    finally:
        os.close(handle)


class DuckdbOptions(Options):
    """Options of the `duckdb` backend.

    Attributes:
        path: The file; a relative path starts from the data folder.
        memory_limit: The maximum memory, in DuckDB's notation.
    """

    path: Path = Path("usage.duckdb")
    memory_limit: str = "256MB"


class DuckdbBackend(StorageBackend[DuckdbOptions]):
    """Keep the history in `usage.duckdb` in the data folder."""

    name = "duckdb"
    options_model = DuckdbOptions

    @asynccontextmanager
    async def open(self, options: DuckdbOptions, context: BackendContext) -> AsyncIterator[UsageStore]:
        """Open the file, or create it if it is missing."""
        path = context.data_dir / options.path
        with _translated(path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = {"memory_limit": options.memory_limit, "threads": 1, "autoinstall_known_extensions": False}
        store = DuckdbStore(path, context.zone, config)
        try:
            await store.do(store.prepare)
            yield store
        finally:
            await store.close()


@hookimpl
def usage_register_storage_backends() -> list[StorageBackend[Any]]:
    """Register the DuckDB backend."""
    return [DuckdbBackend()]

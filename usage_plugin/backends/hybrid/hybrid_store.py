"""The hybrid store: files are the source of truth, a database answers queries.

An event counts as stored once the files have it; the database is replicated from the files. The database answers a
query only if it has every record of the files. Otherwise the files answer, so that each report is complete.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from usage_plugin.backends.hybrid.database import has_all, unknown
from usage_plugin.backends.hybrid.initial_copy import copy_history
from usage_plugin.backends.hybrid.replication import Batch, Replicator
from usage_plugin.domain.store import (
    LEFT_OVER,
    Aggregate,
    DailySum,
    EventPosition,
    Grouping,
    KeepsHours,
    LeavesTraces,
    Ranking,
    Ranks,
    Sorts,
    UsageFilter,
    UsageStore,
    watermarks_of,
)
from usage_plugin.errors import StorageError, StorageUnavailableError
from usage_plugin.file_locks import HeldLock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from datetime import date

    from usage_plugin.backends.hybrid.database import Database
    from usage_plugin.backends.hybrid.replication import Files, Kind
    from usage_plugin.domain.profiles import UserProfile
    from usage_plugin.domain.store import Sent
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.domain.windows import Window

REPLICATION_WAIT = 1.0
"""The maximum wait of an append for the database, in seconds, so that the next query need not read files."""

LAG_TIMEOUT = 5.0
"""The age in seconds at which a lagging database is reopened, and the maximum wait of steps that need both."""

_SHORTLY = 0.05


class HybridStore(UsageStore):
    """Files and a database as one store."""

    def __init__(
        self, files: Files, database: Database, renew: Callable[[str | None], Awaitable[None]], lock: WriterLock
    ) -> None:
        """Use open parts.

        Args:
            files: The source of truth.
            database: The database that answers queries.
            renew: Rebuilds the database from the files.
            lock: The lock of the one process that writes to the database.
        """
        self._files = files
        self._database = database
        self._lock = lock
        self._replicator = Replicator(files, database, renew)
        self._replication: asyncio.Task[None] | None = None
        self._beginning = asyncio.Lock()

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:
        """Add numbered events to the files, and to the database if it is available."""
        await self._append(writer, "events", events)

    async def append_sums(self, writer: str, sums: Sequence[tuple[int, DailySum]]) -> None:
        """Add numbered sums to the files, and to the database if it is available."""
        await self._append(writer, "sums", sums)

    async def _append(self, writer: str, kind: Kind, numbered: Sequence[Any]) -> None:
        await self._begin_writing()
        replicator = self._replicator
        async with replicator.appending:
            before = await self._files.watermark(writer)
            append = self._files.append if kind == "events" else self._files.append_sums
            await append(writer, numbered)
            if numbered and numbered[-1][0] > before:
                replicator.give(Batch(writer, before, kind, numbered))
        await replicator.followed(REPLICATION_WAIT)

    async def watermark(self, writer: str) -> int:
        """Return the number of the writer's last event or sum in the files."""
        # The caller is about to write.
        await self._begin_writing()
        return await self._files.watermark(writer)

    async def _begin_writing(self) -> None:
        """Copy the database's history to the files, and start replication, unless another process does."""
        async with self._beginning:
            if self._replication is not None:
                return
            marks = await self._files.watermarks()
            is_ours = self._lock.take()
            try:
                async with self._database.used(patiently=True) as store:
                    if is_ours:
                        await copy_history(self._files, store)
                    elif unknown(await watermarks_of(store), await self._files.watermarks()):
                        # The files were read last: a concurrent append goes to the files first.
                        raise StorageUnavailableError("Another process is copying the database's history to the files.")
            except StorageError:
                # Without files, the database may have a history that must be copied first.
                if not marks:
                    self._lock.release()
                    raise
            if is_ours:
                self._replication = asyncio.create_task(self._replicator.run())
                await self._replicator.level(REPLICATION_WAIT)

    @property
    def trouble(self) -> str | None:
        """The error of the database; None if it is available."""
        trouble = self._replicator.trouble
        return trouble and f"Reports are read from the files: {trouble}"

    async def close(self) -> None:
        """Wait a moment for the replication of queued batches, and release all resources."""
        if self._replication is not None:
            await self._replicator.followed(REPLICATION_WAIT)
            self._replicator.end()
            self._replication.cancel()
            with suppress(asyncio.CancelledError):
                await self._replication
        await self._database.reopen()
        self._lock.release()

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def aggregate(self, by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter) -> Aggregate:
        """Sum the days from first to last."""
        marks = await self._files.watermarks()
        with suppress(StorageError):
            async with self._database.used() as store:
                found = await store.aggregate(by, first, last, usage_filter)
            if has_all(found.watermarks, marks):
                known = {writer: seq for writer, seq in found.watermarks.items() if writer != LEFT_OVER}
                return Aggregate(found.groups, known)
            await self._database.reopen(older_than=LAG_TIMEOUT)
        return await self._files.aggregate(by, first, last, usage_filter)

    async def ranking(self, *what: Any, **how: Any) -> Ranking:
        """Return the most expensive groups, if the database can rank."""
        async with self._level_database() as store:
            if isinstance(store, Ranks):
                return await store.ranking(*what, **how)
        raise StorageUnavailableError("The database cannot rank.")

    async def in_order_of_cost(self, *what: Any) -> AsyncIterator[Aggregate]:
        """Stream all groups, the most expensive first, if the database can sort."""
        async with self._level_database() as store:
            if isinstance(store, Sorts):
                async for page in store.in_order_of_cost(*what):
                    yield page
                return
        raise StorageUnavailableError("The database does not sort.")

    async def aggregate_hours(self, *what: Any) -> Aggregate:
        """Sum hours, if the database keeps them."""
        async with self._level_database() as store:
            if isinstance(store, KeepsHours):
                return await store.aggregate_hours(*what)
        raise StorageUnavailableError("The database keeps no hours.")

    @asynccontextmanager
    async def _level_database(self, *, patiently: bool = False) -> AsyncIterator[UsageStore]:
        marks = await self._files.watermarks()
        async with self._database.used(patiently=patiently) as store:
            if has_all(await watermarks_of(store), marks):
                yield store
                return
        await self._database.reopen(older_than=LAG_TIMEOUT)
        raise _LagError("The database lags behind the files.")

    async def events(
        self,
        window: Window,
        usage_filter: UsageFilter,
        *,
        after: EventPosition | None = None,
        newest_first: bool = False,
    ) -> AsyncIterator[UsageEvent]:
        """Stream events admitted in a window; if the database fails meanwhile, the files continue."""
        try:
            async with self._level_database() as store:
                async for event in store.events(window, usage_filter, after=after, newest_first=newest_first):
                    yield event
                    after = EventPosition(event.started_at, event.event_id)
                return
        except StorageError:
            pass
        async for event in self._files.events(window, usage_filter, after=after, newest_first=newest_first):
            yield event

    async def daily(self, first: date, last: date, usage_filter: UsageFilter) -> AsyncIterator[Sequence[DailySum]]:
        """Stream the sums of days; if the database fails meanwhile, the files continue."""
        given: set[tuple[str | None, ...]] = set()
        try:
            async with self._level_database() as store:
                async for sums in store.daily(first, last, usage_filter):
                    yield sums
                    for one in sums:
                        if one.day != first:
                            first, given = one.day, set()
                        given.add(one.names)
                return
        except StorageError:
            pass
        resumed = first
        async for sums in self._files.daily(first, last, usage_filter):
            if rest := [one for one in sums if one.day != resumed or one.names not in given]:
                yield rest

    # ── maintenance ──────────────────────────────────────────────────────────────────────────────────────────────

    async def prune(self, *, events_before: int, days_before: date, most: int) -> int:
        """Delete old records from both; without the database this waits for a later call."""
        try:
            return await self._in_both(
                lambda store: store.prune(events_before=events_before, days_before=days_before, most=most)
            )
        except _LagError:
            return 0

    async def forget(self, user: str, *, most: int) -> int:
        """Erase a user from both.

        Raises:
            StorageUnavailableError: The database is not available; it would return with the user in it.
        """
        return await self._in_both(lambda store: store.forget(user, most=most))

    async def _in_both(self, step: Callable[[UsageStore], Awaitable[int]]) -> int:
        await self._begin_writing()
        if self._replication is not None:
            await self._replicator.level(LAG_TIMEOUT)
        until = time.monotonic() + LAG_TIMEOUT
        while True:
            async with self._replicator.appending:
                try:
                    await self._replicator.store_queued()
                    async with self._level_database(patiently=True) as store:
                        in_database = await step(store)
                except StorageError as error:
                    # Another process may be replicating the missing records.
                    if self._replication is not None or time.monotonic() > until:
                        raise _LagError(
                            f"This requires the database, which is not available: {error.message}"
                        ) from error
                else:
                    # A step that was interrupted in between is repeated: each counts the records that it finds.
                    return max(in_database, await step(self._files))
            await asyncio.sleep(_SHORTLY)

    async def compact(self) -> None:
        """Remove all traces of deleted records from both."""
        if isinstance(self._files, LeavesTraces):
            await self._files.compact()
        async with self._level_database(patiently=True) as store:
            if isinstance(store, LeavesTraces):
                await store.compact()

    async def size(self) -> int:
        """Return the size of both in bytes."""
        size = await self._files.size()
        with suppress(StorageError):
            async with self._database.used() as store:
                size += await store.size()
        return size

    async def health(self) -> None:
        """Raise an error if the files cannot accept an event."""
        await self._files.health()

    async def watermarks(self) -> Mapping[str, int]:
        """Return the watermark of every writer in the files."""
        return await self._files.watermarks()

    def sent(self, after: Mapping[str, int], upto: Mapping[str, int]) -> AsyncIterator[Sent]:
        """Stream the records that the files were sent."""
        return self._files.sent(after, upto)

    async def keep_profiles(self, profiles: Sequence[UserProfile]) -> None:
        """Mirror profiles to files."""
        await self._files.keep_profiles(profiles)

    def profiles(self) -> AsyncIterator[UserProfile]:
        """Stream the mirrored profiles."""
        return self._files.profiles()

    async def keep_limits(self, limits: Sequence[Mapping[str, Any]]) -> None:
        """Mirror the limits to a file."""
        await self._files.keep_limits(limits)


class _LagError(StorageUnavailableError):
    """The database lags behind the files."""


class WriterLock(HeldLock):
    """The lock of the one process that writes to the database."""

    def take(self) -> bool:
        """Take the lock unless it is held already; return False if another process holds it.

        Raises:
            StorageUnavailableError: The lock file cannot be opened.
        """
        try:
            return super().take()
        except OSError as error:
            raise StorageUnavailableError(f"Cannot lock the database: {error}.") from error

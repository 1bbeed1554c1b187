"""The hybrid store: files are the truth, a database answers questions.

An event counts as stored once the files have it. The database follows; it is asked only if it has everything that
the files have, and otherwise the files answer, so that no report is ever short of what is stored.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from usage_plugin.backends.hybrid.database import has_all, unknown, watermarks_of
from usage_plugin.backends.hybrid.initial_copy import move_in
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
)
from usage_plugin.errors import StorageError, StorageUnavailableError
from usage_plugin.locks import HeldLock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from datetime import date

    from usage_plugin.backends.hybrid.database import Database
    from usage_plugin.backends.hybrid.replication import Files, Kind
    from usage_plugin.domain.profiles import UserProfile
    from usage_plugin.domain.store import Sent
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.domain.windows import Window

PATIENCE = 1.0
"""So many seconds an append waits for the database, so that who reads next need not read files."""

OLD = 5.0
"""So many seconds old, a database that lags is opened anew; and so long what needs both waits for it."""

_SHORTLY = 0.05


class HybridStore(UsageStore):
    """Files and a database as one store."""

    def __init__(
        self, files: Files, database: Database, renew: Callable[[str | None], Awaitable[None]], lock: WriterLock
    ) -> None:
        """Take the parts; `open_store` makes them.

        Args:
            files: the truth.
            database: what answers questions.
            renew: builds the database anew out of the files.
            lock: of the process that writes to the database.
        """
        self._files = files
        self._database = database
        self._lock = lock
        self._replicator = Replicator(files, database, renew)
        self._following: asyncio.Task[None] | None = None
        self._beginning = asyncio.Lock()

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:
        """Add numbered events to the files, and to the database if it is there."""
        await self._append(writer, "events", events)

    async def append_sums(self, writer: str, sums: Sequence[tuple[int, DailySum]]) -> None:
        """Add numbered sums to the files, and to the database if it is there."""
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
        await replicator.followed(PATIENCE)

    async def watermark(self, writer: str) -> int:
        """Give the number of the writer's last event or sum that the files have."""
        # Who asks is about to write.
        await self._begin_writing()
        return await self._files.watermark(writer)

    async def _begin_writing(self) -> None:
        """See to it that the files have the database's history, and let it follow them, unless another process does."""
        async with self._beginning:
            if self._following is not None:
                return
            marks = await self._files.watermarks()
            is_ours = self._lock.take()
            try:
                async with self._database.used(patiently=True) as store:
                    if is_ours:
                        await move_in(self._files, store)
                    elif unknown(await watermarks_of(store), await self._files.watermarks()):
                        # The files were asked last: whoever appends meanwhile does so there first.
                        raise StorageUnavailableError(
                            "Another process is moving the database's history into the files."
                        )
            except StorageError:
                # Without files it may have a history that they must know of first.
                if not marks:
                    self._lock.release()
                    raise
            if is_ours:
                self._following = asyncio.create_task(self._replicator.run())
                await self._replicator.level(PATIENCE)

    @property
    def trouble(self) -> str | None:
        """Say why the database is away."""
        trouble = self._replicator.trouble
        return trouble and f"Reports are read from the files: {trouble}"

    async def close(self) -> None:
        """Let the database have the last of it, and end."""
        if self._following is not None:
            await self._replicator.followed(PATIENCE)
            self._following.cancel()
            with suppress(asyncio.CancelledError):
                await self._following
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
            await self._database.reopen(older_than=OLD)
        return await self._files.aggregate(by, first, last, usage_filter)

    async def ranking(self, *what: Any, **how: Any) -> Ranking:
        """Find the dearest groups, if the database can."""
        async with self._level_database() as store:
            if isinstance(store, Ranks):
                return await store.ranking(*what, **how)
        raise StorageUnavailableError("The database cannot rank.")

    async def in_order_of_cost(self, *what: Any) -> AsyncIterator[Aggregate]:
        """Stream all groups, the dearest first, if the database can."""
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
        await self._database.reopen(older_than=OLD)
        raise _LagsError("The database lags behind the files.")

    async def events(
        self,
        window: Window,
        usage_filter: UsageFilter,
        *,
        after: EventPosition | None = None,
        newest_first: bool = False,
    ) -> AsyncIterator[UsageEvent]:
        """Stream events admitted in a window; if the database goes away meanwhile, the files go on."""
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
        """Stream the sums of days; if the database goes away meanwhile, the files go on."""
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

    # ── keeping house ────────────────────────────────────────────────────────────────────────────────────────────

    async def prune(self, *, events_before: int, days_before: date, most: int) -> int:
        """Delete what is too old, in both; while the database is away that can wait."""
        try:
            return await self._in_both(
                lambda store: store.prune(events_before=events_before, days_before=days_before, most=most)
            )
        except _LagsError:
            return 0

    async def forget(self, user: str, *, most: int) -> int:
        """Forget a user in both.

        Raises:
            StorageUnavailableError: the database is away; it would come back with them in it.
        """
        return await self._in_both(lambda store: store.forget(user, most=most))

    async def _in_both(self, step: Callable[[UsageStore], Awaitable[int]]) -> int:
        await self._begin_writing()
        if self._following is not None:
            await self._replicator.level(OLD)
        until = time.monotonic() + OLD
        while True:
            async with self._replicator.appending:
                try:
                    await self._replicator.take_what_is_at_hand()
                    async with self._level_database(patiently=True) as store:
                        in_database = await step(store)
                except StorageError as error:
                    # Another process may be giving it what it lacks.
                    if self._following is not None or time.monotonic() > until:
                        raise _LagsError(f"This needs the database, which is away: {error.message}") from error
                else:
                    # A step that was interrupted in between is done again: each counts what it finds.
                    return max(in_database, await step(self._files))
            await asyncio.sleep(_SHORTLY)

    async def compact(self) -> None:
        """Leave no trace of what was deleted, in either."""
        if isinstance(self._files, LeavesTraces):
            await self._files.compact()
        async with self._level_database(patiently=True) as store:
            if isinstance(store, LeavesTraces):
                await store.compact()

    async def size(self) -> int:
        """Say how many bytes both use."""
        size = await self._files.size()
        with suppress(StorageError):
            async with self._database.used() as store:
                size += await store.size()
        return size

    async def health(self) -> None:
        """Raise if the files would not take an event."""
        await self._files.health()

    async def watermarks(self) -> Mapping[str, int]:
        """Give every writer's, as the files have them."""
        return await self._files.watermarks()

    def sent(self, after: Mapping[str, int], upto: Mapping[str, int]) -> AsyncIterator[Sent]:
        """Stream what the files were sent."""
        return self._files.sent(after, upto)

    async def keep_profiles(self, profiles: Sequence[UserProfile]) -> None:
        """Keep a copy of profiles in files."""
        await self._files.keep_profiles(profiles)

    def profiles(self) -> AsyncIterator[UserProfile]:
        """Stream the copies."""
        return self._files.profiles()

    async def keep_limits(self, limits: Sequence[Mapping[str, Any]]) -> None:
        """Keep a copy of the limits in a file."""
        await self._files.keep_limits(limits)


class _LagsError(StorageUnavailableError):
    """The database lags."""


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

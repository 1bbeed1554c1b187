"""The partitioned store: the archive behind threads, so that no event loop waits for a disk."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from usage_plugin.backends.partitioned.archive import Archive
from usage_plugin.backends.partitioned.mirror_files import MirrorFiles
from usage_plugin.backends.partitioned.rewriting import of_writers
from usage_plugin.domain.store import Aggregate, DailySum, EventPosition, Grouping, Sent, UsageFilter, UsageStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from datetime import date
    from pathlib import Path
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.profiles import UserProfile
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.domain.windows import Window

ItemT = TypeVar("ItemT")

PAGE = 250


class PartitionedStore(UsageStore):
    """The history in files, by user, month and day; with mirrors of profiles and limits."""

    def __init__(self, archive: Archive, mirror: MirrorFiles) -> None:
        """Use open files; `open_store` opens them."""
        self._archive = archive
        self._mirror = mirror
        # Threads of one process share the archive's state.
        self._writing = asyncio.Lock()

    async def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:
        """Add numbered events, all or none."""
        await self._write(self._archive.append, writer, events)

    async def append_sums(self, writer: str, sums: Sequence[tuple[int, DailySum]]) -> None:
        """Add numbered sums, all or none."""
        await self._write(self._archive.append, writer, sums)

    async def watermark(self, writer: str) -> int:
        """Return the number of the writer's last event or sum."""
        return (await self.watermarks()).get(writer, 0)

    async def watermarks(self) -> Mapping[str, int]:
        """Return the watermark of every writer."""
        return of_writers(await asyncio.to_thread(self._archive.watermarks))

    async def aggregate(self, by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter) -> Aggregate:
        """Sum the days from first to last."""
        return await asyncio.to_thread(self._archive.aggregate, by, first, last, usage_filter)

    def events(
        self,
        window: Window,
        usage_filter: UsageFilter,
        *,
        after: EventPosition | None = None,
        newest_first: bool = False,
    ) -> AsyncIterator[UsageEvent]:
        """Stream events admitted in a window."""
        return _streamed(partial(self._archive.events, window, usage_filter, after, newest_first=newest_first))

    def daily(self, first: date, last: date, usage_filter: UsageFilter) -> AsyncIterator[Sequence[DailySum]]:
        """Stream the sums of days."""
        return _pages(partial(self._archive.daily, first, last, usage_filter))

    def sent(self, after: Mapping[str, int], upto: Mapping[str, int]) -> AsyncIterator[Sent]:
        """Stream the records that writers have sent."""
        return _streamed(partial(self._archive.sent, after, upto))

    async def prune(self, *, events_before: int, days_before: date, most: int) -> int:
        """Delete events and sums before the given times."""
        return await self._write(self._archive.prune, events_before, days_before, most)

    async def forget(self, user: str, *, most: int) -> int:
        """Delete a user's events and mirrored profile, and give their sums to `FORGOTTEN`."""
        await asyncio.to_thread(self._mirror.forget, user)
        return await self._write(self._archive.forget, user, most)

    async def compact(self) -> None:
        """Remove all traces of deleted records."""
        await self._write(self._archive.compact)

    async def size(self) -> int:
        """Return the size in bytes."""
        return await asyncio.to_thread(self._archive.size)

    async def health(self) -> None:
        """Complete an interrupted batch, and write a probe."""
        await self._write(self._archive.health)

    async def keep_profiles(self, profiles: Sequence[UserProfile]) -> None:
        """Mirror profiles."""
        await asyncio.to_thread(self._mirror.keep_profiles, profiles)

    def profiles(self) -> AsyncIterator[UserProfile]:
        """Stream the mirrored profiles."""
        return _streamed(self._mirror.profiles)

    async def keep_limits(self, limits: Sequence[Mapping[str, Any]]) -> None:
        """Mirror the limits in force."""
        await asyncio.to_thread(self._mirror.keep_limits, limits)

    async def _write(self, step: Callable[..., ItemT], *what: Any) -> ItemT:
        async with self._writing:
            return await asyncio.to_thread(step, *what)


async def _streamed(begin: Callable[[], Iterator[ItemT]]) -> AsyncIterator[ItemT]:
    async for page in _pages(begin):
        for item in page:
            yield item


async def _pages(begin: Callable[[], Iterator[ItemT]]) -> AsyncIterator[list[ItemT]]:
    """Iterate in a thread, a page at a time, since each step may block on the disk."""
    items = begin()
    while page := await asyncio.to_thread(lambda: list(islice(items, PAGE))):
        yield page


@asynccontextmanager
async def open_store(folder: Path, zone: ZoneInfo) -> AsyncIterator[PartitionedStore]:
    """Open the files of a folder; create it if it does not exist.

    Raises:
        StorageError: It cannot be opened, its days are of another time zone, or another system wrote it.
        StorageVersionError: A newer version of the package wrote it.
    """
    archive = await asyncio.to_thread(Archive, folder, zone)
    try:
        yield PartitionedStore(archive, MirrorFiles(folder))
    finally:
        await asyncio.to_thread(archive.close)

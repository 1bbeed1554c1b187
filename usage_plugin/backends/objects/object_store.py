"""The store `objects`: the history in an object store, behind threads, so that no event loop waits for the network."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from usage_plugin.backends.objects.segments import total_size
from usage_plugin.domain.store import Aggregate, DailySum, EventPosition, Grouping, UsageFilter, UsageStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from datetime import date
    from zoneinfo import ZoneInfo

    from usage_plugin.backends.objects.object_history import ObjectHistory
    from usage_plugin.backends.objects.queries import Queries
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.domain.windows import Window

ItemT = TypeVar("ItemT")

PAGE = 250


class ObjectStore(UsageStore):
    """The history in an object store."""

    def __init__(self, history: ObjectHistory, queries: Queries) -> None:
        """Use an open history; `open_store` opens it."""
        self._history = history
        self._queries = queries
        # One change at a time in this process: the others would only lose the race for the head.
        self._writing = asyncio.Lock()

    async def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:
        """Add numbered events, all or none."""
        await self._write(self._history.append, writer, events)

    async def append_sums(self, writer: str, sums: Sequence[tuple[int, DailySum]]) -> None:
        """Add numbered sums, all or none."""
        await self._write(self._history.append, writer, sums)

    async def watermark(self, writer: str) -> int:
        """Return the number of the writer's last event or sum."""
        head = await asyncio.to_thread(self._history.head)
        return head.writers.get(writer, 0)

    async def aggregate(self, by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter) -> Aggregate:
        """Sum the days from first to last."""
        return await asyncio.to_thread(self._queries.aggregate, by, first, last, usage_filter)

    def events(
        self,
        window: Window,
        usage_filter: UsageFilter,
        *,
        after: EventPosition | None = None,
        newest_first: bool = False,
    ) -> AsyncIterator[UsageEvent]:
        """Stream events admitted in a window."""
        return _streamed(partial(self._queries.events, window, usage_filter, after, newest_first=newest_first))

    def daily(self, first: date, last: date, usage_filter: UsageFilter) -> AsyncIterator[Sequence[DailySum]]:
        """Stream the sums of days."""
        return _pages(partial(self._queries.daily, first, last, usage_filter))

    async def prune(self, *, events_before: int, days_before: date, most: int) -> int:
        """Delete events and sums before the given times."""
        return await self._write(self._history.prune, events_before, days_before, most)

    async def forget(self, user: str, *, most: int) -> int:
        """Delete a user's events, and give their sums to `FORGOTTEN`."""
        return await self._write(self._history.forget, user, most)

    async def compact(self) -> None:
        """Delete all segments that the history does not name any more."""
        await self._write(self._history.sweep)

    async def size(self) -> int:
        """Return the size in bytes."""
        head = await asyncio.to_thread(self._history.head)
        return total_size(list(head.segments()))

    async def health(self) -> None:
        """Write a probe."""
        await self._write(self._history.health)

    async def _write(self, step: Callable[..., ItemT], *what: Any) -> ItemT:
        async with self._writing:
            return await asyncio.to_thread(step, *what)


async def _streamed(begin: Callable[[], Iterator[ItemT]]) -> AsyncIterator[ItemT]:
    async for page in _pages(begin):
        for item in page:
            yield item


async def _pages(begin: Callable[[], Iterator[ItemT]]) -> AsyncIterator[list[ItemT]]:
    """Iterate in a thread, a page at a time, since each step may block on the network."""
    items = begin()
    while page := await asyncio.to_thread(lambda: list(islice(items, PAGE))):
        yield page


@asynccontextmanager
async def open_store(url: str, settings: Mapping[str, str], zone: ZoneInfo) -> AsyncIterator[ObjectStore]:
    """Open the history below a URL; create its first object if there is none.

    Args:
        url: The bucket and the prefix.
        settings: The driver's settings, with the credentials.
        zone: The time zone of the days.

    Raises:
        StorageError: It cannot be opened, or its days are of another time zone.
        StorageVersionError: A newer version of the package wrote it.
    """
    # Only an open store needs the driver.
    from usage_plugin.backends.objects.bucket import Bucket  # noqa: PLC0415
    from usage_plugin.backends.objects.object_history import ObjectHistory  # noqa: PLC0415
    from usage_plugin.backends.objects.queries import Queries  # noqa: PLC0415

    history = await asyncio.to_thread(lambda: ObjectHistory(Bucket(url, settings), zone))
    queries = Queries(history)
    try:
        yield ObjectStore(history, queries)
    finally:
        await asyncio.to_thread(queries.close)

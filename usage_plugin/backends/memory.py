"""The `memory` backend: a store that loses its data when the process ends.

It is for tests and first experiments, and it is the simplest complete implementation of a store.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from usage_plugin.domain.store import (
    Aggregate,
    DailySum,
    EventPosition,
    Grouping,
    UsageFilter,
    UsageStore,
    daily_sum,
)
from usage_plugin.domain.subjects import FORGOTTEN
from usage_plugin.domain.usage import UsageEvent, UsageTotals
from usage_plugin.domain.windows import local_date
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.interface import BackendContext, NoOptions, StorageBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import date
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.windows import Window


_NOTHING = UsageTotals()


class MemoryStore(UsageStore):
    """A store that keeps events in a sorted list, and sums by day and names."""

    def __init__(self, zone: ZoneInfo) -> None:
        """Create an empty store."""
        self._zone = zone
        self._events: list[tuple[EventPosition, UsageEvent]] = []
        self._days: defaultdict[DailySum, UsageTotals] = defaultdict(UsageTotals)
        self._watermarks: dict[str, int] = {}

    async def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:
        """Add numbered events, all or none."""
        for seq, event in events:
            if seq > self._watermarks.get(writer, 0):
                position = EventPosition(event.started_at, event.event_id)
                if not self._has(position):
                    insort(self._events, (position, event), key=lambda entry: entry[0])
                    self._add(daily_sum(event, self._zone))
                self._watermarks[writer] = seq

    async def append_sums(self, writer: str, sums: Sequence[tuple[int, DailySum]]) -> None:
        """Add numbered sums of days, all or none."""
        for seq, one in sums:
            if seq > self._watermarks.get(writer, 0):
                if any(one.totals):
                    self._add(one)
                self._watermarks[writer] = seq

    def _add(self, one: DailySum) -> None:
        key = one._replace(totals=_NOTHING)
        self._days[key] = self._days[key].plus(one.totals)

    def _has(self, position: EventPosition) -> bool:
        at = bisect_left(self._events, position, key=lambda entry: entry[0])
        return at < len(self._events) and self._events[at][0] == position

    async def watermark(self, writer: str) -> int:
        """Return the number of the writer's last event or sum."""
        return self._watermarks.get(writer, 0)

    async def aggregate(self, by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter) -> Aggregate:
        """Sum the days from first to last."""
        groups: defaultdict[tuple[str | None, ...], UsageTotals] = defaultdict(UsageTotals)
        for one in self._sums(first, last, usage_filter):
            group = one.group(by)
            groups[group] = groups[group].plus(one.totals)
        return Aggregate(dict(groups), dict(self._watermarks))

    async def events(
        self,
        window: Window,
        usage_filter: UsageFilter,
        *,
        after: EventPosition | None = None,
        newest_first: bool = False,
    ) -> AsyncIterator[UsageEvent]:
        """Stream events admitted in a window."""
        events = self._events[::-1] if newest_first else self._events[:]
        for position, event in events:
            behind = after is None or (position < after if newest_first else position > after)
            if behind and window.start <= position.started_at < window.end and usage_filter.takes(event):
                yield event

    async def daily(self, first: date, last: date, usage_filter: UsageFilter) -> AsyncIterator[list[DailySum]]:
        """Stream the sums of days."""
        yield self._sums(first, last, usage_filter)

    def _sums(self, first: date, last: date, usage_filter: UsageFilter) -> list[DailySum]:
        days = [key for key in self._days if first <= key.day <= last and usage_filter.takes(key)]
        days.sort(key=lambda key: (key.day, [name or "" for name in key.names]))
        return [key._replace(totals=self._days[key]) for key in days]

    async def prune(self, *, events_before: int, days_before: date, most: int) -> int:
        """Delete events and sums before the given times."""
        events = [entry for entry in self._events if self._is_old(entry[1], events_before, days_before)][:most]
        days = [key for key in self._days if key.day < days_before][: most - len(events)]
        self._drop(events, days)
        return len(events) + len(days)

    def _is_old(self, event: UsageEvent, before: int, days_before: date) -> bool:
        return event.started_at < before or local_date(event.started_at, self._zone) < days_before

    async def forget(self, user: str, *, most: int) -> int:
        """Delete a user's events, and give their sums to `FORGOTTEN`."""
        if user == FORGOTTEN:
            return 0
        events = [entry for entry in self._events if user in (entry[1].user, entry[1].end_user)][:most]
        days = [key for key in self._days if user in (key.user, key.end_user)][: most - len(events)]
        for key in days:
            self._add(key.without(user)._replace(totals=self._days[key]))
        self._drop(events, days)
        return len(events) + len(days)

    def _drop(self, events: Sequence[tuple[EventPosition, UsageEvent]], days: Sequence[DailySum]) -> None:
        gone = {position for position, _ in events}
        self._events = [entry for entry in self._events if entry[0] not in gone]
        for key in days:
            del self._days[key]

    async def size(self) -> int:
        """Return the estimated size in bytes, at some 1,000 for an event and 300 for a sum."""
        return 1_000 * len(self._events) + 300 * len(self._days)

    async def health(self) -> None:
        """Return at once: memory always accepts an event."""


class MemoryBackend(StorageBackend[NoOptions]):
    """The backend that keeps the history in the memory of the writing process."""

    name = "memory"
    options_model = NoOptions

    @asynccontextmanager
    async def open(self, options: NoOptions, context: BackendContext) -> AsyncIterator[UsageStore]:
        """Open an empty store."""
        del options
        yield MemoryStore(context.zone)


@hookimpl
def usage_register_storage_backends() -> list[StorageBackend[Any]]:
    """Register the memory backend."""
    return [MemoryBackend()]

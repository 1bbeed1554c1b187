"""The `memory` backend: a store that forgets everything when the process ends.

For tests and first tries. It is also the plainest statement of what a store must do.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from usage_plugin.domain.store import Aggregate, EventPosition, Grouping, UsageFilter, UsageStore, group_name
from usage_plugin.domain.usage import UsageEvent, UsageTotals, totals_of
from usage_plugin.domain.windows import days_window
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.interface import NoOptions, StorageBackend, Surroundings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import date
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.windows import Window


class MemoryStore(UsageStore):
    """Keeps events in a sorted list, and adds them up when asked."""

    def __init__(self, zone: ZoneInfo) -> None:
        """Start empty."""
        self._zone = zone
        self._events: list[tuple[EventPosition, UsageEvent]] = []
        self._watermarks: dict[str, int] = {}

    async def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:
        """Add numbered events, all or none."""
        for seq, event in events:
            if seq > self._watermarks.get(writer, 0):
                position = EventPosition(event.started_at, event.event_id)
                if not self._has(position):
                    insort(self._events, (position, event), key=lambda entry: entry[0])
                self._watermarks[writer] = seq

    def _has(self, position: EventPosition) -> bool:
        at = bisect_left(self._events, position, key=lambda entry: entry[0])
        return at < len(self._events) and self._events[at][0] == position

    async def watermark(self, writer: str) -> int:
        """Give the number of the writer's last event."""
        return self._watermarks.get(writer, 0)

    async def aggregate(self, by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter) -> Aggregate:
        """Sum the days from first to last."""
        groups: defaultdict[tuple[str | None, ...], UsageTotals] = defaultdict(UsageTotals)
        async for event in self.events(days_window(first, last, self._zone), usage_filter):
            group = tuple(group_name(event, grouping, self._zone) for grouping in by)
            groups[group] = groups[group].plus(totals_of(event))
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

    async def health(self) -> None:
        """Memory always takes an event."""


class MemoryBackend(StorageBackend[NoOptions]):
    """Keeps the history in the memory of the process that writes it."""

    name = "memory"
    options_model = NoOptions

    @asynccontextmanager
    async def open(self, options: NoOptions, surroundings: Surroundings) -> AsyncIterator[UsageStore]:
        """Start an empty store."""
        del options
        yield MemoryStore(surroundings.zone)


@hookimpl
def usage_register_storage_backends() -> list[StorageBackend[Any]]:
    """Register the memory backend."""
    return [MemoryBackend()]

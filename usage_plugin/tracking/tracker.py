"""The tracker: everything that can be asked of the history, complete to the last settled request.

An answer is the store's, plus the events of the outbox that the store does not have yet. The ledger is always read
first: an event that moves from one to the other between the two reads is then seen twice and counted once.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.store import EventPosition, Grouping, UsageFilter, daily_sum
from usage_plugin.domain.usage import UsageTotals, decode_event, totals_of
from usage_plugin.domain.windows import FOREVER, Window, days_window, local_date
from usage_plugin.tracking.cache import user_day, user_month

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import date
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.store import UsageStore
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.tracking.cache import UsageCache, UserSpan

_PAGE = 1_000
ALWAYS = Window(0, FOREVER)


class ReportRow(NamedTuple):
    """One group of a report: its names in the order asked for, and its sums."""

    group: tuple[str | None, ...]
    totals: UsageTotals


class UsageReader:
    """Reads usage: reports, events, and a user's sums through the cache."""

    def __init__(self, ledger: Ledger, store: UsageStore, cache: UsageCache, zone: ZoneInfo, clock: Clock) -> None:
        """Take the parts; `zone` is where days begin."""
        self._ledger = ledger
        self._store = store
        self._cache = cache
        self._zone = zone
        self._clock = clock

    def today(self) -> date:
        """Say which day it is in the configured zone."""
        return local_date(self._clock.now(), self._zone)

    async def report(
        self,
        by: Sequence[Grouping],
        first: date,
        last: date,
        usage_filter: UsageFilter = UsageFilter(),  # noqa: B008
    ) -> list[ReportRow]:
        """Sum the days from first to last, both included; the dearest group first."""
        waiting = self._waiting(0)
        stored = await self._store.aggregate(by, first, last, usage_filter)
        groups: defaultdict[tuple[str | None, ...], UsageTotals] = defaultdict(UsageTotals, stored.groups)
        watermark = stored.watermarks.get(self._ledger.writer, 0)
        span = days_window(first, last, self._zone)
        for seq, event in waiting:
            if seq > watermark and span.start <= event.started_at < span.end and usage_filter.takes(event):
                one = daily_sum(event, self._zone)
                group = one.group(by)
                groups[group] = groups[group].plus(one.totals)
        rows = [ReportRow(group, totals) for group, totals in groups.items()]
        chronological = bool(by) and by[0] in ("day", "month")
        return sorted(rows, key=lambda row: _order(row, chronological=chronological))

    async def events(
        self,
        window: Window = ALWAYS,
        usage_filter: UsageFilter = UsageFilter(),  # noqa: B008  # immutable
        *,
        newest_first: bool = False,
    ) -> AsyncIterator[UsageEvent]:
        """Stream events in the order of their admission, those in the outbox included."""
        waiting = {
            EventPosition(event.started_at, event.event_id): event
            for _, event in self._waiting(0)
            if window.start <= event.started_at < window.end and usage_filter.takes(event)
        }
        queue = sorted(waiting, reverse=not newest_first)
        async for event in self._store.events(window, usage_filter, newest_first=newest_first):
            position = EventPosition(event.started_at, event.event_id)
            while queue and (queue[-1] > position if newest_first else queue[-1] < position):
                yield waiting[queue.pop()]
            if queue and queue[-1] == position:
                queue.pop()
            yield event
        while queue:
            yield waiting[queue.pop()]

    def settled_after(self, seq: int) -> list[tuple[int, UsageEvent]]:
        """List events with a number above `seq` that are still in the outbox, for following along."""
        return [(entry.seq, decode_event(entry.event)) for entry in self._ledger.outbox(seq, _PAGE)]

    async def user_day(self, user: str, day: date | None = None) -> UsageTotals:
        """Give a user's sums of a day (today if none is given), from the cache if it has them."""
        return await self._sums(user_day(user, day or self.today()))

    async def user_month(self, user: str, day: date | None = None) -> UsageTotals:
        """Give a user's sums of the month that a day is in (today if none is given), from the cache if it has them."""
        return await self._sums(user_month(user, day or self.today()))

    async def _sums(self, key: UserSpan) -> UsageTotals:
        self._cache.catch_up(self._ledger)
        cached = self._cache.get(key)
        if cached is not None:
            return cached
        usage_filter = UsageFilter(user=key.user)
        stored = await self._store.aggregate((), key.first, key.last, usage_filter)
        watermark = stored.watermarks.get(self._ledger.writer, 0)
        self._cache.catch_up(self._ledger)
        totals = stored.groups.get((), UsageTotals())
        span = days_window(key.first, key.last, self._zone)
        for seq, event in self._waiting(watermark):
            if seq <= self._cache.seq and span.start <= event.started_at < span.end and usage_filter.takes(event):
                totals = totals.plus(totals_of(event))
        if watermark <= self._cache.seq:
            self._cache.put(key, totals)
        return totals

    def _waiting(self, after: int) -> list[tuple[int, UsageEvent]]:
        """Read the outbox behind what the store has acknowledged, and behind `after`."""
        waiting = []
        seq = max(after, self._ledger.acknowledged())
        while page := self._ledger.outbox(seq, _PAGE):
            waiting += [(entry.seq, decode_event(entry.event)) for entry in page]
            seq = page[-1].seq
        return waiting


def _order(row: ReportRow, *, chronological: bool) -> tuple[object, ...]:
    names = tuple(name or "" for name in row.group)
    return names if chronological else (-row.totals.cost, -row.totals.requests, names)

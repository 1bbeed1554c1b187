"""A simple model of a store, from dictionaries and loops, with which contracts compare stores."""

from __future__ import annotations

from collections import defaultdict
from datetime import date
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.store import DailySum, UsageFilter, daily_sum
from usage_plugin.domain.usage import UsageEvent, UsageTotals
from usage_plugin.domain.windows import ALWAYS, local_date
from usage_plugin.testing.builders import batch_of
from usage_plugin.testing.openings import BERLIN

if TYPE_CHECKING:
    from collections.abc import Sequence
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.store import Grouping, UsageStore
    from usage_plugin.domain.windows import Window

FIRST_DAY, LAST_DAY = date(1970, 1, 1), date(2200, 1, 1)
EVERYTHING = UsageFilter()
_NOTHING = UsageTotals()


class Contents(NamedTuple):
    """The complete contents of a store: events by position, sums by day and names (with empty totals), watermarks."""

    events: list[UsageEvent]
    sums: dict[DailySum, UsageTotals]
    watermarks: dict[str, int]


async def contents_of(store: UsageStore) -> Contents:
    """Read the complete contents; fail if a combination of names occurs twice in a day."""
    sums: dict[DailySum, UsageTotals] = {}
    for one in await days_of(store):
        key = one._replace(totals=_NOTHING)
        assert key not in sums, f"{key} came twice"
        sums[key] = one.totals
    watermarks = (await store.aggregate((), FIRST_DAY, LAST_DAY, EVERYTHING)).watermarks
    return Contents(await events_of(store), sums, dict(watermarks))


async def days_of(
    store: UsageStore, first: date = FIRST_DAY, last: date = LAST_DAY, usage_filter: UsageFilter = EVERYTHING
) -> list[DailySum]:
    """Read the daily sums of a span, or all of them."""
    return [one async for sums in store.daily(first, last, usage_filter) for one in sums]


async def events_of(
    store: UsageStore, window: Window = ALWAYS, usage_filter: UsageFilter = EVERYTHING
) -> list[UsageEvent]:
    """Read the events of a window, or all of them."""
    return [event async for event in store.events(window, usage_filter)]


async def totals_in(store: UsageStore, usage_filter: UsageFilter = EVERYTHING) -> UsageTotals:
    """Return the totals of all events that match a filter."""
    groups = (await store.aggregate((), FIRST_DAY, LAST_DAY, usage_filter)).groups
    return groups.get((), _NOTHING)


async def prune_all(store: UsageStore, events_before: int, days_before: date, *, most: int) -> int:
    """Prune until no records are left to prune; return the number of deleted records."""
    gone = 0
    while count := await store.prune(events_before=events_before, days_before=days_before, most=most):
        gone += count
    return gone


async def forget_all(store: UsageStore, user: str, *, most: int) -> None:
    """Forget a user until no records are left to forget."""
    while await store.forget(user, most=most):
        pass


class StoreModel:
    """The expected contents of a store after the same operations."""

    def __init__(self, zone: ZoneInfo) -> None:
        """Start with an empty store."""
        self._zone = zone
        self._events: dict[str, UsageEvent] = {}
        self._sums: defaultdict[DailySum, UsageTotals] = defaultdict(UsageTotals)
        self._watermarks: dict[str, int] = {}

    def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:
        """Add the new records."""
        for seq, event in events:
            if seq > self._watermarks.get(writer, 0):
                self._watermarks[writer] = seq
                if event.event_id not in self._events:
                    self._events[event.event_id] = event
                    self._add(daily_sum(event, self._zone))

    def append_sums(self, writer: str, sums: Sequence[tuple[int, DailySum]]) -> None:
        """Add the new records."""
        for seq, one in sums:
            if seq > self._watermarks.get(writer, 0):
                self._watermarks[writer] = seq
                self._add(one)

    def _add(self, one: DailySum) -> None:
        key = one._replace(totals=_NOTHING)
        self._sums[key] = self._sums[key].plus(one.totals)

    def prune(self, events_before: int, days_before: date) -> None:
        """Delete all records that are too old."""
        for event in list(self._events.values()):
            if event.started_at < events_before or local_date(event.started_at, self._zone) < days_before:
                del self._events[event.event_id]
        for key in [key for key in self._sums if key.day < days_before]:
            del self._sums[key]

    def forget(self, user: str) -> None:
        """Delete a user's events, and move their sums to `FORGOTTEN`."""
        for event in list(self._events.values()):
            if user in (event.user, event.end_user):
                del self._events[event.event_id]
        for key in [key for key in self._sums if user in (key.user, key.end_user)]:
            self._add(key.without(user)._replace(totals=self._sums.pop(key)))

    def contents(self) -> Contents:
        """Return the contents in the form of `contents_of`."""
        events = sorted(self._events.values(), key=lambda event: (event.started_at, event.event_id))
        return Contents(events, dict(self._sums), dict(self._watermarks))

    def aggregate(
        self, by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter
    ) -> dict[tuple[str | None, ...], UsageTotals]:
        """Return the sums of the days from first to last."""
        groups: defaultdict[tuple[str | None, ...], UsageTotals] = defaultdict(UsageTotals)
        for key, totals in self._sums.items():
            if first <= key.day <= last and usage_filter.takes(key):
                groups[key.group(by)] = groups[key.group(by)].plus(totals)
        return dict(groups)


def books_with(events: int) -> StoreModel:
    """Return a model with the first events of the writer `w`, in Berlin's zone."""
    books = StoreModel(BERLIN)
    books.append("w", batch_of("w", 1, events))
    return books

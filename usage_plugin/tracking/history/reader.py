"""The reader: queries of the history, complete up to the last settled request.

A result combines the store's data with the events of the outbox that the store does not have yet
(`history.outbox_reader`).
"""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from datetime import date, timedelta
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from usage_plugin.domain.store import (
    EVENT_DIMENSIONS,
    HOUR_GROUPINGS,
    ROLLUP_DIMENSIONS,
    DailySum,
    EventDimension,
    EventPosition,
    Grouping,
    HourGrouping,
    KeepsHours,
    Ranks,
    Sorts,
    UsageFilter,
)
from usage_plugin.domain.usage import UsageTotals, sum_totals
from usage_plugin.domain.windows import ALWAYS, Window, days_window, local_date
from usage_plugin.errors import HistoryError, StorageUnavailableError
from usage_plugin.tracking.history.cache import user_day, user_month
from usage_plugin.tracking.history.chunking import in_steps
from usage_plugin.tracking.history.grouping import (
    add_to,
    in_days,
    in_hours,
    only_names,
    only_sums,
    row_order,
    sorted_rows,
)
from usage_plugin.tracking.history.outbox_reader import OutboxReader
from usage_plugin.tracking.history.packed_rows import ReportRow, Rows, in_order, merged
from usage_plugin.tracking.history.user_sums import UserSums

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.store import Aggregate, RollupDimension, UsageStore
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.tracking.history.cache import UsageCache
    from usage_plugin.tracking.history.outbox_reader import WaitingSums
    from usage_plugin.tracking.history.packed_rows import Group

PAGE = 1_000
RecordT = TypeVar("RecordT")
_NO_FILTER = UsageFilter()
_DAY = timedelta(days=1)


class Top(NamedTuple):
    """The most expensive groups of a report, the number of all groups, and their total."""

    rows: Sequence[ReportRow]
    in_all: int
    total: UsageTotals


class DayPage(NamedTuple):
    """A page of daily sums.

    Attributes:
        rows: one or more rows. Days are in order, and the sums of a day are in the store's order.
        growing: whether the outbox has requests of that day; then its sums are ordered by names.
    """

    rows: Sequence[DailySum]
    growing: bool


class DayPosition(NamedTuple):
    """The row after which a stream of daily sums continues."""

    day: date
    names: tuple[str | None, ...]
    growing: bool


class UsageReader:
    """Read usage: reports, events, and a user's sums from the cache."""

    def __init__(self, ledger: Ledger, store: UsageStore, cache: UsageCache, zone: ZoneInfo, clock: Clock) -> None:
        """Set the parts. `zone` is the time zone of days."""
        self._store = store
        self._zone = zone
        self._clock = clock
        self._outbox = OutboxReader(ledger)
        self._user_sums = UserSums(ledger, store, cache, zone)

    async def frozen(self) -> UsageReader:
        """Return a reader with the outbox as it is now. The outbox is read once for all following queries."""
        same = copy(self)
        same._outbox = await self._outbox.frozen()  # noqa: SLF001  # the same class
        return same

    def today(self) -> date:
        """Return the current day in the configured zone."""
        return local_date(self._clock.now(), self._zone)

    async def report(
        self,
        by: Sequence[Grouping | EventDimension],
        first: date,
        last: date,
        usage_filter: UsageFilter = _NO_FILTER,
        *,
        zone: ZoneInfo | None = None,
    ) -> Rows[ReportRow]:
        """Return sums of the days from `first` to `last`, both included.

        The most expensive group is first. If the first grouping is day, week or month, rows are ordered by name.

        Args:
            by: the groupings. Session and agent are summed from the remaining events.
            first: a day of the zone.
            last: a day of the zone.
            usage_filter: the names that count.
            zone: the time zone of the days; the configured one by default. Days of another zone are summed from the
                remaining events.

        Raises:
            HistoryError: some events of those days were deleted, or were imported as sums.
        """
        sums = only_sums(by)
        if sums is None or (zone is not None and str(zone) != str(self._zone)):
            groups = await self._sums_of_events(zone or self._zone, by, first, last, usage_filter)
        else:
            waiting = await self._outbox.sums(
                days_window(first, last, self._zone), usage_filter, partial(in_days, self._zone, sums)
            )
            names = only_names(sums)
            if names and isinstance(self._store, Sorts):
                with suppress(StorageUnavailableError):
                    return await self._sorted(self._store, names, first, last, usage_filter, waiting)
            groups, watermarks = await self._store.aggregate(sums, first, last, usage_filter)
            await _complete(groups, waiting, watermarks)
        chronological = bool(by) and by[0] in ("day", "week", "month")
        return await sorted_rows(groups, chronological=chronological)

    async def top(
        self,
        by: Sequence[Grouping | EventDimension],
        first: date,
        last: date,
        usage_filter: UsageFilter = _NO_FILTER,
        *,
        most: int,
    ) -> Top:
        """Return the most expensive groups of the days from `first` to `last`.

        If the store supports ranking, the other groups are not read.
        """
        names = only_names(by)
        if names is not None and isinstance(self._store, Ranks):
            with suppress(StorageUnavailableError):
                return await self._ranked(self._store, names, first, last, usage_filter, most)
        found = await self.report(by, first, last, usage_filter)
        total = UsageTotals()
        async for part in in_steps(found):
            total = sum_totals([total, *(row.totals for row in part)])
        by_cost = found if names else await in_order(found, row_order)
        return Top(by_cost[:most], len(found), total)

    async def _ranked(
        self,
        store: Ranks,
        by: Sequence[RollupDimension],
        first: date,
        last: date,
        usage_filter: UsageFilter,
        most: int,
    ) -> Top:
        waiting = await self._outbox.sums(
            days_window(first, last, self._zone), usage_filter, partial(in_days, self._zone, by)
        )
        ranking = await store.ranking(by, first, last, usage_filter, most=most, also=waiting.groups)
        groups = dict(ranking.groups)
        await _complete(groups, waiting, ranking.watermarks)
        new = len(groups) - len(ranking.groups)
        rows = await sorted_rows(groups, chronological=False)
        # Read the total afterwards, so that no group exceeds it even if events are recorded meanwhile.
        total = sum_totals(row.totals for row in await self.report((), first, last, usage_filter))
        return Top(rows[:most], ranking.in_all + new, total)

    async def _sorted(
        self,
        store: Sorts,
        by: Sequence[RollupDimension],
        first: date,
        last: date,
        usage_filter: UsageFilter,
        waiting: WaitingSums,
    ) -> Rows[ReportRow]:
        rows = Rows(ReportRow)
        watermarks: Mapping[str, int] = {}
        late: dict[Group, UsageTotals] = {}
        async for page in store.in_order_of_cost(by, first, last, usage_filter):
            late |= {group: page.groups.pop(group) for group in waiting.groups & page.groups.keys()}
            rows.add(page.groups.items())
            watermarks = page.watermarks
        await _complete(late, waiting, watermarks)
        if not late:
            return rows
        return await merged([rows, await sorted_rows(late, chronological=False)], row_order)

    async def hours(
        self, by: Sequence[HourGrouping], first: date, last: date, usage_filter: UsageFilter = _NO_FILTER
    ) -> Rows[ReportRow]:
        """Return sums of the hours of the days from `first` to `last`, ordered by the groups' names.

        An hour is named by its start with its offset, such as `2026-10-25T02:00+01:00`. Imported days have no hours.
        """
        counted = partial(in_hours, self._zone, by)
        waiting = await self._outbox.sums(days_window(first, last, self._zone), usage_filter, counted)
        stored = await self._kept_hours(by, first, last, usage_filter)
        groups: dict[Group, UsageTotals] = {}
        if stored is None:
            async for event in self.events(days_window(first, last, self._zone), usage_filter):
                add_to(groups, *counted(event))
        else:
            groups = stored.groups
            await _complete(groups, waiting, stored.watermarks)
        return await sorted_rows(groups, chronological=True)

    async def _kept_hours(
        self, by: Sequence[HourGrouping], first: date, last: date, usage_filter: UsageFilter
    ) -> Aggregate | None:
        if not isinstance(self._store, KeepsHours) or not usage_filter.wanted().keys() <= set(HOUR_GROUPINGS):
            return None
        with suppress(StorageUnavailableError):
            return await self._store.aggregate_hours(by, first, last, usage_filter)
        return None

    async def days(self, first: date, last: date, usage_filter: UsageFilter = _NO_FILTER) -> AsyncIterator[DailySum]:
        """Yield the sums of the days from `first` to `last`, by day and names, in bounded memory."""
        async for page in self.day_pages(first, last, usage_filter):
            for one in page.rows:
                yield one

    async def day_pages(
        self,
        first: date,
        last: date,
        usage_filter: UsageFilter = _NO_FILTER,
        *,
        after: DayPosition | None = None,
    ) -> AsyncIterator[DayPage]:
        """Yield pages of the sums of the days from `first` to `last`, yielding to the event loop in between.

        A stream cannot report the store's watermark. So a day with requests in the outbox is summed as in `report`,
        with all sums of that day in memory.

        Raises:
            HistoryError: the row of `after` was not found at its position: it was erased or pruned, or its day has no
                more requests in the outbox.
        """
        stream = self._day_pages(first if after is None else after.day, last, usage_filter, after)
        sought = None if after is None else (after.day, after.names)
        async for page in stream:
            rows = page.rows
            if sought is not None and rows:
                found = next((at for at, one in enumerate(rows) if (one.day, one.names) == sought), None)
                if found is None and rows[-1].day <= sought[0]:
                    continue
                if found is None:
                    break
                rows, sought = rows[found + 1 :], None
            if rows:
                yield DayPage(rows, page.growing)
        if sought is not None:
            raise _moved(sought[0])

    async def _day_pages(
        self, first: date, last: date, usage_filter: UsageFilter, after: DayPosition | None
    ) -> AsyncIterator[DayPage]:
        waiting = self._outbox.waiting(days_window(first, last, self._zone), usage_filter)
        growing = {local_date(event.started_at, self._zone) async for event in waiting}
        if after is not None and (after.day in growing) != after.growing:
            raise _moved(after.day)
        for day in sorted(growing):
            if first < day:
                async for rows in self._store.daily(first, day - _DAY, usage_filter):
                    yield DayPage(rows, growing=False)
            async for rows in pages(self._sums_of(day, usage_filter)):
                yield DayPage(rows, growing=True)
            first = day + _DAY
        if first <= last:
            async for rows in self._store.daily(first, last, usage_filter):
                yield DayPage(rows, growing=False)

    async def _sums_of(self, day: date, usage_filter: UsageFilter) -> AsyncIterator[DailySum]:
        rows = await self.report(ROLLUP_DIMENSIONS, day, day, usage_filter)
        for row in sorted(rows, key=lambda row: row_order(row, chronological=True)):
            yield DailySum._make((day, *row.group, row.totals))

    async def events(
        self,
        window: Window = ALWAYS,
        usage_filter: UsageFilter = _NO_FILTER,
        *,
        after: EventPosition | None = None,
        newest_first: bool = False,
    ) -> AsyncIterator[UsageEvent]:
        """Yield events in the order of admission, including those in the outbox; resume after the position `after`."""
        waiting = {}
        async for event in self._outbox.waiting(window, usage_filter):
            position = EventPosition(event.started_at, event.event_id)
            if after is None or (position < after if newest_first else position > after):
                waiting[position] = event
        queue = sorted(waiting, reverse=not newest_first)
        async for event in self._store.events(window, usage_filter, after=after, newest_first=newest_first):
            position = EventPosition(event.started_at, event.event_id)
            while queue and (queue[-1] > position if newest_first else queue[-1] < position):
                yield waiting[queue.pop()]
            if queue and queue[-1] == position:
                queue.pop()
            yield event
        while queue:
            yield waiting[queue.pop()]

    def settled_after(self, seq: int) -> list[tuple[int, UsageEvent]]:
        """Return a page of the outbox's events with a number above `seq`, to follow new events."""
        return self._outbox.page(seq, PAGE)

    async def user_day(self, user: str, day: date | None = None) -> UsageTotals:
        """Return a user's sums of a day (today by default), from the cache if it has them."""
        return await self._user_sums.of(user_day(user, day or self.today()))

    async def user_month(self, user: str, day: date | None = None) -> UsageTotals:
        """Return a user's sums of the month of a day (today by default), from the cache if it has them."""
        return await self._user_sums.of(user_month(user, day or self.today()))

    async def _sums_of_events(
        self,
        zone: ZoneInfo,
        by: Sequence[Grouping | EventDimension],
        first: date,
        last: date,
        usage_filter: UsageFilter,
    ) -> dict[Group, UsageTotals]:
        """Return sums of a zone's days from events, if all events of the configured zone's days around them exist."""
        span = days_window(first, last, zone)
        own = local_date(span.start, self._zone), local_date(span.end - 1, self._zone)
        expected = sum(row.totals.requests for row in await self.report((), *own, usage_filter))
        groups: dict[Group, UsageTotals] = {}
        async for event in self.events(days_window(*own, self._zone), usage_filter):
            expected -= 1
            if span.start <= event.started_at < span.end:
                add_to(groups, *in_days(zone, by, event))
        if expected > 0:
            raise HistoryError(
                f"{_summed_from_events(zone, by)} are summed from events, and of {expected:,} requests from {own[0]} to"
                f" {own[1]} there are none any more, or they were imported as sums.",
                hint=f"Ask for later days. Kept as sums are days of {self._zone}, by {', '.join(ROLLUP_DIMENSIONS)}.",
            )
        return groups


async def _complete(groups: dict[Group, UsageTotals], waiting: WaitingSums, watermarks: Mapping[str, int]) -> None:
    """Add the events that the store did not have when it was read."""
    async for group, totals in waiting.behind(watermarks):
        add_to(groups, group, totals)


def _summed_from_events(zone: ZoneInfo, by: Sequence[Grouping | EventDimension]) -> str:
    named = [name for name in by if name in EVENT_DIMENSIONS]
    return f"Groups by {' and '.join(named)}" if named else f"Days of {zone}"


async def named(events: AsyncIterator[UsageEvent], names: Mapping[EventDimension, str]) -> AsyncIterator[UsageEvent]:
    """Yield the events of a stream that have these names."""
    async for event in events:
        if has_names(event, names):
            yield event


def has_names(event: UsageEvent, names: Mapping[EventDimension, str]) -> bool:
    """Whether an event has these names."""
    return all(getattr(event, dimension) == name for dimension, name in names.items())


async def pages(rows: AsyncIterator[RecordT]) -> AsyncIterator[list[RecordT]]:
    """Yield a stream in pages of `PAGE` rows; the last page has the rest."""
    page: list[RecordT] = []
    async for one in rows:
        page.append(one)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page


def _moved(day: date) -> HistoryError:
    return HistoryError(
        f"The row of {day} to continue after was not found: it was erased or pruned, or its day is over.",
        hint=f"Start again from {day}.",
    )

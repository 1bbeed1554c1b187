"""Answers from a history: sums and streams. Each begins with one head, and shows its state.

A segment that is read may be replaced by others meanwhile. Then the answer goes on with the newer head, which has the
same records: sums begin again, from the cache, and streams continue behind the last record.
"""

from __future__ import annotations

import heapq
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby, islice
from typing import TYPE_CHECKING

from usage_plugin.backends.objects.segments import NOTHING, event_of, order_of, parse_sums
from usage_plugin.domain.store import Aggregate, DailySum, EventPosition
from usage_plugin.errors import ObjectReplacedError, StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import date

    from usage_plugin.backends.objects.head import Head
    from usage_plugin.backends.objects.object_history import ObjectHistory
    from usage_plugin.backends.objects.segments import Segment
    from usage_plugin.domain.store import Grouping, UsageFilter
    from usage_plugin.domain.usage import UsageEvent, UsageTotals
    from usage_plugin.domain.windows import Window

_READERS = 8
"""The maximum number of requests at once for one report."""
_READ_AHEAD = 64
"""The number of segments whose sums are in memory at once, except for the cache."""
_TRIES = 20


class Queries:
    """Reads a history. All calls block on the network."""

    def __init__(self, history: ObjectHistory) -> None:
        """Read a history; `close` ends the threads."""
        self._history = history
        self._readers = ThreadPoolExecutor(_READERS, "usage_objects")

    def close(self) -> None:
        """End the threads."""
        self._readers.shutdown()

    def aggregate(self, by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter) -> Aggregate:
        """Sum the days from first to last by group."""
        for head in self._heads():
            with suppress(ObjectReplacedError):
                groups: dict[tuple[str | None, ...], UsageTotals] = {}
                for one in self._sums(_between(head, first, last)):
                    if usage_filter.takes(one):
                        group = one.group(by)
                        groups[group] = groups.get(group, NOTHING).plus(one.totals)
                return Aggregate(groups, dict(head.writers))
        raise self._gone()

    def daily(self, first: date, last: date, usage_filter: UsageFilter) -> Iterator[DailySum]:
        """Yield the sums of days, ordered by day."""
        days = sorted({segment.day for segment in _between(self._history.head(), first, last)})
        for day in days:
            yield from (one for one in self._sums_of_day(day) if usage_filter.takes(one))

    def _sums_of_day(self, day: date) -> Iterator[DailySum]:
        """Yield each combination of names once."""
        for head in self._heads():
            with suppress(ObjectReplacedError):
                blocks = self._blocks(head.days.get(day, ()))
                merged = heapq.merge(*(parse_sums(day, block) for block in blocks), key=lambda one: order_of(one.names))
                return (_total(same) for _, same in groupby(merged, key=lambda one: one.names))
        raise self._gone()

    def events(
        self, window: Window, usage_filter: UsageFilter, after: EventPosition | None, *, newest_first: bool
    ) -> Iterator[UsageEvent]:
        """Yield the events admitted in a window, in order."""
        for head in self._heads():
            with suppress(ObjectReplacedError):
                days = sorted(head.days, reverse=newest_first)
                for day in days:
                    wanted = [one for one in head.days[day] if _overlaps(one, window, after, newest_first=newest_first)]
                    for line in self._history.reader.merged(wanted, newest_first=newest_first):
                        position = line.position
                        if after is not None and (position >= after if newest_first else position <= after):
                            continue
                        after = position
                        if window.start <= position.started_at < window.end:
                            event = event_of(line)
                            if usage_filter.takes(event):
                                yield event
                return
        raise self._gone()

    def _heads(self) -> Iterator[Head]:
        for _ in range(_TRIES):
            yield self._history.head()

    def _gone(self) -> StorageUnavailableError:
        return StorageUnavailableError(
            "Segments that the head names are missing, or are replaced too often.",
            hint="Try again. If it remains, restore them if the bucket keeps versions.",
        )

    def _sums(self, segments: Iterable[Segment]) -> Iterator[DailySum]:
        left = iter(segments)
        while chosen := list(islice(left, _READ_AHEAD)):
            for segment, block in zip(chosen, self._blocks(chosen), strict=True):
                yield from parse_sums(segment.day, block)

    def _blocks(self, segments: Sequence[Segment]) -> list[bytes]:
        return list(self._readers.map(self._history.reader.sums_block, segments))


def _total(same: Iterable[DailySum]) -> DailySum:
    first, *others = same
    totals = first.totals
    for one in others:
        totals = totals.plus(one.totals)
    return first._replace(totals=totals)


def _between(head: Head, first: date, last: date) -> Iterator[Segment]:
    return (segment for segment in head.segments() if first <= segment.day <= last)


def _overlaps(segment: Segment, window: Window, after: EventPosition | None, *, newest_first: bool) -> bool:
    if not segment.events or segment.first >= window.end or segment.last < window.start:
        return False
    if after is None:
        return True
    return segment.first <= after.started_at if newest_first else segment.last >= after.started_at

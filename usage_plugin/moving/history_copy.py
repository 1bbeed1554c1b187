"""Copy the history of one store to another, through the port alone.

Nothing else may write to the two stores meanwhile. The events are compared page by page and the sums day by day, and
only those that the target lacks are appended. So the copy may stop anywhere and begin again, also in a store that has
an older copy. Records that were deleted in the source since must not come back: then the older copy is emptied first.

Sums whose events were deleted have no hours in the target: the port takes hourly sums only with their events.
"""

from __future__ import annotations

import uuid
from datetime import date
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING

from usage_plugin.domain.store import EMPTY_SUM, LEFT_OVER, EventPosition, UsageFilter, watermarks_of
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import ALWAYS, FOREVER, Window
from usage_plugin.errors import MoveError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from usage_plugin.domain.store import DailySum, UsageStore
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.moving.progress import Progress

WRITER = "moved by a command"
"""The writer of copied events and sums. The numbers of the original writers follow at the end."""

_PAGE = 1_000
_EVERYTHING = UsageFilter()
_BEFORE_ALL = EventPosition(0, "")
_AFTER_ALL = date(9000, 1, 1)


async def check_foreign(source: UsageStore, target: UsageStore) -> None:
    """Check that a target has no writers of its own, whose history would be mixed with the other.

    Raises:
        MoveError: It has.
    """
    known = await _marks(source)
    others = {writer for writer, seq in (await _marks(target)).items() if seq > known.get(writer, 0)}
    if others:
        raise MoveError(
            f"The new storage has a history of its own, of the writers {', '.join(sorted(others))}.",
            hint="Configure an empty storage: another data_dir, or another schema.",
        )


async def copy_history(source: UsageStore, target: UsageStore, progress: Progress) -> bool:
    """Append the events and sums that the target lacks.

    Returns:
        False if the target has records that the source lacks, such as deleted ones; then the copy is not complete.

    Raises:
        StorageError: Repeat the call.
    """
    progress.begin("events", None)
    after, is_empty = _BEFORE_ALL, await _first_after(target, _BEFORE_ALL) is None
    async for page in _pages(source):
        last = _position(page[-1])
        present = {} if is_empty else await _between(target, after, last)
        wanted = {event.event_id: event for event in page}
        if any(wanted.get(name) != event for name, event in present.items()):
            return False
        missing = [event for event in page if event.event_id not in present]
        if missing:
            first = await target.watermark(WRITER) + 1
            await target.append(WRITER, list(enumerate(missing, first)))
        progress.advance(len(page))
        after = last
    if await _first_after(target, after) is not None:
        return False
    progress.begin("days", None)
    async for sums in _days(source):
        if not await _add_missing(target, sums):
            return False
        progress.advance(1)
    for writer, seq in (await _marks(source)).items():
        if await target.watermark(writer) < seq:
            await target.append_sums(writer, [(seq, EMPTY_SUM)])
    return True


async def empty_older_copy(source: UsageStore, target: UsageStore) -> None:
    """Delete the history of a store that has an older copy of another one.

    Raises:
        StorageError: Repeat the call.
        MoveError: Both are the same store.
    """
    probe = f"{WRITER} {uuid.uuid4().hex}"
    await target.append_sums(probe, [(1, EMPTY_SUM)])
    if await source.watermark(probe):
        raise MoveError("The storages of both YAMLs are the same one, which cannot be emptied.")
    while await target.prune(events_before=FOREVER, days_before=_AFTER_ALL, most=_PAGE):
        pass


async def differing_history(source: UsageStore, target: UsageStore, progress: Progress) -> list[str]:
    """Return the kinds of records that are not equal in both stores; none after `copy_history`."""
    found = []
    progress.begin("comparing the events", None)
    if await _sum_of_events(source, progress) != await _sum_of_events(target, progress):
        found.append("events")
    if await _sum_of_days(source) != await _sum_of_days(target):
        found.append("daily sums")
    known = await _marks(target)
    if any(known.get(writer, 0) < seq for writer, seq in (await _marks(source)).items()):
        found.append("watermarks")
    return found


async def totals_of_history(store: UsageStore) -> UsageTotals:
    """Return the sum of the whole history."""
    found = await store.aggregate((), date.min, date.max, _EVERYTHING)
    return found.groups.get((), UsageTotals())


async def _marks(store: UsageStore) -> dict[str, int]:
    """Return the watermarks of the writers that belong to the history, and not to a copy of it."""
    found = await watermarks_of(store)
    return {name: seq for name, seq in found.items() if name != LEFT_OVER and not name.startswith(WRITER)}


def _position(event: UsageEvent) -> EventPosition:
    return EventPosition(event.started_at, event.event_id)


async def _pages(store: UsageStore) -> AsyncIterator[list[UsageEvent]]:
    page: list[UsageEvent] = []
    async for event in store.events(ALWAYS, _EVERYTHING):
        page.append(event)
        if len(page) == _PAGE:
            yield page
            page = []
    if page:
        yield page


async def _between(store: UsageStore, after: EventPosition, last: EventPosition) -> dict[str, UsageEvent]:
    """Return the events behind one position, up to another one."""
    window = Window(after.started_at, last.started_at + 1)
    return {
        event.event_id: event
        async for event in store.events(window, _EVERYTHING, after=after)
        if _position(event) <= last
    }


async def _first_after(store: UsageStore, after: EventPosition) -> UsageEvent | None:
    found = store.events(Window(after.started_at, FOREVER), _EVERYTHING, after=after)
    async for event in found:
        return event
    return None


async def _days(store: UsageStore) -> AsyncIterator[list[DailySum]]:
    """Yield the sums of each day."""
    sums: list[DailySum] = []
    async for some in store.daily(date.min, date.max, _EVERYTHING):
        for one in some:
            if sums and sums[0].day != one.day:
                yield sums
                sums = []
            sums.append(one)
    if sums:
        yield sums


async def _add_missing(target: UsageStore, sums: list[DailySum]) -> bool:
    """Append the part of a day's sums that the target lacks, because their events were deleted or never existed.

    False: it has more.
    """
    day = sums[0].day
    known = {one.names: one.totals async for some in target.daily(day, day, _EVERYTHING) for one in some}
    missing = []
    for one in sums:
        rest = one.totals.minus(known.pop(one.names, UsageTotals()))
        if min(rest) < 0:
            return False
        if any(rest):
            missing.append(one._replace(totals=rest))
    if any(map(any, known.values())):
        return False
    for some in _slices(missing):
        first = await target.watermark(WRITER) + 1
        await target.append_sums(WRITER, list(enumerate(some, first)))
    return True


def _slices(sums: Iterable[DailySum]) -> Iterable[list[DailySum]]:
    sums = iter(sums)
    while some := list(islice(sums, _PAGE)):
        yield some


async def _sum_of_events(store: UsageStore, progress: Progress) -> tuple[int, int]:
    """Return the number of events, and a digest of them in their order."""
    count, digest = 0, blake2b()
    async for page in _pages(store):
        count += len(page)
        for event in page:
            digest.update(repr(_ordered(event)).encode("utf-8", "surrogatepass"))
        progress.advance(len(page))
    return count, int.from_bytes(digest.digest(), "big")


def _ordered(event: UsageEvent) -> UsageEvent:
    """Return an event whose mapping of usage has an order of its own: a store may change it."""
    return event if event.usage is None else event.changed(usage=dict(sorted(event.usage.items())))


async def _sum_of_days(store: UsageStore) -> tuple[int, int]:
    """Return the number of daily sums that are not empty, and the sum of their digests, in any order."""
    count = digests = 0
    async for sums in store.daily(date.min, date.max, _EVERYTHING):
        for one in sums:
            if any(one.totals):
                count += 1
                text = repr(one).encode("utf-8", "surrogatepass")
                digests += int.from_bytes(blake2b(text, digest_size=16).digest(), "big")
    return count, digests

"""Moving in: a database that was used alone hands its history to the files, before they take events of their own.

It can be interrupted at any point and begun again: an event that the files have is not taken twice, of each day's sums
only what is missing is added, and only at the end do the files say that they know the database's writers.
"""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from usage_plugin.backends.hybrid.database import MOVED_IN, unknown, watermarks_of
from usage_plugin.backends.hybrid.replication import BATCH, NOTHING
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import FOREVER, Window
from usage_plugin.log import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from usage_plugin.backends.hybrid.replication import Files
    from usage_plugin.domain.store import DailySum, UsageStore
    from usage_plugin.domain.usage import UsageEvent

_EVERYTHING = UsageFilter()
_ALWAYS = Window(0, FOREVER)
_EVENTS, _SUMS = MOVED_IN

log = get_logger()


async def move_in(files: Files, store: UsageStore) -> None:
    """Copy what only the database has, if there is anything.

    Raises:
        StorageError: either is away; nothing is lost by trying again.
    """
    have = await watermarks_of(store)
    writers = unknown(have, await files.watermarks())
    if not writers:
        return
    log.info("database.moves_in", writers=len(writers))
    batch: list[UsageEvent] = []
    async for event in store.events(_ALWAYS, _EVERYTHING):
        batch.append(event)
        if len(batch) == BATCH:
            await _append_events(files, batch)
            batch = []
    await _append_events(files, batch)
    async for sums in _days(store):
        rest = await _missing(files, sums)
        if rest:
            first = await files.watermark(_SUMS) + 1
            await files.append_sums(_SUMS, list(enumerate(rest, first)))
    for writer in MOVED_IN:
        if reached := await files.watermark(writer):
            # Or it would be sent back to where it came from.
            await store.append_sums(writer, [(reached, NOTHING)])
    for writer in sorted(writers):
        await files.append_sums(writer, [(have[writer], NOTHING)])
    log.info("database.has_moved_in")


async def _append_events(files: Files, events: list[UsageEvent]) -> None:
    if events:
        first = await files.watermark(_EVENTS) + 1
        await files.append(_EVENTS, list(enumerate(events, first)))


async def _days(store: UsageStore) -> AsyncIterator[list[DailySum]]:
    """Read all sums, those of a day together."""
    sums: list[DailySum] = []
    async for some in store.daily(date.min, date.max, _EVERYTHING):
        for one in some:
            if sums and sums[0].day != one.day:
                yield sums
                sums = []
            sums.append(one)
    if sums:
        yield sums


async def _missing(files: Files, sums: list[DailySum]) -> list[DailySum]:
    """Find what the files lack of a day: days whose events were pruned, or that were imported."""
    day = sums[0].day
    there = {one.names: one.totals async for some in files.daily(day, day, _EVERYTHING) for one in some}
    missing = []
    for one in sums:
        rest = UsageTotals(*(a - b for a, b in zip(one.totals, there.get(one.names, UsageTotals()), strict=True)))
        if any(rest):
            missing.append(one._replace(totals=rest))
    return missing

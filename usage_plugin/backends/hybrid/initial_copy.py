"""Copy the history of a database that was used alone to the files, before these accept events of their own.

The copy can be interrupted at any point and repeated. The files accept each event once, and only the missing part of
each day's sums is added. The files report the database's writers only at the end.
"""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from usage_plugin.backends.hybrid.database import COPIED_WRITERS, unknown
from usage_plugin.backends.hybrid.replication import BATCH
from usage_plugin.domain.store import EMPTY_SUM, UsageFilter, watermarks_of
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
_EVENTS, _SUMS = COPIED_WRITERS

log = get_logger()


async def copy_history(files: Files, store: UsageStore) -> None:
    """Copy the records that only the database has.

    Raises:
        StorageError: The files or the database are not available; a retry loses nothing.
    """
    have = await watermarks_of(store)
    writers = unknown(have, await files.watermarks())
    if not writers:
        return
    log.info("database.history_copy_started", writers=len(writers))
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
    for writer in COPIED_WRITERS:
        if reached := await files.watermark(writer):
            # Otherwise the records would be replicated back to their origin.
            await store.append_sums(writer, [(reached, EMPTY_SUM)])
    for writer in sorted(writers):
        await files.append_sums(writer, [(have[writer], EMPTY_SUM)])
    log.info("database.history_copied")


async def _append_events(files: Files, events: list[UsageEvent]) -> None:
    if events:
        first = await files.watermark(_EVENTS) + 1
        await files.append(_EVENTS, list(enumerate(events, first)))


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


async def _missing(files: Files, sums: list[DailySum]) -> list[DailySum]:
    """Return the part of a day's sums that the files lack, because events were pruned, or sums imported."""
    day = sums[0].day
    known = {one.names: one.totals async for some in files.daily(day, day, _EVERYTHING) for one in some}
    missing = []
    for one in sums:
        rest = UsageTotals(*(a - b for a, b in zip(one.totals, known.get(one.names, UsageTotals()), strict=True)))
        if any(rest):
            missing.append(one._replace(totals=rest))
    return missing

"""Insert events and sums into the SQLite store, and keep its daily and hourly sums."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from usage_plugin.backends.sqlite.name_numbers import numbers_of
from usage_plugin.backends.sqlite.rollup_queries import SUMS, number_of
from usage_plugin.domain.store import ROLLUP_DIMENSIONS, daily_sum
from usage_plugin.domain.usage import UsageTotals, to_record
from usage_plugin.domain.windows import start_of_hour
from usage_plugin.encoding import encode_record
from usage_plugin.tracking.history.chunking import unhurried

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from zoneinfo import ZoneInfo

    import aiosqlite

    from usage_plugin.domain.store import DailySum
    from usage_plugin.domain.usage import UsageEvent

DIMENSIONS = ", ".join(ROLLUP_DIMENSIONS)
DAILY_KEY = ("day", *ROLLUP_DIMENSIONS)
HOUR_DIMENSIONS = ("model", "provider")
MAX_INTEGER = 2**63 - 1

_DAILY_MARKS = ", ".join("?" * (len(DAILY_KEY) + len(UsageTotals._fields)))
# An integer sum beyond 2^63 - 1 would become a float; it stays at that maximum instead.
_ADDING = "ON CONFLICT DO UPDATE SET " + ", ".join(
    f"{name} = min({name} + excluded.{name}, {MAX_INTEGER})" for name in UsageTotals._fields
)
ADD_TO_DAILY = f"INSERT INTO daily (day, {DIMENSIONS}, {SUMS}) VALUES ({_DAILY_MARKS}) {_ADDING}"
_HOUR_MARKS = ", ".join("?" * (1 + len(HOUR_DIMENSIONS) + len(UsageTotals._fields)))
_ADD_TO_HOURLY = f"INSERT INTO hourly (hour, {', '.join(HOUR_DIMENSIONS)}, {SUMS}) VALUES ({_HOUR_MARKS}) {_ADDING}"
_ADD_EVENT = (
    f"INSERT INTO events (started_at, event_id, {DIMENSIONS}, rest)"
    f" VALUES ({', '.join('?' * (3 + len(ROLLUP_DIMENSIONS)))})"
)


class Insertion:
    """Inserts over the connection that writes, within the caller's transaction."""

    def __init__(self, writer: aiosqlite.Connection, zone: ZoneInfo) -> None:
        """Use a connection, and the time zone of the days."""
        self._writer = writer
        self._zone = zone

    async def add_events(self, events: Sequence[UsageEvent]) -> None:
        """Insert the events that are new, and add them to the sums."""
        known = await self._already_stored(events)
        fresh = list({event.event_id: event for event in events if event.event_id not in known}.values())
        sums = [daily_sum(event, self._zone) for event in unhurried(fresh)]
        numbers = await self._number(sums)
        rows = []
        for event, one in unhurried(zip(fresh, sums, strict=True)):
            record = to_record(event)
            for column in ("started_at", "event_id", *ROLLUP_DIMENSIONS):
                record.pop(column, None)
            dimensions = (numbers[name] for name in one.names)
            rows.append((event.started_at, event.event_id, *dimensions, encode_record(record)))
        await self._writer.executemany(_ADD_EVENT, rows)
        await self._add_numbered(sums, numbers)
        hours = (
            ((start_of_hour(event.started_at, self._zone), numbers[one.model], numbers[one.provider]), one.totals)
            for event, one in zip(fresh, sums, strict=True)
        )
        await self._add_up(_ADD_TO_HOURLY, hours)

    async def add_sums(self, sums: Sequence[DailySum]) -> None:
        """Add daily sums that have no events."""
        # An empty sum would be an empty row.
        something = [one for one in sums if any(one.totals)]
        await self._add_numbered(something, await self._number(something))

    async def _add_numbered(self, sums: Sequence[DailySum], numbers: Mapping[str | None, int]) -> None:
        days = (((number_of(one.day), *(numbers[name] for name in one.names)), one.totals) for one in sums)
        await self._add_up(ADD_TO_DAILY, days)

    async def _add_up(self, statement: str, keyed: Iterable[tuple[tuple[int, ...], UsageTotals]]) -> None:
        """Add to each row once, in the order of the keys."""
        rows: dict[tuple[int, ...], UsageTotals] = {}
        for key, totals in unhurried(keyed):
            rows[key] = rows.get(key, UsageTotals()).plus(totals)
        await self._writer.executemany(statement, [(*key, *_bounded(rows[key])) for key in sorted(rows)])

    async def _already_stored(self, events: Sequence[UsageEvent]) -> set[str]:
        """Return the ids of events that are stored under another number: a restored ledger can send them again."""
        instants = [event.started_at for event in events]
        rows = await self._writer.execute_fetchall(
            "SELECT event_id FROM events WHERE started_at BETWEEN ? AND ?"
            " AND event_id IN (SELECT value FROM json_each(?))",
            (min(instants), max(instants), json.dumps([event.event_id for event in events])),
        )
        return {row[0] for row in rows}

    async def _number(self, sums: Sequence[DailySum]) -> dict[str | None, int]:
        """Return the number of each name; insert new names."""
        wanted = sorted({name for one in sums for name in one.names if name is not None})
        numbers = await numbers_of(self._writer, wanted)
        new = [(name,) for name in wanted if name not in numbers]
        if new:
            await self._writer.executemany("INSERT INTO names (name) VALUES (?)", new)
            numbers |= await numbers_of(self._writer, [name for (name,) in new])
        return numbers


def _bounded(totals: UsageTotals) -> Iterable[int]:
    """Return the totals that a batch adds to one row, limited to 64 bits."""
    return totals if max(totals) <= MAX_INTEGER else [min(one, MAX_INTEGER) for one in totals]

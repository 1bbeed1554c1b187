"""Percentiles of single requests: exact, for any number of events, in bounded memory.

The values are sorted in a temporary SQLite database, which is moved to the disk when it grows and deleted when it is
closed.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Literal, NamedTuple

from usage_plugin.domain.store import EventDimension, RollupDimension
from usage_plugin.errors import UsagePluginError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from usage_plugin.domain.usage import UsageEvent

Measure = Literal["duration", "cost"]
EventGrouping = Literal[RollupDimension, EventDimension, "call_type", "status"]

_PAGE = 1_000


class Percentiles(NamedTuple):
    """One group of requests.

    Attributes:
        group: its names, in the requested order.
        events: the number of values.
        values: for each requested percentage, the smallest value that this share of all values does not exceed (the
            nearest rank). Durations are in microseconds, costs in nano-dollars.
    """

    group: tuple[str | None, ...]
    events: int
    values: tuple[int, ...]


async def percentiles(
    events: AsyncIterator[UsageEvent], measure: Measure, points: Sequence[int], by: Sequence[EventGrouping]
) -> list[Percentiles]:
    """Return percentiles of the events' durations or costs. For costs, events without a price are left out.

    Args:
        events: a stream of events.
        measure: the measured quantity.
        points: percentages, 1 to 100.
        by: the groupings.

    Returns:
        The groups, those with the most events first.

    Raises:
        UsagePluginError: a percentage is out of range.
    """
    for point in points:
        if not 1 <= point <= 100:
            raise UsagePluginError(f"percentiles: found {point}, expected whole numbers from 1 to 100.")
    # An empty name selects SQLite's own temporary file. Only one thread at a time uses the connection.
    with closing(sqlite3.connect("", isolation_level=None, check_same_thread=False)) as database:
        database.execute("CREATE TABLE measured (names TEXT NOT NULL, value INTEGER NOT NULL)")
        page: list[tuple[str, int]] = []
        async for event in events:
            value = event.cost if measure == "cost" else event.duration_us
            if value is not None:
                page.append((json.dumps([getattr(event, name) for name in by]), value))
            if len(page) == _PAGE:
                await asyncio.to_thread(_keep, database, page)
                page = []
        return await asyncio.to_thread(_rank, database, page, points)


def _keep(database: sqlite3.Connection, page: Sequence[tuple[str, int]]) -> None:
    database.execute("BEGIN")
    database.executemany("INSERT INTO measured VALUES (?, ?)", page)
    database.execute("COMMIT")


def _rank(database: sqlite3.Connection, page: Sequence[tuple[str, int]], points: Sequence[int]) -> list[Percentiles]:
    _keep(database, page)
    database.execute("CREATE INDEX ranked ON measured (names, value)")
    found = []
    for names, count in database.execute(
        "SELECT names, count(*) AS events FROM measured GROUP BY names ORDER BY events DESC, names"
    ).fetchall():
        values = []
        for point in points:
            rank = -(-count * point // 100)
            query = "SELECT value FROM measured WHERE names = ? ORDER BY value LIMIT 1 OFFSET ?"
            values.append(database.execute(query, (names, rank - 1)).fetchone()[0])
        found.append(Percentiles(tuple(json.loads(names)), count, tuple(values)))
    return found

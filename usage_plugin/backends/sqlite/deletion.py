"""Delete old rows of the SQLite store, and erase users from it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.backends.sqlite.insertion import ADD_TO_DAILY, DAILY_KEY, DIMENSIONS
from usage_plugin.backends.sqlite.name_numbers import is_used
from usage_plugin.backends.sqlite.rollup_queries import SUMS
from usage_plugin.domain.subjects import FORGOTTEN

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    import aiosqlite


class UserRecords(NamedTuple):
    """The keys of a user's rows, as one connection sees them.

    Attributes:
        number: The number of the user's name.
        watermarks: The watermarks of all writers at the same time.
        is_used: Whether any row refers to the name.
    """

    number: int
    events: Sequence[sqlite3.Row]
    days: Sequence[sqlite3.Row]
    watermarks: Mapping[str, int]
    is_used: bool


async def watermarks_of(connection: aiosqlite.Connection) -> dict[str, int]:
    """Return the watermark of each writer."""
    rows = await connection.execute_fetchall("SELECT writer, seq FROM watermarks")
    return {row[0]: row[1] for row in rows}


async def delete_rows(
    connection: aiosqlite.Connection, table: str, key: Sequence[str], condition: str, value: int, most: int
) -> int:
    """Delete at most `most` rows that meet a condition, and return their number."""
    columns = ", ".join(key)
    query = f"DELETE FROM {table} WHERE ({columns}) IN (SELECT {columns} FROM {table} WHERE {condition} LIMIT ?)"
    async with connection.execute(query, (value, most)) as cursor:
        return cursor.rowcount


async def records_of(connection: aiosqlite.Connection, user: str, most: int) -> UserRecords | None:
    """Return at most `most` rows of a user; None if no row can refer to the user."""
    row = list(await connection.execute_fetchall("SELECT number FROM names WHERE name = ?", (user,)))
    if not row:
        return None
    number = row[0][0]
    persons = f"user = {number} OR end_user = {number}"
    marks = await watermarks_of(connection)
    events = list(
        await connection.execute_fetchall(f"SELECT started_at, event_id FROM events WHERE {persons} LIMIT ?", (most,))
    )
    days = list(
        await connection.execute_fetchall(
            f"SELECT day, {DIMENSIONS} FROM daily WHERE {persons} LIMIT ?", (most - len(events),)
        )
    )
    is_needed = bool(events or days) or await is_used(connection, number)
    return UserRecords(number, events, days, marks, is_needed)


async def erase(connection: aiosqlite.Connection, found: UserRecords) -> None:
    """Delete a user's events, give the sums to `FORGOTTEN`, and delete the name once no row refers to it."""
    number = found.number
    if not found.is_used and (
        await watermarks_of(connection) == found.watermarks or not await is_used(connection, number)
    ):
        await connection.execute("DELETE FROM names WHERE number = ?", (number,))
    await connection.executemany("DELETE FROM events WHERE started_at = ? AND event_id = ?", found.events)
    await _give_away(connection, found.days, number)


async def _give_away(connection: aiosqlite.Connection, days: Sequence[sqlite3.Row], number: int) -> None:
    """Move a user's current sums to `FORGOTTEN`."""
    wanted = " AND ".join(f"{name} = json_extract(value, '$[{at}]')" for at, name in enumerate(DAILY_KEY))
    rows = await connection.execute_fetchall(
        f"SELECT {', '.join(DAILY_KEY)}, {SUMS} FROM json_each(?) CROSS JOIN daily ON {wanted}",
        (json.dumps(list(map(tuple, days))),),
    )
    if not rows:
        return
    await connection.execute("INSERT OR IGNORE INTO names (name) VALUES (?)", (FORGOTTEN,))
    found = list(await connection.execute_fetchall("SELECT number FROM names WHERE name = ?", (FORGOTTEN,)))
    forgotten = found[0][0]
    persons = [at for at, name in enumerate(DAILY_KEY) if name in ("user", "end_user")]
    given = [[forgotten if at in persons and v == number else v for at, v in enumerate(row)] for row in rows]
    await connection.executemany(ADD_TO_DAILY, given)
    await connection.executemany(
        f"DELETE FROM daily WHERE {' AND '.join(f'{name} = ?' for name in DAILY_KEY)}",
        [tuple(row[: len(DAILY_KEY)]) for row in rows],
    )

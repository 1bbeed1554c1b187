"""The numbers of names: each name is stored once, and rows refer to it by number."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from usage_plugin.domain.store import ROLLUP_DIMENSIONS
from usage_plugin.tracking.history.chunking import in_steps

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    import aiosqlite

_MAX_VALUES = 900
"""SQLite before 3.32 accepts 999 values in a statement."""


async def numbers_of(connection: aiosqlite.Connection, names: Collection[str | None]) -> dict[str | None, int]:
    """Return the numbers of the names that have one."""
    numbers: dict[str | None, int] = {None: 0}
    async for some in in_steps((name for name in names if name is not None), _MAX_VALUES):
        # Bound one by one: in JSON, SQLite would cut a name at a NUL.
        marks = ", ".join("?" * len(some))
        rows = await connection.execute_fetchall(f"SELECT name, number FROM names WHERE name IN ({marks})", some)
        numbers |= {row[0]: row[1] for row in rows}
    return numbers


async def listed(numbers: Iterable[int] | Iterable[list[int]]) -> str:
    """Return a list for `json_each`, which may be long."""
    return f"[{','.join([json.dumps(part)[1:-1] async for part in in_steps(numbers)])}]"


async def is_used(connection: aiosqlite.Connection, number: int) -> bool:
    """Whether any row refers to a name."""
    any_of = " OR ".join(f"{dimension} = {number}" for dimension in ROLLUP_DIMENSIONS)
    rows = await connection.execute_fetchall(
        f"SELECT EXISTS (SELECT * FROM daily WHERE {any_of}) OR EXISTS (SELECT * FROM events WHERE {any_of})"
    )
    return bool(next(iter(rows))[0])


def name_columns(dimensions: Sequence[str], *, of: str) -> tuple[str, str]:
    """Return the columns of names for a table's numbers, such as `users.name` for `user`, and their joins."""
    columns = ", ".join(f"{name}s.name" for name in dimensions)
    return columns, " ".join(f"LEFT JOIN names AS {name}s ON {name}s.number = {of}.{name}" for name in dimensions)

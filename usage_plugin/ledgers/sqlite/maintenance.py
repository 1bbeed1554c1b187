"""Housekeeping of accounts and reservations: delete old rows in slices, and detect damage."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

from usage_plugin.errors import LedgerError
from usage_plugin.ledgers.sqlite.file import translated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usage_plugin.ledgers.sqlite.file import LedgerFile

_DAY = 86_400_000_000
_SLOTS_EVERY = _DAY // 144
_RANGES, _RANGE = 4, 500
_MOST_NAMED = 20
_BEFORE_ALL: tuple[str | bytes, int, int] = ("", -(2**63), -(2**63))
_AFTER_ALL = (b"", 2**63 - 1, 2**63 - 1)  # SQLite sorts a blob after every text


class Maintenance:
    """Housekeeping of one open file, with a cursor for the accounts already examined."""

    def __init__(self, file: LedgerFile) -> None:
        """Use an open file."""
        self._file = file
        self._path, self._execute, self._writing = file.path, file.execute, file.writing
        self._looked_up_to = _BEFORE_ALL
        self._slots_dropped = 0

    def delete_old(self, now: int) -> None:
        """Delete a slice of closed accounts, and every ten minutes the slots of ended reservations."""
        with translated(self._path):
            self._drop_closed_accounts(now - _DAY)
            self._drop_free_slots(now)

    def _drop_closed_accounts(self, closed: int) -> None:
        """Examine the next accounts in key order, and delete those that no longer count.

        A few at a time, since other workers wait during a deletion. SQLite selects them and not Python, which would
        block this process's event loop.
        """
        for _ in range(_RANGES):
            first = self._looked_up_to
            last = self._execute(
                "SELECT subject, limit_key, window_start FROM accounts"
                " WHERE (subject, limit_key, window_start) > (?, ?, ?)"
                " ORDER BY subject, limit_key, window_start LIMIT 1 OFFSET ?",
                (*first, _RANGE - 1),
            ).fetchone()
            old = (
                "FROM accounts WHERE (subject, limit_key, window_start) > (?, ?, ?)"
                " AND (subject, limit_key, window_start) <= (?, ?, ?) AND window_end < ? AND reserved = 0"
            )
            values = (*first, *(last or _AFTER_ALL), closed)
            if self._execute(f"SELECT 1 {old} LIMIT 1", values).fetchone():
                with self._writing():
                    self._execute(f"DELETE {old}", values)
            # Only now: a range for which the ledger was busy is examined again.
            self._looked_up_to = last or _BEFORE_ALL
            if last is None:
                return

    def _drop_free_slots(self, now: int) -> None:
        """Delete free slots, including those of dead processes; live workers insert new ones."""
        if not self._slots_dropped <= now < self._slots_dropped + _SLOTS_EVERY:
            with self._writing():
                self._execute("DELETE FROM reservations WHERE NOT open")
            self._slots_dropped = now

    def verify(self) -> list[str]:
        """List descriptions of damage, from one snapshot of the file."""
        try:
            with self._file.reading():
                return [*self._damage(), *self._wrong_holds(), *self._negative_sums()]
        except LedgerError as error:
            if isinstance(error.__cause__, sqlite3.DatabaseError) and "malformed" in str(error):
                return [f"The file is damaged: {error.__cause__}."]
            raise

    def _damage(self) -> list[str]:
        rows = self._execute(f"PRAGMA quick_check({_MOST_NAMED})").fetchall()
        return [f"The file is damaged: {row[0]}." for row in rows if row[0] != "ok"]

    def _wrong_holds(self) -> Iterator[str]:
        """Compare the reserved amounts of the accounts with the holds of the open reservations."""
        held: Counter[tuple[int, str, int]] = Counter()
        for (holds,) in self._execute("SELECT holds FROM reservations WHERE open"):
            for limit_key, window_start, subject, _, amount, _ in json.loads(holds):
                held[limit_key, subject, window_start] += amount
        reserved = Counter(
            {
                row[:3]: row[3]
                for row in self._execute(
                    "SELECT limit_key, subject, window_start, reserved FROM accounts WHERE reserved <> 0"
                )
            }
        )
        wrong = sorted(key for key in held.keys() | reserved.keys() if held[key] != reserved[key])
        return _few(
            f"Account {key} says {reserved[key]} are reserved; open reservations hold {held[key]}." for key in wrong
        )

    def _negative_sums(self) -> Iterator[str]:
        rows = self._execute(
            "SELECT limit_key, subject, window_start, spent, reserved FROM accounts WHERE spent < 0 OR reserved < 0"
        )
        return _few(f"Account {row[:3]} is below zero: {row[3]} spent, {row[4]} reserved." for row in rows)


def _few(problems: Iterator[str]) -> Iterator[str]:
    yield from islice(problems, _MOST_NAMED)
    if more := sum(1 for _ in problems):
        yield f"… and {more} more."

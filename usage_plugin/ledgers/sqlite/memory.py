"""Ids that have ended, kept for a while: the same id is charged once, however often and late it is sent.

The request path writes nothing for it: an entry of the outbox carries its id, and the keeper copies new ids into a
table once a second. A question copies the rest first, so that the answer is complete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from usage_plugin.ledgers.sqlite.file import LedgerFile

GENERATION = 600_000_000
"""Microseconds. An id is known for one generation at least, and for two at most: 7 MB at 100 requests a second."""
_KEPT_TOMBSTONES = 144
"""Generations: one day."""
_COPIED = 100
"""Ids copied in one transaction: 0.2 ms."""
_SLICE = 2_000


class EndedIds:
    """The memory of ended ids in an open file."""

    def __init__(self, file: LedgerFile) -> None:
        """Use an open file."""
        self._file = file
        self._execute = file.execute

    def has(self, event_id: str) -> bool:
        """Whether an id has ended; asked within a transaction that writes."""
        self._copy(-1)
        return (
            self._execute(
                "SELECT 1 FROM ledger JOIN ended ON ended.generation IN (ledger.generation, ledger.generation - 1)"
                " WHERE ended.event_id = ?",
                (event_id,),
            ).fetchone()
            is not None
        )

    def add(self, event_id: str) -> None:
        """Remember an id that leaves no entry in the outbox; within a transaction that writes."""
        self._execute("INSERT OR IGNORE INTO ended SELECT generation, ? FROM ledger", (event_id,))

    def bury(self, event_id: str) -> None:
        """Remember an abandoned id; within a transaction that writes."""
        self.add(event_id)
        self._execute("INSERT OR REPLACE INTO tombstones SELECT ?, generation FROM ledger", (event_id,))

    def maintain(self, now: int) -> None:
        """Copy new ids out of the outbox, and forget a slice of the old ones."""
        while self._has_new():
            with self._file.writing():
                self._copy(_COPIED)
        (began,) = self._execute("SELECT generation_began FROM ledger").fetchone()
        if not began <= now < began + GENERATION:
            with self._file.writing():
                self._execute("UPDATE ledger SET generation = generation + 1, generation_began = ?", (now,))
        self._forget("ended", 1)
        self._forget("tombstones", _KEPT_TOMBSTONES)

    def _has_new(self) -> bool:
        (has_new,) = self._execute(
            "SELECT coalesce(max(seq), 0) > (SELECT remembered FROM ledger) FROM outbox"
        ).fetchone()
        return bool(has_new)

    def _copy(self, most: int) -> None:
        """Copy the ids of new entries, all of them if -1."""
        (last,) = self._execute(
            "SELECT max(seq) FROM (SELECT seq FROM outbox WHERE seq > (SELECT remembered FROM ledger)"
            " ORDER BY seq LIMIT ?)",
            (most,),
        ).fetchone()
        if last is not None:
            self._execute(
                "INSERT OR IGNORE INTO ended SELECT generation, event_id FROM ledger, outbox"
                " WHERE seq > remembered AND seq <= ? AND event_id <> ''",
                (last,),
            )
            self._execute("UPDATE ledger SET remembered = ?", (last,))

    def _forget(self, table: str, kept: int) -> None:
        """Delete a slice of the ids of old generations."""
        old = f"FROM {table} WHERE generation < (SELECT generation FROM ledger) - {kept}"
        if self._execute(f"SELECT 1 {old} LIMIT 1").fetchone():
            with self._file.writing():
                self._execute(
                    f"DELETE FROM {table} WHERE event_id IN (SELECT event_id {old} LIMIT {_SLICE})"
                    f" AND generation < (SELECT generation FROM ledger) - {kept}"
                )

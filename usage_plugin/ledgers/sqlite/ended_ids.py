"""Ended ids, kept for a while: an id is charged once, regardless of how often and how late it is sent.

The request path writes nothing for this, since an entry of the outbox has its id. The keeper copies new ids into a
table once a second. A look-up reads the newest entries of the outbox too, so its answer is complete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from usage_plugin.ledgers.sqlite.file import LedgerFile

GENERATION = 600_000_000
"""Microseconds. An id is kept for one to two generations: 7 MB at 100 requests a second."""
_KEPT_TOMBSTONES = 144
"""Generations: one day."""
_COPIED = 100
"""The number of ids copied in one transaction: 0.2 ms."""
_SCANNED = 16
"""The number of new entries that a look-up reads one by one; more are copied first."""
_SLICE = 2_000
_FIND = f"""
    SELECT
        coalesce((SELECT max(seq) FROM outbox), 0) - remembered,
        EXISTS (SELECT 1 FROM ended WHERE ended.generation IN (ledger.generation, ledger.generation - 1)
                AND ended.event_id = ?1)
        OR EXISTS (SELECT 1 FROM (SELECT event_id FROM outbox WHERE seq > remembered ORDER BY seq LIMIT {_SCANNED})
                   WHERE event_id = ?1)
    FROM ledger
"""


class EndedIds:
    """The record of ended ids in an open file."""

    def __init__(self, file: LedgerFile) -> None:
        """Use an open file."""
        self._file = file
        self._execute = file.execute

    def has(self, event_id: str) -> bool:
        """Whether an id has ended; call it within a write transaction."""
        behind, found = self._execute(_FIND, (event_id,)).fetchone()
        if behind > _SCANNED and not found:
            self.copy_up_to(self._newest())
            _, found = self._execute(_FIND, (event_id,)).fetchone()
        return bool(found)

    def add(self, event_id: str) -> None:
        """Record an ended id that has no entry in the outbox; call it within a write transaction."""
        self._execute("INSERT OR IGNORE INTO ended SELECT generation, ? FROM ledger", (event_id,))

    def add_tombstone(self, event_id: str) -> None:
        """Record an abandoned id; call it within a write transaction."""
        self.add(event_id)
        self._execute("INSERT OR REPLACE INTO tombstones SELECT ?, generation FROM ledger", (event_id,))

    def copy_up_to(self, last: int) -> None:
        """Copy the ids of entries up to a number; call it in a write transaction, before the entries are deleted."""
        # At most the last number of the outbox, although a store may acknowledge more: the next entry has a new id.
        last = min(last, self._newest())
        if self._remembered() < last:
            self._execute(
                "INSERT OR IGNORE INTO ended SELECT generation, event_id FROM ledger, outbox"
                " WHERE seq > remembered AND seq <= ? AND event_id <> ''",
                (last,),
            )
            self._execute("UPDATE ledger SET remembered = ?", (last,))

    def maintain(self, now: int) -> None:
        """Copy new ids out of the outbox in chunks, and delete a slice of the old ones."""
        while (last := self._last_of_next()) is not None:
            with self._file.writing():
                self.copy_up_to(last)
        (began,) = self._execute("SELECT generation_began FROM ledger").fetchone()
        if not began <= now < began + GENERATION:
            with self._file.writing():
                self._execute("UPDATE ledger SET generation = generation + 1, generation_began = ?", (now,))
        self._forget("ended", 1)
        self._forget("tombstones", _KEPT_TOMBSTONES)

    def _last_of_next(self) -> int | None:
        """Return the last number of the next chunk of entries; numbers can have large gaps after a restore."""
        (last,) = self._execute(
            "SELECT max(seq) FROM (SELECT seq FROM outbox WHERE seq > (SELECT remembered FROM ledger)"
            " ORDER BY seq LIMIT ?)",
            (_COPIED,),
        ).fetchone()
        return None if last is None else int(last)

    def _newest(self) -> int:
        (newest,) = self._execute("SELECT coalesce(max(seq), 0) FROM outbox").fetchone()
        return int(newest)

    def _remembered(self) -> int:
        (remembered,) = self._execute("SELECT remembered FROM ledger").fetchone()
        return int(remembered)

    def _forget(self, table: str, kept: int) -> None:
        """Delete a slice of the ids of old generations."""
        old = f"FROM {table} WHERE generation < (SELECT generation FROM ledger) - {kept}"
        if self._execute(f"SELECT 1 {old} LIMIT 1").fetchone():
            with self._file.writing():
                self._execute(
                    f"DELETE FROM {table} WHERE event_id IN (SELECT event_id {old} LIMIT {_SLICE})"
                    f" AND generation < (SELECT generation FROM ledger) - {kept}"
                )

"""The outbox in the ledger's file, without appending, which is a part of settling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usage_plugin.domain.ledger import OutboxBacklog, OutboxEntry
from usage_plugin.ledgers.sqlite.file import translated

if TYPE_CHECKING:
    from usage_plugin.ledgers.sqlite.ended_ids import EndedIds
    from usage_plugin.ledgers.sqlite.file import LedgerFile

KEPT_ENTRIES = 2_000
"""The number of acknowledged entries that are kept, so that other workers' caches can catch up from them."""
_SAMPLE = 500


class Outbox:
    """The entries in an open file, and the number up to which the store has them."""

    def __init__(self, file: LedgerFile, ended: EndedIds) -> None:
        """Use an open file, and the record that keeps the ids of deleted entries."""
        self._file = file
        self._ended = ended
        self._path, self._execute, self._writing = file.path, file.execute, file.writing

    def entries(self, after: int, most: int, *, durable: bool = False) -> list[OutboxEntry]:
        """Read entries with a number above `after`, ascending."""
        with translated(self._path):
            rows = self._execute(
                "SELECT seq, event FROM outbox WHERE seq > ? AND event <> '' ORDER BY seq LIMIT ?", (after, most)
            )
            entries = [OutboxEntry(*row) for row in rows]
        if durable and entries:
            self._file.sync()
        return entries

    def waiting(self) -> OutboxBacklog:
        """Return the number and size of the events that the store does not have yet.

        Unacknowledged numbers have no gaps, so the count is a subtraction. The size is exact up to 500 entries. Above
        that it is estimated from every nth entry, so the call costs the same for any length of an outage.
        """
        with translated(self._path):
            first, last = self._execute(
                "SELECT (SELECT min(seq) FROM outbox WHERE seq > acknowledged), (SELECT max(seq) FROM outbox)"
                " FROM ledger"
            ).fetchone()
            if first is None:
                return OutboxBacklog(0, 0)
            events = last - first + 1
            measured, size = self._execute(
                "WITH RECURSIVE chosen (seq) AS"
                " (SELECT ?1 UNION ALL SELECT seq + ?3 FROM chosen WHERE seq + ?3 <= ?2)"
                " SELECT count(*), sum(length(CAST(event AS BLOB))) FROM chosen JOIN outbox USING (seq)",
                (first, last, -(-events // _SAMPLE)),
            ).fetchone()
            return OutboxBacklog(events, size * events // measured)

    def acknowledged(self) -> int:
        """Return the number up to which the store has all events."""
        with translated(self._path):
            (seq,) = self._execute("SELECT acknowledged FROM ledger").fetchone()
            return int(seq)

    def acknowledge(self, seq: int) -> None:
        """Record that the store has all events up to this number, and delete all but the last entries."""
        with self._writing():
            self._execute("UPDATE ledger SET acknowledged = max(acknowledged, ?)", (seq,))
            self._ended.copy_up_to(seq - KEPT_ENTRIES)
            self._execute("DELETE FROM outbox WHERE seq <= ?", (seq - KEPT_ENTRIES,))

    def agree(self, stored: int) -> None:
        """Reconcile outbox numbers with the store's watermark after either was restored from a backup."""
        with self._writing():
            (acknowledged,) = self._execute("SELECT acknowledged FROM ledger").fetchone()
            (newest,) = self._execute("SELECT coalesce(max(seq), 0) FROM outbox").fetchone()
            if stored > acknowledged:
                behind = max(stored, newest) - acknowledged
                self._execute(
                    "UPDATE outbox SET seq = seq + ? WHERE seq > ? AND seq <= ?", (behind, acknowledged, stored)
                )
                # If no entry was renumbered, an empty entry takes the number; readers skip it.
                self._execute(
                    "INSERT INTO outbox (seq, event)"
                    " SELECT ?1, '' WHERE ?1 > (SELECT coalesce(max(seq), 0) FROM outbox)",
                    (stored,),
                )
            self._execute("UPDATE ledger SET acknowledged = ?", (stored,))

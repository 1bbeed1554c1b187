"""The outbox on the server, without appending, which is a part of settling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usage_plugin.domain.ledger import OutboxBacklog, OutboxEntry

if TYPE_CHECKING:
    from usage_plugin.postgres.server import Server

_KEPT_ENTRIES = 2_000
"""The number of acknowledged entries that are kept, so that other workers' caches can catch up from them."""
_SAMPLE = 500


class Outbox:
    """The entries on the server, and the number up to which the store has them."""

    def __init__(self, server: Server) -> None:
        """Use an open connection."""
        self._server = server
        self._schema = server.schema

    def entries(self, after: int, most: int, *, durable: bool = False) -> list[OutboxEntry]:
        """Read entries with a number above `after`, ascending."""
        rows = self._server.read(
            f"SELECT seq, event FROM {self._schema}.outbox WHERE seq > %s AND event <> '' ORDER BY seq LIMIT %s",
            (after, most),
        )
        entries = [OutboxEntry(*row) for row in rows]
        if durable and entries:
            self._server.call(f"SELECT {self._schema}.usage_v1_sync()")
        return entries

    def waiting(self) -> OutboxBacklog:
        """Return the number and size of the events that the store does not have yet.

        Unacknowledged numbers have no gaps, so the count is a subtraction. The size is exact up to 500 entries. Above
        that it is estimated from every nth entry, so the call costs the same for any length of an outage.
        """
        first, last, measured, size = self._server.one(
            f"SELECT first, last, measured, size FROM {self._schema}.usage_v1_waiting(%s::bigint)", (_SAMPLE,)
        )
        if first is None:
            return OutboxBacklog(0, 0)
        events = last - first + 1
        return OutboxBacklog(events, size * events // measured)

    def acknowledged(self) -> int:
        """Return the number up to which the store has all events."""
        (seq,) = self._server.one(f"SELECT acknowledged FROM {self._schema}.ledger")
        return int(seq)

    def acknowledge(self, seq: int) -> None:
        """Record that the store has all events up to this number, and delete all but the last entries."""
        self._server.call(f"SELECT {self._schema}.usage_v1_acknowledge(%s::bigint, %s::integer)", seq, _KEPT_ENTRIES)

    def agree(self, stored: int) -> None:
        """Reconcile outbox numbers with the store's watermark after either was restored from a backup."""
        self._server.call(f"SELECT {self._schema}.usage_v1_agree(%s::bigint)", stored)

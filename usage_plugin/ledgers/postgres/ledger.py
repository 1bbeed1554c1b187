"""The accounts, reservations and outbox on a PostgreSQL server: each verb is one function of the server.

A verb is one round trip and one transaction. It is idempotent by its id, so a caller whose connection was cut may
repeat it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.domain.ledger import (
    Account,
    AccountKey,
    Balance,
    Hold,
    Ledger,
    OpenReservation,
    Settled,
    Snapshot,
)
from usage_plugin.encoding import encode_record
from usage_plugin.errors import LedgerError
from usage_plugin.ledgers.postgres.batch import list_of_charges, list_of_holds, reserved_of, settled_of
from usage_plugin.ledgers.postgres.outbox import Outbox
from usage_plugin.ledgers.postgres.verification import problems

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from usage_plugin.domain.ledger import Charge, NotSettled, OutboxBacklog, OutboxEntry, Reserved
    from usage_plugin.postgres.server import Server

_DAY = 86_400_000_000
_GENERATION = 600_000_000
"""Microseconds. An ended id is kept for one to two generations."""
_SLICE = 5_000
"""The most rows of each kind that one call of `maintain` deletes: some 20 ms."""


_PAGE = 1_000


class PostgresLedger(Ledger):
    """The ledger on a server."""

    def __init__(self, server: Server) -> None:
        """Use an open connection."""
        self.location = server.location
        (self.writer,) = server.one(f"SELECT writer FROM {server.schema}.ledger")
        self._server = server
        self._outbox = Outbox(server)

    def _call(self, verb: str, types: str, *values: object) -> Any:
        """Return the answer of a function that changes something; `types` are those of its arguments."""
        arguments = ", ".join(f"%s::{name}" for name in types.split())
        return self._server.call(f"SELECT {self._server.schema}.usage_v1_{verb}({arguments})", *values)

    def reserve(self, event_id: str, worker: str, started_at: int, holds: Sequence[Hold], event: str) -> Reserved:
        """Reserve on every account, or on none if one has no room."""
        answer = self._call(
            "reserve",
            "text text bigint jsonb text",
            event_id,
            worker,
            started_at,
            encode_record(list_of_holds(holds)),
            event,
        )
        reserved = reserved_of(event_id, holds, answer)
        if isinstance(reserved, LedgerError):
            raise reserved
        return reserved

    def settle(self, event_id: str, charges: Sequence[Charge], event: str | None) -> Settled | NotSettled:
        """Free the reservation's holds, add the charges and append the event."""
        return settled_of(self._call("settle", "text jsonb text", event_id, _encoded(charges), event))

    def release(self, event_id: str) -> bool:
        """Free the holds without an entry in the outbox."""
        return bool(self._call("release", "text", event_id))

    def abandon(self, event_id: str) -> bool:
        """Free the holds, if there are any, and keep the id for a day."""
        return bool(self._call("abandon", "text", event_id))

    def free(self, event_id: str, accounts: Sequence[AccountKey]) -> None:
        """Free the reservation's holds on some accounts."""
        self._call("free", "text jsonb", event_id, encode_record([[*key] for key in accounts]))

    def record(self, event_id: str, charges: Sequence[Charge], event: str | None) -> Settled | None:
        """Add the charges and append the event of an id that has not ended."""
        return _if_settled(self._call("record", "text jsonb text", event_id, _encoded(charges), event))

    def recover(self, event_id: str) -> Settled | None:
        """Settle with the charge that each hold specifies for a lost worker, and with the reservation's own event."""
        return _if_settled(self._call("recover", "text", event_id))

    def open_reservations(self, *, with_holds: bool = False) -> list[OpenReservation]:
        """List the open reservations, oldest first."""
        rows = self._server.read(
            f"SELECT event_id, worker, started_at, event, {'holds' if with_holds else 'NULL'}"
            f" FROM {self._server.schema}.requests WHERE ended IS NULL ORDER BY started_at"
        )
        return [OpenReservation._make((*row, _holds(holds or ()))) for *row, holds in rows]

    def snapshot(self, keys: Sequence[AccountKey]) -> Snapshot:
        """Read accounts and the last number of the outbox at one instant."""
        (answer,) = self._server.one(
            f"SELECT {self._server.schema}.usage_v1_snapshot(%s::jsonb)", (encode_record([[*key] for key in keys]),)
        )
        return Snapshot(answer["seq"], {key: Balance(*one) for key, one in zip(keys, answer["balances"], strict=True)})

    def accounts(self, limit_key: int, since: int, subject: str | None = None) -> list[Account]:
        """List the accounts of one limit, by subject, oldest first."""
        values: list[object] = [limit_key, since]
        where = "limit_key = %s AND window_start >= %s"
        if subject is not None:
            values.append(subject)
            where += " AND subject = %s"
        rows = self._server.read(
            f"SELECT limit_key, window_start, subject, window_end, spent, reserved FROM {self._server.schema}.accounts"
            f" WHERE {where} ORDER BY limit_key, subject, window_start",
            values,
        )
        return [Account(AccountKey(*key), end, Balance(spent, reserved)) for *key, end, spent, reserved in rows]

    def every_account(self) -> Iterator[Account]:
        """Iterate over all accounts in the order of their key, page after page."""
        after: tuple[int, str, int] = (-(2**63), "", -(2**63))
        while True:
            rows = self._server.read(
                "SELECT limit_key, subject, window_start, window_end, spent, reserved"
                f" FROM {self._server.schema}.accounts WHERE (limit_key, subject, window_start) > (%s, %s, %s)"
                " ORDER BY limit_key, subject, window_start LIMIT %s",
                (*after, _PAGE),
            ).fetchall()
            for limit_key, subject, start, end, spent, reserved in rows:
                yield Account(AccountKey(limit_key, start, subject), end, Balance(spent, reserved))
            if len(rows) < _PAGE:
                return
            after = rows[-1][:3]

    def correct(self, correction_id: str, differences: Sequence[Charge]) -> bool:
        """Add differences to the spent amounts of accounts, once."""
        return bool(self._call("correct", "text jsonb", correction_id, _encoded(differences)))

    def outbox(self, after: int, most: int, *, durable: bool = False) -> list[OutboxEntry]:
        """Read entries with a number above `after`, ascending."""
        return self._outbox.entries(after, most, durable=durable)

    def waiting(self) -> OutboxBacklog:
        """Return the number and size of the events that the store does not have yet."""
        return self._outbox.waiting()

    def acknowledged(self) -> int:
        """Return the number up to which the store has all events."""
        return self._outbox.acknowledged()

    def acknowledge(self, seq: int) -> None:
        """Record that the store has all events up to this number, and delete all but the last entries."""
        self._outbox.acknowledge(seq)

    def agree(self, stored: int) -> None:
        """Reconcile outbox numbers with the store's watermark after either was restored from a backup."""
        self._outbox.agree(stored)

    def maintain(self, now: int) -> None:
        """Delete a slice of the old records, and make everything before it durable."""
        self._call("maintain", "bigint bigint bigint integer", now, now - _DAY, _GENERATION, _SLICE)

    def verify(self) -> list[str]:
        """List descriptions of damage."""
        return problems(self._server)

    def close(self) -> None:
        """Close the connection, and with it all parts of the ledger."""
        self._server.close()


def _holds(rows: Sequence[Any]) -> tuple[Hold, ...]:
    return tuple(
        Hold(AccountKey(limit_key, start, subject), end, amount, None, if_lost)
        for limit_key, start, subject, end, amount, if_lost in rows
    )


def _encoded(charges: Sequence[Charge]) -> str:
    return encode_record(list_of_charges(charges))


def _if_settled(answer: Any) -> Settled | None:
    settled = settled_of(answer)
    return settled if isinstance(settled, Settled) else None

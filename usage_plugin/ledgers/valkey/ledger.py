"""The accounts, reservations and outbox on a Valkey server: each verb is one run of the script `ledger.lua`.

This is the synchronous port, for the keeper and the command line. Requests send the same verbs in batches.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

from usage_plugin.domain.ledger import (
    Account,
    Balance,
    Hold,
    Ledger,
    NotSettled,
    OpenReservation,
    OutboxBacklog,
    OutboxEntry,
    Reserved,
    Settled,
    Snapshot,
)
from usage_plugin.domain.ledger_batch import Abandon, Free, Record, Release, Reserve, Settle
from usage_plugin.errors import LedgerError, StorageVersionError
from usage_plugin.ledgers.valkey import batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from usage_plugin.domain.ledger import AccountKey, Charge
    from usage_plugin.domain.ledger_batch import Verb
    from usage_plugin.ledgers.valkey.batch import Reply
    from usage_plugin.ledgers.valkey.server import ValkeyServer

SCHEMA = 1
_DAY = 86_400_000_000
_PAGE = 1_000
_RANGES, _RANGE = 4, 500
_MOST_NAMED = 20


def create_ledger(server: ValkeyServer) -> str:
    """Connect, create the ledger if it is missing, and return its writer.

    Raises:
        LedgerError: the server does not answer, or cannot keep a ledger.
        StorageVersionError: a newer version wrote it.
    """
    schema, writer = server.script(
        batch.Header(accepted=batch.PRESENT), batch.encode("create", str(SCHEMA), uuid.uuid4().hex)
    )
    if int(schema) > SCHEMA:
        raise StorageVersionError(
            f"The ledger at {server.location} has schema {int(schema)}, and this version knows {SCHEMA}.",
            hint="Upgrade usage_plugin on this host.",
        )
    return str(writer.decode())


class ValkeyLedger(Ledger):
    """The ledger on a server, as one thread sees it."""

    def __init__(self, server: ValkeyServer) -> None:
        """Check the server, and create the ledger if it is missing.

        Raises:
            LedgerError: the server does not answer, or cannot keep a ledger.
            StorageVersionError: a newer version wrote it.
        """
        self._server = server
        self.location = server.location
        self.writer = create_ledger(server)
        self._pruned_up_to = b"-"

    def _run(self, *arguments: str) -> Reply:
        return self._server.run(*batch.encode(*arguments))

    def _read(self, *arguments: str) -> Reply:
        return self._server.read(*batch.encode(*arguments))

    def _do(self, verb: Verb) -> Reply:
        return self._server.run(*batch.arguments_of(verb))

    # ── reservations ─────────────────────────────────────────────────────────────────────────────────────────────────

    def reserve(self, event_id: str, worker: str, started_at: int, holds: Sequence[Hold], event: str) -> Reserved:
        """Reserve on every account, or on none if one has no room."""
        verb = Reserve(event_id, worker, started_at, holds, event)
        answer = batch.answer_of(verb, self._do(verb))
        if isinstance(answer, LedgerError):
            raise answer
        assert isinstance(answer, Reserved)  # noqa: S101  # by the type of the verb
        return answer

    def settle(self, event_id: str, charges: Sequence[Charge], event: str | None) -> Settled | NotSettled:
        """Free the reservation's holds, add the charges and append the event."""
        return batch.settled_of(self._do(Settle(event_id, charges, event, "")))

    def record(self, event_id: str, charges: Sequence[Charge], event: str | None) -> Settled | None:
        """Add the charges and append the event."""
        return _settled(self._do(Record(event_id, charges, event, "")))

    def recover(self, event_id: str) -> Settled | None:
        """Settle with the charge that each hold specifies for a lost worker, and with the reservation's own event."""
        return _settled(self._run("recover", event_id))

    def release(self, event_id: str) -> bool:
        """Free the holds without an entry in the outbox."""
        return bool(int(self._do(Release(event_id))[0]))

    def abandon(self, event_id: str) -> bool:
        """Free the holds, if there are any, and record a tombstone."""
        return bool(int(self._do(Abandon(event_id))[0]))

    def free(self, event_id: str, accounts: Sequence[AccountKey]) -> None:
        """Free the holds of a reservation on some accounts."""
        self._do(Free(event_id, accounts))

    def open_reservations(self, *, with_holds: bool = False) -> list[OpenReservation]:
        """List the open reservations, oldest first."""
        found = []
        for event_id, content, draft in self._read("open"):
            worker, started_at, *_ = batch.holds_in(content)
            holds = _holds(content) if with_holds else ()
            found.append(OpenReservation(event_id.decode(), worker, int(started_at), draft.decode(), holds))
        return sorted(found, key=lambda one: one.started_at)

    # ── accounts ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def snapshot(self, keys: Sequence[AccountKey]) -> Snapshot:
        """Read accounts and the last number of the outbox, at one instant."""
        seq, values = self._read("snapshot", batch.fields_of(keys))
        return Snapshot(int(seq), dict(zip(keys, map(batch.balance_of, values), strict=True)))

    def accounts(self, limit_key: int, since: int, subject: str | None = None) -> list[Account]:
        """List the accounts of one limit, by subject, oldest first."""
        found = self._pages(*batch.range_of(limit_key, since, subject))
        return [
            account for account in found if account.key.window_start >= since and subject in {None, account.key.subject}
        ]

    def every_account(self) -> Iterator[Account]:
        """Iterate over all accounts, page after page."""
        return self._pages(b"-", b"+")

    def _pages(self, first: bytes, last: bytes) -> Iterator[Account]:
        while True:
            fields, values = self._server.read(b"list", first, last, str(_PAGE).encode())
            yield from map(batch.account_with_value, fields, values)
            if len(fields) < _PAGE:
                return
            first = b"(" + fields[-1]

    def correct(self, correction_id: str, differences: Sequence[Charge]) -> bool:
        """Add differences to the spent amounts of accounts."""
        bounded = [one._replace(amount=min(one.amount, 2**63 - 1)) for one in differences]
        return bool(int(self._run("correct", correction_id, batch.charges_of(bounded))[0]))

    # ── the outbox ───────────────────────────────────────────────────────────────────────────────────────────────────

    def outbox(self, after: int, most: int, *, durable: bool = False) -> list[OutboxEntry]:
        """Read entries with a number above `after`, ascending."""
        parts = self._read("outbox", batch.text_of(after), batch.text_of(most))
        entries = [OutboxEntry(int(parts[at]), parts[at + 1].decode()) for at in range(0, len(parts), 2)]
        if durable and entries:
            self._server.confirm(on_disk=True)
        return entries

    def waiting(self) -> OutboxBacklog:
        """Return the number and size of the events that the store does not have yet."""
        _, events, size = map(int, self._read("numbers"))
        return OutboxBacklog(events, size)

    def acknowledged(self) -> int:
        """Return the number up to which the store has all events."""
        return int(self._read("numbers")[0])

    def acknowledge(self, seq: int) -> None:
        """Record that the store has all events up to this number, and delete all but the last entries."""
        self._run("acknowledge", batch.text_of(seq))

    def agree(self, stored: int) -> None:
        """Reconcile outbox numbers with the store's watermark after either was restored from a backup."""
        self._run("agree", batch.text_of(stored))

    # ── upkeep ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def maintain(self, now: int) -> None:
        """Delete a slice of the old records. The server syncs its file once a second by itself."""
        self._run("rotate", batch.text_of(now))
        for _ in range(_RANGES):
            (last,) = self._server.run(
                b"prune", self._pruned_up_to, str(_RANGE).encode(), batch.text_of(now - _DAY).encode()
            )
            self._pruned_up_to = b"(" + last if last else b"-"
            if not last:
                return

    def verify(self) -> list[str]:
        """List descriptions of damage."""
        reservations = [content for _, content, _ in self._read("open")]
        accounts = {batch.field_of(one.key): one for one in self.every_account()}
        suspects = sorted(_wrong(_held(reservations), {field: one.balance for field, one in accounts.items()}))
        problems = list(self._wrong_holds(suspects))
        below = [one for one in accounts.values() if min(one.balance) < 0]
        problems += _few(
            f"Account {one.key} is below zero: {one.balance.spent} spent, {one.balance.reserved} reserved."
            for one in below
        )
        return problems

    def _wrong_holds(self, fields: Sequence[str]) -> Iterator[str]:
        """Compare suspicious accounts once more, at one instant: requests came in between."""
        wrong = []
        for at in range(0, len(fields), _PAGE):
            chosen = fields[at : at + _PAGE]
            values, contents = self._read("holding", json.dumps(chosen, ensure_ascii=False))
            balances = dict(zip(chosen, map(batch.balance_of, values), strict=True))
            held = _held(contents)
            wrong += [
                (batch.account_of(field.encode()), balances[field].reserved, held[field])
                for field in chosen
                if balances[field].reserved != held[field]
            ]
        return _few(
            f"Account {key} says {reserved} are reserved; open reservations hold {amount}."
            for key, reserved, amount in wrong
        )

    def close(self) -> None:
        """Close the connection."""
        self._server.close()


def _settled(reply: Reply) -> Settled | None:
    answer = batch.settled_of(reply)
    return answer if isinstance(answer, Settled) else None


def _holds(content: bytes) -> tuple[Hold, ...]:
    _, _, *parts = batch.holds_in(content)
    return tuple(
        Hold(batch.account_of(field.encode()), int(end), int(amount), None, int(if_lost))
        for field, end, amount, if_lost in zip(*[iter(parts)] * 4, strict=True)
    )


def _held(contents: Sequence[bytes]) -> Counter[str]:
    held: Counter[str] = Counter()
    for content in contents:
        _, _, *parts = batch.holds_in(content)
        for at in range(0, len(parts), 4):
            held[parts[at]] += int(parts[at + 2])
    return held


def _wrong(held: Counter[str], balances: dict[str, Balance]) -> Iterator[str]:
    for field in held.keys() | balances.keys():
        if held[field] != balances.get(field, Balance()).reserved:
            yield field


def _few(problems: Iterator[str]) -> Iterator[str]:
    yield from islice(problems, _MOST_NAMED)
    if more := sum(1 for _ in problems):
        yield f"… and {more} more."

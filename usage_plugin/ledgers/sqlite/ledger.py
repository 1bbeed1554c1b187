"""The accounts, reservations and outbox in SQLite: each verb is one short transaction on an open connection.

It runs on the event loop itself: about 40 µs a verb, against over 200 µs through a thread. Few statements run inside
the lock, because another thread may take the GIL between two of them.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from usage_plugin.domain.ledger import (
    NOTHING,
    Account,
    AccountKey,
    Balance,
    Charge,
    Hold,
    Ledger,
    NotSettled,
    OpenReservation,
    Reserved,
    Settled,
    Snapshot,
)
from usage_plugin.errors import ReservationConflictError
from usage_plugin.ledgers.sqlite.accounts import (
    MOST,
    changes_of,
    decoded,
    encoded,
    pages_of_accounts,
    reading,
    reserving,
)
from usage_plugin.ledgers.sqlite.ended_ids import EndedIds
from usage_plugin.ledgers.sqlite.file import translate, translated
from usage_plugin.ledgers.sqlite.maintenance import Maintenance
from usage_plugin.ledgers.sqlite.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from usage_plugin.domain.ledger import OutboxBacklog, OutboxEntry
    from usage_plugin.ledgers.sqlite.accounts import Change
    from usage_plugin.ledgers.sqlite.file import LedgerFile

_MOST_IN_DOUBT = 1_000


class SqliteLedger(Ledger):
    """The ledger in an open file."""

    def __init__(self, file: LedgerFile) -> None:
        """Use an open file."""
        self.writer, self.location = file.writer, str(file.path)
        self._file = file
        self._maintenance = Maintenance(file)
        self._ended = EndedIds(file)
        self._outbox = Outbox(file, self._ended)
        self._path, self._execute, self._writing, self._rollback = file.path, file.execute, file.writing, file.rollback
        self._own: dict[str, tuple[int, Sequence[Hold], tuple[Balance, ...]]] = {}
        """Slot, holds and earlier balances of each open reservation made by this object; saves a look-up."""
        self._in_doubt: set[str] = set()
        """Ids of reservations that raised an error here: they may have been committed nevertheless."""
        self._free: list[int] = []
        """Free slots: of reservations that were made and ended by this object."""
        cursor = file.connection.cursor()
        self._do, self._do_for_each = cursor.execute, cursor.executemany
        """For the request path; `_execute` creates a cursor for each statement, so that several can be read at once."""

    # The verbs of the request path write out the transaction: a context manager costs as much as a statement.

    def reserve(self, event_id: str, worker: str, started_at: int, holds: Sequence[Hold], event: str) -> Reserved:
        """Reserve on every account, or on none if one has no room."""
        row = (
            event_id,
            worker,
            started_at,
            encoded(holds),
            event,
        )
        if (event_id in self._own or event_id in self._in_doubt) and (known := self._repeated(row, holds)):
            return known
        changes = {account: (end, 0, amount) for account, end, amount, _, _, _ in holds}
        do = self._do
        try:
            do("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise translate(error, self._path) from error
        try:
            balances, is_abandoned = self._balances_before(event_id, holds)
            if is_abandoned or not all(map(Hold.fits, holds, balances)):
                buckets = self._buckets_of_refused(holds, balances)
                do("ROLLBACK")
                return Reserved(False, balances, buckets)
            self._add(changes)
            slot = self._fill_slot(row)
            do("COMMIT")
        except Exception as error:
            self._rollback()
            self._doubt(event_id)
            raise translate(error, self._path) from error
        if self._free:
            self._free.pop()  # either the reservation took it, or the list is empty
        self._own[event_id] = (slot, tuple(holds), balances)
        return Reserved(True, balances)

    def _balances_before(self, event_id: str, holds: Sequence[Hold]) -> tuple[tuple[Balance, ...], bool]:
        """Return the balances before a reservation, and whether the request was abandoned."""
        values: list[int | str] = []
        for (limit_key, window_start, subject), _, _, _, _, oldest in holds:
            values += (limit_key, window_start if oldest is None else oldest, subject)
        values.append(event_id)
        balances = [NOTHING] * len(holds)
        is_abandoned = False
        read = reserving(tuple([hold.since is not None for hold in holds]))
        for number, spent, reserved in self._do(read, values).fetchall():
            if number < 0:
                is_abandoned = True
            else:
                balances[number] = Balance(spent, reserved)
        return tuple(balances), is_abandoned

    def _buckets_of_refused(
        self, holds: Sequence[Hold], balances: Sequence[Balance]
    ) -> dict[AccountKey, Sequence[Account]]:
        return {
            hold.account: self._list(hold.account.limit_key, hold.since, hold.account.subject)
            for hold, balance in zip(holds, balances, strict=True)
            if hold.since is not None and not hold.fits(balance)
        }

    def _doubt(self, event_id: str) -> None:
        if len(self._in_doubt) >= _MOST_IN_DOUBT:
            self._in_doubt.clear()
        self._in_doubt.add(event_id)

    def _repeated(self, row: tuple[str, str, int, str, str], holds: Sequence[Hold]) -> Reserved | None:
        """Return the result of a reservation that is already open; None if it is not."""
        event_id = row[0]
        with translated(self._path):
            found = self._execute(
                "SELECT slot, event_id, worker, started_at, holds, event FROM reservations WHERE open AND event_id = ?",
                (event_id,),
            ).fetchone()
            if found is None:
                if event_id in self._own:
                    raise ReservationConflictError(f"{event_id} was reserved already, and has ended.")
                return None
            slot, *content = found
            if tuple(content) != row:
                raise ReservationConflictError(f"{event_id} is reserved already, with other content.")
            if event_id not in self._own:
                # It was committed although an error was raised. Its own holds are not part of the balances before it.
                after, _ = self._balances_before(event_id, holds)
                before = tuple(
                    balance._replace(reserved=balance.reserved - hold.amount)
                    for balance, hold in zip(after, holds, strict=True)
                )
                self._own[event_id] = (slot, tuple(holds), before)
        self._in_doubt.discard(event_id)
        return Reserved(True, self._own[event_id][2])

    def _fill_slot(self, row: tuple[str, str, int, str, str]) -> int:
        """Store a reservation in a free slot and return the slot, which leaves the list only after the commit."""
        while self._free:
            slot = self._free[-1]
            filled = self._do(
                "UPDATE reservations SET open = 1, event_id = ?, worker = ?, started_at = ?, holds = ?, event = ?"
                " WHERE slot = ? AND NOT open",
                (*row, slot),
            )
            if filled.rowcount:
                return slot
            # The keeper has deleted the slot.
            self._free.pop()
        made = self._do(
            "INSERT INTO reservations (open, event_id, worker, started_at, holds, event) VALUES (1, ?, ?, ?, ?, ?)", row
        )
        return made.lastrowid or 0

    def settle(self, event_id: str, charges: Sequence[Charge], event: str | None) -> Settled | NotSettled:
        """Free the reservation's holds, add the charges and append the event."""
        do = self._do
        try:
            do("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise translate(error, self._path) from error
        try:
            holds = self._take(event_id)
            if holds is None:
                has_ended = self._ended.has(event_id)
                do("COMMIT")
                self._finished(event_id)
                return NotSettled.BEFORE if has_ended else NotSettled.UNKNOWN
            settled = self._book(event_id, changes_of(holds, charges), event)
            do("COMMIT")
        except Exception as error:
            self._rollback()
            raise translate(error, self._path) from error
        self._finished(event_id)
        return settled

    def recover(self, event_id: str) -> Settled | None:
        """Settle with the charge that each hold specifies for a lost worker, and with the reservation's own event."""
        with self._writing():
            found = self._take_anybodys(event_id)
            if found is None:
                return None
            holds, event = found
            lost = [Charge(hold.account, hold.window_end, hold.if_lost) for hold in holds]
            settled = self._book(event_id, changes_of(holds, lost), event)
        self._finished(event_id)
        return settled

    def release(self, event_id: str) -> bool:
        """Free the holds without an entry in the outbox."""
        with self._writing():
            holds = self._take(event_id)
            if holds is not None:
                self._add(changes_of(holds, ()))
                self._ended.add(event_id)
        self._finished(event_id)
        return holds is not None

    def abandon(self, event_id: str) -> bool:
        """Free the holds, if there are any, and record a tombstone."""
        with self._writing():
            holds = self._take(event_id)
            if holds is None and self._ended.has(event_id):
                return False
            self._add(changes_of(holds or (), ()))
            self._ended.add_tombstone(event_id)
        self._finished(event_id)
        return True

    def free(self, event_id: str, accounts: Sequence[AccountKey]) -> None:
        """Free the holds of this worker's reservation on some accounts."""
        if event_id not in self._own:
            return
        slot, holds, before = self._own[event_id]
        kept = [hold for hold in holds if hold.account not in accounts]
        with self._writing():
            changed = self._do(
                "UPDATE reservations SET holds = ? WHERE slot = ? AND open AND event_id = ?",
                (encoded(kept), slot, event_id),
            )
            if changed.rowcount:
                self._add(changes_of([hold for hold in holds if hold.account in accounts], ()))
        self._own[event_id] = (slot, kept, before)

    def record(self, event_id: str, charges: Sequence[Charge], event: str | None) -> Settled | None:
        """Add the charges and append the event, in one transaction."""
        do = self._do
        try:
            do("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise translate(error, self._path) from error
        try:
            recorded = None
            is_reserved = event_id in self._own or event_id in self._in_doubt
            holds = self._take(event_id) if is_reserved else None
            if holds is not None or not self._ended.has(event_id):
                recorded = self._book(event_id, changes_of(holds or (), charges), event)
            do("COMMIT")
        except Exception as error:
            self._rollback()
            raise translate(error, self._path) from error
        self._finished(event_id)
        return recorded

    def _take(self, event_id: str) -> Sequence[Hold] | None:
        """Free the slot of a reservation and return its holds; None if it is no longer open."""
        own = self._own.get(event_id)
        if own is None:
            found = self._take_anybodys(event_id)
            return found[0] if found else None
        slot, holds, _ = own
        # Another worker may have recovered it, and another reservation may use the slot since.
        taken = self._do("UPDATE reservations SET open = 0 WHERE slot = ? AND open AND event_id = ?", (slot, event_id))
        return holds if taken.rowcount else None

    def _take_anybodys(self, event_id: str) -> tuple[list[Hold], str] | None:
        """Free any worker's reservation and return its holds and event; it scans all reservations, which are few."""
        row = self._do(
            "UPDATE reservations SET open = 0 WHERE open AND event_id = ? RETURNING holds, event", (event_id,)
        ).fetchone()
        return None if row is None else (decoded(row[0]), row[1])

    def _finished(self, event_id: str) -> None:
        """Forget a reservation that this object made, and add its slot to the free ones."""
        own = self._own.pop(event_id, None)
        if own is not None:
            self._free.append(own[0])
        if self._in_doubt:
            self._in_doubt.discard(event_id)

    def _book(self, event_id: str, changes: Mapping[AccountKey, Change], event: str | None) -> Settled:
        """Change accounts and append the event, if there is one."""
        self._add(changes)
        balances = self._alone(list(changes))
        if event is None:
            self._ended.add(event_id)
            return Settled(0, balances)
        seq = self._do("INSERT INTO outbox (event, event_id) VALUES (?, ?)", (event, event_id)).lastrowid or 0
        return Settled(seq, balances)

    def _add(self, changes: Mapping[AccountKey, Change]) -> None:
        """Add changes to accounts; insert the missing ones.

        Not one upsert: that takes longer, and longer still with RETURNING.
        """
        if not changes:
            return
        rows = [(*change, *account) for account, change in changes.items()]
        changed = self._do_for_each(
            f"UPDATE accounts SET window_end = max(window_end, ?), spent = min(spent + ?, {MOST}),"
            f" reserved = min(reserved + ?, {MOST})"
            " WHERE limit_key = ? AND window_start = ? AND subject = ?",
            rows,
        )
        if changed.rowcount < len(rows):
            # Existing accounts have been updated already, and are ignored here.
            self._do_for_each(
                "INSERT INTO accounts (window_end, spent, reserved, limit_key, window_start, subject)"
                " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                rows,
            )

    def _alone(self, accounts: Sequence[AccountKey]) -> dict[AccountKey, Balance]:
        """Read the balance of each account."""
        return dict(zip(accounts, self._balances(accounts, [None] * len(accounts)), strict=True))

    def _balances(self, accounts: Sequence[AccountKey], since: Sequence[int | None]) -> list[Balance]:
        """Read accounts; with `since`, the sum over that bucket and all later ones."""
        if not accounts:
            return []
        values: list[int | str] = []
        for (limit_key, window_start, subject), oldest in zip(accounts, since, strict=True):
            values += (limit_key, window_start if oldest is None else oldest, subject)
        balances = [NOTHING] * len(accounts)
        read = reading(tuple([oldest is not None for oldest in since]))
        for number, spent, reserved in self._do(read, values).fetchall():
            balances[number] = Balance(spent, reserved)
        return balances

    def open_reservations(self, *, with_holds: bool = False) -> list[OpenReservation]:
        """List the open reservations, oldest first."""
        holds = "holds" if with_holds else "'[]'"
        with translated(self._path):
            rows = self._execute(
                f"SELECT event_id, worker, started_at, event, {holds} FROM reservations WHERE open ORDER BY started_at"
            )
            return [OpenReservation._make((*row, tuple(decoded(text)))) for *row, text in rows]

    def snapshot(self, keys: Sequence[AccountKey]) -> Snapshot:
        """Read accounts and the last number of the outbox, in one snapshot of the file."""
        with self._file.reading():
            (seq,) = self._execute("SELECT coalesce(max(seq), 0) FROM outbox").fetchone()
            return Snapshot(seq, self._alone(keys))

    def balances(self, keys: Sequence[AccountKey]) -> dict[AccountKey, Balance]:
        """Read accounts; a missing account has spent nothing."""
        with translated(self._path):
            return self._alone(keys)

    def accounts(self, limit_key: int, since: int, subject: str | None = None) -> list[Account]:
        """List the accounts of one limit, by subject, oldest first."""
        with translated(self._path):
            return self._list(limit_key, since, subject)

    def _list(self, limit_key: int, since: int, subject: str | None) -> list[Account]:
        values: list[int | str] = [limit_key, since]
        where = "limit_key = ? AND window_start >= ?"
        if subject is not None:
            values.append(subject)
            where += " AND subject = ?"
        rows = self._execute(
            "SELECT limit_key, window_start, subject, window_end, spent, reserved FROM accounts"
            f" WHERE {where} ORDER BY limit_key, subject, window_start",
            values,
        )
        return [Account(AccountKey(*key), end, Balance(spent, reserved)) for *key, end, spent, reserved in rows]

    def every_account(self) -> Iterator[Account]:
        """Iterate over all accounts, page after page."""
        return pages_of_accounts(self._path, self._execute)

    def correct(self, correction_id: str, differences: Sequence[Charge]) -> bool:
        """Add differences to the spent amounts of accounts, in one transaction."""
        bounded = [one._replace(amount=min(one.amount, MOST)) for one in differences]
        with self._writing():
            if self._ended.has(correction_id):
                return False
            self._add(changes_of((), bounded))
            self._ended.add(correction_id)
            return True

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
        """Delete a slice of the old records, and sync the write-ahead log to disk."""
        self._maintenance.delete_old(now)
        with translated(self._path):
            self._ended.maintain(now)
        self._file.sync()

    def verify(self) -> list[str]:
        """List descriptions of damage."""
        return self._maintenance.verify()

    def close(self) -> None:
        """Close the file, and with it all parts of the ledger."""
        self._file.close()

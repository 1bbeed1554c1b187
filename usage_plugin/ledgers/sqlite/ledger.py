"""The SQLite ledger: every verb is one short transaction on an open connection.

It runs on the event loop itself: about 40 µs a verb, against over 200 µs through a thread. So the connection never
waits for a lock: `LedgerBusyError` comes at once, and whoever called decides how to try again. Few statements
stand inside the lock, because another thread may take the GIL between two of them.
"""

from __future__ import annotations

import json
import os
import sqlite3
import uuid
from contextlib import contextmanager, suppress
from importlib import resources
from typing import TYPE_CHECKING

from usage_plugin.domain.ledger import (
    NOTHING,
    Account,
    AccountKey,
    Balance,
    Charge,
    Hold,
    Ledger,
    OpenReservation,
    OutboxEntry,
    RefusalCount,
    Reserved,
    Settled,
)
from usage_plugin.errors import LedgerBusyError, LedgerError
from usage_plugin.sqlite_file import create_private, has_wal_reset_bug, migrate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode
KEPT_ENTRIES = 2_000
"""Acknowledged outbox entries that stay, so that caches of other workers can catch up from them."""
KEPT_REFUSALS = 10_000
KEPT_REFUSAL_MINUTES = 7 * 24 * 60
_DAY = 86_400_000_000
_SLICE = 500
_START_TIMEOUT = 30.0
_CHECKPOINT_WAIT_MS = 200
_LOG_WORTH_COPYING = 2**20


class SqliteLedger(Ledger):
    """A ledger in one file. One object serves one thread; open another for another."""

    def __init__(self, path: Path) -> None:
        """Open the file, creating it if there is none.

        Raises:
            LedgerError: the file cannot be opened or is no ledger.
            StorageVersionError: a newer version wrote it.
        """
        self._path = path
        self.location = str(path)
        with _translated(path):
            create_private(path)
            self._connection = sqlite3.connect(
                path, timeout=_START_TIMEOUT, isolation_level=None, check_same_thread=False, cached_statements=256
            )
            self._execute = self._connection.execute
            # Small pages: a commit writes each page it touched, and touches a few rows on several pages.
            self._execute("PRAGMA page_size = 1024")
            # The first statement that touches the file waits for other workers that start at the same time.
            self._execute("PRAGMA journal_mode = WAL")
            # NORMAL: no fsync for each commit. A killed process loses nothing; a power cut the last second.
            self._execute("PRAGMA synchronous = NORMAL")
            self._execute("PRAGMA cache_size = -2000")
            self._execute("PRAGMA wal_autocheckpoint = 0")
            migrate(self._connection, resources.files(__package__) / "migrations", path)
            self.writer = self._identify()
            self._execute("PRAGMA busy_timeout = 0")

    def _identify(self) -> str:
        """Give this ledger its name for ever, once; readers must not wait for a lock to learn it."""
        if (row := self._execute("SELECT writer FROM ledger").fetchone()) is None:
            self._execute(
                "INSERT INTO ledger (writer, acknowledged) SELECT ?, 0 WHERE NOT EXISTS (SELECT * FROM ledger)",
                (uuid.uuid4().hex,),
            )
            row = self._execute("SELECT writer FROM ledger").fetchone()
        return str(row[0])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction, holding the write lock from its start."""
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._execute("ROLLBACK")
            raise
        self._execute("COMMIT")

    # The three verbs of the request path spell the transaction out: a context manager costs as much as a statement.

    def reserve(self, event_id: str, worker: str, started_at: int, holds: Sequence[Hold], event: str) -> Reserved:
        """Hold on every account, or on none if one has no room."""
        encoded = _encode([(*account, window_end, amount) for account, window_end, amount, _ in holds])
        execute = self._execute
        try:
            execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise _translate(error, self._path) from error
        try:
            after = self._add([(*account, window_end, 0, amount) for account, window_end, amount, _ in holds])
            balances = tuple([Balance(s, r - hold.amount) for hold, (s, r) in zip(holds, after, strict=True)])
            if not all(map(Hold.fits, holds, balances)):
                execute("ROLLBACK")
                return Reserved(False, balances)
            execute(
                "INSERT INTO reservations (event_id, worker, started_at, holds, event) VALUES (?, ?, ?, ?, ?)",
                (event_id, worker, started_at, encoded, event),
            )
            execute("COMMIT")
        except Exception as error:
            self._abandon()
            raise _translate(error, self._path) from error
        return Reserved(True, balances)

    def settle(self, event_id: str, charges: Sequence[Charge], event: str) -> Settled | None:
        """Free the reservation's holds, add the charges, append the event."""
        return self._settle(event_id, charges, event)

    def recover(self, event_id: str) -> Settled | None:
        """Settle at the reserved amounts, with the event the reservation carries."""
        return self._settle(event_id, None, None)

    def _settle(self, event_id: str, charges: Sequence[Charge] | None, event: str | None) -> Settled | None:
        execute = self._execute
        try:
            execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise _translate(error, self._path) from error
        try:
            row = execute("DELETE FROM reservations WHERE event_id = ? RETURNING holds, event", (event_id,)).fetchone()
            if row is None:
                execute("ROLLBACK")
                return None
            changes = _changes(json.loads(row[0]), charges)
            after = self._add([(*account, *change) for account, change in changes.items()])
            seq = execute("INSERT INTO outbox (event) VALUES (?)", (event or row[1],)).lastrowid or 0
            execute("COMMIT")
        except Exception as error:
            self._abandon()
            raise _translate(error, self._path) from error
        return Settled(seq, {AccountKey(*account): Balance(*new) for account, new in zip(changes, after, strict=True)})

    def _abandon(self) -> None:
        """Leave no transaction open, whatever went wrong in it: the next request needs the connection."""
        if self._connection.in_transaction:
            self._execute("ROLLBACK")

    def _read(self, keys: Sequence[AccountKey]) -> tuple[Balance, ...]:
        """Read accounts, in their order; those that do not exist have spent nothing."""
        found = {
            (key, start, subject): Balance(spent, reserved)
            for key, start, subject, spent, reserved in self._execute(
                _select(len(keys)), [value for key in keys for value in key]
            )
        }
        return tuple(found.get(key, NOTHING) for key in keys)

    def _add(self, rows: Sequence[Sequence[int | str]]) -> list[tuple[int, int]]:
        """Add (key, start, subject, end, spent, reserved) to accounts; give their new balances, in order."""
        if not rows:
            return []
        return self._execute(_upsert(len(rows)), [value for row in rows for value in row]).fetchall()

    def open_reservations(self) -> list[OpenReservation]:
        """List what is reserved and not settled, oldest first."""
        with _translated(self._path):
            rows = self._execute("SELECT event_id, worker, started_at, event FROM reservations ORDER BY started_at")
            return [OpenReservation(*row) for row in rows]

    def balances(self, keys: Sequence[AccountKey]) -> dict[AccountKey, Balance]:
        """Read accounts; those that do not exist have spent nothing."""
        with _translated(self._path):
            return dict(zip(keys, self._read(keys), strict=True)) if keys else {}

    def accounts(self, limit_key: int, window_start: int) -> list[Account]:
        """List the accounts of one limit in one window, by subject."""
        with _translated(self._path):
            rows = self._execute(
                "SELECT subject, window_end, spent, reserved FROM accounts"
                " WHERE limit_key = ? AND window_start = ? ORDER BY subject",
                (limit_key, window_start),
            )
            return [
                Account(AccountKey(limit_key, window_start, subject), end, Balance(spent, reserved))
                for subject, end, spent, reserved in rows
            ]

    def outbox(self, after: int, most: int) -> list[OutboxEntry]:
        """Read entries with a number above `after`, ascending."""
        with _translated(self._path):
            rows = self._execute(
                "SELECT seq, event FROM outbox WHERE seq > ? AND event <> '' ORDER BY seq LIMIT ?", (after, most)
            )
            return [OutboxEntry(*row) for row in rows]

    def acknowledged(self) -> int:
        """Give the number up to which the store has everything."""
        with _translated(self._path):
            (seq,) = self._execute("SELECT acknowledged FROM ledger").fetchone()
            return int(seq)

    def acknowledge(self, seq: int) -> None:
        """Note that the store has everything up to this number, and drop all but the last entries."""
        with _translated(self._path), self._writing():
            self._execute("UPDATE ledger SET acknowledged = max(acknowledged, ?)", (seq,))
            self._execute("DELETE FROM outbox WHERE seq <= ?", (seq - KEPT_ENTRIES,))

    def agree(self, stored: int) -> None:
        """Go on from what the store has, whichever of the two was restored from a backup."""
        with _translated(self._path), self._writing():
            (acknowledged,) = self._execute("SELECT acknowledged FROM ledger").fetchone()
            (newest,) = self._execute("SELECT coalesce(max(seq), 0) FROM outbox").fetchone()
            if stored > acknowledged:
                behind = max(stored, newest) - acknowledged
                self._execute(
                    "UPDATE outbox SET seq = seq + ? WHERE seq > ? AND seq <= ?", (behind, acknowledged, stored)
                )
                # Where nothing was moved, an empty entry takes the number; readers pass it over.
                self._execute(
                    "INSERT INTO outbox (seq, event)"
                    " SELECT ?1, '' WHERE ?1 > (SELECT coalesce(max(seq), 0) FROM outbox)",
                    (stored,),
                )
            self._execute("UPDATE ledger SET acknowledged = ?", (stored,))

    def count_refusals(self, counts: Sequence[RefusalCount], details: Sequence[tuple[str, int, str]]) -> None:
        """Add up refusals, and keep the last ones for look-up."""
        with _translated(self._path), self._writing():
            self._connection.executemany(
                "INSERT INTO refusal_counts (minute, limit_name, subject, reason, count) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET count = count + excluded.count",
                counts,
            )
            self._connection.executemany("INSERT OR REPLACE INTO refusals (ref, at, details) VALUES (?, ?, ?)", details)
            self._execute(
                "DELETE FROM refusals WHERE number <= (SELECT max(number) FROM refusals) - ?", (KEPT_REFUSALS,)
            )

    def refusal_counts(self, since_minute: int) -> list[RefusalCount]:
        """List the refusals counted from this minute on."""
        with _translated(self._path):
            rows = self._execute(
                "SELECT minute, limit_name, subject, reason, count FROM refusal_counts WHERE minute >= ?",
                (since_minute,),
            )
            return [RefusalCount(*row) for row in rows]

    def refusal(self, ref: str) -> str | None:
        """Find the details of a refusal by the ref the client was told."""
        with _translated(self._path):
            row = self._execute("SELECT details FROM refusals WHERE ref = ?", (ref,)).fetchone()
            return None if row is None else str(row[0])

    def tidy(self, now: int) -> None:
        """Drop a slice of closed windows and old refusals, and bring the write-ahead log to the disk."""
        with _translated(self._path):
            for limit_key, window_start, window_end in self._oldest_windows():
                # All accounts of a window end together: an open one is not even looked into.
                if window_end < now - _DAY:
                    with self._writing():
                        self._execute(
                            "DELETE FROM accounts WHERE (limit_key, window_start, subject) IN ("
                            " SELECT limit_key, window_start, subject FROM accounts"
                            " WHERE limit_key = ? AND window_start = ? AND reserved = 0 LIMIT ?)",
                            (limit_key, window_start, _SLICE),
                        )
            oldest = now // 60_000_000 - KEPT_REFUSAL_MINUTES
            if self._execute("SELECT 1 FROM refusal_counts WHERE minute < ? LIMIT 1", (oldest,)).fetchone():
                with self._writing():
                    self._execute("DELETE FROM refusal_counts WHERE minute < ?", (oldest,))
            self._sync_log()

    def shorten_log(self) -> None:
        """Copy the write-ahead log into the file once it is worth it, and cut it.

        Little and often, since writers wait meanwhile. What can be done before the write lock is taken, bringing the
        log to the disk, is most of the work.
        """
        with _translated(self._path):
            if self._sync_log(at_least=_LOG_WORTH_COPYING):
                self._execute(f"PRAGMA busy_timeout = {_CHECKPOINT_WAIT_MS}")
                if not has_wal_reset_bug():
                    # Most of the log is copied beside the writers.
                    self._execute("PRAGMA wal_checkpoint(PASSIVE)")
                # Takes the write lock first, so no writer can be hit by the bug of older versions.
                self._execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._execute("PRAGMA busy_timeout = 0")

    def _sync_log(self, *, at_least: int = 1) -> bool:
        """Bring the log to the disk, if it has so many bytes; say whether it had.

        SQLite has no locks on the log, so it may be opened and closed beside it, unlike the file.
        """
        with suppress(FileNotFoundError):
            handle = os.open(self._path.with_name(f"{self._path.name}-wal"), os.O_RDONLY)
            try:
                if os.fstat(handle).st_size >= at_least:
                    os.fsync(handle)
                    return True
            finally:
                os.close(handle)
        return False

    def _oldest_windows(self) -> list[tuple[int, int, int]]:
        """Find the oldest window of each limit, hopping from key to key instead of reading all accounts."""
        windows = []
        first = "SELECT limit_key, window_start, window_end FROM accounts {} ORDER BY 1, 2 LIMIT 1"
        row = self._execute(first.format("")).fetchone()
        while row:
            windows.append(row)
            row = self._execute(first.format("WHERE limit_key > ?"), row[:1]).fetchone()
        return windows

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _changes(
    taken: list[tuple[int, int, str, int, int]], charges: Sequence[Charge] | None
) -> dict[tuple[int, int, str], list[int]]:
    """Work out (window_end, spent, reserved) to add to each account; no charges: what was held is charged."""
    changes = {
        (key, start, subject): [end, amount if charges is None else 0, -amount]
        for key, start, subject, end, amount in taken
    }
    for account, window_end, amount in charges or ():
        changes.setdefault(account, [window_end, 0, 0])[1] += amount
    return changes


def _select(count: int) -> str:
    """One look-up for each account, in one statement; SQLite keeps it prepared."""
    one = (
        "SELECT limit_key, window_start, subject, spent, reserved FROM accounts"
        " WHERE limit_key = ? AND window_start = ? AND subject = ?"
    )
    return " UNION ALL ".join([one] * count)


def _upsert(count: int) -> str:
    return (
        "INSERT INTO accounts (limit_key, window_start, subject, window_end, spent, reserved) VALUES "
        + ", ".join(["(?, ?, ?, ?, ?, ?)"] * count)
        + " ON CONFLICT DO UPDATE SET spent = spent + excluded.spent, reserved = reserved + excluded.reserved"
        " RETURNING spent, reserved"
    )


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn the driver's errors into ours."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise _translate(error, path) from error


def _translate(error: Exception, path: Path) -> LedgerError:
    # Python 3.10's sqlite3 has no error codes, only these words.
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        return LedgerBusyError(f"{path} is locked by another process.")
    return LedgerError(f"The ledger {path} does not work: {error}.")

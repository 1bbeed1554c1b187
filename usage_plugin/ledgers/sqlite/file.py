"""The ledger's file: one connection with its transactions, errors, identity and write-ahead log.

Each part of the ledger is a class over one `LedgerFile`. The connection never waits for a lock: it raises
`LedgerBusyError` at once, and the caller decides how to retry.
"""

from __future__ import annotations

import sqlite3
import uuid
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING

from usage_plugin.errors import LedgerBusyError, LedgerError
from usage_plugin.ledgers.sqlite.wal import LONGEST_LOG, WriteAheadLog
from usage_plugin.sqlite_file import create_private, identity, migrate, use_write_ahead_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

_START_TIMEOUT = 30.0
_SLICE = 500
_DRIVERS = (sqlite3.Error, OSError, OverflowError, UnicodeError)
"""Errors that the driver raises."""


class LedgerFile:
    """One open file. An object serves one thread; each thread opens its own.

    Attributes:
        path: the path of the file.
        connection: the connection; never in a transaction between two verbs.
        execute: the connection's method that executes one statement.
        writer: the permanent id of this ledger's outbox.
    """

    def __init__(self, path: Path) -> None:
        """Open the file; create it if it is missing.

        Raises:
            LedgerError: the file cannot be opened, or is not a ledger.
            StorageVersionError: a newer version wrote it.
        """
        self.path = path
        self._log = WriteAheadLog(path)
        with translated(path):
            create_private(path)
            self._identity = identity(path)
            self.connection = sqlite3.connect(
                path, timeout=_START_TIMEOUT, isolation_level=None, check_same_thread=False, cached_statements=256
            )
            self.execute = self.connection.execute
            # Small pages, since a commit writes each page that it changed; large enough for an event.
            self.execute("PRAGMA page_size = 2048")
            use_write_ahead_log(self.connection, _START_TIMEOUT)
            # NORMAL: no fsync for each commit. A killed process loses nothing; a power cut loses the last second.
            self.execute("PRAGMA synchronous = NORMAL")
            self.execute("PRAGMA cache_size = -2000")
            self.execute("PRAGMA wal_autocheckpoint = 0")
            # It frees disk space only after a long read has kept the log from restarting at its beginning.
            self.execute(f"PRAGMA journal_size_limit = {2 * LONGEST_LOG}")
            migrate(self.connection, resources.files(__package__) / "migrations", path)
            self.writer = self._identify()
            self.execute("PRAGMA busy_timeout = 0")

    def _identify(self) -> str:
        """Return this ledger's permanent id; create it once. Readers must not wait for a lock to read it."""
        if (row := self.execute("SELECT writer FROM ledger").fetchone()) is None:
            self.execute(
                "INSERT INTO ledger (writer, acknowledged, adjustments_version, copies)"
                " SELECT ?, 0, 0, 0 WHERE NOT EXISTS (SELECT * FROM ledger)",
                (uuid.uuid4().hex,),
            )
            row = self.execute("SELECT writer FROM ledger").fetchone()
        return str(row[0])

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Run several statements on one snapshot of the file."""
        with translated(self.path):
            self.execute("BEGIN")
            try:
                yield
            finally:
                self.rollback()

    def writing(self) -> _Writing:
        """Open a transaction that holds the write lock from its start."""
        return _Writing(self.path, self.execute, self.rollback)

    def rollback(self) -> None:
        """End any open transaction after an error: the next request needs the connection."""
        if self.connection.in_transaction:
            self.execute("ROLLBACK")

    def delete_older(self, table: str, column: str, before: int) -> None:
        """Delete a slice of the rows older than `before`; the column has an index, so a check for them is cheap."""
        oldest = f"SELECT {column} FROM {table} WHERE {column} < ? LIMIT 1"
        if self.execute(oldest, (before,)).fetchone():
            with self.writing():
                self.execute(
                    f"DELETE FROM {table} WHERE {column} IN"
                    f" (SELECT {column} FROM {table} WHERE {column} < ? ORDER BY {column} LIMIT {_SLICE})",
                    (before,),
                )

    def sync(self) -> None:
        """Sync the write-ahead log to disk."""
        with translated(self.path):
            self._log.sync()

    def check_place(self) -> None:
        """Check that the ledger file was not deleted or replaced."""
        with translated(self.path):
            is_here = identity(self.path) == self._identity
        if not is_here:
            raise LedgerError(f"The ledger {self.path} was deleted or replaced while it was open.")

    def shorten_log(self) -> None:
        """Checkpoint the write-ahead log into the file, once a second."""
        with translated(self.path):
            self._log.shorten()

    def close(self) -> None:
        """Close the connections."""
        self._log.close()
        self.connection.close()


class _Writing:
    """A write transaction.

    A class and not a generator, since it is on the path of recording, where a generator costs as much as a statement.
    """

    __slots__ = ("_execute", "_path", "_rollback")

    def __init__(self, path: Path, execute: Callable[[str], object], rollback: Callable[[], None]) -> None:
        self._path = path
        self._execute = execute
        self._rollback = rollback

    def __enter__(self) -> None:
        try:
            self._execute("BEGIN IMMEDIATE")
        except _DRIVERS as error:
            raise translate(error, self._path) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            try:
                if error is None:
                    self._execute("COMMIT")
            finally:
                self._rollback()
        except _DRIVERS as failed:
            raise translate(failed, self._path) from failed
        if isinstance(error, _DRIVERS):
            raise translate(error, self._path) from error


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Convert the driver's errors to `LedgerError`, including those for numbers and texts that SQLite cannot store."""
    try:
        yield
    except _DRIVERS as error:
        raise translate(error, path) from error


def translate(error: Exception, path: Path) -> LedgerError:
    """Return the `LedgerError` for an error of the driver."""
    # Python 3.10's sqlite3 has no error codes, only this message.
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        return LedgerBusyError(f"{path} is locked by another process.")
    return LedgerError(f"The ledger {path} does not work: {error}.")

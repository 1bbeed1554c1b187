"""The ledger's file: how it is opened and locked, how its log reaches the disk, and what its errors mean.

The connection never waits for a lock: `LedgerBusyError` comes at once, and whoever called decides how to try again.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from contextlib import contextmanager, suppress
from importlib import resources
from typing import TYPE_CHECKING

from usage_plugin.domain.ledger import Ledger
from usage_plugin.errors import LedgerBusyError, LedgerError
from usage_plugin.sqlite_file import create_private, migrate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_START_TIMEOUT = 30.0
_PAGE_SIZE = 1024
_FRAME_HEADER = 24
COPY_EVERY = 1.0
"""Seconds."""
LONGEST_LOG = 32 * 2**20
"""Bytes after which the log begins anew."""

_SYNCED: dict[tuple[int, int], int] = {}
"""Descriptors by device and inode. Never closed: that would drop all locks that SQLite has on the file here."""


class LedgerFile(Ledger):
    """One open file. One object serves one thread; open another for another."""

    def __init__(self, path: Path) -> None:
        """Open the file, creating it if there is none.

        Raises:
            LedgerError: the file cannot be opened or is no ledger.
            StorageVersionError: a newer version wrote it.
        """
        self._path = path
        self.location = str(path)
        self._pin: sqlite3.Connection | None = None
        self._copied: tuple[int, int] | None = None
        self._copied_at = -COPY_EVERY
        with translated(path):
            create_private(path)
            self._connection = sqlite3.connect(
                path, timeout=_START_TIMEOUT, isolation_level=None, check_same_thread=False, cached_statements=256
            )
            self._execute = self._connection.execute
            # Small pages: a commit writes each page it touched, and touches a few rows on several pages.
            self._execute(f"PRAGMA page_size = {_PAGE_SIZE}")
            # The first statement that touches the file waits for other workers that start at the same time.
            self._execute("PRAGMA journal_mode = WAL")
            # NORMAL: no fsync for each commit. A killed process loses nothing; a power cut the last second.
            self._execute("PRAGMA synchronous = NORMAL")
            self._execute("PRAGMA cache_size = -2000")
            self._execute("PRAGMA wal_autocheckpoint = 0")
            # Only where a long reader kept the log from beginning anew does it give the space back.
            self._execute(f"PRAGMA journal_size_limit = {2 * LONGEST_LOG}")
            migrate(self._connection, resources.files(__package__) / "migrations", path)
            self.writer = self._identify()
            self._execute("PRAGMA busy_timeout = 0")

    def _identify(self) -> str:
        """Give this ledger its name for ever, once; readers must not wait for a lock to learn it."""
        if (row := self._execute("SELECT writer FROM ledger").fetchone()) is None:
            self._execute(
                "INSERT INTO ledger (writer, acknowledged, adjustments_version, copies)"
                " SELECT ?, 0, 0, 0 WHERE NOT EXISTS (SELECT * FROM ledger)",
                (uuid.uuid4().hex,),
            )
            row = self._execute("SELECT writer FROM ledger").fetchone()
        return str(row[0])

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Several statements that see the file as it was at one instant."""
        with translated(self._path):
            self._execute("BEGIN")
            try:
                yield
            finally:
                self._abandon()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction, holding the write lock from its start."""
        with translated(self._path):
            self._execute("BEGIN IMMEDIATE")
            try:
                yield
                self._execute("COMMIT")
            finally:
                self._abandon()

    def _abandon(self) -> None:
        """Leave no transaction open, whatever went wrong in it: the next request needs the connection."""
        if self._connection.in_transaction:
            self._execute("ROLLBACK")

    def sync(self) -> None:
        """Bring the write-ahead log to the disk; what is not in it any more is there already."""
        with translated(self._path), suppress(FileNotFoundError):
            # SQLite has no locks on the log, so it may be opened and closed beside it, unlike the file.
            handle = os.open(self._path.with_name(f"{self._path.name}-wal"), os.O_RDONLY)
            try:
                os.fdatasync(handle)
            finally:
                os.close(handle)

    def shorten_log(self) -> None:
        """Copy the write-ahead log into the file, once a second, and have it begin anew when it has become long.

        Until then nobody waits: all that takes long, above all bringing both to the disk, is done beside the writers.
        The log can only begin anew when everything is copied and on the disk, so for the last bit of it writers wait.
        """
        now = time.monotonic()
        if now < self._copied_at + COPY_EVERY:
            return
        with translated(self._path):
            if self._changes() != self._copied:
                self._copied_at = now
                if self._copy_log() >= LONGEST_LOG:
                    self._sync_file()
                    self._copy_log()
                    self._sync_file()
                    # Takes the write lock. Whoever writes next begins the log anew.
                    self._execute("PRAGMA wal_checkpoint(FULL)").fetchone()
                self._copied = self._changes()

    def _changes(self) -> tuple[int, int]:
        """Give numbers that change with what others and what this connection writes."""
        (version,) = self._execute("PRAGMA data_version").fetchone()
        return version, self._connection.total_changes

    def _copy_log(self) -> int:
        """Copy the log up to this instant, but never all of it; give its length in bytes.

        While something is left to copy, no writer can begin the log anew. So none does it at an instant at which it
        would have to wait for the disk; and the bug of older versions cannot strike, which takes a log that was copied
        wholly, is being looked at to be copied, and begins anew just then (https://sqlite.org/wal.html#walresetbug).
        """
        if self._pin is None:
            self._pin = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
        self._pin.execute("BEGIN")
        try:
            self._pin.execute("SELECT copies FROM ledger").fetchone()
            # Committed behind the pinned instant, so it is left.
            self._execute("UPDATE ledger SET copies = copies + 1")
            _, frames, _ = self._execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        finally:
            self._pin.execute("ROLLBACK")
        return int(frames) * (_PAGE_SIZE + _FRAME_HEADER)

    def _sync_file(self) -> None:
        """Bring the file itself to the disk, so that little is left of that when SQLite does it under the lock."""
        status = self._path.stat()
        file = (status.st_dev, status.st_ino)
        if file not in _SYNCED:
            _SYNCED[file] = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        os.fdatasync(_SYNCED[file])

    def close(self) -> None:
        """Close the connection."""
        if self._pin is not None:
            self._pin.close()
        self._connection.close()


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn the driver's errors into ours, also about numbers and texts that SQLite cannot keep."""
    try:
        yield
    except (sqlite3.Error, OSError, OverflowError, UnicodeError) as error:
        raise translate(error, path) from error


def translate(error: Exception, path: Path) -> LedgerError:
    """Say in our words what the driver said."""
    # Python 3.10's sqlite3 has no error codes, only these words.
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        return LedgerBusyError(f"{path} is locked by another process.")
    return LedgerError(f"The ledger {path} does not work: {error}.")

"""The write-ahead log: SQLite appends each commit to it, and the keeper copies (checkpoints) it into the file.

Writers do not wait during that copy, and never for its disk I/O. They wait only for its last part, before a long log
restarts at its beginning. It may be overwritten only when everything is copied and synced.

Versions before 3.51.3 have a bug that damages the file: https://sqlite.org/wal.html#walresetbug

For that, a completely copied log must restart in the instant in which another connection checks for frames to copy.
So the check runs only while some frames certainly remain uncopied, or while no process can write.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

COPY_EVERY = 1.0
"""The interval between copies, in seconds."""
LONGEST_LOG = 32 * 2**20
"""Bytes above which the log restarts at its beginning."""
_FRAME_HEADER = 24
_WAIT = 0.1
_TRIES = 5
_READERS_TAKE = 0.0001
_bring_to_disk = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync

_SYNCED: dict[tuple[int, int], int] = {}
"""Descriptors by device and inode. Never closed: that would drop all locks of SQLite on the file in this process."""


class WriteAheadLog:
    """The log of one file, with two connections of its own, opened when it is first shortened."""

    def __init__(self, path: Path) -> None:
        """Use the path of the file; the log is in the same folder."""
        self._path = path
        self._copying: sqlite3.Connection | None = None
        self._pinning: sqlite3.Connection | None = None
        self._copied_at = -COPY_EVERY
        self._copied_version = 0
        self._page_size = 0

    def sync(self) -> None:
        """Sync the log to disk; frames that are no longer in it were synced already."""
        with suppress(FileNotFoundError):
            # SQLite has no locks on the log, so unlike the file it may be opened and closed here.
            handle = os.open(self._path.with_name(f"{self._path.name}-wal"), os.O_RDONLY)
            try:
                _bring_to_disk(handle)
            finally:
                os.close(handle)

    def shorten(self) -> None:
        """Copy the log once a second, if there were writes; make it restart at its beginning if it is long."""
        now = time.monotonic()
        if now < self._copied_at + COPY_EVERY:
            return
        copying, pinning = self._connections()
        (version,) = copying.execute("PRAGMA data_version").fetchone()
        if version == self._copied_version:
            return
        self._copied_at = now
        if self._copy(copying, pinning) >= LONGEST_LOG:
            # Twice, so that little is left for the time in which no process can write.
            self._sync_file()
            self._copy(copying, pinning)
            self._sync_file()
            self._copy_rest(copying, pinning)
        self._copied_version = version

    def _connections(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        if self._copying is None or self._pinning is None:
            self._copying, self._pinning = (
                sqlite3.connect(self._path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
                for _ in range(2)
            )
            self._copying.execute("PRAGMA synchronous = NORMAL")
            (self._page_size,) = self._copying.execute("PRAGMA page_size").fetchone()
        return self._copying, self._pinning

    def _copy(self, copying: sqlite3.Connection, pinning: sqlite3.Connection) -> int:
        """Copy the log up to now, but never all of it; return its length in bytes.

        While a part is left, no writer can restart the log and wait for the disk.
        """
        pinning.execute("BEGIN")
        try:
            pinning.execute("SELECT copies FROM ledger").fetchone()
            # Written after the pinned snapshot, so it is not copied.
            copying.execute("UPDATE ledger SET copies = copies + 1")
            _, frames, _ = copying.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        finally:
            pinning.execute("ROLLBACK")
        return int(frames) * (self._page_size + _FRAME_HEADER)

    @staticmethod
    def _copy_rest(copying: sqlite3.Connection, pinning: sqlite3.Connection) -> None:
        """Copy the rest while no process can write; the next writer restarts the log."""
        pinning.execute("BEGIN IMMEDIATE")
        try:
            for _ in range(_TRIES):
                _, frames, copied = copying.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if copied == frames:
                    break
                # A reader still uses a page that would be overwritten.
                time.sleep(_READERS_TAKE)
        finally:
            pinning.execute("ROLLBACK")

    def _sync_file(self) -> None:
        """Sync the file itself, so that SQLite has little to sync while no process can write."""
        status = self._path.stat()
        file = (status.st_dev, status.st_ino)
        if file not in _SYNCED:
            _SYNCED[file] = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        _bring_to_disk(_SYNCED[file])

    def close(self) -> None:
        """Close the connections."""
        for connection in (self._copying, self._pinning):
            if connection is not None:
                connection.close()

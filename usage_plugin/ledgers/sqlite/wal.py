"""The write-ahead log: SQLite appends what is written to it, and somebody has to copy it into the file: the keeper.

Writers do not wait meanwhile, above all not for the disk. Only for the last bit they do, when the log has become long
and begins anew: it may not be overwritten before everything is copied and on the disk.

Versions before 3.51.3 have a bug that damages the file (https://sqlite.org/wal.html#walresetbug). It takes a log that
is copied wholly, and begins anew at the instant at which somebody looks for what is to copy. So that is done only
while something is left to copy for certain, or while nobody can write.
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
"""Seconds."""
LONGEST_LOG = 32 * 2**20
"""Bytes after which the log begins anew."""
_FRAME_HEADER = 24
_WAIT = 0.1
_TRIES = 5
_READERS_TAKE = 0.0001
_bring_to_disk = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync

_SYNCED: dict[tuple[int, int], int] = {}
"""Descriptors by device and inode. Never closed: that would drop all locks that SQLite has on the file here."""


class WriteAheadLog:
    """The log of one file, with two connections of its own from when it is first shortened."""

    def __init__(self, path: Path) -> None:
        """Take the path of the file; the log is beside it."""
        self._path = path
        self._copying: sqlite3.Connection | None = None
        self._pinning: sqlite3.Connection | None = None
        self._copied_at = -COPY_EVERY
        self._copied_version = 0
        self._page_size = 0

    def sync(self) -> None:
        """Bring the log to the disk; what is not in it any more is there already."""
        with suppress(FileNotFoundError):
            # SQLite has no locks on the log, so it may be opened and closed beside it, unlike the file.
            handle = os.open(self._path.with_name(f"{self._path.name}-wal"), os.O_RDONLY)
            try:
                _bring_to_disk(handle)
            finally:
                os.close(handle)

    def shorten(self) -> None:
        """Copy the log once a second, if somebody has written; have it begin anew if it is long."""
        now = time.monotonic()
        if now < self._copied_at + COPY_EVERY:
            return
        copying, pinning = self._connections()
        (version,) = copying.execute("PRAGMA data_version").fetchone()
        if version == self._copied_version:
            return
        self._copied_at = now
        if self._copy(copying, pinning) >= LONGEST_LOG:
            # Twice, so that hardly anything is left for the instant at which nobody can write.
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
        """Copy the log up to this instant, but never all of it; give its length in bytes.

        While something is left, no writer can begin the log anew, at an instant at which it would wait for the disk.
        """
        pinning.execute("BEGIN")
        try:
            pinning.execute("SELECT copies FROM ledger").fetchone()
            # Written behind the pinned instant, so it is left.
            copying.execute("UPDATE ledger SET copies = copies + 1")
            _, frames, _ = copying.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        finally:
            pinning.execute("ROLLBACK")
        return int(frames) * (self._page_size + _FRAME_HEADER)

    @staticmethod
    def _copy_rest(copying: sqlite3.Connection, pinning: sqlite3.Connection) -> None:
        """Copy all that is left while nobody can write; whoever writes next begins the log anew."""
        pinning.execute("BEGIN IMMEDIATE")
        try:
            for _ in range(_TRIES):
                _, frames, copied = copying.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if copied == frames:
                    break
                # Somebody reads just now what is to be overwritten.
                time.sleep(_READERS_TAKE)
        finally:
            pinning.execute("ROLLBACK")

    def _sync_file(self) -> None:
        """Bring the file itself to the disk, so that SQLite has little of that to do while nobody can write."""
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

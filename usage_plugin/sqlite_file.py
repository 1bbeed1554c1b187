"""The common base of the SQLite ledger and the SQLite store: private files and numbered migrations.

Migrations are `NNNN_name.sql` files, applied in order under the write lock and counted in `user_version`.
A file from a newer version of the package is rejected.
"""

from __future__ import annotations

import os
import sqlite3
import time
from typing import TYPE_CHECKING

from usage_plugin.errors import StorageVersionError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable
    from pathlib import Path

FIXED_WAL_RESET = ((3, 51, 3), (3, 50, 7), (3, 44, 6))
"""The first release of each branch in which SQLite's WAL-reset bug is fixed (https://sqlite.org/wal.html)."""


def has_wal_reset_bug(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Whether a checkpoint during a write can damage the file with this version of SQLite."""
    newest = FIXED_WAL_RESET[0]
    return version < newest and not any(version[:2] == fixed[:2] and version >= fixed for fixed in FIXED_WAL_RESET)


def create_private(path: Path) -> None:
    """Create the folder and the file, unless they exist, for their owner only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        # Not opened here: closing a file that SQLite has open in this process drops SQLite's locks.
        return


def identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a file, to detect a replacement: SQLite would continue with the old file.

    Returns:
        None if the file does not exist.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def use_write_ahead_log(connection: sqlite3.Connection, timeout: float) -> None:
    """Switch the file to WAL mode, which is persistent; wait for other processes that do so at the same time.

    SQLite itself does not wait here, despite the connection's timeout.

    Raises:
        sqlite3.OperationalError: Other processes held the file for `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # Python 3.10's sqlite3 has no error codes, only messages.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return


def migrate(connection: sqlite3.Connection, migrations: Traversable, path: Path) -> None:
    """Migrate a file to the newest schema; safe when several processes start at once.

    Raises:
        StorageVersionError: This version does not know the file's schema.
    """
    scripts = sorted(
        (int(script.name.split("_", 1)[0]), script.read_text(encoding="utf-8"))
        for script in migrations.iterdir()
        if script.name.endswith(".sql")
    )
    newest = scripts[-1][0]
    if _version(connection) == newest:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection)
        _refuse_newer(version, newest, path)
        for number, script in scripts:
            if number > version:
                for statement in _statements(script):
                    connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {newest}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _refuse_newer(version: int, newest: int, path: Path) -> None:
    if version > newest:
        raise StorageVersionError(
            f"{path}: expected schema {newest} or older; found {version}.",
            hint="Install the version of usage_plugin that wrote it, or a newer one.",
        )


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script, split by SQLite's own test for a complete statement."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""

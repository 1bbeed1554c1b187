"""What the SQLite ledger and the SQLite store have in common: private files and numbered migrations.

Migrations are `NNNN_name.sql` files, applied in order under the write lock and counted in `user_version`.
A file from a newer version of the package is refused, never guessed at.
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
"""Releases since which, on their branch, SQLite's WAL-reset bug is fixed (https://sqlite.org/wal.html)."""


def has_wal_reset_bug(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Say whether a checkpoint beside a writer can damage the file with this version of SQLite."""
    newest = FIXED_WAL_RESET[0]
    return version < newest and not any(version[:2] == fixed[:2] and version >= fixed for fixed in FIXED_WAL_RESET)


def create_private(path: Path) -> None:
    """Create the folder for the owner only, and the file if there is none, readable by the owner only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        # Not opened here: closing a file that SQLite has open in this process drops SQLite's locks.
        return


def identity(path: Path) -> tuple[int, int] | None:
    """Tell a file from one that has taken its place: SQLite itself would go on with the old one. None if it is gone."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def use_write_ahead_log(connection: sqlite3.Connection, timeout: float) -> None:
    """Switch the file to WAL mode, which it then keeps; wait for others that do so at the same time.

    SQLite itself does not wait here, whatever the connection's timeout.

    Raises:
        sqlite3.OperationalError: others have not let go of the file in that time, in seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # Python 3.10's sqlite3 has no error codes, only these words.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return


def migrate(connection: sqlite3.Connection, migrations: Traversable, path: Path) -> None:
    """Bring a file up to the newest schema; safe when several processes start at once.

    Raises:
        StorageVersionError: the file has a schema that this version does not know.
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
            f"{path} has schema {version}; this version of usage_plugin knows {newest}.",
            hint="Install the version that wrote it, or a newer one.",
        )


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _statements(script: str) -> Iterator[str]:
    """Split a script where SQLite says that a statement is complete."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""

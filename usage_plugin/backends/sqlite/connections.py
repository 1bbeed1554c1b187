"""Open the SQLite file of a store: the schema, the connections, transactions, and the driver's errors."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager, contextmanager
from importlib import resources
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import aiosqlite

from usage_plugin.domain.windows import start_of_hour
from usage_plugin.errors import StorageDamagedError, StorageError, StorageUnavailableError
from usage_plugin.sqlite_file import create_private, migrate, use_write_ahead_log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

_BUSY_TIMEOUT = 10.0


def prepare(path: Path, zone: ZoneInfo) -> None:
    """Create the file or migrate it to the current schema, and check the time zone of its days.

    Raises:
        StorageError: The days are of another time zone.
        StorageVersionError: A newer version of the package wrote the file.
    """
    create_private(path)
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None)
    try:
        use_write_ahead_log(connection, _BUSY_TIMEOUT)
        connection.create_function("local_hour", 2, _local_hour, deterministic=True)
        migrate(connection, resources.files(__package__) / "migrations", path)
        row = connection.execute("SELECT zone FROM store").fetchone()
        if row is None:
            # Read first: a reader must not wait for a lock.
            connection.execute("INSERT INTO store (zone) SELECT ? WHERE NOT EXISTS (SELECT * FROM store)", (str(zone),))
            row = connection.execute("SELECT zone FROM store").fetchone()
        kept = row[0]
    finally:
        connection.close()
    if kept != str(zone):
        raise StorageError(
            f"{path} keeps days of the zone {kept}; found usage_plugin.timezone {zone}.",
            hint=f"Set usage_plugin.timezone to {kept}, or move the file away to start a new history.",
        )


def _local_hour(instant: int, zone: str) -> int:
    """Return the start of an hour, for the migration of stores without hourly sums."""
    return start_of_hour(instant, ZoneInfo(zone))


@asynccontextmanager
async def connect(path: Path) -> AsyncIterator[aiosqlite.Connection]:
    """Open a connection for the length of a context."""
    async with aiosqlite.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None) as connection:
        # FULL: acknowledged events leave the outbox, so they must survive a power cut.
        await connection.execute("PRAGMA synchronous = FULL")
        await connection.execute("PRAGMA cache_size = -16000")
        yield connection


@asynccontextmanager
async def transaction(connection: aiosqlite.Connection, kind: str = "DEFERRED") -> AsyncIterator[None]:
    """Commit at the end of the context, or roll back after an error."""
    try:
        await connection.execute(f"BEGIN {kind}")
        yield
        await connection.execute("COMMIT")
    except BaseException:
        # Runs after any statement that the thread still executes for a cancelled caller. Has no effect where SQLite
        # has rolled back by itself, because the disk is full.
        await connection.rollback()
        raise


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Translate the driver's errors into ours."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        raise StorageUnavailableError(f"The store {path} is not available: {error}.") from error
    except (sqlite3.Error, OverflowError, UnicodeError) as error:
        if type(error) is sqlite3.DatabaseError:
            # The file's fault, not that of an event.
            raise StorageDamagedError(
                f"The store {path} is damaged: {error}.", hint="Restore it from a backup, or move it away."
            ) from error
        raise StorageError(f"The store {path} failed: {error}.") from error

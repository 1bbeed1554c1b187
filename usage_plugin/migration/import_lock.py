"""The lock of imports: one process at a time imports into a data folder."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from usage_plugin.errors import MigrationError
from usage_plugin.file_locks import LockTimeoutError, locked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def import_lock(folder: Path) -> Iterator[None]:
    """Hold the lock, in the folder of the staging databases.

    Raises:
        MigrationError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with locked(folder / "lock", timeout=0):
            yield
    except LockTimeoutError:
        raise MigrationError("Another process is importing into this data folder. Retry when it is done.") from None

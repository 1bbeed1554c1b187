"""Files that only their owner may read, and locks that die with their process."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from usage_plugin.errors import MigrationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def privately(path: str, flags: int) -> int:
    """Open a file for its owner only, and through no link."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def write_privately(path: Path) -> TextIO:
    """Begin a text file for its owner only."""
    return os.fdopen(privately(str(path), os.O_CREAT | os.O_WRONLY | os.O_TRUNC), "w", encoding="utf-8")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from importing into the same data folder meanwhile.

    Raises:
        MigrationError: one does so just now.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = privately(str(folder / "lock"), os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MigrationError("Another process is importing into this data folder just now.") from None
        yield
    finally:
        os.close(handle)

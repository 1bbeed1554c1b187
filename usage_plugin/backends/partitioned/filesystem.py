"""The file system: its errors, the store's lock, and one sync for many files."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import uuid
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usage_plugin.errors import StorageError, StorageUnavailableError
from usage_plugin.file_locks import LockTimeoutError, locked

if TYPE_CHECKING:
    from collections.abc import Iterator

BUSY_TIMEOUT = 10.0


@contextmanager
def translated(folder: Path) -> Iterator[None]:
    """Translate errors of the system into ours."""
    try:
        yield
    except OSError as error:
        raise StorageUnavailableError(f"The store {folder} is not available: {error}.") from error
    except (UnicodeError, ValueError) as error:
        raise StorageError(f"The store {folder} cannot accept this record: {error}.") from error


def sync_everything(folder: Path) -> None:
    """Sync the file system of a folder: one call, where thousands of files have changed."""
    system = ctypes.CDLL(None, use_errno=True)
    if not hasattr(system, "syncfs"):
        os.sync()
        return
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Of this file system alone, unlike os.sync(), which hangs if any other does.
        if system.syncfs(handle):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(handle)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a file; None if the file is missing or invalid."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@cache
def boot() -> str:
    """Return an id of this boot of the machine: data written before it and not synced may be lost."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    with suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=True
        )
        return asked.stdout.strip()
    return uuid.uuid4().hex


class StoreLock:
    """The lock of a store's folder: one process writes at a time."""

    def __init__(self, path: Path) -> None:
        """Use a lock file, which is created when it is needed."""
        self._path = path

    @contextmanager
    def held(self, *, wait: float = BUSY_TIMEOUT) -> Iterator[None]:
        """Hold the lock.

        Args:
            wait: The maximum number of seconds to wait for it.

        Raises:
            StorageUnavailableError: Another process held the lock for that time.
        """
        try:
            with locked(self._path, timeout=wait):
                yield
        except LockTimeoutError:
            raise StorageUnavailableError(f"Another process is writing to {self._path.parent}.") from None

"""The disk: private files that appear whole or not at all, and one sync for many of them."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import subprocess
import time
import uuid
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usage_plugin.errors import StorageError, StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

BUSY_TIMEOUT = 10.0


@contextmanager
def translated(folder: Path) -> Iterator[None]:
    """Turn the system's errors into ours."""
    try:
        yield
    except OSError as error:
        raise StorageUnavailableError(f"The store {folder} cannot be used for now: {error}.") from error
    except (UnicodeError, ValueError) as error:
        raise StorageError(f"The store {folder} cannot take this: {error}.") from error


def make_folder(folder: Path) -> None:
    """Make a folder for the owner only, and those above it."""
    # Not with parents=True, which makes those above readable by others.
    if not folder.parent.is_dir():
        make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def open_private(path: Path, flags: int) -> int:
    """Open a file, which is made readable by the owner only."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def write_whole(handle: int, data: bytes) -> None:
    """Write everything; the system may take less at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def replace(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Put a file in the place of another; readers see either.

    Args:
        path: the file.
        data: what it will hold.
        sync: whether it is on the disk when this returns.
    """
    new = beside(path)
    handle = open_private(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_whole(handle, data)
        if sync:
            os.fsync(handle)
    finally:
        os.close(handle)
    new.rename(path)
    if sync:
        sync_folder(path.parent)


def beside(path: Path) -> Path:
    """Name the file that will take the place of another."""
    return path.with_name(f"{path.name}.new")


def remove(path: Path) -> None:
    """Delete a file, if it is there, and what was to take its place when somebody was interrupted."""
    path.unlink(missing_ok=True)
    beside(path).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_everything(folder: Path) -> None:
    """Put all that was written to the folder's file system on the disk: one call, where thousands of files changed."""
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
    """Read an object; None if there is no such file, or none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@cache
def boot() -> str:
    """Tell this boot of the machine from others: what was written before and not synced may be lost."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    with suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=True
        )
        return asked.stdout.strip()
    return uuid.uuid4().hex


class FileLock:
    """One process at a time, by the kernel's lock on a file, which it drops when a process dies."""

    def __init__(self, path: Path) -> None:
        """Use a file, which is made when it is needed."""
        self._path = path

    @contextmanager
    def held(self, *, wait: float | None = None) -> Iterator[None]:
        """Hold the lock.

        Args:
            wait: how many seconds others may have it; None for as long as others usually wait.

        Raises:
            StorageUnavailableError: others have had it for all that time.
        """
        handle = open_private(self._path, os.O_RDWR | os.O_CREAT)
        try:
            deadline = time.monotonic() + (BUSY_TIMEOUT if wait is None else wait)
            while not _locked(handle):
                if time.monotonic() >= deadline:
                    raise StorageUnavailableError(f"Another process is writing to {self._path.parent}.")
                time.sleep(0.002)
            yield
        finally:
            os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

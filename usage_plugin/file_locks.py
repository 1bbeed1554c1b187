"""Exclusive locks on files. The kernel releases them when their process dies, so none is ever stale."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_POLL_SECONDS = 0.002


class LockTimeoutError(Exception):
    """Another process held the lock until the timeout."""


def try_lock(path: Path, *, create: bool = True) -> int | None:
    """Take a lock without waiting. Closing the returned handle releases it.

    Args:
        path: The lock file.
        create: Whether to create it if it does not exist.

    Returns:
        The handle; None if another process holds the lock, or if the file does not exist.

    Raises:
        OSError: The file cannot be opened.
    """
    try:
        handle = _open(path, create=create)
    except FileNotFoundError:
        if create:
            raise
        return None
    if _locked(handle):
        return handle
    os.close(handle)
    return None


@contextmanager
def locked(path: Path, *, timeout: float | None = None) -> Iterator[None]:
    """Hold a lock for the length of a context.

    Args:
        path: The lock file; it is created if it does not exist.
        timeout: Seconds to wait for the lock; None waits without end.

    Raises:
        LockTimeoutError: Another process held the lock until the timeout.
        OSError: The file cannot be opened.
    """
    handle = _open(path)
    try:
        if timeout is None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        else:
            deadline = time.monotonic() + timeout
            while not _locked(handle):
                if time.monotonic() >= deadline:
                    raise LockTimeoutError
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(handle)


class HeldLock:
    """A lock that a process takes once and keeps until it is done."""

    def __init__(self, path: Path) -> None:
        """Use a lock file, which `take` creates."""
        self._path = path
        self._handle: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._handle is not None

    def take(self) -> bool:
        """Take the lock unless it is held already; return False if another process holds it.

        Raises:
            OSError: The file cannot be opened.
        """
        if self._handle is None:
            self._handle = try_lock(self._path)
        return self.is_held

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _open(path: Path, *, create: bool = True) -> int:
    # Not through a link: a lock file may be in a folder that other users can write to.
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    return os.open(path, flags, 0o600)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""Read files that a user names, without waiting for a pipe and without reading forever.

Opening a named pipe blocks until a writer comes, and `/dev/zero` never ends: either would hang a command, or the thread
that re-reads the YAML. Every read of a file that is not our own goes through here.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

_CHUNK = 1 << 20
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISLNK, "a symbolic link"),
)


class NotPlainError(OSError):
    """The path is not a regular file, or the file is larger than allowed; `strerror` says which."""

    def __init__(self, reason: str) -> None:
        """Keep the reason, without a number in front of it."""
        super().__init__(errno.EINVAL, reason)

    def __str__(self) -> str:
        """Return the reason alone."""
        return str(self.strerror)


def open_plain(path: Path, *, follow_links: bool = True) -> BinaryIO:
    """Open a regular file for reading; never blocks on a pipe or a device.

    Raises:
        OSError: it is not a regular file, or it cannot be read.
    """
    # Before the open, because opening a device can have effects; and after it, because the file may have been replaced.
    _check_kind(path.stat(follow_symlinks=follow_links).st_mode)
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    handle = os.open(path, flags)
    try:
        _check_kind(os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_plain(path: Path, most: int) -> bytes:
    """Read a regular file of at most `most` bytes.

    Raises:
        OSError: it is not a regular file, it is larger, or it cannot be read.
    """
    with open_plain(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise NotPlainError(_too_large(most))
        chunks, size = [], 0
        while chunk := file.read(_CHUNK):
            chunks.append(chunk)
            size += len(chunk)
            if size > most:  # it grows, or it is one of the kernel's files, which have no size
                raise NotPlainError(_too_large(most))
    return b"".join(chunks)


def _check_kind(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise NotPlainError(f"expected a regular file; found {kind}")


def _too_large(most: int) -> str:
    return f"expected at most {most >> 20} MiB" if most >= 1 << 20 else f"expected at most {most} bytes"

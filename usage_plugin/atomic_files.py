"""Safe access to files: reads that never block, and private writes that appear whole or not at all.

Opening a named pipe blocks until a writer opens it, and `/dev/zero` never ends. Either would hang a command, or the
thread that re-reads the YAML. Every read of a file that a user names therefore uses `open_regular` or `read_regular`.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, BinaryIO, TextIO

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


class NotRegularFileError(OSError):
    """The path is not a regular file, or the file exceeds the allowed size; `strerror` has the reason."""

    def __init__(self, reason: str) -> None:
        """Keep the reason, without an error number in front of it."""
        super().__init__(errno.EINVAL, reason)

    def __str__(self) -> str:
        """Return the reason alone."""
        return str(self.strerror)


def open_regular(path: Path, *, follow_links: bool = True) -> BinaryIO:
    """Open a regular file for reading; never block on a pipe or a device.

    Raises:
        OSError: The path is not a regular file, or it cannot be read.
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


def read_regular(path: Path, most: int) -> bytes:
    """Read a regular file of at most `most` bytes.

    Raises:
        OSError: The path is not a regular file, exceeds the size, or cannot be read.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise NotRegularFileError(_too_large(most))
        chunks, size = [], 0
        while chunk := file.read(_CHUNK):
            chunks.append(chunk)
            size += len(chunk)
            if size > most:  # a growing file, or one of the kernel's files, which have no size
                raise NotRegularFileError(_too_large(most))
    return b"".join(chunks)


def _check_kind(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise NotRegularFileError(f"expected a regular file; found {kind}")


def _too_large(most: int) -> str:
    return f"expected at most {most >> 20} MiB" if most >= 1 << 20 else f"expected at most {most} bytes"


def make_private_folder(folder: Path) -> None:
    """Create a folder for the owner only, and its missing parents likewise."""
    # Not with parents=True, which creates parents that others can read.
    if not folder.parent.is_dir():
        make_private_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def open_private(path: Path, flags: int, *, follow_links: bool = True) -> int:
    """Return a handle of a file; create it readable by its owner only."""
    return os.open(path, flags | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW), 0o600)


def open_private_text(path: Path) -> TextIO:
    """Open an empty text file for writing; only its owner can read it, and a link is not followed."""
    handle = open_private(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, follow_links=False)
    return os.fdopen(handle, "w", encoding="utf-8")


def write_all(handle: int, data: bytes) -> None:
    """Write all bytes; the system may accept fewer in one call."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def replace_file(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Replace a file's content atomically: readers see the old or the new content.

    Args:
        path: The file.
        data: Its new content.
        sync: Whether the content is durable when this returns.
    """
    new = staged(path)
    handle = open_private(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_all(handle, data)
        if sync:
            os.fsync(handle)
    finally:
        os.close(handle)
    new.rename(path)
    if sync:
        sync_folder(path.parent)


def staged(path: Path) -> Path:
    """Return the path of the new version of a file, until it replaces the file."""
    return path.with_name(f"{path.name}.new")


def remove_file(path: Path) -> None:
    """Delete a file and its staged version, if they exist: an interrupted process leaves the latter behind."""
    path.unlink(missing_ok=True)
    staged(path).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

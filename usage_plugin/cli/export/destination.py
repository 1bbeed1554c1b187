"""The destination of an export: standard output, or a file that appears when it is complete."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from usage_plugin.cli.output import at_terminal
from usage_plugin.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def destination(to: Path | None, *, force: bool) -> Iterator[BinaryIO]:
    """Open standard output, or a file that is readable by its owner only and gets its name when it is complete.

    Raises:
        ExportError: the file exists and `force` is False, or it cannot be written.
    """
    if to is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = to.resolve()
    _reject_existing(path, force=force)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise ExportError(f"{to} cannot be written: {error}.") from error
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _reject_existing(path, force=force)
        part.replace(path)
    except OSError as error:
        raise ExportError(f"{to} cannot be written: {error}.") from error
    finally:
        part.unlink(missing_ok=True)


def prints_to_terminal(to: Path | None) -> bool:
    """Whether the records are printed to a terminal, where a progress bar would disturb them."""
    return to is None and at_terminal()


def _reject_existing(path: Path, *, force: bool) -> None:
    """Reject an existing file without `force`; a folder or a device always."""
    if path.exists() and not path.is_file():
        raise ExportError(f"Not a regular file: {path}.", hint="To write to a pipe, omit --to.")
    if path.exists() and not force:
        raise ExportError(f"File already exists: {path}.", hint="Name another file, or replace it with --force.")

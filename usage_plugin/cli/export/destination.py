"""Where an export goes: to standard output, or into a file that appears when it is complete."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from usage_plugin.cli.output import at_terminal
from usage_plugin.errors import UsagePluginError

if TYPE_CHECKING:
    from collections.abc import Iterator


class ExportError(UsagePluginError):
    """The export cannot be written."""


@contextmanager
def target(to: Path | None, *, force: bool) -> Iterator[BinaryIO]:
    """Open a file for its owner only, under its name once everything is in it; without one, standard output.

    Raises:
        ExportError: the file is there already and `force` is not meant, or it cannot be written.
    """
    if to is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = to.resolve()
    _look(path, force=force)
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
        _look(path, force=force)
        part.replace(path)
    except OSError as error:
        raise ExportError(f"{to} cannot be written: {error}.") from error
    finally:
        part.unlink(missing_ok=True)


def prints_to_terminal(to: Path | None) -> bool:
    """Say whether the records go to a terminal, where a bar would be in their way."""
    return to is None and at_terminal()


def _look(path: Path, *, force: bool) -> None:
    """Refuse what must not be replaced: a folder or a device never."""
    if path.exists() and not path.is_file():
        raise ExportError(f"{path} is no ordinary file.", hint="Without --to everything is printed, for a pipe.")
    if path.exists() and not force:
        raise ExportError(f"{path} is there already.", hint="Name another file, or replace it with --force.")

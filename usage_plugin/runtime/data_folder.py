"""The data folder at the start: a folder that cannot be used is named with its setting, before anything is opened."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from usage_plugin.errors import ConfigError

SETTING = "usage_plugin.data_dir"

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})
"""Errors that pass: a worker that restarts while the disk is full goes on with the files that are there."""


def prepare_data_folder(folder: Path) -> None:
    """Make the folder, for its owner only, and prove by a file that it can be written to.

    Only a written file proves it: root passes every check of permissions, also on a read-only mount.

    Raises:
        ConfigError: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(prefix=".writable-", dir=folder)
        os.close(handle)
        Path(name).unlink()
    except OSError as error:
        if error.errno in _NO_ROOM:
            return
        raise ConfigError(_said(folder, error), hint=_REMEDY) from error


_REMEDY = (
    f"Name a folder that the proxy's user may write to under {SETTING}, or in the variable USAGE_PLUGIN_DATA_DIR;"
    " it must be on a local disk."
)


def _said(folder: Path, error: OSError) -> str:
    for path in (folder, *folder.parents):
        if os.path.lexists(path):
            if not path.is_dir():
                return f"{SETTING}: expected a folder; found something else: {path}."
            break
    return f"{SETTING}: the folder {folder} cannot be written to: {error.strerror}."

"""Load a plugin from a single Python file, which the YAML names.

A user who can write or replace the file can run code in the proxy. So a file that other users can change is rejected.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import stat
import sys
from typing import TYPE_CHECKING

from usage_plugin.atomic_files import open_regular
from usage_plugin.errors import PluginError

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


_MOST_BYTES = 16 << 20


def load_file(path: Path) -> ModuleType:
    """Execute a file as a module with a unique name.

    Raises:
        PluginError: The file does not exist, or other users can change it.
    """
    try:
        real = path.resolve(strict=True)
        _check_safe(real.parent, real.parent.stat())
        with open_regular(real) as file:
            # Of the open file, so that the checked file is the one that is read.
            found = os.fstat(file.fileno())
            _check_safe(real, found)
            if found.st_size > _MOST_BYTES:
                raise PluginError(
                    f"The plugin {path}: expected at most {_MOST_BYTES >> 20} MiB.", hint="Is it the right file?"
                )
            source = file.read(_MOST_BYTES)
    except OSError as error:
        raise PluginError(
            f"Cannot read the plugin {path}: {error.strerror}.",
            hint="A path under usage_plugin.plugins starts in the folder of the YAML.",
        ) from error
    name = f"usage_plugin_file_{hashlib.blake2b(os.fsencode(real), digest_size=6).hexdigest()}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, real)
    if spec is None:
        raise PluginError(f"The plugin {path}: expected a Python file.", hint="Its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        # Compiled here: another user may have written the files in __pycache__.
        exec(compile(source, real, "exec", dont_inherit=True), module.__dict__)  # noqa: S102  # a plugin is code
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _check_safe(path: Path, found: os.stat_result) -> None:
    """Reject a path that users other than root and the process's own can change."""
    if found.st_mode & stat.S_IWOTH:
        raise PluginError(
            f"{path} is writable by all users; plugins are not loaded from it.", hint=f"Run: chmod o-w {path}"
        )
    if found.st_uid not in (0, os.geteuid()):
        raise PluginError(
            f"{path} belongs to user {found.st_uid}; plugins are not loaded from it.",
            hint=f"Its owner must be root or the proxy's user. Run: chown {os.geteuid()} {path}",
        )

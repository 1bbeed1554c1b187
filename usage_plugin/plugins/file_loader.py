"""A plugin that is one file of Python, named in the YAML.

Whoever can write the file, or put another in its place, runs code in the proxy. So a file that others may change is
refused.
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
    """Run a file as a module of its own, with a name that no other has.

    Raises:
        PluginError: it is not there, others may change it, or it raises.
    """
    try:
        real = path.resolve(strict=True)
        _check_safe(real.parent, real.parent.stat())
        with open_regular(real) as file:
            # Of the open file, so that it is the one that is read.
            found = os.fstat(file.fileno())
            _check_safe(real, found)
            if found.st_size > _MOST_BYTES:
                raise PluginError(
                    f"The plugin {path} is larger than {_MOST_BYTES >> 20} MiB.", hint="Is it the right file?"
                )
            source = file.read(_MOST_BYTES)
    except OSError as error:
        raise PluginError(
            f"The plugin {path} cannot be read: {error.strerror}.",
            hint="A path under usage_plugin.plugins starts from the folder of the YAML.",
        ) from error
    name = f"usage_plugin_file_{hashlib.blake2b(os.fsencode(real), digest_size=6).hexdigest()}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, real)
    if spec is None:
        raise PluginError(f"The plugin {path} is no file of Python.", hint="Its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        # Compiled here: what lies in __pycache__ may be somebody else's.
        exec(compile(source, real, "exec", dont_inherit=True), module.__dict__)  # noqa: S102  # that is what a plugin is
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _check_safe(path: Path, found: os.stat_result) -> None:
    """Refuse what somebody else than root or this process's user may change."""
    if found.st_mode & stat.S_IWOTH:
        raise PluginError(
            f"{path} may be written by everybody, so no plugin is loaded from there.", hint=f"Run: chmod o-w {path}"
        )
    if found.st_uid not in (0, os.geteuid()):
        raise PluginError(
            f"{path} belongs to user {found.st_uid}, so no plugin is loaded from there.",
            hint=f"It must belong to root or to who runs the proxy: chown {os.geteuid()} {path}",
        )

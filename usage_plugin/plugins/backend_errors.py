"""Name the backend of a plugin whose code raised an error that is not one of ours.

Otherwise a command ends with a traceback, in which an operator does not recognize the plugin.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from usage_plugin.errors import PluginError, UsagePluginError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from usage_plugin.plugins.interface import StorageBackend

_OURS = "usage_plugin"


@contextmanager
def naming(backend: StorageBackend[Any], owner: str) -> Iterator[None]:
    """Convert errors that code of the backend's package raises; our own bugs keep their traceback.

    Args:
        backend: The backend.
        owner: The backend and its plugin, for the error.

    Raises:
        PluginError: The code raised an error other than ours.
    """
    try:
        yield
    except UsagePluginError:
        raise
    except Exception as error:
        place = _place_in(error.__traceback__, type(backend).__module__.partition(".")[0])
        if place is None:
            raise
        raise PluginError(
            f"{owner[0].upper()}{owner[1:]} failed: {type(error).__name__}: {error} ({place}).",
            hint="Report it to the author: a backend raises StorageError, or ConfigError in check().",
        ) from error


def _place_in(trace: TracebackType | None, package: str) -> str | None:
    """Return the last line of a traceback in a package's code; None if there is none, or the package is ours."""
    place = None
    while trace is not None:
        code = trace.tb_frame
        if package != _OURS and str(code.f_globals.get("__name__", "")).partition(".")[0] == package:
            place = f"{code.f_code.co_filename}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place

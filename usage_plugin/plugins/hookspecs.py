"""Every hook, with when it is called and what it must return."""

from __future__ import annotations

from typing import Any

import pluggy

from usage_plugin.domain.alerts import Alert
from usage_plugin.plugins import PROJECT

# Needed at run time, because pluggy reads the signatures.
from usage_plugin.plugins.interface import LedgerBackend, StorageBackend

hookspec = pluggy.HookspecMarker(PROJECT)


@hookspec
def usage_register_storage_backends() -> list[StorageBackend[Any]]:
    """Register backends that keep the history, to be chosen by name under `storage.backend`.

    Called once at start, synchronously. What it raises stops the start and names the plugin.
    """
    raise NotImplementedError


@hookspec
def usage_register_ledgers() -> list[LedgerBackend[Any]]:
    """Register backends that keep accounts and reservations, to be chosen by name under `ledger.backend`.

    Called once at start, synchronously. What it raises stops the start and names the plugin.
    """
    raise NotImplementedError


@hookspec
def usage_threshold_crossed(alert: Alert) -> None:
    """Be told that what was spent has passed a threshold of a limit's `alert_at`.

    Called once for each limit, subject, window and threshold, over all workers and restarts; for rolling windows once
    a day. Each plugin is called in a thread of its own, off the request path, one alert after the other. What it raises
    is logged with the plugin's name and counted. While it does not return, at most 1,000 alerts wait for it; once it
    has not returned for 30 seconds, further ones are dropped for it, logged and counted.
    """
    raise NotImplementedError

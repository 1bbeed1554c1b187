"""Every hook, with when it is called and what it must return."""

from __future__ import annotations

from typing import Any

import pluggy

from usage_plugin.plugins import PROJECT

# The one that is needed at run time, because pluggy reads the signatures.
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

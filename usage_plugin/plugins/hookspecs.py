"""Every hook: the time of its call, and its return value; docs/plugin-hooks.md has an example of each.

There are three kinds of hooks. A *registration* is called once, at the start of any program that reads the
configuration, and returns objects that act. A *notification* is called in a thread of the plugin's own, off the request
path, and returns nothing. A *duty* is called by a command, which fails if the plugin does.
"""

from __future__ import annotations

from typing import Any

import pluggy

from usage_plugin.domain.alerts import Alert
from usage_plugin.domain.refusals import RefusedRequest
from usage_plugin.domain.usage import UsageEvent
from usage_plugin.plugins import PROJECT

# Needed at run time, because pluggy reads the signatures.
from usage_plugin.plugins.interface import IdentityResolver, LedgerBackend, StorageBackend

hookspec = pluggy.HookspecMarker(PROJECT)


@hookspec
def usage_register_storage_backends() -> list[StorageBackend[Any]]:
    """Register backends that keep the history, to be chosen by name under `storage.backend`.

    Called once at start, synchronously. An exception stops the start and names the plugin.
    """
    raise NotImplementedError


@hookspec
def usage_register_ledgers() -> list[LedgerBackend[Any]]:
    """Register backends that keep accounts and reservations, to be chosen by name under `ledger.backend`.

    Called once at start, synchronously. An exception stops the start and names the plugin.
    """
    raise NotImplementedError


@hookspec
def usage_register_identity_resolvers() -> list[IdentityResolver]:
    """Register resolvers, to be chosen by name as `resolver:NAME` in `identity.user` or in `identity.groups_from`.

    Called once at start, synchronously. An exception stops the start and names the plugin.
    """
    raise NotImplementedError


@hookspec
def usage_event_recorded(event: UsageEvent) -> None:
    """Receive a usage event after it was recorded.

    Called at most once for each event, in the worker that recorded it, or in the keeper for a recovered event. The
    event is in the ledger by then, and may not be in the store yet. Events that wait for a plugin are lost when its
    worker is killed: a plugin that needs every event must read the store.
    """
    raise NotImplementedError


@hookspec
def usage_request_refused(refusal: RefusedRequest) -> None:
    """Receive the refusal of a request by a limit, or because the ledger or the store is not available.

    Called for enforced refusals only: not for dry runs, nor for invalid requests. Clients retry in storms, so a plugin
    must be ready for many calls with the same content.
    """
    raise NotImplementedError


@hookspec
def usage_threshold_crossed(alert: Alert) -> None:
    """Receive the alert that the spend has passed a threshold of a limit's `alert_at`.

    Called once for each limit, subject, window and threshold, over all workers and restarts; for rolling windows once
    a day.
    """
    raise NotImplementedError


@hookspec
def usage_user_forgotten(user: str) -> None:
    """Erase a user: delete all data of the user that this plugin keeps.

    Called by `usage-plugin forget`, in its own process, for each name under which the user may be kept, after the user
    was erased from the history. It may be called again for the same name. When it raises, the command reports the
    error and fails.
    """
    raise NotImplementedError
